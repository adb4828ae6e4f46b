"""Sizes that are worked out beforehand are those of the real network, on real slices."""

import pytest
import torch

from harness.config import Config
from harness.data.open import CHANNELS, open_dataset
from harness.errors import UserError
from harness.model.anatomy import DTYPES, anatomy_of
from harness.parallel.topology import Topology
from harness.train.assembly import assemble
from tests.measured_need import noise
from tests.wide import wide_world

LAYOUTS = ("replicated", "node", "world")
GRIDS = [(1, 1), (1, 3), (3, 1), (2, 2)]
CLASSES = 103
"""Divides among none of these grids' ranks."""


def config(layout: str, precision: str = "fp32", margin: str = "none") -> Config:
    return Config.model_validate(
        {
            "data": {"dataset": "synthetic", "num_classes": CLASSES, "image_size": 8},
            "backbone": {"feature_dim": 24},
            "classifier": {"layout": layout, "margin": margin},
            "train": {"batch_size": 4, "steps": 1, "precision": precision},
        }
    )


@pytest.mark.parametrize("margin", ["none", "arcface"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("nodes", "ranks_per_node"), GRIDS)
def test_it_is_that_of_the_real_network(
    nodes: int, ranks_per_node: int, layout: str, precision: str, margin: str
) -> None:
    given = config(layout, precision, margin)
    world = wide_world(nodes, ranks_per_node, given.classifier.layout)
    model = assemble(given, noise(given), world)
    found = anatomy_of(given, nodes, ranks_per_node)
    assert found == model.anatomy
    backbone, classifier = model.backbone, model.classifier
    parameters = [*backbone.parameters(), *classifier.parameters()]
    assert found.backbone == tuple(each.shape for each in backbone.parameters())
    own = found.classifier(classifier.owned.size)
    assert own == tuple(each.shape for each in classifier.parameters())
    assert {each.dtype for each in parameters} == {found.dtype}
    assert found.element_bytes == model.shared.values.element_size()
    assert found.shared_elements == model.shared.elements
    assert sum(shape.numel() for shape in found.shared) == model.shared.elements
    assert found.slices[0] == classifier.owned
    assert found.per_class * classifier.owned.size == sum(map(torch.numel, classifier.parameters()))
    images = torch.zeros(2, found.channels, 8, 8, dtype=found.dtype)
    assert backbone.eval()(images).shape == (2, found.features)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("nodes", "ranks_per_node"), GRIDS)
def test_slices_are_those_of_all_ranks(layout: str, nodes: int, ranks_per_node: int) -> None:
    """Each class is owned once in a slice group, by the rank that the topology has there."""
    found = anatomy_of(config(layout), nodes, ranks_per_node)
    assert [n for own in found.slices for n in range(own.start, own.stop)] == list(range(CLASSES))
    for rank in range(nodes * ranks_per_node):
        topology = Topology(rank, nodes, ranks_per_node)
        group = topology.slice_group(found.layout)
        assert found.owners == len(group)
        assert group.index(rank) == rank % found.owners
        assert len(topology.replica_group(found.layout)) * found.owners == nodes * ranks_per_node
    assert found.replicated_slices == (found.slices if layout == "node" else ())
    sizes = [own.size for own in found.slices]
    assert found.largest_slice == max(sizes) == -(-CLASSES // found.owners)
    sliced = 0 if layout == "replicated" else found.largest_slice * found.per_class
    assert found.sliced_elements == sliced
    assert found.classifier_elements == sum(sizes) * found.per_class


def test_a_data_set_has_the_channels_that_are_known_before_it_is_opened() -> None:
    """Only two can be opened without files; the others give the same constant to both."""
    for name in ("glyphs", "synthetic"):
        data = Config.model_validate(
            {"data": {"dataset": name, "num_classes": 10, "image_size": 16}, "train": {"steps": 1}}
        ).data
        opened = open_dataset(data.model_copy(update={"cache": ".cache/data"}))
        images, _ = opened.train.read(torch.arange(1))
        assert images.shape[1] == opened.channels == CHANNELS[name]


def test_a_backbone_that_cannot_take_the_images() -> None:
    given = config("replicated")
    named = given.backbone.model_copy(update={"name": "no_such_network"})
    with pytest.raises(UserError, match="no_such_network"):
        anatomy_of(given.model_copy(update={"backbone": named}), 1, 1)

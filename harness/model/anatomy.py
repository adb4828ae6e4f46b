"""How big a run's model is and how it lies on the ranks, worked out in one place for all who ask.

Letters as in the formulas: M nodes of G ranks; P elements that a node's ranks share; C classes with
D features each, of which a rank's slice has K.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch

from harness.config import BackboneConfig, Config
from harness.data.open import channels_of
from harness.model.backbone import Backbone, make_backbone
from harness.parallel.slices import Slice, slice_of
from harness.parallel.topology import Layout, Topology

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""What parameters are kept in, by precision; autocast alone makes bf16 of float32."""


@dataclass(frozen=True)
class Anatomy:
    """The sizes of one run's model."""

    layout: Layout
    nodes: int
    ranks_per_node: int
    backbone: tuple[torch.Size, ...]
    """Shapes of the backbone's parameters, in the order in which the network has them."""
    features: int
    """D, the features of an image."""
    channels: int
    """An image has so many."""
    classes: int
    """C, the classes of all slices together."""
    has_bias: bool
    """Each class has a bias beside its row of the weight."""
    dtype: torch.dtype
    """Parameters, gradients and the optimizer's state are kept in it."""

    @property
    def topology(self) -> Topology:
        """As rank 0 sees it."""
        return Topology(0, self.nodes, self.ranks_per_node)

    @property
    def element_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def is_replicated(self) -> bool:
        """Every rank has all classes, and shares them as it shares the backbone."""
        return self.layout == "replicated"

    @property
    def owners(self) -> int:
        """Ranks that together own every class once: the size of a slice group."""
        return len(self.topology.slice_group(self.layout))

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The classes of each rank of a slice group."""
        return tuple(slice_of(self.classes, self.owners, n) for n in range(self.owners))

    @property
    def largest_slice(self) -> int:
        """K of the rank that owns the most classes."""
        return max(own.size for own in self.slices)

    @property
    def per_class(self) -> int:
        """Elements that a class has: a row of the weight, and a bias if there is one."""
        return self.features + self.has_bias

    @cached_property
    def backbone_elements(self) -> int:
        return sum(shape.numel() for shape in self.backbone)

    @property
    def classifier_elements(self) -> int:
        """Elements of all slices together."""
        return self.classes * self.per_class

    def classifier(self, classes: int) -> tuple[torch.Size, ...]:
        """Shapes of the classifier's parameters for so many classes."""
        weight = torch.Size([classes, self.features])
        return (weight, torch.Size([classes])) if self.has_bias else (weight,)

    @cached_property
    def shared(self) -> tuple[torch.Size, ...]:
        """Shapes of what every rank of a node holds, in the network's order."""
        own = self.classifier(self.classes) if self.is_replicated else ()
        return self.backbone + own

    @property
    def shared_elements(self) -> int:
        """P."""
        return self.backbone_elements + self.is_replicated * self.classifier_elements

    @property
    def sliced_elements(self) -> int:
        """Elements of the largest slice; 0 if the classes are replicated."""
        return 0 if self.is_replicated else self.largest_slice * self.per_class

    @property
    def replicated_slices(self) -> tuple[Slice, ...]:
        """The slices of a node's ranks, if the other nodes own the same ones; else none."""
        return self.slices if self.layout == "node" else ()

    @classmethod
    def of(cls, config: Config, topology: Topology, sketch: "Sketch") -> "Anatomy":
        """What a run on these ranks has, with a backbone like this."""
        return cls(
            layout=config.classifier.layout,
            nodes=topology.nodes,
            ranks_per_node=topology.ranks_per_node,
            backbone=sketch.shapes,
            features=sketch.features,
            channels=sketch.channels,
            classes=config.data.num_classes,
            has_bias=config.classifier.margin == "none",
            dtype=DTYPES[config.train.precision],
        )


@dataclass(frozen=True)
class Sketch:
    """A backbone, as far as other sizes depend on it."""

    shapes: tuple[torch.Size, ...]
    """Its parameters have these, in the order in which the network has them."""
    features: int
    channels: int
    """The images that it takes have so many."""

    @classmethod
    def of(cls, backbone: Backbone, channels: int) -> "Sketch":
        shapes = tuple(parameter.shape for parameter in backbone.parameters())
        return cls(shapes, backbone.features, channels)


def anatomy_of(config: Config, nodes: int, ranks_per_node: int) -> Anatomy:
    """What a run on M `nodes` of G ranks will have, found without a data set.

    Raises UserError for a backbone that cannot take the images.
    """
    sketch = _sketch(config.backbone, channels_of(config.data), config.data.image_size)
    return Anatomy.of(config, Topology(0, nodes, ranks_per_node), sketch)


@cache
def _sketch(config: BackboneConfig, channels: int, size: int) -> Sketch:
    return Sketch.of(make_backbone(config, channels, size, seed=0), channels)

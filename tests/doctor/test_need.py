"""The memory that is counted for a rank, beside what its tensors really take, to the byte."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from harness.config import Config
from harness.doctor.need import Need, exponentials_of, need_of, products_of
from harness.errors import UserError
from tests.laws.task import weights
from tests.measured_need import Measured, measured
from tests.wide import wide_world

CLASSES = 16000


def config(layout: str = "node", **changes: object) -> Config:
    """One case; `changes` are dotted keys with dots written as two underscores."""
    values: dict[str, dict[str, object]] = {
        "data": {"dataset": "synthetic", "num_classes": CLASSES, "image_size": 8},
        "backbone": {"feature_dim": 32},
        "classifier": {"layout": layout},
        "exchange": {},
        "optimizer": {},
        "train": {"batch_size": 64, "steps": 20, "save": True, "matmul_seconds": 0},
        "staleness": {"curvature_every": 1, "curvature_products": 1, "sample_every": 1},
    }
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        values[section][key] = value
    return Config.model_validate(values)


LATE = {"exchange__kind": "delayed", "exchange__delay": 1}
AVERAGING = {"exchange__kind": "averaging", "exchange__delay": 1}
PARAMETERS = {"train__batch_size": 4, "backbone__feature_dim": 256}
"""Little besides the classifier's weight."""
FROZEN = {"backbone__weights": weights("batch", channels=3), "backbone__frozen": "body"}
IMAGES = {"data__num_classes": 100, "data__image_size": 24, "train__batch_size": 48}

CASES: dict[str, tuple[Config, int, int]] = {
    "logits": (config("replicated"), 1, 1),
    "logits, bf16": (config("replicated", train__precision="bf16"), 1, 1),
    "logits, margin": (config("replicated", classifier__margin="cosface"), 1, 1),
    "logits, margin, bf16": (
        config("replicated", classifier__margin="arcface", train__precision="bf16"),
        1,
        1,
    ),
    "logits over the world, fp64": (
        config("world", data__num_classes=40000, train__batch_size=8, train__precision="fp64"),
        2,
        4,
    ),
    "logits over a node, late": (
        config(data__num_classes=40000, train__batch_size=16, **LATE),
        2,
        4,
    ),
    "weights, late, one rank": (config(**PARAMETERS, **LATE), 1, 1),
    "weights, late, AdamW, fp16": (
        config(**PARAMETERS, **LATE, optimizer__name="adamw", exchange__compression="fp16"),
        2,
        2,
    ),
    "weights, averaging, margin": (
        config(**PARAMETERS, **AVERAGING, classifier__margin="cosface"),
        2,
        2,
    ),
    "weights, averaging in pieces, int8, outer": (
        config(
            **PARAMETERS,
            **AVERAGING,
            exchange__pieces=2,
            exchange__compression="int8",
            exchange__outer_lr=0.7,
            exchange__outer_momentum=0.9,
        ),
        2,
        2,
    ),
    "weights, averaging, slices at their own pace, int8": (
        config(
            **PARAMETERS,
            **AVERAGING,
            exchange__pieces=1,
            exchange__slice_pieces=3,
            exchange__compression="int8",
        ),
        2,
        2,
    ),
    "weights, late by two, fp16, three nodes": (
        config(**PARAMETERS, **LATE | {"exchange__delay": 2}, exchange__compression="fp16"),
        3,
        2,
    ),
    "weights, flat, fp16": (
        config("replicated", **PARAMETERS, exchange__route="flat", exchange__compression="fp16"),
        2,
        2,
    ),
    "weights, flat, int4, eight ranks": (
        config("replicated", **PARAMETERS, exchange__route="flat", exchange__compression="int4"),
        4,
        2,
    ),
    "weights, through nodes": (config("replicated", **PARAMETERS), 2, 2),
    "weights, through nodes of three": (config("replicated", **PARAMETERS), 2, 3),
    "weights, through nodes, int8": (
        config("replicated", **PARAMETERS, exchange__compression="int8"),
        2,
        2,
    ),
    "weights, slices at once, int8": (
        config("node", **PARAMETERS, exchange__compression="int8"),
        2,
        2,
    ),
    "images": (
        config("replicated", **IMAGES),
        1,
        1,
    ),
}
FROZEN_CASES: dict[str, tuple[Config, int, int]] = {
    "images, frozen": (config("replicated", **IMAGES, **FROZEN), 1, 1),
    "weights, frozen, averaging, margin": (
        config(**PARAMETERS, **AVERAGING, **FROZEN, classifier__margin="cosface"),
        2,
        2,
    ),
}
MANY = {"data__num_classes": 160_000, "classifier__sampling": 0.3}
SAMPLED: dict[str, tuple[Config, int, int]] = {
    "sampled": (config("replicated", classifier__sampling=0.3), 1, 1),
    "sampled, margin": (
        config("replicated", classifier__sampling=0.3, classifier__margin="cosface"),
        1,
        1,
    ),
    "sampled, margin, bf16, several micro-batches": (
        config(
            "replicated",
            classifier__sampling=0.3,
            classifier__margin="arcface",
            train__precision="bf16",
            exchange__backward_passes_per_step=2,
        ),
        1,
        1,
    ),
    "sampled, drawn rows of slices": (
        config("node", **MANY, **AVERAGING, exchange__slice_rows="drawn"),
        2,
        4,
    ),
    "sampled, drawn rows of slices, int8": (
        config(
            "node",
            **MANY,
            **AVERAGING,
            exchange__slice_rows="drawn",
            exchange__compression="int8",
        ),
        2,
        4,
    ),
    "sampled, slices of the world": (config("world", **MANY), 2, 4),
    "sampled, slices of a node, late": (config("node", **MANY, **LATE), 2, 4),
}
BELOW, ABOVE = 0.02, 0.12
"""By how much less and more may be counted, as shares of what is measured. Above: what is counted
of activations is an estimate, and moments that come one after the other are taken together."""


@cache
def measured_case(name: str) -> tuple[Need, Measured]:
    given, nodes, ranks = (CASES | SAMPLED | FROZEN_CASES)[name]
    torch.set_num_threads(1)
    world = wide_world(nodes, ranks, given.classifier.layout)
    with tempfile.TemporaryDirectory() as folder:
        return need_of(given, nodes, ranks), measured(given, world, Path(folder))


EACH_CASE = pytest.mark.parametrize("name", CASES)
"""Those in which training has all classes, as evaluations have."""


@pytest.mark.parametrize("name", CASES | SAMPLED | FROZEN_CASES)
def test_what_is_counted_lives_at_the_peak(name: str) -> None:
    need, found = measured_case(name)
    counted = {
        "resting": 0,
        "training": need.training,
        "evaluation": need.evaluation,
        "estimate": need.estimate,
        "saving": need.copies + need.saving,
    }
    always = need.certain + need.images
    off = {key: (always + size) / getattr(found, key) - 1 for key, size in counted.items()}
    assert {key: share for key, share in off.items() if not -BELOW < share < ABOVE} == {}


TEN = (
    "logits",
    "logits, bf16",
    "logits, margin",
    "logits over the world, fp64",
    "logits over a node, late",
    "weights, late, AdamW, fp16",
    "weights, averaging, margin",
    "weights, averaging, slices at their own pace, int8",
    "sampled, slices of the world",
    "sampled, drawn rows of slices",
)


@pytest.mark.parametrize("name", TEN)
def test_the_peak_of_a_run_is_predicted_within_five_percent(name: str) -> None:
    need, found = measured_case(name)
    moments = need.training, need.evaluation, need.estimate, need.copies + need.saving
    predicted = need.certain + need.images + max(moments)
    peak = max(found.training, found.evaluation, found.estimate, found.saving)
    assert predicted == pytest.approx(peak, rel=0.05)


@EACH_CASE
def test_an_evaluation_takes_no_more_than_training(name: str) -> None:
    need, found = measured_case(name)
    assert found.evaluation - need.evaluation_on_host <= found.training
    # Nodes that differ keep their own part beside their mean.
    assert found.evaluation <= 1.02 * max(found.training, found.resting + need.evaluation_on_host)


@EACH_CASE
def test_an_estimate_takes_a_copy_of_the_parameters_more_at_the_most(name: str) -> None:
    """And on a card nothing more, where that copy is in the host's memory."""
    need, found = measured_case(name)
    own = found.estimate - need.estimate_on_host
    assert own <= 1.02 * max(found.training, found.evaluation)


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [({"momentum": 0.0}, 0), ({"momentum": 0.9}, 1), ({"name": "adamw"}, 2)],
)
def test_what_the_optimizer_keeps(optimizer: dict[str, object], states: int) -> None:
    changes = {f"optimizer__{key}": value for key, value in optimizer.items()}
    need = need_of(config("replicated", **changes), 1, 1)
    plain = need_of(config("replicated", optimizer__momentum=0.0), 1, 1)
    assert need.model * 2 == plain.model * (2 + states)
    assert need.checkpoint == plain.checkpoint * (1 + states)


@pytest.mark.parametrize(
    ("changes", "cards", "products", "where"),
    [
        ({"train__batch_size": 32}, False, 3, "wait in the gradient's own rows"),
        ({"train__batch_size": 33}, False, 3, "wait in a tensor of their own"),
        ({"train__batch_size": 2048}, False, 4, "are computed twice"),
        # In half precision twice as many fit in a row.
        ({"train__precision": "bf16"}, False, 3, "wait in the gradient's own rows"),
        # A card has room for more.
        ({"train__batch_size": 2048}, True, 3, "wait in a tensor of their own"),
    ],
)
def test_where_exponentials_wait_and_what_that_costs(
    changes: dict[str, object], cards: bool, products: float, where: str
) -> None:
    given = config("replicated", **changes), 1, 1, cards
    assert products_of(*given) == products
    batch = given[0].train.batch_size
    beginning = f"exponentials of {batch:,} images x 16,000 classes {where}"
    assert exponentials_of(*given).startswith(beginning)


def test_later_micro_batches_find_the_gradients_rows_taken() -> None:
    several = {"exchange__backward_passes_per_step": 4, "data__num_classes": 600_000}
    given = config("replicated", train__batch_size=32, **several), 1, 1
    assert products_of(*given) == 3.75
    assert "own rows; in later micro-batches of a window they are computed twice" in (
        exponentials_of(*given)
    )
    late = {"exchange__kind": "averaging", **several}
    assert products_of(config("replicated", train__batch_size=32, **late), 2, 1) == 3


def test_ways_that_keep_no_buffers() -> None:
    flat = {"exchange__kind": "synchronous", "exchange__route": "flat"}
    assert need_of(config("node", exchange__kind="isolated"), 2, 2).exchange == 0
    assert need_of(config("replicated", **flat), 2, 2).exchange == 0
    for nodes, ranks_per_node in ((1, 4), (4, 1)):
        way = config("replicated", exchange__kind="synchronous", exchange__route="hierarchical")
        assert need_of(way, nodes, ranks_per_node).exchange == 0, "that is the flat route there"


def test_the_way_through_nodes_keeps_a_share_of_each_bucket() -> None:
    """And a copy in equal shares of what cannot be shared evenly: of all, among so many ranks."""
    given = config("replicated", exchange__kind="synchronous")
    elements = need_of(config("replicated", optimizer__momentum=0.0), 1, 1).model // 2 // 4
    kept = need_of(given, 2, 101).exchange
    assert kept == pytest.approx(4 * elements * (1 + 1 / 101), rel=1e-3)


def test_a_lossy_wire_takes_no_more_among_many_ranks_than_whole_blocks_do() -> None:
    late = {**LATE, "exchange__compression": "int8", **PARAMETERS}
    few, many = (need_of(config(**late), nodes, 2).exchange for nodes in (2, 64))
    assert many < 1.05 * few


def test_more_nodes_divide_the_classifier_of_the_whole_world() -> None:
    narrow, wide = (need_of(config("world"), nodes, 4) for nodes in (1, 2))
    assert narrow.model - wide.model == 3 * 4 * (CLASSES // 4 - CLASSES // 8) * 33


def test_pieces_that_are_picked_later_count_as_the_most() -> None:
    """What is counted as certain ends a run."""
    late = {"exchange__kind": "averaging", "exchange__delay": 4}
    picked = need_of(config("node", **late, exchange__max_pieces=16), 2, 2)
    assert picked.certain == need_of(config("node", **late, exchange__pieces=16), 2, 2).certain


def test_an_evaluation_on_many_slices_keeps_what_they_find_in_a_ranks_own_images() -> None:
    few, many = (need_of(config("world", train__batch_size=4), n, 8).evaluation for n in (16, 256))
    assert many < 17 * few  # in proportion to the images that meet, not to their square


def test_what_a_cards_late_results_take_in_host_memory() -> None:
    """Of two messages under way and of a part that is waited for, each a power of two of bytes."""

    def pinned(nodes: int = 2, cards: bool = True, **changes: object) -> int:
        return need_of(config(**LATE | changes), nodes, 1, cards).pinned  # type: ignore[arg-type]

    part = need_of(config(**LATE), 2, 1).model // 3 // 4  # values, gradients and momentum
    block = 1 << (4 * part - 1).bit_length()
    assert pinned() == pinned(nodes=4) == 3 * block
    assert pinned(exchange__delay=3) == 5 * block
    narrow = pinned(exchange__compression="int8")
    assert block < narrow < 3 * block
    assert pinned(nodes=1) == pinned(cards=False) == pinned(exchange__carrier="torch") == 0
    assert pinned(exchange__kind="synchronous", exchange__delay=0) == 0


def test_nothing_is_counted_for_what_a_run_does_not_do() -> None:
    quiet = config(train__save=False, staleness__curvature_every=0)
    need = need_of(quiet, 2, 2)
    assert (need.estimate, need.copies, need.saving) == (0, 0, 0)
    late = config(**LATE, train__save=False, staleness__curvature_every=0)
    assert need_of(late, 2, 2).estimate > 0


def test_counting_draws_no_random_number() -> None:
    torch.manual_seed(5)
    need_of(config("replicated", backbone__name="mobilenet_v3_small", data__image_size=32), 1, 1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_one_image_that_cannot_be_trained_on() -> None:
    with pytest.raises(UserError, match="gives batch norm one value per channel"):
        need_of(config("replicated", train__batch_size=1), 1, 1)
    assert need_of(config("replicated", train__batch_size=1, backbone__norm="group"), 1, 1).total

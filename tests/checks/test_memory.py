"""Memory that a run needs, computed from its config, against what is free."""

from types import SimpleNamespace

import pytest
import torch

from harness.checks.memory import MemoryFacts, judge_memory, memory_facts
from harness.checks.need import Need, need_of
from harness.config import Config
from harness.exchange.synchronous import CompressedBucket
from harness.model.backbone import make_backbone
from harness.model.sliced_classifier import SlicedClassifier
from tests.alone import group_of_one
from tests.checks.seats import EMULATED, FOUR, seats

CLASSES, BATCH, GB = 1000, 16, 10**9


def config(**sections: dict[str, object]) -> Config:
    values = {
        "data": {"dataset": "synthetic", "num_classes": CLASSES, "image_size": 16},
        "train": {"batch_size": BATCH, "steps": 10},
    }
    return Config.model_validate(values | sections)


def sizes(given: Config) -> tuple[int, int]:
    """Elements of the backbone and of the whole classifier, from the real ones."""
    backbone = make_backbone(given.backbone, 3, given.data.image_size, 0)
    classifier = SlicedClassifier(
        backbone.features, CLASSES, given.classifier, group_of_one(), seed=0
    )
    return tuple(sum(p.numel() for p in part.parameters()) for part in (backbone, classifier))  # type: ignore[return-value]


def test_pure_data_parallel() -> None:
    backbone, classifier = sizes(config())
    need = need_of(config(), 2, 2)
    assert need.model == 3 * 4 * (backbone + classifier)
    assert need.exchange == 0
    assert need.checkpoint == 2 * 4 * (backbone + classifier)


@pytest.mark.parametrize(
    ("kind", "delay", "parts"),
    [("delayed", 1, 6), ("delayed", 3, 12), ("averaging", 1, 7), ("isolated", 0, 0)],
)
def test_slices_in_the_node(kind: str, delay: int, parts: int) -> None:
    given = config(classifier={"layout": "node"}, exchange={"kind": kind, "delay": delay})
    backbone, classifier = sizes(given)
    need = need_of(given, 2, 2)
    # A rank steps half of the backbone, and its slice: it keeps momentum of no more.
    assert need.model == 4 * (2 * (backbone + classifier // 2) + backbone // 2 + classifier // 2)
    assert need.exchange == 4 * (parts * (backbone // 2 + classifier // 2) + backbone)


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [({"momentum": 0.0}, 0), ({"momentum": 0.9}, 1), ({"name": "adamw"}, 2)],
)
def test_what_the_optimizer_keeps(optimizer: dict[str, object], states: int) -> None:
    given = config(optimizer=optimizer, train={"steps": 1, "precision": "fp64"})
    assert need_of(given, 1, 1).model == (2 + states) * 8 * sum(sizes(given))


def test_the_whole_world_holds_one_classifier() -> None:
    narrow, wide = (need_of(config(classifier={"layout": "world"}), nodes, 4) for nodes in (1, 2))
    _, classifier = sizes(config())
    assert narrow.model - wide.model == 3 * 4 * (classifier // 4 - classifier // 8)


def test_activations_are_those_that_autograd_keeps() -> None:
    """What is counted on a few images, on as many as a micro-batch has."""
    given = config()
    backbone = make_backbone(given.backbone, 3, 16, 0)
    own = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = backbone.train()(torch.zeros(BATCH, 3, 16, 16))
    assert features.requires_grad
    found = [storage.nbytes() for address, storage in kept.items() if address not in own]
    logits, statistics = 3 * BATCH * CLASSES * 4, 3 * BATCH * 4
    counted = need_of(given, 1, 1).activations - logits - statistics
    assert counted == pytest.approx(sum(found) + 2 * max(found), rel=0.02)


@pytest.mark.parametrize(("layout", "slices"), [("replicated", 0), ("node", 1), ("world", 0)])
def test_half_precision_by_the_flat_route(layout: str, slices: int) -> None:
    """Of an element: its own half, the sum's half, what is clamped, and what was not sent."""
    given = config(
        classifier={"layout": layout},
        exchange={"kind": "synchronous", "route": "flat", "compression": "fp16"},
    )
    backbone, classifier = sizes(given)
    averaged = backbone + (classifier if layout == "replicated" else slices * classifier // 2)
    assert need_of(given, 2, 2).exchange == (2 * 2 + 2 * 4) * averaged
    exact = given.exchange.model_copy(update={"compression": "none"})
    assert need_of(given.model_copy(update={"exchange": exact}), 2, 2).exchange == 0


def test_the_flat_route_s_buffers_are_those_that_it_makes() -> None:
    group = SimpleNamespace(size=4, index=0, launch_sum=None)
    bucket = torch.zeros(1000)
    made = CompressedBucket(bucket, group, "fp16")  # type: ignore[arg-type]
    held: dict[int, int] = {}
    waiting: list[object] = [made]
    while waiting:
        each = waiting.pop()
        if isinstance(each, torch.Tensor):
            held[each.data_ptr()] = each.nbytes
        elif isinstance(each, list | tuple):
            waiting += each
        elif hasattr(each, "__dict__") and each is not group:
            waiting += vars(each).values()
    assert sum(held.values()) - bucket.nbytes == (2 * 2 + 2 * 4) * 1000


def test_statistics_are_gathered_by_few_ranks_and_added_up_by_many() -> None:
    def statistics(ranks: int) -> int:
        given = config(classifier={"layout": "node"}, train={"batch_size": 1, "steps": 1})
        logits = 3 * ranks * -(-CLASSES // ranks) * 4
        return need_of(given, 1, ranks).activations - logits

    images = need_of(config(train={"batch_size": 1, "steps": 1}), 1, 1).activations
    images -= 3 * CLASSES * 4 + 3 * 4
    assert statistics(8) - images == 3 * 8 * 8 * 4
    assert statistics(16) - images == 3 * 16 * 4


def test_counting_draws_no_random_number() -> None:
    torch.manual_seed(5)
    need_of(config(backbone={"name": "mobilenet_v3_small"}, data={"image_size": 32}), 1, 1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_twice_the_images_keep_twice_as_much() -> None:
    one, two = (
        need_of(config(train={"batch_size": size, "steps": 1}), 1, 1).activations
        for size in (16, 32)
    )
    assert two == pytest.approx(2 * one, rel=0.01)


def need(model: int = 0, activations: int = 0) -> Need:
    return Need(model=model, exchange=0, activations=activations, checkpoint=0)


def test_enough() -> None:
    facts = [MemoryFacts(host_free=10 * GB, card_free=None)] * 4
    (finding,) = judge_memory(FOUR, facts, need(model=GB))
    assert finding.level == "ok"
    assert "a rank of this run takes 1 GB (model 1 GB" in finding.found
    assert judge_memory(FOUR, facts, None)[0].found == "10 GB free on every host"


@pytest.mark.parametrize(
    ("wanted", "level"),
    [
        (need(model=11 * GB), "fail"),
        (need(model=9 * GB), "warn"),
        (need(model=GB, activations=20 * GB), "warn"),
    ],
)
def test_one_host_is_short(wanted: Need, level: str) -> None:
    facts = [MemoryFacts(host_free=100 * GB, card_free=None)] * 3
    facts.insert(2, MemoryFacts(host_free=10 * GB, card_free=None))
    (finding,) = judge_memory(FOUR, facts, wanted)
    assert finding.level == level
    assert finding.found.startswith("host h3 has 10 GB free for a rank of")


def test_ranks_of_a_machine_share_its_memory() -> None:
    """Emulated nodes too: four ranks of 3 GB do not fit into 10 GB."""
    facts = [MemoryFacts(host_free=10 * GB, card_free=None)] * 4
    (finding,) = judge_memory(EMULATED, facts, need(model=3 * GB))
    assert finding.level == "fail"
    assert "10 GB free for 4 ranks of 3 GB" in finding.found
    assert judge_memory(FOUR, facts, need(model=3 * GB))[0].level == "ok"


def test_a_card_is_its_ranks_alone() -> None:
    two = seats(("h1", 2))
    facts = [MemoryFacts(host_free=GB, card_free=free * GB) for free in (80, 2)]
    (finding,) = judge_memory(two, facts, need(model=3 * GB))
    assert finding.found.startswith("the card of rank 1 on h1 has 2 GB free")


def test_this_machine_has_memory() -> None:
    facts = memory_facts(torch.device("cpu"))
    assert 1e7 < facts.host_free < 1e14
    assert facts.card_free is None

"""Which of equal logits is best, and that NaN is none: the same however classes are sliced."""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.config import ClassifierConfig
from harness.measure import traffic as formulas
from harness.measure.phase import Phase
from harness.model import sliced_classifier
from harness.model.best import STRIP, largest
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group
from tests.alone import group_of_one, meters
from tests.ranks import run_on_ranks

CLASSES, IMAGES = 7, 12
"""Of each rank."""
BAD = (math.nan, math.inf, -math.inf)
SHARED_MAXIMUM, RANDOM = range(2)


def logits(case: int, count: int) -> Tensor:
    """Few different values: most rows have several largest ones."""
    generator = torch.Generator().manual_seed(case)
    found = torch.randint(-2, 3, (count, CLASSES), generator=generator).float() * 1000
    if case == SHARED_MAXIMUM:
        found[:] = 1000.0
    return found


def labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def classifier_of(group: Group) -> SlicedClassifier:
    """Logits are the features: class c takes feature c."""
    found = SlicedClassifier(CLASSES, CLASSES, ClassifierConfig(), group, seed=0)
    with torch.no_grad():
        found.weight.copy_(torch.eye(CLASSES)[found.owned.start : found.owned.stop])
    return found


def scored(group: Group, whole: Tensor) -> tuple[float, float]:
    own = whole.chunk(group.size)[group.index]
    with torch.no_grad():
        scores = classifier_of(group)(own, labels(len(whole)).chunk(group.size)[group.index])
    return float(scores.loss), float(scores.top1)


def expected(whole: Tensor) -> tuple[float, float]:
    targets = labels(len(whole))
    loss = torch.nn.functional.cross_entropy(whole, targets)
    return float(loss), float((whole.argmax(dim=1) == targets).float().mean())


def group_of_all() -> Group:
    size = dist.get_world_size()
    pg = dist.group.WORLD
    return Group(tuple(range(size)), dist.get_rank(), 1, pg, meters(), Phase.SLICE_WAIT)


def on_this_rank(gathered_ranks: int) -> list[tuple[float, float]]:
    formulas.GATHERED_RANKS = gathered_ranks
    group = group_of_all()
    return [scored(group, logits(case, IMAGES * group.size)) for case in range(20)]


@pytest.mark.parametrize(("ranks", "gathered"), [(2, 2), (3, 3), (3, 1)])
def test_of_equal_logits_the_lowest_class_is_best_in_every_layout(
    ranks: int, gathered: int
) -> None:
    """As argmax has it. A group that gathers its statistics and one that adds them up agree."""
    for found in run_on_ranks(on_this_rank, ranks, gathered):
        for case, own in enumerate(found):
            whole = expected(logits(case, IMAGES * ranks))
            assert own == pytest.approx(whole, rel=1e-6), f"case {case}"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_alone_it_is_argmax(case: int) -> None:
    whole = logits(case, IMAGES)
    assert scored(group_of_one(), whole) == pytest.approx(expected(whole), rel=1e-6)


def ranked_in_tiles(tile: int) -> list[Tensor]:
    """The best classes of this rank's images, found in tiles of so many classes."""
    group = group_of_all() if dist.is_initialized() else group_of_one()
    images = IMAGES * group.size
    sliced_classifier.TILE_BYTES["cpu"] = tile * (2 * CLASSES + images) * 4
    found = []
    for case in range(20):
        own = logits(case, images).chunk(group.size)[group.index]
        targets = labels(images).chunk(group.size)[group.index]
        found.append(classifier_of(group).predict(own, targets)[0])
    return found


@pytest.mark.parametrize("tile", [1, 2, 3, CLASSES])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_best_classes_are_those_of_a_stable_sort_in_every_layout_and_tile(
    ranks: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_classifier, "TILE_BYTES", {**sliced_classifier.TILE_BYTES})
    every = [ranked_in_tiles(tile)] if ranks == 1 else run_on_ranks(ranked_in_tiles, ranks, tile)
    for case, found in enumerate(zip(*every, strict=True)):
        whole = logits(case, IMAGES * ranks)
        expected = whole.sort(dim=1, descending=True, stable=True).indices[:, :5]
        assert torch.equal(torch.cat(found), expected), f"case {case}"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20 * STRIP), st.integers(1, 8), st.integers(1, 500), st.integers(0, 2**31))
def test_of_equal_values_the_first_comes_first(count: int, k: int, kinds: int, seed: int) -> None:
    """Of a few kinds of values or of many, in a strip or in several of them."""
    generator, k = torch.Generator().manual_seed(seed), min(k, count)
    values = torch.randint(kinds, (count, 3), generator=generator).float()
    before = values.clone()
    found, rows = largest(values, k)
    expected = before.sort(dim=0, descending=True, stable=True)
    assert torch.equal(found, expected.values[:k])
    assert torch.equal(rows, expected.indices[:k])
    assert torch.equal(values, before)


def predicted() -> list[tuple[Tensor, Tensor]]:
    """Of rows in which one logit, of each class in turn, is bad; the last row has none."""
    group = group_of_all() if dist.is_initialized() else group_of_one()
    found = []
    for bad in BAD:
        rows = torch.arange(CLASSES).float().repeat(CLASSES + 1, 1)
        rows[:CLASSES].fill_diagonal_(bad)
        classifier = classifier_of(group)
        # The bad logit comes from a bias: a product with infinity would spoil its neighbours.
        best, losses = [], []
        for row in rows:
            with torch.no_grad():
                bias = row[classifier.owned.start : classifier.owned.stop]
                classifier.bias.copy_(bias)
                one = classifier.predict(torch.zeros(2, CLASSES), torch.tensor([0, CLASSES - 1]))
            best.append(one[0])
            losses.append(one[1])
        found.append((torch.stack(best), torch.stack(losses)))
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_row_with_a_logit_that_is_not_finite_hits_nothing(ranks: int) -> None:
    every = [predicted()] if ranks == 1 else run_on_ranks(predicted, ranks)
    for found in every:
        for best, losses in found:
            assert (best[:CLASSES] == -1).all()
            assert losses[:CLASSES].isnan().all()
            assert best[CLASSES, 0].tolist() == [6, 5, 4, 3, 2]
            assert losses[CLASSES].isfinite().all()

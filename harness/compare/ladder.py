"""The ladder of a study: variants that each pull one more lever, and what each lever is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.compare.intervals import Difference, Interval, mean_interval
from harness.compare.levers import Lever, Levers, beside_levers, levers_of
from harness.compare.verdict import (
    SECONDS,
    THROUGHPUT,
    Question,
    Reached,
    judge,
    reached_in,
    seconds_by_seed,
)
from harness.tracking.results import Target, Variant

FEWEST_RUNGS = 3
"""Two variants are a plain comparison, which the verdict already reports."""


@dataclass(frozen=True)
class Worth:
    """Ratios of one rung to a lower one, paired over seeds as in the verdict; above 1 is faster."""

    speed: Difference | None
    """Ratio of images/s; None if the two have no timed seed in common."""
    time: Difference | None
    """Speed-up in time to the target; None if a run of either missed the target."""


@dataclass(frozen=True)
class Rung:
    """A variant on the ladder."""

    variant: Variant
    levers: Levers
    pulled: tuple[Lever, ...]
    """Levers that the rung below does not pull; for the first rung, all that it pulls."""
    pushed: tuple[str, ...]
    """Levers that the rung below pulls less far, as "new setting instead of old setting"."""
    images_per_second: Interval
    """Of all ranks together, over the timed runs; NaN if there are none."""
    seconds: Interval
    """Training seconds to the target; NaN if there is no target, or a run missed it or diverged."""
    reached: Reached
    over_below: Worth | None
    """This rung against the rung below; None for the first rung."""
    over_baseline: Worth | None
    """This rung against the first rung; None for the first rung."""


@dataclass(frozen=True)
class Ladder:
    """The rungs from the baseline up, and what a reader must know about them."""

    rungs: tuple[Rung, ...]
    target: Target | None
    differs: tuple[str, ...]
    """Settings other than levers in which the rungs differ, as dotted keys."""
    names: tuple[str, ...]
    """Names of all variants of the study, on which the styles of the rungs depend."""

    @classmethod
    def of(
        cls, variants: Sequence[Variant], baseline: Variant, target: Target | None
    ) -> "Ladder | None":
        """Finds the ladder; None if the variants contain fewer than three rungs.

        `baseline` is preferred if several variants could be the first rung.
        """
        chain = climb(variants, baseline)
        if len(chain) < FEWEST_RUNGS:
            return None
        lower = (None, *chain[:-1])
        rungs = tuple(
            _rung(each, below, chain[0], target) for each, below in zip(chain, lower, strict=True)
        )
        differs = beside_levers([each.variant.config for each in chain])
        return cls(rungs, target, tuple(differs), tuple(each.name for each in variants))

    @property
    def fewest_pairs(self) -> int:
        """The smallest number of common seeds over all pairs of rungs that are compared."""
        found = [worth for each in self.rungs for worth in (each.over_below, each.over_baseline)]
        return min(worth.speed.pairs if worth.speed else 0 for worth in found if worth is not None)

    @property
    def timed(self) -> bool:
        """Whether every step of the ladder has a ratio of times to the target."""
        return all(each.over_below.time is not None for each in self.rungs if each.over_below)


@dataclass(frozen=True)
class Climber:
    """A variant that could be a rung."""

    variant: Variant
    levers: Levers


Chain = tuple[Climber, ...]


def climb(variants: Sequence[Variant], baseline: Variant) -> Chain:
    """The longest chain of variants that have results, found from their configs alone.

    Each variant keeps the levers of the one below and pulls more; the first pulls none, except
    possibly the hierarchical route.
    """
    found = []
    for variant in variants:
        levers = levers_of(variant.config)
        if levers is not None and variant.summaries:
            found.append(Climber(variant, levers))
    # A variant above another pulls more levers, so in this order it follows all candidates below.
    found.sort(key=lambda each: len(each.levers.pulled))
    chains = [chain for top in found if (chain := _chain_to(top, found, baseline))]

    def score(chain: Chain) -> tuple[object, ...]:
        steps, *others = _score(chain, chain[-1], baseline)
        return steps, len(chain[-1].levers.pulled), *others

    return max(chains, key=score, default=())


def _chain_to(top: Climber, found: Sequence[Climber], baseline: Variant) -> Chain:
    """The best chain that ends at `top`; empty if there is none.

    Dynamic programming over `found`: best[v] is the best chain that ends at v, and each variant
    extends the best chain of every variant that it can follow.
    """
    best: dict[str, Chain] = {}
    for each in found:
        options: list[Chain] = [
            (*chain, each) for chain in best.values() if each.levers.above(chain[-1].levers)
        ]
        if each.levers.pulled <= {Lever.HIERARCHICAL}:
            options.append((each,))
        if options:
            name = each.variant.name
            best[name] = max(options, key=lambda chain: _score(chain, top, baseline))
    return best.get(top.variant.name, ())


def _score(chain: Chain, top: Climber, baseline: Variant) -> tuple[object, ...]:
    """The order of preference between chains, larger is better.

    First more rungs; then more rungs whose K, compression and pieces equal those of the top; then
    one library that carries all; then the study's own baseline as the first rung; then levers
    pulled in their canonical order.
    """
    order = tuple(Lever)
    places = [-order.index(lever) for _, pulled in _pulls(chain) for lever in pulled]
    agreeing = sum(each.levers.agrees_with(top.levers) for each in chain)
    carriers = len({each.levers.carrier for each in chain})
    return len(chain), agreeing, -carriers, chain[0].variant is baseline, tuple(places)


def _pulls(chain: Chain) -> list[tuple[Climber, tuple[Lever, ...]]]:
    """For each rung, the levers that it pulls and the rung below does not."""
    first = chain[0]
    found = [(first, first.levers.in_order)]
    for below, each in pairwise(chain):
        found.append((each, _in_order(each.levers.pulled - below.levers.pulled)))
    return found


def _in_order(levers: frozenset[Lever]) -> tuple[Lever, ...]:
    return tuple(lever for lever in Lever if lever in levers)


def _rung(each: Climber, below: Climber | None, first: Climber, target: Target | None) -> Rung:
    variant, levers = each.variant, each.levers
    lower = frozenset[Lever]() if below is None else below.levers.pulled
    reached = reached_in(variant, target)
    return Rung(
        variant,
        levers,
        _in_order(levers.pulled - lower),
        () if below is None else _pushed(levers, below.levers),
        mean_interval([run.images_per_second for run in variant.timed]),
        # A mean over only the seeds that reached the target would be biased.
        mean_interval([*seconds_by_seed(variant, target).values()] if reached.always else []),
        reached,
        None if below is None else _worth(variant, below.variant, target),
        None if below is None else _worth(variant, first.variant, target),
    )


def _pushed(levers: Levers, below: Levers) -> tuple[str, ...]:
    return tuple(
        f"{levers.setting(lever)} instead of {below.setting(lever)}"
        for lever in below.in_order
        if levers.how_far(lever) != below.how_far(lever)
    )


def _worth(variant: Variant, other: Variant, target: Target | None) -> Worth:
    """Compares two rungs by the verdict's tests, without any other variant."""
    verdict = judge((other, variant), other, target)

    def ratio(question: Question) -> Difference | None:
        finding = verdict.of(variant.name, question)
        return None if finding is None else finding.difference

    return Worth(ratio(THROUGHPUT), ratio(SECONDS))

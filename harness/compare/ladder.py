"""The ladder of a study: variants that pull one lever more each, and what each lever is worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.compare.intervals import Difference, Interval, mean_interval
from harness.compare.levers import Lever, Levers, beside_levers, levers_of
from harness.compare.verdict import SECONDS, THROUGHPUT, Question, judge, seconds_to
from harness.tracking.results import Target, Variant

FEWEST_RUNGS = 3
"""Two variants are a comparison, which the verdict tells."""


@dataclass(frozen=True)
class Worth:
    """One rung against a lower one, paired over seeds as in the verdict; above 1 is faster."""

    speed: Difference | None
    """Of images/s; None where they have no timed seed in common."""
    time: Difference | None
    """Of the time to the target; None where a run of either missed it."""


@dataclass(frozen=True)
class Rung:
    """A variant on the ladder."""

    variant: Variant
    levers: Levers
    pulled: tuple[Lever, ...]
    """That the rung below does not pull; of the first, all that it pulls."""
    pushed: tuple[str, ...]
    """Levers that the rung below pulls less far: how far, and how far there."""
    images_per_second: Interval
    seconds: Interval
    """To the target; NaN where there is none, or a run missed it."""
    reached: int
    """Runs that reached the target."""
    over_below: Worth | None
    """None of the first."""
    over_baseline: Worth | None


@dataclass(frozen=True)
class Ladder:
    """From the baseline up."""

    rungs: tuple[Rung, ...]
    target: Target | None
    differs: tuple[str, ...]
    """Other settings in which the rungs differ."""
    names: tuple[str, ...]
    """Of all variants of the study: a look depends on them."""

    @classmethod
    def of(
        cls, variants: Sequence[Variant], baseline: Variant, target: Target | None
    ) -> "Ladder | None":
        """None where the variants hold fewer than three rungs.

        `baseline`: of several that could be the first rung, the one taken.
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
        """Seeds that two rungs have in common, the fewest of all that are compared."""
        found = [worth for each in self.rungs for worth in (each.over_below, each.over_baseline)]
        return min(worth.speed.pairs if worth.speed else 0 for worth in found if worth is not None)

    @property
    def timed(self) -> bool:
        """Whether each step has a ratio of times to the target."""
        return all(each.over_below.time is not None for each in self.rungs if each.over_below)


@dataclass(frozen=True)
class Climber:
    """A variant that could be a rung."""

    variant: Variant
    levers: Levers


Chain = tuple[Climber, ...]


def climb(variants: Sequence[Variant], baseline: Variant) -> Chain:
    """The longest chain of variants with results, told by their configs alone: each keeps the
    levers of the one below and pulls more, the first none but the route."""
    found = []
    for variant in variants:
        levers = levers_of(variant.config)
        if levers is not None and variant.summaries:
            found.append(Climber(variant, levers))
    # What lies above another pulls more: in this order each comes after all that it can stand on.
    found.sort(key=lambda each: len(each.levers.pulled))
    chains = [chain for top in found if (chain := _chain_to(top, found, baseline))]

    def score(chain: Chain) -> tuple[object, ...]:
        steps, *others = _score(chain, chain[-1], baseline)
        return steps, len(chain[-1].levers.pulled), *others

    return max(chains, key=score, default=())


def _chain_to(top: Climber, found: Sequence[Climber], baseline: Variant) -> Chain:
    """The best that ends there; empty where none does."""
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
    """More rungs; then more of them with the K, compression and pieces of the top; then the study's
    own baseline below; then levers in their order."""
    order = tuple(Lever)
    places = [-order.index(lever) for _, pulled in _pulls(chain) for lever in pulled]
    agreeing = sum(each.levers.agrees_with(top.levers) for each in chain)
    return len(chain), agreeing, chain[0].variant is baseline, tuple(places)


def _pulls(chain: Chain) -> list[tuple[Climber, tuple[Lever, ...]]]:
    """What each pulls that the one below does not."""
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
    times = [seconds_to(run, target) for run in variant.summaries]
    made_it = [seconds for seconds in times if seconds is not None]
    return Rung(
        variant,
        levers,
        _in_order(levers.pulled - lower),
        () if below is None else _pushed(levers, below.levers),
        mean_interval([run.images_per_second for run in variant.summaries]),
        # A mean over the lucky seeds alone would flatter.
        mean_interval(made_it if len(made_it) == len(times) else []),
        len(made_it),
        None if below is None else _worth(variant, below.variant, target),
        None if below is None else _worth(variant, first.variant, target),
    )


def _pushed(levers: Levers, below: Levers) -> tuple[str, ...]:
    return tuple(
        f"{levers.told(lever)} for {below.told(lever)}"
        for lever in below.in_order
        if levers.how_far(lever) != below.how_far(lever)
    )


def _worth(variant: Variant, other: Variant, target: Target | None) -> Worth:
    """By the verdict's own tests, of these two alone."""
    verdict = judge((other, variant), other, target)

    def ratio(question: Question) -> Difference | None:
        finding = verdict.of(variant.name, question)
        return None if finding is None else finding.difference

    return Worth(ratio(THROUGHPUT), ratio(SECONDS))

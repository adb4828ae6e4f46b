"""Tunes every way of training by the same procedure: `python -m benchmarks.sweep`.

Each update rule starts with one seed from the same learning rates. It continues until its best
point is inside the range that was tried, so that a lower and a higher rate, and a lower and a
higher momentum, are all worse. Then the best few points of each rule get the same further seeds,
which the study does not use, and the best of these must be inside the range as well. A point is
better if it reaches the target after fewer images, or, if one of them misses it, if it ends
higher. Speed does not matter here: the runs use emulated nodes of this machine without a slow link.

Completed trainings are kept in FOLDER/results.jsonl and are not repeated.
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.sweep_points import Point, Result, described

TARGET = 0.979
EFFECTIVE = (1.0, 1.5, 2.25, 3.5)
"""Effective learning rates lr / (1 - momentum), which set how far a constant gradient moves the
weights in the end."""
GROWTH = 1.5
"""Factor from the outermost rate that was tried to the next one."""
MOMENTUM = 0.8
"""Momentum of the first points."""
SEEDS = (10, 11, 12)
FINALISTS = 2
"""Number of points of a rule that get the other seeds."""
MOST_RATE, LEAST_RATE = 8.0, 0.01
"""Range of learning rates; the sweep fails if a rule would need to leave it."""
MOST_MOMENTUM = 0.98
RULES = {
    "data_parallel": "lab/data_parallel",
    "data_parallel_int8": "rivals/data_parallel_int8",
    "data_parallel_k2_int8": "rivals/data_parallel_k2_int8",
    "data_parallel_k4_int8": "rivals/data_parallel_k4_int8",
    "data_parallel_k2_int4": "rivals/data_parallel_k2_int4",
    "data_parallel_sign": "rivals/data_parallel_sign",
    "data_parallel_k2_sign": "rivals/data_parallel_k2_sign",
    "ddp_powersgd_r4": "rivals/ddp_powersgd_r4",
    "ddp_powersgd_r8": "rivals/ddp_powersgd_r8",
    "ddp_powersgd": "rivals/ddp_powersgd",
    "ddp_powersgd_r32": "rivals/ddp_powersgd_r32",
    "ddp_post_local_sgd": "rivals/ddp_post_local_sgd",
    "hybrid_async": "lab/hybrid_async",
    "hybrid_async_sign": "remedies/hybrid_async_sign",
    "hybrid_averaging": "lab/hybrid_averaging",
    "hybrid_averaging_on_time": "rivals/hybrid_averaging_on_time",
    "hybrid_averaging_on_time_sign": "rivals/hybrid_averaging_on_time_sign",
    "hybrid_averaging_int4": "remedies/hybrid_averaging_int4",
    "hybrid_averaging_sign": "remedies/hybrid_averaging_sign",
    "hybrid_averaging_k4": "remedies/hybrid_averaging_k4",
    "hybrid_averaging_delay_2": "remedies/hybrid_averaging_delay_2",
    "world_late_int8": "rivals/world_late_int8",
}
"""The distinct update rules, each with the experiment that is trained for it.

Layouts and routes agree to the last bits (tests/laws), and fp16 compression rounds by 2^-11. So the
tuning of `data_parallel` also holds for its routes, for fp16, DDP and world_sync; that of int8 also
holds for slices over a node and over the world; the same is true for K.
"""
HOSTS = "localhost:2,127.0.0.1:2"


class NoBestPoint(Exception):
    """A rule's best learning rate is outside the range that may be tried."""


class Sweep:
    """The completed trainings of a sweep, and those that are missing."""

    def __init__(self, folder: Path, rules: Sequence[str]) -> None:
        self.folder = folder
        self._rules = rules
        self._file = folder / "results.jsonl"

    def results(self) -> dict[str, dict[tuple[float, float], list[Result]]]:
        """Results by rule, and by learning rate and momentum."""
        found: dict[str, dict[tuple[float, float], list[Result]]] = {}
        for name in self._rules:
            found[name] = defaultdict(list)
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                result = Result.model_validate_json(line)
                point = result.point
                if point.name in found:
                    found[point.name][point.lr, point.momentum].append(result)
        return found

    def missing(self) -> list[Point]:
        """The next trainings to make; empty if every rule has a best point inside its range.

        Raises NoBestPoint.
        """
        return [point for name, found in self.results().items() for point in _next(name, found)]

    def unfinished(self) -> dict[str, str]:
        """The rules without a best point so far, each with the reason if none can be found."""
        found = {}
        for name, results in self.results().items():
            try:
                if _next(name, results):
                    found[name] = ""
            except NoBestPoint as error:
                found[name] = str(error)
        return found

    def make(self, points: Sequence[Point]) -> None:
        """Trains the points, launching again until all are done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while points:
            asked = self.folder / "points.json"
            asked.write_text(json.dumps([point.model_dump() for point in points]))
            program = [sys.executable, "-m", "benchmarks.sweep_ranks", str(asked), str(self._file)]
            launch = ["launch", "-H", HOSTS, "--folder", str(self.folder / "logs"), "--", *program]
            subprocess.run([sys.executable, "-m", "harness", *launch], check=False)
            done = {
                each.point
                for rule in self.results().values()
                for at in rule.values()
                for each in at
            }
            left = [point for point in points if point not in done]
            if len(left) == len(points):
                raise RuntimeError(f"no training ended; see {self.folder / 'logs'}")
            points = left


def _next(name: str, found: dict[tuple[float, float], list[Result]]) -> list[Point]:
    """The missing points of a rule: first points, then neighbours, then finalists' other seeds."""
    firsts = {
        at: [result]
        for at, results in found.items()
        for result in results
        if result.point.seed == SEEDS[0]
    }
    missing = [at for at in first_points() if at not in firsts]
    missing = missing or beyond(name, firsts, set(firsts))
    if missing:
        return [_point(name, at, SEEDS[0]) for at in missing]
    finalists = sorted(firsts, key=lambda at: rank(firsts[at]))[:FINALISTS]
    left = [
        _point(name, at, seed)
        for at in finalists
        for seed in SEEDS[1:]
        if seed not in {result.point.seed for result in found[at]}
    ]
    if left:
        return left
    whole = {at: results for at, results in found.items() if len(results) == len(SEEDS)}
    return [_point(name, at, seed) for at in beyond(name, whole, set(found)) for seed in SEEDS]


def first_points() -> list[tuple[float, float]]:
    """Learning rates and momentum that every rule starts with."""
    return [(_rate(effective, MOMENTUM), MOMENTUM) for effective in EFFECTIVE]


def _rate(effective: float, momentum: float) -> float:
    return float(f"{effective * (1 - momentum):.2g}")


def rank(results: Sequence[Result]) -> tuple[int, float, float]:
    """A sort key, smaller is better: all seeds reach the target, then few images, then accuracy."""
    images = [result.images_to(TARGET) for result in results]
    final = sum(result.final for result in results) / len(results)
    reached = sum(math.isfinite(each) for each in images)
    mean = sum(images) / len(images) if reached == len(images) else 0.0
    return -(reached == len(images)), mean, -final


def best(found: dict[tuple[float, float], list[Result]]) -> tuple[float, float]:
    """Rate and momentum of the best point, among those with all seeds if there are any."""
    whole = {at: results for at, results in found.items() if len(results) == len(SEEDS)}
    return min(whole or found, key=lambda at: rank((whole or found)[at]))


def beyond(
    name: str, found: dict[tuple[float, float], list[Result]], tried: set[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Points to try so that the best of `found` is inside `tried`: rates first, then momenta.

    Raises NoBestPoint, which names the rule.
    """
    lr, momentum = min(found, key=lambda at: rank(found[at]))
    rates = [rate for rate, other in tried if other == momentum]
    outside = [lr / GROWTH] * (lr == min(rates)) + [lr * GROWTH] * (lr == max(rates))
    if not all(LEAST_RATE <= rate <= MOST_RATE for rate in outside):
        raise NoBestPoint(
            f"the best rate of {name} with momentum {momentum:g} is {lr:g}, at the limit of the "
            f"range from {LEAST_RATE:g} to {MOST_RATE:g}; widen that range in benchmarks/sweep.py"
        )
    if outside:
        return [(float(f"{rate:.2g}"), momentum) for rate in outside]
    momenta = {other for _, other in tried}
    effective = lr / (1 - momentum)
    return [
        (_rate(effective, other), other)
        for other in (next_momentum(momentum, up=False), next_momentum(momentum, up=True))
        # Zero is the lowest momentum there is, so it needs no neighbour below.
        if 0 <= other <= MOST_MOMENTUM and not _tried_towards(other, momentum, momenta)
    ]


def _tried_towards(other: float, momentum: float, momenta: set[float]) -> bool:
    return any((each - momentum) * (other - momentum) > 0 for each in momenta)


def next_momentum(momentum: float, up: bool) -> float:
    """The next momentum to try: half as far from 1, or 0.2 lower."""
    return round(1 - (1 - momentum) / 2, 3) if up else round(momentum - 0.2, 3)


def _point(name: str, at: tuple[float, float], seed: int) -> Point:
    experiment = f"experiments/{RULES[name]}.yaml"
    return Point(name=name, experiment=experiment, lr=at[0], momentum=at[1], seed=seed)


def table(
    results: dict[str, dict[tuple[float, float], list[Result]]], unfinished: Collection[str] = ()
) -> list[str]:
    """A Markdown table with the best point of each rule, and all points."""
    lines = [
        f"Final top-1 in %, and images to {100 * TARGET:.1f} %; seeds "
        f"{', '.join(map(str, SEEDS))} for the {FINALISTS} best points of a rule, {SEEDS[0]} for "
        "the others.",
        "",
        "| rule | lr | momentum | top-1 | images to target | all points: lr / momentum: top-1 |",
        "|:--|--:|--:|--:|--:|:--|",
    ]
    for name, found in results.items():
        if not found:
            continue
        chosen = described(found[best(found)], TARGET)
        images = chosen["images_to_target"]
        reached = f"{images / 1000:.1f} k" if math.isfinite(images) else "not reached"
        reached += " (unfinished)" if name in unfinished else ""
        points = " · ".join(
            f"{lr:g} / {momentum:g}: {100 * described(each, TARGET)['final']:.1f}"
            for (lr, momentum), each in sorted(found.items(), key=lambda item: item[0][::-1])
        )
        lines.append(
            f"| {name} | {chosen['lr']:g} | {chosen['momentum']:g} | {100 * chosen['final']:.2f} | "
            f"{reached} | {points} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--only", choices=RULES, action="append", help="sweep this rule only")
    parser.add_argument(
        "--show", action="store_true", help="write the table of existing results, train nothing"
    )
    chosen = parser.parse_args()
    sweep = Sweep(chosen.folder.absolute(), chosen.only or list(RULES))
    try:
        while not chosen.show and (points := sweep.missing()):
            sweep.make(points)
    except NoBestPoint as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1
    everything = Sweep(sweep.folder, list(RULES))
    unfinished = everything.unfinished()
    for reason in filter(None, unfinished.values()):
        print(f"sweep: {reason}", file=sys.stderr)
    text = "\n".join(["# The sweep", "", *table(everything.results(), unfinished), ""])
    (sweep.folder / "sweep.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The throughput of experiments that take turns in one run, in blocks of windows on the same ranks.

`horovodrun ... python -m benchmarks.throughput EXPERIMENT.yaml ... [key=value ...]`. Ratios are
relative to the first experiment; `EXPERIMENT.yaml,key=value,...` changes a single one. The first
windows of a block are not timed, because a late exchange has nothing to wait for yet; nor are the
first windows of a run, which are synchronous or send whole gradients, and of which a variant runs
at most two here (`exchange.synchronous_windows`), since they may take minutes. Each block ends with
a drain, timed apart: a run pays it once, at its end.
Nothing is evaluated. `exchange.route=auto` is resolved by a measurement first, as in a run.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import horovod.torch as hvd
import psutil
import torch
import torch.distributed as dist

from benchmarks.recording import commit_of, keep, number_of_rounds
from harness.calibrate.window import KeepingClock
from harness.config import Config, load
from harness.data.open import open_dataset
from harness.measure.clock import CardTimeline, HostTimeline, clock_for
from harness.measure.machine import environment
from harness.measure.phase import Phase
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import Ranks, launched_topology, open_ranks
from harness.parallel.world import Links, World, choose_device, link
from harness.train.routing import choose_route
from harness.train.trial import Trial, slowest


@dataclass(frozen=True)
class Block:
    """What a block of windows measured."""

    rate: float
    """Images per second of all ranks, by the time of the slowest one."""
    drain_ms: float
    """Milliseconds in which all that is in flight lands and nodes agree."""
    phases_ms: dict[str, float]
    """Mean time of this rank's windows in each phase."""
    machine_cpu_ms: dict[str, float]
    """Processor time of the whole machine in a window, by what it was spent on."""
    crossed: float
    """Bytes that this rank sent to other nodes in a window."""


@dataclass
class Variant:
    """One experiment, which can continue at any time."""

    config: Config
    trial: Trial
    world: World
    clock: KeepingClock
    traffic: Traffic
    images: int
    """Images of all ranks in a window."""
    blocks: list[Block] = field(default_factory=list)
    """The first of them only warms up caches and allocators."""

    @property
    def timed(self) -> list[Block]:
        return self.blocks[1:]

    def begin(self) -> None:
        """Runs the first windows, which are synchronous or send whole gradients, so that no block
        has any of them."""
        for _ in range(self.config.exchange.synchronous_windows):
            self.trial.window()

    def block(self, untimed: int, windows: int) -> None:
        """Runs a block of windows on all ranks, which have just met, and drains.

        The slowest rank's time counts, since nodes that never wait for each other take different
        times. Between untimed and timed windows ranks do not meet: in the time that this takes,
        what a late exchange has in flight would travel for nothing.
        """
        for _ in range(untimed):
            self.trial.window()
        self.clock.kept.clear()
        sent = self.traffic.total
        before = psutil.cpu_times()
        own_ms = self.trial.window_ms(windows)
        spent = zip(before._fields, before, psutil.cpu_times(), strict=True)
        crossed = (self.traffic.total - sent).cross_node / windows
        kept = list(self.clock.kept)
        longest, drain_ms = slowest([own_ms, self.trial.drain_ms()], self.world)
        self.blocks.append(
            Block(
                rate=self.images / longest * 1e3,
                drain_ms=drain_ms,
                phases_ms={
                    phase.value: statistics.mean(times[phase] for times in kept) for phase in Phase
                },
                machine_cpu_ms={
                    name: (stop - start) * 1e3 / windows for name, start, stop in spent
                },
                crossed=crossed,
            )
        )


def loaded(given: str, overrides: Sequence[str]) -> Config:
    """Loads `EXPERIMENT.yaml` or `EXPERIMENT.yaml,key=value,...`."""
    path, *own = given.split(",")
    return load(path, [*overrides, *own])


def shortly_synchronous(config: Config) -> Config:
    """The same experiment with at most two synchronous windows, the fewest that PowerSGD allows.

    The speed of later windows does not depend on how many came first.
    """
    windows = min(2, config.exchange.synchronous_windows)
    return config.exchanging(synchronous_windows=windows)


def variant(config: Config, links: Links) -> Variant:
    card, topology = links.device.type == "cuda", links.topology
    clock = KeepingClock(CardTimeline() if card else HostTimeline())
    meters = Meters(clock, Traffic())
    own = replace(links, meters=meters)
    world = own.world(config.classifier.layout, user=f"{config.name}.")
    dataset = open_dataset(config.data)
    config = shortly_synchronous(choose_route(config, dataset, world))
    trial = Trial(config, dataset, world)
    passes = config.exchange.backward_passes_per_step
    images = config.train.batch_size * topology.world_size * passes
    return Variant(config, trial, world, clock, meters.traffic, images)


def fitting(variant: Variant, ranks: Ranks, seconds: float, most: int) -> int:
    """Windows of a block of about `seconds`, from the speed of the previous block.

    The same on all ranks. Collective over all ranks.
    """
    if not variant.blocks:
        return 1
    fit = seconds * variant.blocks[-1].rate / variant.images
    agreed = ranks.launch_gather(torch.tensor([fit]), "windows of a block").wait()
    return max(1, min(most, int(agreed.min())))


def crossing_mb(variant: Variant, ranks: Ranks) -> float:
    """Megabytes that a node sends to others in a window. Collective over all ranks."""
    own = torch.tensor(
        [statistics.mean(block.crossed for block in variant.timed)], dtype=torch.float64
    )
    sent = ranks.launch_gather(own, "bytes of a variant").wait().sum()
    return float(sent) / ranks.topology.nodes / 1e6


def report(variants: Sequence[Variant], crossing: Sequence[float]) -> list[dict[str, object]]:
    """Medians over blocks on this rank; `ratio` pairs neighbours in time and needs two rounds.

    `crossing`: each variant's `crossing_mb`.
    """
    facts = environment()
    first = [block.rate for block in variants[0].timed]
    found = []
    for each, megabytes in zip(variants, crossing, strict=True):
        rates = [block.rate for block in each.timed]
        ratios = [own / other for own, other in zip(rates, first, strict=True)]
        phases = mean_of([block.phases_ms for block in each.timed])
        wait = 100 * phases[Phase.EXCHANGE_WAIT.value] / sum(phases.values())
        found.append(
            {
                "variant": each.config.name,
                "images_per_second": statistics.median(rates),
                "rates": rates,
                "drains_ms": [block.drain_ms for block in each.timed],
                "route": each.config.exchange.route,
                "delay": each.config.exchange.delay,
                "ratio": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
                "cross_node_mb": megabytes,
                # torch's DDP waits inside its backward pass, where it is not seen.
                "exchange_wait_percent": (
                    None if each.config.exchange.traits.waits_in_backward else wait
                ),
                "phases_ms": phases,
                "phases_ms_by_block": [block.phases_ms for block in each.timed],
                "machine_cpu_ms": {
                    name: statistics.mean(block.machine_cpu_ms[name] for block in each.timed)
                    for name in ("user", "system", "softirq", "idle")
                },
                "commit": commit_of(facts),
                "cpu": facts["cpu"],
            }
        )
    return found


def mean_of(blocks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over blocks of the time in each phase."""
    return {phase: statistics.mean(block[phase] for block in blocks) for phase in blocks[0]}


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("arguments", nargs="+", metavar="EXPERIMENT.yaml|key=value")
    parser.add_argument("--rounds", type=number_of_rounds, default=7)
    parser.add_argument(
        "--micro-batches", type=int, default=24, help="timed micro-batches in a block, at most"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="length of a block, for which slow variants run fewer micro-batches",
    )
    parser.add_argument(
        "--untimed", type=int, default=8, help="untimed micro-batches at the start of a block"
    )
    parser.add_argument("--output", type=Path, help="JSON file for a copy of the last printed line")
    return parser.parse_args()


def main() -> None:
    chosen = _chosen()
    experiments = [each for each in chosen.arguments if each.split(",")[0].endswith(".yaml")]
    overrides = [each for each in chosen.arguments if each not in experiments]
    configs = [loaded(each, overrides) for each in experiments]
    torch.set_num_threads(1)
    topology = launched_topology()
    with ExitStack() as opened:
        ranks = opened.enter_context(open_ranks(topology))
        device, _ = choose_device(configs[0].train.device, ranks)
        meters = Meters(clock_for(device), Traffic())
        links = opened.enter_context(link(ranks, device, meters))
        variants = [variant(config, links) for config in configs]
        for number in range(chosen.rounds + 1):
            for each in variants:
                dist.barrier()
                if number == 0:
                    each.begin()
                passes = each.config.exchange.backward_passes_per_step
                windows = chosen.micro_batches // passes
                if math.isfinite(chosen.seconds):
                    windows = fitting(each, ranks, chosen.seconds, windows)
                untimed = max(1, min(windows, chosen.untimed // passes))
                each.block(untimed + each.config.exchange.delay, max(1, windows))
        crossing = [crossing_mb(each, ranks) for each in variants]
        hvd.barrier()  # the first rank that exits shuts Horovod down for all
        if topology.rank == 0:
            found = json.dumps(report(variants, crossing))
            print(found, flush=True)
            keep(found, chosen.output)


if __name__ == "__main__":
    main()

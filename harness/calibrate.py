"""Times, on the ranks of a launch, the pieces that a step is made of: what `harness plan` asks for.

`horovodrun ... python -m harness.calibrate EXPERIMENT.yaml [key=value ...] --output FILE`. All
ranks do each at once, through the code that training uses.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from harness.checks.compute import measure_speed
from harness.config import Config, load
from harness.data.images import Dataset
from harness.data.open import open_dataset
from harness.errors import SaidByAnotherRank, UserError
from harness.exchange.compression import make_wire
from harness.exchange.flat import Flat
from harness.exchange.wire import Feedback
from harness.ledger import Unheard
from harness.measure.calibration import Calibration, Point
from harness.measure.clock import (
    CardTimeline,
    Clock,
    HostTimeline,
    Phase,
    Timeline,
    Times,
    clock_for,
)
from harness.measure.machine import environment
from harness.measure.traffic import Traffic
from harness.model.backbone import make_backbone
from harness.model.flops import micro_batch_flops
from harness.model.sliced_classifier import SlicedClassifier
from harness.optimizer import make_optimizer
from harness.parallel.group import Group, Meters
from harness.parallel.topology import Topology
from harness.parallel.world import Links, World, launched_topology, open_links, rank_device
from harness.timed import barrier, now, timed
from harness.trainer import Trainer

SECONDS = 0.6
"""For each timed operation, unless told otherwise."""
LONGEST_TRANSFER_SECONDS = 0.5
"""Sizes of transfers between nodes stop where one takes longer."""
NORMAL_QUARTILES = 1.349
"""Between the quartiles of normal values, standard deviations: outliers do not count."""
CLASSES = (512, 4096)
"""Of the two classifiers that are timed."""
IN_NODE_BYTES = (16_384, 262_144, 2_097_152)
FLAT_BYTES = (32_768, 1_048_576, 4_194_304)
"""Up to `exchange.bucket_mb`'s default: what the baseline sends in one piece."""
PEERS_BYTES = (32_768, 524_288, 2_097_152)
UNDER_WAY_BYTES = (32_768, 1_048_576)
UNDER_WAY_SECONDS = 0.2
REST_SECONDS = 0.3
"""A token bucket fills up."""
OUT_OF_STEP_SECONDS = 0.02
"""About so long after the one before: a transfer must not find Horovod's cycle just beginning."""
BACK_TO_BACK = 4
"""Transfers without a rest, where a link's lasting rate is asked for."""
ENCODED_ELEMENTS = 1 << 19
OPTIMIZER_ELEMENTS = 1 << 22
"""More than caches hold."""
WARM_WINDOWS = 6
ENDLESS = 1_000_000


def measure(config: Config, links: Links, folder: Path, seconds: float) -> Calibration:
    """`seconds` for each timed operation. Collective over the world."""
    dataset = open_dataset(config.data)
    world = links.world("node", user="calibration.")
    topology = world.topology
    speed = measure_speed(world.device, 3 * seconds).flop_per_second
    network = _Network(config, world, dataset, seconds)
    facts = environment()
    return Calibration(
        hosts=tuple(world.hosts()),
        nodes=topology.nodes,
        ranks_per_node=topology.ranks_per_node,
        cores_per_node=_cores_per_node(world),
        threads=torch.get_num_threads(),
        device=_device_name(world.device),
        memory_bytes=_memory_bytes(world),
        commit=facts["git_commit"],
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.flattened(),
        product_flop_per_second=_mean(world, speed),
        **network.measured(),
        optimizer=(_optimizer(config, world, seconds),),
        encode={name: (_encoding(name, world, seconds),) for name in ("fp16", "int8", "int4")},
        **_transfers(world, seconds),
        **_window(config, dataset, links, folder, seconds),
    )


class _Network:
    """The backbone and two classifiers on one micro-batch of this rank."""

    def __init__(self, config: Config, world: World, dataset: Dataset, seconds: float) -> None:
        self._config = config
        self._seconds_each = seconds
        self._world = world
        data, device = config.data, world.device
        backbone = make_backbone(config.backbone, dataset.channels, data.image_size, config.seed)
        self.backbone = backbone.to(device)
        # Filters lie in memory as they do in training.
        self._flat = Flat(list(self.backbone.parameters()), 1, torch.zeros(1, device=device))
        trainer = Trainer(_alone(config), dataset, world, Path())
        self._batches = trainer.batches()
        self._images, _ = next(self._batches)
        self._seconds: list[float] = []

    def measured(self) -> dict[str, Any]:
        world, batch = self._world, self._config.train.batch_size
        images = timed(world, lambda: next(self._batches), batch, self._seconds_each)
        operations = self._operations(0).backbone
        backbone = timed(world, self._backbone_pass, operations, 3 * self._seconds_each)
        low, middle, high = statistics.quantiles(self._seconds[4:], n=4)
        variation = (high - low) / NORMAL_QUARTILES / middle
        return {
            "images": (images,),
            "backbone": (backbone,),
            "backbone_alone_seconds": self._alone_seconds(),
            "backbone_variation": _mean(world, variation),
            "classifier": tuple(self._classifier(classes) for classes in CLASSES),
        }

    def _operations(self, classes: int):  # type: ignore[no-untyped-def]
        data, batch = self._config.data, self._config.train.batch_size
        channels = self._images.shape[1]
        return micro_batch_flops(self.backbone, channels, data.image_size, batch, batch, classes)

    def _backbone_pass(self) -> None:
        began = now(self._world)
        self._features().sum().backward()
        self._seconds.append(now(self._world) - began)

    def _features(self) -> Tensor:
        with self._autocast():
            features: Tensor = self.backbone(self._images)
        return features

    def _autocast(self):  # type: ignore[no-untyped-def]
        enabled = self._config.train.precision == "bf16"
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=enabled)

    def _alone_seconds(self) -> float:
        """One rank after the other, each while the others wait."""
        own = 0.0
        for rank in range(self._world.topology.world_size):
            barrier(self._world)
            if rank != self._world.topology.rank or rank >= self._world.topology.ranks_per_node:
                continue
            times = []
            for _ in range(12):
                started = now(self._world)
                self._features().sum().backward()
                times.append(now(self._world) - started)
            own = statistics.median(times[2:])
        barrier(self._world)
        speakers = self._world.topology.ranks_per_node / self._world.topology.world_size
        return _mean(self._world, own) / speakers

    def _classifier(self, classes: int) -> Point:
        world, config = self._world, self._config
        batch, features = config.train.batch_size, self.backbone.features
        alone = Group(
            (world.topology.rank,), world.topology.rank, 1, None, world.meters, Phase.OTHER
        )
        classifier = SlicedClassifier(features, classes, config.classifier, alone, config.seed)
        classifier.to(world.device)
        given = torch.randn(batch, features, device=world.device, requires_grad=True)
        labels = torch.arange(batch, device=world.device) % classes

        def one_pass() -> None:
            with self._autocast():
                loss = classifier(given, labels).loss
            loss.backward()

        operations = self._operations(classes).classifier
        return timed(world, one_pass, operations, self._seconds_each)


def _alone(config: Config) -> Config:
    """Nodes that do not meet, classes sliced over each, and no end."""
    exchange = {"kind": "isolated", "route": "auto", "compression": "none", "delay": 0}
    exchange |= {"backward_passes_per_step": 1, "pieces": 1, "most_pieces": 0}
    exchange |= {"outer_lr": 1.0, "outer_momentum": 0.0}
    train = {"steps": ENDLESS, "epochs": None, "resume": None, "untimed_windows": ENDLESS}
    return config.model_copy(
        update={
            "exchange": config.exchange.model_copy(update=exchange),
            "classifier": config.classifier.model_copy(update={"layout": "node"}),
            "train": config.train.model_copy(update=train | {"log_every": ENDLESS}),
        }
    )


def _window(
    config: Config, dataset: Dataset, links: Links, folder: Path, seconds: float
) -> dict[str, Any]:
    """A window of `_alone`, as training runs it, and its phases."""
    clock = _KeepingClock(CardTimeline() if links.device.type == "cuda" else HostTimeline())
    own = replace(links, meters=Meters(clock, Traffic()))
    world = own.world("node", user="calibration.window.")
    trainer = Trainer(_alone(config), dataset, world, folder)
    batches = trainer.batches()
    windows = iter(range(ENDLESS))
    for _ in range(WARM_WINDOWS):
        trainer.run_window(next(windows), batches, Unheard())
    clock.kept.clear()
    point = timed(
        world,
        lambda: trainer.run_window(next(windows), batches, Unheard()),
        config.train.batch_size,
        8 * seconds,
    )
    batches.close()
    spent = {
        phase.value: _mean(world, statistics.mean(times[phase] for times in clock.kept)) / 1e3
        for phase in Phase
    }
    return {"window": point, "window_phases": spent}


class _KeepingClock(Clock):
    """Keeps what its reader took."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self.kept: list[Times] = []

    def read(self) -> list[Times]:
        times = super().read()
        self.kept += times
        return times


def _optimizer(config: Config, world: World, seconds: float) -> Point:
    parameter = torch.nn.Parameter(torch.zeros(1, OPTIMIZER_ELEMENTS, device=world.device))
    flat = Flat([parameter], 1, parameter.detach())
    optimizer = make_optimizer(config.optimizer, [flat])
    return timed(world, optimizer.step, 4.0 * OPTIMIZER_ELEMENTS, seconds)


class _Nowhere:
    """As many ranks as there are nodes, of which this one is alone to send anything."""

    index = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def launch_sum(self, buffer: Tensor, name: str) -> "_Nowhere":
        return self

    def wait(self) -> None:
        return None


def _encoding(name: str, world: World, seconds: float) -> Point:
    part = torch.randn(ENCODED_ELEMENTS, device=world.device)
    mean = torch.empty_like(part)
    carrier = _Nowhere(max(2, world.topology.nodes))
    wire = Feedback(make_wire(name, len(part), 1, part, carrier, name), len(part), like=part)
    return timed(world, lambda: wire.launch(part, 0).mean(into=mean), ENCODED_ELEMENTS, seconds)


def _transfers(world: World, seconds: float) -> dict[str, Any]:
    node, everyone, peers = world.node, world.everyone, world.peers
    nobody = Point(size=0, seconds=0, cpu_seconds=0)

    def points(
        sizes: Sequence[int],
        make: Callable[[int], Callable[[], object]],
        rest: float = 0.0,
        least: int = 1,
    ) -> tuple[Point, ...]:
        found: list[Point] = []
        for size in sizes:
            if found and found[-1].seconds * size / found[-1].size > LONGEST_TRANSFER_SECONDS:
                break
            found.append(timed(world, make(size), size, seconds, rest, least))
        return tuple(found)

    def gather(size: int) -> Callable[[], object]:
        block = _floats(size, world.device)
        into = block.new_empty(len(block) * node.size)
        return lambda: node.launch_all_gather(block, into).wait()

    def flat(size: int) -> Callable[[], object]:
        buffer = _floats(size, world.device)
        return lambda: everyone.launch_sum(buffer).wait()

    def late(size: int) -> Callable[[], object]:
        buffer = _floats(size, world.device)
        return lambda: peers.launch_sum(buffer, f"calibration.{size}").wait()

    def under_way(size: int) -> Callable[[], object]:
        """As a late exchange: whoever launched it does something else until it is done."""
        buffer = _floats(size, world.device)

        def one() -> None:
            launched = peers.launch_sum(buffer, f"calibration.{size}.late")
            time.sleep(UNDER_WAY_SECONDS)
            launched.wait()

        return one

    inside, between = node.size > 1, peers.size > 1
    flats = points(FLAT_BYTES, flat, least=BACK_TO_BACK) if everyone.size > 1 else (nobody,)
    most = [int(flats[-1].size)] if between else []
    return {
        "gather": points(IN_NODE_BYTES, gather) if inside else (nobody,),
        "flat": flats,
        "flat_after_rest": points(most, flat, REST_SECONDS) or (nobody,),
        "peers": points(PEERS_BYTES, late, OUT_OF_STEP_SECONDS) if between else (nobody,),
        "under_way": tuple(timed(world, under_way(size), size, seconds) for size in UNDER_WAY_BYTES)
        if between
        else (nobody,),
    }


def _floats(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size // 4, device=device)


def _cores_per_node(world: World) -> float | None:
    """Each core is divided among the ranks that may run on it, wherever their node is."""
    if world.device.type == "cuda":
        return None
    machines = world.gather_objects(Path("/proc/sys/kernel/random/boot_id").read_text(), "boots")
    allowed = world.gather_objects(tuple(sorted(os.sched_getaffinity(0))), "cores")
    takers: dict[tuple[str, int], float] = {}
    for boot, cores in zip(machines, allowed, strict=True):
        for core in cores:
            takers[boot, core] = takers.get((boot, core), 0.0) + 1 / len(cores)
    first = range(world.topology.ranks_per_node)
    return sum(
        1 / len(allowed[rank]) / max(takers[machines[rank], core], 1e-9)
        for rank in first
        for core in allowed[rank]
    )


def _memory_bytes(world: World) -> int:
    if world.device.type == "cuda":
        return int(torch.cuda.get_device_properties(world.device).total_memory)
    return int(psutil.virtual_memory().available // world.ranks_on_this_machine())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _mean(world: World, value: float) -> float:
    row = torch.tensor([value], dtype=torch.float64)
    return float(world.launch_gather(row, "calibration").wait().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.calibrate")
    parser.add_argument("experiment", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="each timing")
    chosen = parser.parse_args(arguments)
    try:
        config = load(chosen.experiment, chosen.overrides)
        topology: Topology = launched_topology()
        device = rank_device(config.train.device, topology.local_rank)
        with open_links(topology, device, Meters(clock_for(device), Traffic())) as links:
            world = links.world("node")
            torch.set_num_threads(_threads(config, world))
            found = measure(config, links, Path(), chosen.seconds)
            if world.is_first:
                chosen.output.write_text(found.model_dump_json(indent=2), encoding="utf-8")
            barrier(world)
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr, flush=True)
        return 2
    except SaidByAnotherRank:
        time.sleep(10)
        return 2
    return 0


def _threads(config: Config, world: World) -> int:
    cores = len(os.sched_getaffinity(0))
    return config.train.threads or max(1, cores // world.ranks_on_this_machine())


if __name__ == "__main__":
    sys.exit(main())

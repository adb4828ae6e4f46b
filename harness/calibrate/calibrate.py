"""Times, on the ranks of a launch, the pieces that a step is made of: what `harness plan` asks for.

`horovodrun ... python -m harness.calibrate.main EXPERIMENT.yaml [key=value ...] --output FILE`. All
ranks do each at once, through the code that training uses.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
import torch

from harness.calibrate.network import NetworkTimes, encoding_time, optimizer_time
from harness.calibrate.repeated import barrier, mean
from harness.calibrate.result import Calibration, Point
from harness.calibrate.transfers import transfer_times
from harness.calibrate.window import window_time
from harness.config import Config, load
from harness.data.open import open_dataset
from harness.doctor.agreement import agree_on_settings
from harness.doctor.compute import measure_speed
from harness.exchange.codecs import CODECS
from harness.leaving import leave
from harness.measure.clock import clock_for
from harness.measure.machine import environment
from harness.measure.traffic import Traffic
from harness.parallel.cores import Cores, cores_of
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology, open_ranks
from harness.parallel.world import Links, World, choose_device, link

SECONDS = 0.6
"""For each timed operation, unless told otherwise."""


def measure(
    config: Config, links: Links, world: World, cores: Cores, folder: Path, seconds: float
) -> Calibration:
    """`seconds` for each timed operation. Collective over the world."""
    dataset = open_dataset(config.data)
    topology, card = world.topology, world.device.type == "cuda"
    speed = measure_speed(world.device, 3 * seconds)
    network = NetworkTimes(config, world, dataset, cores, seconds)
    facts = environment()
    return Calibration(
        hosts=tuple(world.hosts()),
        nodes=topology.nodes,
        ranks_per_node=topology.ranks_per_node,
        cores_per_node=None if card else cores.per_node,
        threads=torch.get_num_threads(),
        device=_device_name(world.device),
        memory_bytes=_memory_bytes(world, cores),
        commit=facts["git_commit"],
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.flattened(),
        product=Point(
            size=mean(world, speed.flop_per_second),
            seconds=1.0,
            cpu_seconds=mean(world, speed.cpu_share or 0.0) * torch.get_num_threads(),
        ),
        **network.measured(),
        optimizer=(optimizer_time(config, world, seconds),),
        encode={name: (encoding_time(name, world, seconds),) for name in CODECS},
        **transfer_times(world, seconds),
        **window_time(config, dataset, links, folder, seconds),
    )


def _memory_bytes(world: World, cores: Cores) -> int:
    if world.device.type == "cuda":
        return int(torch.cuda.get_device_properties(world.device).total_memory)
    return int(psutil.virtual_memory().available // cores.ranks_here)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.calibrate.main")
    parser.add_argument("experiment", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="each timing")
    return leave(partial(_calibrate, parser.parse_args(arguments)))


def _calibrate(chosen: argparse.Namespace) -> int:
    config = load(chosen.experiment, chosen.overrides)
    with open_ranks(launched_topology()) as ranks:
        agree_on_settings(config, ranks)
        device, _ = choose_device(config.train.device, ranks)
        with link(ranks, device, Meters(clock_for(device), Traffic())) as links:
            world = links.world("node", user="calibration.")
            cores = cores_of(world)
            torch.set_num_threads(cores.threads(config.train.threads))
            found = measure(config, links, world, cores, Path(), chosen.seconds)
            if world.is_first:
                chosen.output.write_text(found.model_dump_json(indent=2), encoding="utf-8")
            barrier(world)
    return 0


if __name__ == "__main__":
    sys.exit(main())

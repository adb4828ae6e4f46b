"""Times the pieces of a training step on the ranks of a launch, for `harness plan`.

All ranks run each piece at the same time, through the code that training uses.
"""

from datetime import UTC, datetime
from pathlib import Path

import torch

from harness.calibrate.network import NetworkPasses, encoding_time, optimizer_time
from harness.calibrate.repeated import barrier, mean
from harness.calibrate.result import PRINTED, Calibration, Point
from harness.calibrate.transfers import transfer_times
from harness.calibrate.window import window_time
from harness.config import Config
from harness.data.open import open_dataset
from harness.doctor.agreement import agree_on_settings
from harness.doctor.compute import measure_speed
from harness.doctor.memory import memory_facts
from harness.exchange.codecs import CODECS
from harness.measure.clock import clock_for
from harness.measure.machine import environment
from harness.measure.traffic import Traffic
from harness.parallel.cores import Cores, cores_of
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology, open_ranks
from harness.parallel.world import Links, World, choose_device, link


def measure(
    config: Config, links: Links, world: World, cores: Cores, seconds: float
) -> Calibration:
    """All times of a calibration; `seconds` for each timed operation. Collective over the world."""
    dataset, topology = open_dataset(config.data), world.topology
    product = _product_time(world, seconds)
    memory_bytes = memory_of_a_rank(world, cores)
    network = NetworkPasses(config, world, dataset, cores, seconds).measured()
    optimizer = optimizer_time(config, world, seconds)
    encode = {name: encoding_time(name, world, seconds) for name in CODECS}
    transfers = transfer_times(world, seconds)
    window = window_time(config, dataset, links, seconds)
    return Calibration(
        hosts=tuple(world.hosts()),
        nodes=topology.nodes,
        ranks_per_node=topology.ranks_per_node,
        cores_per_node=None if world.device.type == "cuda" else cores.per_node,
        threads=torch.get_num_threads(),
        device=_device_name(world.device),
        memory_bytes=memory_bytes,
        commit=environment()["git_commit"],
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.flattened(),
        product=product,
        backbone=(network.backbone,),
        backbone_alone_seconds=network.backbone_alone_seconds,
        backbone_variation=network.backbone_variation,
        classifier=network.classifier,
        optimizer=(optimizer,),
        encode={name: (each,) for name, each in encode.items()},
        gather=transfers.gather,
        flat=transfers.flat,
        flat_after_rest=transfers.flat_after_rest,
        peers=transfers.peers,
        host_copy=transfers.host_copy,
        idle=transfers.idle,
        under_way=transfers.under_way,
        window=window.whole,
        window_phases=window.phases,
    )


def _product_time(world: World, seconds: float) -> Point:
    """Floating-point operations of plain matrix products in one second. Collective over the world.

    As a `Point`: size in operations, 1 s of wall time.
    """
    speed = measure_speed(world.device, 3 * seconds)
    return Point(
        size=mean(world, speed.flop_per_second),
        seconds=1.0,
        cpu_seconds=mean(world, speed.cpu_share or 0.0) * torch.get_num_threads(),
    )


def memory_of_a_rank(world: World, cores: Cores) -> int:
    """Bytes that a rank can have: its card's, or its share of what is free on the host, or within
    the limit of the container."""
    if world.device.type == "cuda":
        return int(torch.cuda.get_device_properties(world.device).total_memory)
    return memory_facts(world.device).host_free // cores.ranks_here


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def calibrate(config: Config, output: Path | None, seconds: float) -> None:
    """Writes the calibration to `output` on the first rank's host, or prints it there as one line
    if there is none. Collective over the world."""
    with open_ranks(launched_topology()) as ranks:
        agree_on_settings(config, ranks)
        device, _ = choose_device(config.train.device, ranks)
        with link(ranks, device, Meters(clock_for(device), Traffic())) as links:
            world = links.world("node", user="calibration.")
            cores = cores_of(world)
            torch.set_num_threads(cores.threads(config.train.threads))
            found = measure(config, links, world, cores, seconds)
            if world.is_first and output is not None:
                output.write_text(found.model_dump_json(indent=2), encoding="utf-8")
            elif world.is_first:
                print(PRINTED + found.model_dump_json(), flush=True)
            # The launcher ends all ranks once one has left, so all wait until it is written.
            barrier(world)

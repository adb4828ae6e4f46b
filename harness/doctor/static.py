"""Checks of all ranks that take milliseconds: software, names, memory, disk."""

from collections.abc import Sequence
from pathlib import Path

import torch

from harness.config import Config
from harness.doctor.disk import DiskFacts, disk_facts, judge_disk
from harness.doctor.finding import Facts, Finding
from harness.doctor.memory import MemoryFacts, judge_memory, memory_facts
from harness.doctor.names import NameFacts, judge_names, name_facts
from harness.doctor.need import Need
from harness.doctor.seat import Seat
from harness.doctor.versions import (
    Build,
    VersionFacts,
    horovod_build,
    judge_build,
    judge_versions,
    version_facts,
)


class StaticFacts(Facts):
    """Facts of one rank."""

    versions: VersionFacts
    build: Build
    memory: MemoryFacts
    names: NameFacts | None
    """None except on the first rank of a host."""
    disk: DiskFacts | None
    """None except on the first rank of a host."""


def static_facts(
    config: Config,
    seats: Sequence[Seat],
    seat: Seat,
    device: torch.device,
    need: Need | None,
    folder: Path | None = None,
) -> StaticFacts:
    """Facts of this rank; `need` is required on the first rank only. `folder`: the run's own, if it
    was given."""
    kept = need.checkpoint if need else 0
    return StaticFacts(
        versions=version_facts(),
        build=horovod_build(),
        memory=memory_facts(device),
        names=name_facts(seats, seat) if seat.is_host_leader else None,
        disk=disk_facts(config, kept, seat.rank == 0, folder) if seat.is_host_leader else None,
    )


def judge_static(
    seats: Sequence[Seat], facts: Sequence[StaticFacts], need: Need | None
) -> list[Finding]:
    """Findings of all checks, ordered so that a fault comes before those that it explains."""
    builds = [each.build for each in facts]
    mended = all(build.mended for build in builds)
    return [
        *judge_versions(seats, [each.versions for each in facts]),
        *judge_build(seats, builds),
        *judge_names(seats, [each.names for each in facts], mended),
        *judge_memory(seats, [each.memory for each in facts], need),
        *judge_disk(seats, [each.disk for each in facts]),
    ]

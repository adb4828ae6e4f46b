"""Is there enough memory for this run on every host and every card?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

from harness.doctor.finding import Facts, Finding, format_bytes, limit_lines, listed
from harness.doctor.need import Need
from harness.doctor.seat import Seat

CHECK = "memory"
TIGHT = 0.8
"""Share of the free memory above which there is a warning."""
CONTROL_ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Control:
    """The control groups of one version, by which a container, a job or a service is limited."""

    controller: str
    """The one that limits memory, as the list of a process's groups names it."""
    folder: str
    limit: str
    usage: str
    cache: str
    """The line of memory.stat with the file cache that can be reclaimed."""

    def groups(self) -> Iterator[Path]:
        """This process's group, and all groups that this one is in: each may have a limit."""
        root = CONTROL_ROOT / self.folder
        for controllers, path in _own_groups():
            if self.controller in controllers.split(","):
                own = PurePosixPath(path.strip("/"))
                yield from (root / group for group in (own, *own.parents) if group.parts)
        # A container may read the path that its group has on the host, and find only its own there.
        yield root


CONTROLS = (
    Control(
        controller="",
        folder="",
        limit="memory.max",
        usage="memory.current",
        cache="inactive_file",
    ),
    Control(
        controller="memory",
        folder="memory",
        limit="memory.limit_in_bytes",
        usage="memory.usage_in_bytes",
        cache="total_inactive_file",
    ),
)
"""Versions 2 and 1."""


class MemoryFacts(Facts):
    """Free memory, as one rank sees it."""

    host_free: int
    """Bytes available on the host, or within this container's limit."""
    card_free: int | None
    """Bytes available on the rank's card; None without a card."""


def memory_facts(device: torch.device) -> MemoryFacts:
    card = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    free = psutil.virtual_memory().available
    return MemoryFacts(host_free=_left_in_container(free), card_free=card)


def judge_memory(
    seats: Sequence[Seat], facts: Sequence[MemoryFacts], need: Need | None
) -> list[Finding]:
    """Compares the run's need with what is free; without a `need`, only reports what is free."""
    by_machine: dict[tuple[str, str], list[int]] = {}
    for number, seat in enumerate(seats):
        by_machine.setdefault((seat.machine, seat.boot), []).append(number)
    faults, hosts, cards = [], [], [fact.card_free for fact in facts if fact.card_free is not None]
    for ranks in by_machine.values():
        free = min(facts[rank].host_free for rank in ranks)
        hosts.append(free)
        on_host = [rank for rank in ranks if facts[rank].card_free is None]
        if need is not None:
            where = f"host {seats[ranks[0]].host}"
            faults += _short(where, free, need.total, need, len(on_host))
            beside, on_cards = need.beside_card, len(ranks) - len(on_host)
            faults += _short(where, free, beside.total, beside, on_cards)
    for seat, fact in zip(seats, facts, strict=True):
        if need is not None and fact.card_free is not None:
            where = f"the card of rank {seat.rank} on {seat.host}"
            faults += _short(where, fact.card_free, need.on_card, need)
    well = f"{format_bytes(min(hosts))} free on every host"
    well += f", {format_bytes(min(cards))} on every card" if cards else ""
    well += f"; a rank of this run needs {_parts(need)}" if need else ""
    return limit_lines(faults, Finding(check=CHECK, level="ok", found=well))


def _short(where: str, free: int, total: int, need: Need, ranks: int = 1) -> list[Finding]:
    if ranks * total <= TIGHT * free:
        return []
    each = (
        f"{ranks} ranks need {_parts(need)} each" if ranks > 1 else f"a rank needs {_parts(need)}"
    )
    return [
        Finding(
            check=CHECK,
            # Activations are an estimate: only memory that is certainly taken makes this a fault.
            level="fail" if ranks * need.certain > free else "warn",
            found=f"{where} has {format_bytes(free)} free; {each}",
            advice="lower train.batch_size or exchange.delay, slice the classifier "
            "(classifier.layout=node), or free memory",
        )
    ]


def _parts(need: Need) -> str:
    """The total, what is held all the time, and the moments of which one at a time adds to it."""
    stays = f"model {format_bytes(need.model)}, exchange {format_bytes(need.exchange)}"
    stays += f", a checkpoint's copies {format_bytes(need.copies)}" if need.copies else ""
    moments = listed(f"{name} {format_bytes(size)}" for name, size in need.moments.items() if size)
    return f"{format_bytes(need.total)} ({stays}{'; one at a time: ' * bool(moments)}{moments})"


def _left_in_container(most: int) -> int:
    """Bytes left below the limits of this process's control groups, at most `most`."""
    lefts = [_left(group, control) for control in CONTROLS for group in control.groups()]
    return max(0, min([most, *(left for left in lefts if left is not None)]))


def _left(group: Path, control: Control) -> int | None:
    """Bytes left below the limit of a group; None if it has none."""
    try:
        allowed = int((group / control.limit).read_text(encoding="ascii"))
        used = int((group / control.usage).read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    fields = dict(line.split(maxsplit=1) for line in lines)
    # Inactive file cache counts as used, but the kernel reclaims it before a limit hurts.
    return allowed - used + int(fields.get(control.cache, 0))


def _own_groups() -> list[tuple[str, str]]:
    """Controllers and path of each group that this process is in."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [(controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines)]

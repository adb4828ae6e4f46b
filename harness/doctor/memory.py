"""Is there enough memory for this run on every host and every card?"""

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from harness.doctor.finding import Facts, Finding, format_bytes, limit_lines, listed
from harness.doctor.need import Need
from harness.doctor.seat import Seat

CHECK = "memory"
TIGHT = 0.8
"""Share of the free memory above which there is a warning."""
CONTROL_ROOT = Path("/sys/fs/cgroup")
CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""A container's control group files, in versions 2 and 1: limit, use, statistics, and the line of
these with the reclaimable file cache."""


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
    """Bytes left below the limit of this process's control group, at most `most`."""
    for limit, usage, statistics, cache in CONTROL_GROUPS:
        try:
            allowed = int((CONTROL_ROOT / limit).read_text(encoding="ascii"))
            used = int((CONTROL_ROOT / usage).read_text(encoding="ascii"))
            lines = (CONTROL_ROOT / statistics).read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue  # the other version, or no limit
        fields = dict(line.split(maxsplit=1) for line in lines)
        # Inactive file cache counts as used, but the kernel reclaims it before a limit hurts.
        return max(0, min(most, allowed - used + int(fields.get(cache, 0))))
    return most

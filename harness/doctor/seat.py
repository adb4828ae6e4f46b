"""Where one rank sits, as its launcher told it; known before anything is started."""

import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.parallel.launcher import launched


class Seat(BaseModel):
    """One rank's place among the hosts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    size: int
    """Ranks in all."""
    local_rank: int
    host: str
    """The host's name as the launcher was given it; the machine's own without a launcher."""
    machine: str
    """The name the machine gives itself."""
    boot: str = ""
    """Tells machines apart that have one name."""
    interface: str | None = None
    """Network interface that the launcher chose."""
    rendezvous: tuple[str, int] | None = None
    """Address and port of the launcher's key-value store, which all ranks can reach."""

    @property
    def speaks(self) -> bool:
        """The one of its host that finds out what is the same for all ranks there."""
        return self.local_rank == 0


def launched_seat() -> Seat:
    """This process's, by what horovodrun set; one rank alone without it."""
    place = launched()
    return Seat(
        rank=place.rank,
        size=place.size,
        local_rank=place.local_rank,
        host=place.host,
        machine=socket.gethostname(),
        boot=_boot(),
        interface=place.interface,
        rendezvous=place.rendezvous,
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

"""Where one rank sits, as its launcher told it; known before anything is started."""

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict


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
    own, variables = socket.gethostname(), os.environ
    address = variables.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    port = int(variables.get("HOROVOD_GLOO_RENDEZVOUS_PORT", 0))
    return Seat(
        rank=int(variables.get("HOROVOD_RANK", 0)),
        size=int(variables.get("HOROVOD_SIZE", 1)),
        local_rank=int(variables.get("HOROVOD_LOCAL_RANK", 0)),
        host=variables.get("HOROVOD_HOSTNAME", own),
        machine=own,
        boot=_boot(),
        interface=variables.get("HOROVOD_GLOO_IFACE") or None,
        rendezvous=(address, port) if address and port else None,
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

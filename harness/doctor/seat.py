"""The place of a rank among the hosts, by its launcher's variables; known before any set-up."""

import os
import socket

from pydantic import BaseModel, ConfigDict

from harness.parallel.launcher import launched
from harness.parallel.machine import boot_id


class Seat(BaseModel):
    """One rank's place among the hosts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    size: int
    """Number of ranks."""
    local_rank: int
    """Rank within the host."""
    host: str
    """The host's name as given to the launcher; without a launcher, the machine's own name."""
    machine: str
    """The name that the machine gives itself."""
    boot: str = ""
    """Boot id of the machine, which distinguishes machines with the same name; empty if unknown."""
    cores: tuple[int, ...] = (0,)
    """The cores that the rank may run on, sorted."""
    interface: str | None = None
    """Network interface that the launcher chose."""
    rendezvous: tuple[str, int] | None = None
    """Address and port of the launcher's key-value store, which all ranks can reach."""

    @property
    def is_host_leader(self) -> bool:
        """Whether this rank checks what is the same for all ranks of its host."""
        return self.local_rank == 0


def launched_seat() -> Seat:
    """The seat of this process, from horovodrun's variables; without them, a single rank's."""
    place = launched()
    return Seat(
        rank=place.rank,
        size=place.size,
        local_rank=place.local_rank,
        host=place.host,
        machine=socket.gethostname(),
        boot=boot_id(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        interface=place.interface,
        rendezvous=place.rendezvous,
    )

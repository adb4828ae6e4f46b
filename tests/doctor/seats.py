"""Ranks as a launcher would have placed them."""

from harness.doctor.seat import Seat


def seats(*hosts: tuple[str, int], machine: str | None = None) -> list[Seat]:
    """Seats of these (host, ranks), all on one `machine`, or each host on a machine of its name."""
    size = sum(ranks for _, ranks in hosts)
    places = [(host, local) for host, ranks in hosts for local in range(ranks)]
    return [
        Seat(rank=rank, size=size, local_rank=local, host=host, machine=machine or host)
        for rank, (host, local) in enumerate(places)
    ]


FOUR = seats(("h1", 1), ("h2", 1), ("h3", 1), ("h4", 1))
EMULATED = seats(("localhost", 2), ("127.0.0.1", 2), machine="box")

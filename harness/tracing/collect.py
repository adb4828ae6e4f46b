"""Files of all ranks on the first, one after the other: no rank holds more than one at a time."""

from collections.abc import Callable

import torch
import torch.distributed as dist


def collect(rank: int, ranks: int, content: bytes, take: Callable[[int, bytes], None]) -> None:
    """Calls `take(rank, content)` on rank 0 for every rank, in their order.

    Point to point, through the host's memory. Collective over the world.
    """
    if rank:
        dist.send(torch.tensor([len(content)]), 0)
        if content:
            dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)
        return
    take(0, content)
    for other in range(1, ranks):
        take(other, _received(other))


def _received(other: int) -> bytes:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, other)
    content = torch.empty(int(size), dtype=torch.uint8)
    if len(content):
        dist.recv(content, other)
    return content.numpy().tobytes()

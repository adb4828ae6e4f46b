"""The way of a card's tensors through host memory: Horovod's collectives run there."""

import torch
from torch import Tensor

from harness.parallel.line import used_here


def down(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, complete: the thread sleeps until then. A tensor that is there
    already is returned itself.

    torch keeps pinned memory and gives it to the next copy of about this size, once nobody holds
    the tensor and its copies have ended. So what is held grows with what is under way at once, and
    not with the number of names.
    """
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(used_here(tensor), non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(tensor.device))
    copied.synchronize()
    return host


def up(landed: Tensor, device: torch.device, into: Tensor | None = None) -> Tensor:
    """The tensor on `device`, in `into` or a new one, for the current stream; nobody waits for the
    copy."""
    if device.type != "cuda":
        return landed
    # The caching host allocator reuses a pinned block only after its copy has ended.
    pinned = landed.pin_memory()
    if into is None:
        return pinned.to(device, non_blocking=True)
    return used_here(into).copy_(pinned, non_blocking=True)

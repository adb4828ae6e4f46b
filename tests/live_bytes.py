"""How many bytes of tensors lie in the host's memory at most while a piece of code runs.

Every allocation and release of torch's own allocator, temporaries inside its operators included:
the same in every run, whatever the system's allocator and other processes do.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile


class LiveBytes:
    """`peak` and `kept`, bytes above what lived when the measuring began."""

    peak: int = 0
    kept: int = 0


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Measures the block; the figures are there when it has ended."""
    found = LiveBytes()
    # Tensors of before that lie in cycles would be counted as released here.
    gc.collect()
    gc.disable()
    try:
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as record:
            yield found
    finally:
        gc.enable()
    assert record.profiler is not None
    events = record.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    for change in changes:
        found.kept += change
        found.peak = max(found.peak, found.kept)

"""Traces some windows of a run: profiles its ranks and gathers their traces in one file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.config import TraceConfig
from harness.errors import UserError
from harness.parallel.world import World
from harness.tracing.chrome_trace import Profile, RankTrace, merged
from harness.tracing.clock_offset import clock_offsets
from harness.tracing.horovod_timeline import start_timeline, stop_timeline
from harness.tracking.run_folder import TRACES

LARGEST_BYTES = 64_000_000
"""Largest compressed trace of a rank."""
MERGED_BYTES = 64_000_000
"""Most bytes of compressed traces that are merged into one file, which takes about fifty times as
much of rank 0's memory."""


def check_trace(trace: TraceConfig, world_size: int) -> None:
    """Raises UserError if `trace.ranks` names a rank that the run does not have."""
    unknown = [rank for rank in trace.ranks if not 0 <= rank < world_size]
    if unknown:
        raise UserError(
            f"trace.ranks={list(trace.ranks)} names rank {unknown[0]}, but the run has ranks 0 to "
            f"{world_size - 1}; leave it out"
        )


class Tracing:
    """Traces `windows` once. Rank 0 writes a file for each traced rank, and one with all ranks."""

    def __init__(self, trace: TraceConfig, windows: range, world: World, folder: Path) -> None:
        self._trace = trace
        self._windows = windows
        self._world = world
        self._folder = folder / TRACES
        self._timeline = self._folder / "horovod.json"
        self._machines: list[str] = []
        self._hosts: list[str] = []
        self._profile: Profile | None = None

    def starts(self, window: int) -> bool:
        return window in self._windows and window == self._windows.start

    def stops(self, ended: int) -> bool:
        return ended - 1 in self._windows and ended == self._windows.stop

    def start(self) -> None:
        """Starts the profile on all ranks, once each is ready. Collective over the world."""
        rank = self._world.topology.rank
        if self._world.is_first:
            _make(self._folder)
        if not self._trace.ranks or rank in self._trace.ranks:
            self._profile = Profile(self._world.device, self._world.meters.clock)
            self._profile.start()
        self._machines, self._hosts = self._world.machines(), self._world.hosts()
        if self._trace.horovod_timeline and self._world.is_first:
            start_timeline(self._timeline)

    def stop(self) -> list[Path]:
        """Sends the traces to rank 0, which writes them and returns the files (others: none).

        Collective over the world.
        """
        files, horovod = list[Path](), ""
        if self._trace.horovod_timeline and self._world.is_first:
            stop_timeline()
            if self._timeline.exists():  # not if it could not be written
                horovod = self._timeline.read_text(encoding="utf-8", errors="replace")
                files.append(self._timeline)
        content = self._profile.stop() if self._profile is not None else b""
        self._profile = None
        rank = self._world.topology.rank
        if len(content) > LARGEST_BYTES:
            _warn_too_large(rank, len(content))
            content = b""
        clocks = clock_offsets(rank, self._machines)
        traces, left_out = list[RankTrace](), list[int]()

        def take(of: int, content: bytes) -> None:
            if not content:
                return
            files.extend(_written(self._folder / f"rank-{of}.json.gz", content))
            if sum(len(trace.content) for trace in traces) + len(content) > MERGED_BYTES:
                left_out.append(of)
                return
            clock = clocks[of].ahead_seconds, clocks[of].within_seconds
            host = self._hosts[of // self._world.topology.ranks_per_node]
            traces.append(RankTrace(of, host, content, *clock))

        collect(rank, self._world.topology.world_size, content, take)
        if self._world.is_first:
            files.extend(self._merge(traces, horovod, left_out))
        # The next window is timed: no rank may spend it waiting for rank 0 to finish writing.
        self._world.broadcast(None, "traces are written")
        return files

    def _merge(self, traces: list[RankTrace], horovod: str, left_out: list[int]) -> list[Path]:
        about: dict[str, Any] = {"windows": [self._windows.start, self._windows.stop - 1]}
        if left_out:
            about["left_out_ranks"] = left_out
            _warn_left_out(left_out)
        return _written(self._folder / "merged.json.gz", merged(traces, horovod, about))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _warn_unwritten(folder, error)


def _written(file: Path, content: bytes) -> list[Path]:
    """Writes the file and returns it; on a full disk only warns: a trace is not worth a run."""
    try:
        file.write_bytes(content)
    except OSError as error:
        _warn_unwritten(file, error)
        return []
    return [file]


def _warn_unwritten(path: Path, error: OSError) -> None:
    print(
        f"warning: the trace {path} cannot be written ({error.strerror}); training goes on",
        file=sys.stderr,
        flush=True,
    )


def _warn_left_out(ranks: list[int]) -> None:
    print(
        f"merged.json.gz leaves out ranks {', '.join(map(str, ranks))}, whose own files are beside "
        f"it: at most {MERGED_BYTES / 1e6:.0f} MB are merged; set fewer trace.ranks",
        file=sys.stderr,
        flush=True,
    )


def _warn_too_large(rank: int, size: int) -> None:
    print(
        f"the trace of rank {rank} is left out: it has {size / 1e6:.0f} MB, the limit is "
        f"{LARGEST_BYTES / 1e6:.0f} MB; set trace.windows lower, or fewer trace.ranks",
        file=sys.stderr,
        flush=True,
    )


def collect(rank: int, ranks: int, content: bytes, take: Callable[[int, bytes], None]) -> None:
    """Calls `take(rank, content)` on rank 0 for every rank, in rank order.

    Sends point to point, through host memory. Collective over the world.
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

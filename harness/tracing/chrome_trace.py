"""Traces of some windows by torch's profiler, and one file of all ranks on one clock."""

import gzip
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness.measure.clock import Clock

Event = dict[str, Any]
"""As in Chrome's trace format, which ui.perfetto.dev opens: `ts` and `dur` are microseconds."""
STREAMS = 1 << 24
"""Added to the number of a card's stream, which so differs from every thread's (at most 2^22); a
viewer keeps 32 bits of the sum."""
RANK_BITS = 40
"""An arrow's number holds its rank from this bit on: viewers accept 64-bit integers only."""


class Profile:
    """What this rank does from `start` to `stop`: operators, kernels, and the clock's phases."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._clock = clock

    def start(self) -> None:
        self._profile.start()
        self._clock.name_phases(True)

    def stop(self) -> bytes:
        """A gzipped file of Chrome's trace format."""
        self._clock.name_phases(False)
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="trace-") as folder:
            file = Path(folder) / "trace.json.gz"
            self._profile.export_chrome_trace(str(file))
            return file.read_bytes()


@dataclass(frozen=True)
class RankTrace:
    """A rank's trace, and how to tell its times by rank 0's clock."""

    rank: int
    host: str
    content: bytes
    """From `Profile.stop`."""
    ahead_seconds: float
    within_seconds: float


def merged(traces: Sequence[RankTrace], horovod: str, about: dict[str, Any]) -> bytes:
    """One gzipped file: a process for each rank, and one for the tensors of Horovod's timeline.

    `horovod`: the text of its file, which may be empty. `about` goes into the file's metadata.
    """
    events = [event for trace in traces for event in _rank_events(trace)]
    if horovod:
        pid = 1 + max((trace.rank for trace in traces), default=-1)
        events += [*_process(pid, "Horovod, seen from rank 0"), *_horovod_events(horovod, pid)]
    first = min((event["ts"] for event in events if event["ph"] != "M"), default=0)
    for event in events:
        # In floating point only now that nothing of the date is in it.
        event["ts"] = max(0, event["ts"] - first) / 1e3
    clocks = {
        str(trace.rank): {
            "ahead_us": trace.ahead_seconds * 1e6,
            "within_us": trace.within_seconds * 1e6,
        }
        for trace in traces
    }
    whole = {
        "displayTimeUnit": "ms",
        "metadata": {**about, "started_ns": first, "clocks": clocks},
        "traceEvents": events,
    }
    return gzip.compress(json.dumps(whole).encode())


def _process(pid: int, name: str) -> list[Event]:
    facts = (("process_name", {"name": name}), ("process_sort_index", {"sort_index": pid}))
    return [{"ph": "M", "name": kind, "pid": pid, "ts": 0, "args": args} for kind, args in facts]


def _rank_events(trace: RankTrace) -> list[Event]:
    """A rank's events as of one process, `ts` in nanoseconds since 1970 by rank 0's clock."""
    found = json.loads(gzip.decompress(trace.content))
    base = found["baseTimeNanoseconds"] - round(trace.ahead_seconds * 1e9)
    own = next(e["pid"] for e in found["traceEvents"] if e.get("cat") == "user_annotation")
    events = _process(trace.rank, f"rank {trace.rank} on {trace.host}")
    streams = set()
    for event in found["traceEvents"]:
        # The profiler's own marks have words for numbers; names of processes are given above.
        told = event["ph"] != "M" or str(event["name"]).startswith("thread_")
        if not isinstance(event.get("pid"), int) or not told:
            continue
        if event["pid"] != own:
            if event["ph"] == "M":
                continue
            event["tid"] %= STREAMS  # some wait for all streams at once: number -1
            streams.add(event["tid"])
            event["tid"] += STREAMS
        if "id" in event:
            event["id"] = int(event["id"]) + (trace.rank << RANK_BITS)
        event |= {"pid": trace.rank, "ts": base + round(event["ts"] * 1e3)}
        events.append(event)
    return events + [_thread(trace.rank, STREAMS + each, f"stream {each}") for each in streams]


def _thread(pid: int, tid: int, name: str) -> Event:
    args = {"name": name}
    return {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "ts": 0, "args": args}


def _horovod_events(timeline: str, pid: int) -> list[Event]:
    """Horovod draws each tensor as a process and counts from its own start; here it is a thread."""
    events: Iterable[Event] = json.loads(timeline)
    return list(_as_threads(events, pid))


def _as_threads(events: Iterable[Event], pid: int) -> Iterator[Event]:
    start = 0
    depths: dict[int, int] = {}
    for event in events:
        tensor = event.get("pid", 0)
        args = event.get("args", {})
        if event["ph"] == "M":
            start = 1000 * args.get("start_time_since_epoch_in_micros", start // 1000)
            if "name" in args:
                yield _thread(pid, tensor, args["name"])
            continue
        # What was under way when the timeline began only ends in it.
        depth = depths.get(tensor, 0) + {"B": 1, "E": -1}.get(event["ph"], 0)
        depths[tensor] = max(0, depth)
        if depth < 0:
            continue
        event |= {"pid": pid, "tid": tensor, "ts": start + 1000 * event["ts"]}
        if event["ph"] == "X":
            event |= {"ph": "i", "s": "t", "name": f"rank {event['name']} is ready"}
        yield event

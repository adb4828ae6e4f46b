"""Profiles windows with torch's profiler, and merges all ranks into one file on one clock."""

import gzip
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness.measure.clock import Clock

Event = dict[str, Any]
"""An event of Chrome's trace format, which ui.perfetto.dev opens; `ts`, `dur` in microseconds."""
STREAMS = 1 << 24
"""Added to a card's stream number, so that it differs from all thread ids (at most 2^22); viewers
keep 32 bits of the sum."""
RANK_BITS = 40
"""Flow ids carry the rank in bits 40 and up (viewers accept 64-bit integers only)."""

log = logging.getLogger(__name__)


class Profile:
    """A profile of this rank from `start` to `stop`: operators, kernels, and the clock's phases."""

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
        """Ends the profile; returns a gzipped file in Chrome's trace format."""
        self._clock.name_phases(False)
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="trace-") as folder:
            file = Path(folder) / "trace.json.gz"
            self._profile.export_chrome_trace(str(file))
            return file.read_bytes()


@dataclass(frozen=True)
class RankTrace:
    """A rank's trace, and how its clock relates to rank 0's."""

    rank: int
    host: str
    content: bytes
    """Result of `Profile.stop`."""
    ahead_seconds: float
    """How far the rank's clock is ahead of rank 0's."""
    within_seconds: float
    """Largest error of `ahead_seconds`."""


def merged(traces: Sequence[RankTrace], horovod: str, about: dict[str, Any]) -> bytes:
    """One gzipped trace with a process for each rank, and one for Horovod's timeline.

    `horovod`: text of the timeline's file, or empty. `about`: further metadata of the trace.
    """
    events = [event for trace in traces for event in _rank_events(trace)]
    if horovod:
        pid = 1 + max((trace.rank for trace in traces), default=-1)
        events += [*_process(pid, "Horovod, seen from rank 0"), *_horovod_events(horovod, pid)]
    first = min((event["ts"] for event in events if event["ph"] != "M"), default=0)
    for event in events:
        # Times are integers, nanoseconds since 1970 (2^60), up to here: a float's 53 bits would
        # lose the microseconds. Relative to the first event they fit.
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
    """A rank's events as one process, with `ts` in nanoseconds since 1970 by rank 0's clock."""
    found = json.loads(gzip.decompress(trace.content))
    base = found["baseTimeNanoseconds"] - round(trace.ahead_seconds * 1e9)
    # The profiler's process ids are this process's and the cards'; phases are in the former.
    own = next(e["pid"] for e in found["traceEvents"] if e.get("cat") == "user_annotation")
    events = _process(trace.rank, f"rank {trace.rank} on {trace.host}")
    streams = set()
    for event in found["traceEvents"]:
        # The profiler's own marks have words for pids; processes are named above.
        wanted = event["ph"] != "M" or str(event["name"]).startswith("thread_")
        if not isinstance(event.get("pid"), int) or not wanted:
            continue
        if event["pid"] != own:
            if event["ph"] == "M":
                continue
            event["tid"] %= STREAMS  # -1, for events that wait for all streams, becomes positive
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
    """The timeline's events on the common clock; Horovod's process of a tensor becomes a thread."""
    try:
        events: Iterable[Event] = json.loads(timeline)
    except ValueError:  # cut off by a full disk
        log.warning("Horovod's timeline is incomplete; the merged trace lacks it")
        return []
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
        # An operation that was under way when the timeline began has an end without a begin.
        depth = depths.get(tensor, 0) + {"B": 1, "E": -1}.get(event["ph"], 0)
        depths[tensor] = max(0, depth)
        if depth < 0:
            continue
        event |= {"pid": pid, "tid": tensor, "ts": start + 1000 * event["ts"]}
        if event["ph"] == "X":
            event |= {"ph": "i", "s": "t", "name": f"rank {event['name']} is ready"}
        yield event

"""One file of all ranks has every event once, on one clock, whatever ids the profilers gave it."""

import gzip
import json
import os
import time
from typing import Any

import pytest
import torch
from torch.nn import functional

from harness.measure.clock import Clock, HostTimeline
from harness.measure.phase import Phase
from harness.tracing.chrome_trace import Profile, RankTrace, merged

NS = 1_000_000_000


def kineto(base: int, *events: dict[str, Any]) -> bytes:
    """A trace in torch's format."""
    return gzip.compress(json.dumps({"baseTimeNanoseconds": base, "traceEvents": events}).encode())


def annotation(name: str, ts: float, dur: float, pid: int = 77) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "user_annotation",
        "name": name,
        "pid": pid,
        "tid": pid,
        "ts": ts,
        "dur": dur,
    }


def opened(content: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    whole = json.loads(gzip.decompress(content))
    return whole["traceEvents"], whole["metadata"]


def test_times_are_told_by_rank_0s_clock() -> None:
    """Rank 1's clock is 5 s ahead, and its trace has another base time."""
    traces = [
        RankTrace(0, "h1", kineto(100 * NS, annotation("wait", 1e6, 250.5)), 0.0, 0.0),
        RankTrace(1, "h2", kineto(103 * NS, annotation("wait", 3e6 + 40, 7, 78)), 5.0, 2e-5),
    ]
    events, metadata = opened(merged(traces, "", {"windows": [3, 4]}))
    found = {e["pid"]: (e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert found == {0: (0, 250.5), 1: (pytest.approx(40), 7)}
    assert metadata["windows"] == [3, 4]
    assert metadata["started_ns"] == 101 * NS
    assert metadata["clocks"]["1"] == {"ahead_us": 5e6, "within_us": pytest.approx(20)}
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "rank 0 on h1", 1: "rank 1 on h2"}


def test_what_two_profilers_numbered_alike_stays_apart() -> None:
    """Ranks on two hosts may have the same pid, and always have the same flow ids."""
    arrow = {"ph": "s", "id": 1, "pid": 77, "tid": 77, "ts": 1.0, "cat": "fwdbwd", "name": "x"}
    content = kineto(0, annotation("forward", 0, 5), arrow)
    traces = [RankTrace(rank, "h", content, 0.0, 0.0) for rank in (0, 3)]
    events, _ = opened(merged(traces, "", {}))
    assert {e["pid"] for e in events} == {0, 3}
    assert {e["id"] for e in events if e["ph"] == "s"} == {1, (3 << 40) + 1}, "numbers, no words"


def test_a_cards_streams_are_threads_of_their_rank() -> None:
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 2.0, "dur": 1}
    of_a_card = {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "ts": 0.0, "args": {}}
    marks = {"ph": "i", "name": "Record Window End", "pid": "", "tid": "", "ts": 9.0}
    waits = kernel | {"cat": "cuda_sync", "name": "waits for all streams", "tid": -1}
    content = kineto(0, of_a_card, annotation("forward", 0, 5, pid=7), kernel, waits, marks)
    events, _ = opened(merged([RankTrace(2, "h", content, 0.0, 0.0)], "", {}))
    (card,) = [e for e in events if e.get("cat") == "kernel"]
    (host,) = [e for e in events if e.get("cat") == "user_annotation"]
    assert card["pid"] == host["pid"] == 2
    assert card["tid"] != host["tid"]
    (name,) = [e["args"]["name"] for e in events if e.get("tid") == card["tid"] and e["ph"] == "M"]
    assert name == "stream 7"
    assert all(0 <= e["tid"] < 1 << 32 for e in events if "tid" in e), "a viewer keeps 32 bits"
    assert not [e for e in events if e["name"] == "Record Window End"]


HOROVOD = [
    {
        "name": "process_name",
        "ph": "M",
        "pid": 0,
        "args": {"start_time_since_epoch_in_micros": 50_000_000},
    },
    {"name": "process_sort_index", "ph": "M", "pid": 0, "args": {"sort_index": 0}},
    {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "allreduce.a"}},
    {"ph": "E", "ts": 5, "pid": 1},
    {"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": 10, "pid": 1},
    {"ph": "X", "name": "3", "ts": 12, "pid": 1, "dur": 0},
    {"ph": "E", "ts": 20, "pid": 1},
]
"""A timeline of Horovod 0.28.1 with an operation that was under way at the start."""


def test_horovods_timeline_is_a_process_beside_the_ranks() -> None:
    traces = [RankTrace(0, "h1", kineto(50 * NS, annotation("forward", 0, 5)), 0.0, 0.0)]
    events, _ = opened(merged(traces, json.dumps(HOROVOD), {}))
    own = [e for e in events if e["pid"] == 1]
    assert [e["args"]["name"] for e in own if "name" in e.get("args", {})] == [
        "Horovod, seen from rank 0",
        "allreduce.a",
    ]
    rest = [(e["ph"], e["ts"], e.get("name")) for e in own if e["ph"] != "M"]
    assert rest == [
        ("B", 10, "NEGOTIATE_ALLREDUCE"),
        ("i", 12, "rank 3 is ready"),
        ("E", 20, None),
    ]


def test_a_real_profile_has_the_phases_at_their_times() -> None:
    clock = Clock(HostTimeline())
    profile = Profile(torch.device("cpu"), clock)
    image = torch.ones(1, 1, 8, 8)
    with clock.window(), clock.phase(Phase.DATA):
        pass
    profile.start()
    before = time.time_ns()
    with clock.window(), clock.phase(Phase.FORWARD):
        functional.conv2d(image, image[:, :, :3, :3])
        with clock.phase(Phase.SLICE_WAIT):
            time.sleep(0.01)
    after = time.time_ns()
    content = profile.stop()
    with clock.window(), clock.phase(Phase.OPTIMIZER):
        pass
    events, metadata = opened(merged([RankTrace(4, "h", content, 0.0, 0.0)], "", {}))
    assert {e["pid"] for e in events} == {4}
    spans = {e["name"]: e for e in events if e.get("cat") == "user_annotation"}
    assert spans.keys() == {"window", "forward", "slice_wait"}
    assert any("conv2d" in e["name"] for e in events)
    wait, forward = spans["slice_wait"], spans["forward"]
    assert 10_000 <= wait["dur"] <= forward["dur"]
    assert forward["ts"] <= wait["ts"]
    began = metadata["started_ns"] / 1e3 + spans["window"]["ts"]
    # The profiler converts the processor's ticks and may be some microseconds off.
    assert before / 1e3 - 1000 <= began <= began + spans["window"]["dur"] <= after / 1e3 + 1000
    assert os.getpid() not in {e["pid"] for e in events}

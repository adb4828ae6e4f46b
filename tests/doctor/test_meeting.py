"""Ranks meet with only the launcher's store, and report who is missing; links are measured."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from horovod.runner.http.http_server import RendezvousServer

from harness.doctor import meeting as meetings
from harness.doctor import probe
from harness.doctor.meeting import Meeting, open_meeting
from harness.doctor.messages import Broken, receive, send
from harness.doctor.probe import Answerer, measure, name_behind
from harness.doctor.seat import Seat

TOKEN = "a" * 32


@pytest.fixture
def store() -> Iterator[tuple[str, int]]:
    """The key-value store that horovodrun starts."""
    server = RendezvousServer()
    port = server.start()
    server.init([])
    yield "127.0.0.1", port
    server.stop()


def seat(rank: int, size: int, store: tuple[str, int]) -> Seat:
    return Seat(rank=rank, size=size, local_rank=0, host=f"h{rank}", machine="m", rendezvous=store)


def on_ranks(size: int, store: tuple[str, int], program: Callable[[Meeting], Any]) -> list[Any]:
    """The program's result on each rank, or the exception that it raised."""

    def run(rank: int) -> Any:
        try:
            with open_meeting(seat(rank, size, store)) as meeting:
                return program(meeting)
        except Broken as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def test_all_know_what_each_said(store: tuple[str, int]) -> None:
    def program(meeting: Meeting) -> Any:
        first = meeting.gather({"rank": meeting.seat.rank}, "one")
        return first, meeting.gather(meeting.seat.rank**2, "two")

    expected = [{"rank": rank} for rank in range(4)], [0, 1, 4, 9]
    assert on_ranks(4, store, program) == [expected] * 4


def test_one_rank_needs_nobody() -> None:
    alone = Seat(rank=0, size=1, local_rank=0, host="h", machine="h")
    with open_meeting(alone) as meeting:
        assert meeting.gather((1, 2), "tuple") == [[1, 2]]


def test_whoever_leaves_is_told(store: tuple[str, int]) -> None:
    def program(meeting: Meeting) -> Any:
        return None if meeting.seat.rank == 2 else meeting.gather(1, "later")

    first, other, _ = on_ranks(3, store, program)
    assert str(first) == "rank 2 left at step 'later' (the other end is closed)"
    assert "rank 1 on h1 lost the first rank at step 'later'" in str(other)


def test_ranks_at_different_checks_are_told(store: tuple[str, int]) -> None:
    first, _ = on_ranks(2, store, lambda meeting: meeting.gather(1, str(meeting.seat.rank)))
    assert str(first) == "rank 1 is at step '1', the first rank at '0'"


def test_whoever_does_not_come_is_named(
    store: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meetings, "ARRIVAL_SECONDS", 0.3)
    with pytest.raises(Broken, match="the first rank did not come"):
        open_meeting(seat(1, 3, store)).__enter__()
    with pytest.raises(Broken, match=r"ranks 1, 2 did not connect to h0 within 0 s"):
        open_meeting(seat(0, 3, store)).__enter__()


def test_a_launcher_that_is_gone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = free.getsockname()
    with pytest.raises(Broken, match=r"rank 1 on h1 cannot reach the launcher .*refused"):
        open_meeting(seat(1, 2, gone)).__enter__()
    nowhere = Seat(rank=0, size=2, local_rank=0, host="h", machine="h")
    with pytest.raises(Broken, match="start with horovodrun --gloo"):
        open_meeting(nowhere).__enter__()


def test_strangers_are_sent_away(store: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = meetings._look_up

    def stranger_first(own: Seat) -> tuple[str, int, str]:
        host, port, token = real(own)
        for said in (["wrong token", 1], 5):
            with socket.create_connection((host, port)) as connection:
                send(connection, said)
        return host, port, token

    monkeypatch.setattr(meetings, "_look_up", stranger_first)
    assert (
        on_ranks(2, store, lambda meeting: meeting.gather(meeting.seat.rank, "all")) == [[0, 1]] * 2
    )


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    server = Answerer(TOKEN, "box")
    yield server
    server.close()


def test_a_way_is_measured(answerer: Answerer) -> None:
    link = measure(3, 5, ("127.0.0.1", answerer.port), TOKEN, 0.2)
    assert (link.source, link.target, link.error) == (3, 5, "")
    assert 0 < link.latency_seconds < 0.1
    assert link.there > 1e7
    assert link.back > 1e7
    assert abs(link.clock_ahead_seconds) < 0.1


def test_who_answers_tells_its_name(answerer: Answerer) -> None:
    assert name_behind("127.0.0.1", answerer.port, TOKEN) == "box"
    with pytest.raises(ConnectionError):
        name_behind("127.0.0.1", answerer.port, "b" * 32)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        link = measure(0, 1, free.getsockname(), TOKEN, 0.1)
    assert link.error == "Connection refused"


def test_a_clock_that_is_ahead(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.current_thread()
    real = time.time
    monkeypatch.setattr(
        probe.time, "time", lambda: real() + (0 if threading.current_thread() is here else 7.5)
    )
    link = measure(0, 1, ("127.0.0.1", answerer.port), TOKEN, 0.05)
    assert link.clock_ahead_seconds == pytest.approx(7.5, abs=0.1)


@pytest.mark.parametrize(("rate", "free"), [(25e6, 65536), (2.5e6, 65536), (1e9, 0), (5e9, 0)])
def test_the_rate_behind_a_shaper(rate: float, free: int) -> None:
    """A burst passes at once; the measured rate is that of the rest, in bounded time."""
    took: list[float] = []

    def transfer(count: int) -> float:
        took.append(max(1e-5, (count - free) / rate))
        return took[-1]

    found = probe._rate(transfer, 0.5)
    assert rate <= found < 1.35 * rate
    assert sum(took) < 0.8


def test_messages_of_a_wrong_length() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(ValueError, match="a message of"):
            receive(other)

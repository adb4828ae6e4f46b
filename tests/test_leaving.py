"""What a rank says when it leaves, and after whom; which errors are only another rank's end."""

import pytest
import torch

from harness import leaving
from harness.errors import AlikeOnAllRanks, ReportedByAnotherRank, RunFailed, UserError
from harness.leaving import VICTIM, consequence, leave


class HorovodInternalError(RuntimeError):
    """Horovod's, by its name."""


CLOSED = "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4291"
SHUT = "Horovod has been shut down. This was caused by an exception on one of the ranks"
TIMED_OUT = "[../unbound_buffer.cc:84] Timed out waiting 8000ms for recv operation to complete"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the rank waited for others, in turn."""
    seconds: list[float] = []
    # It would end the connections of this process, whoever uses them.
    monkeypatch.setattr(leaving, "_let_go", lambda: None)
    monkeypatch.setattr(leaving.time, "sleep", seconds.append)
    return seconds


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setenv("HOROVOD_RANK", str(rank))
    monkeypatch.setenv("HOROVOD_SIZE", str(size))
    monkeypatch.setenv("HOROVOD_HOSTNAME", "h2")
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", "1")


def left(error: BaseException) -> int:
    def command() -> int:
        raise error

    return leave(command)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(CLOSED), "another rank ended"),
        (HorovodInternalError(SHUT), "another rank ended"),
        (RuntimeError(TIMED_OUT), "another rank did not answer"),
        (HorovodInternalError(TIMED_OUT), "another rank did not answer"),
        (RuntimeError("Application timeout caused pair closure"), "another rank did not answer"),
        (torch.distributed.DistBackendError("NCCL: remote process exited"), "another rank ended"),
        (ValueError("Allgather: Process set provided does not exist, or"), "another rank ended"),
        # Of this rank's own making, whatever the words.
        (HorovodInternalError("Mismatched allreduce tensor shapes"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (RuntimeError("the lock of the database timed out"), None),
        (torch.OutOfMemoryError("CUDA out of memory"), None),
        (MemoryError(), None),
        (ConnectionResetError("Connection reset by peer"), None),
        (ValueError(SHUT), None),
    ],
)
def test_which_errors_another_ranks_end_explains(error: Exception, expected: str | None) -> None:
    assert consequence(error) == expected


def test_a_victim_says_one_line_and_leaves_last(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], slept: list[float]
) -> None:
    as_rank(monkeypatch, 3, 4)
    assert left(RuntimeError(CLOSED)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    said = "harness: rank 3 on h2: stopped because another rank ended (RuntimeError: "
    assert line.startswith(said)
    assert VICTIM.match(line)
    assert slept == [leaving.SILENT_SECONDS]


def test_the_cause_is_told_after_the_others_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], slept: list[float]
) -> None:
    as_rank(monkeypatch, 3, 4)
    assert left(ZeroDivisionError("on purpose")) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: on purpose"
    assert slept == [leaving.LISTEN_SECONDS]


def test_one_rank_alone_raises_what_it_always_raised(
    monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    monkeypatch.delenv("HOROVOD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="closed by peer"):
        left(RuntimeError(CLOSED))
    assert slept == []


@pytest.mark.parametrize(
    ("error", "rank", "code", "said", "waits"),
    [
        (UserError("a; b"), 0, 2, "harness: a; b", [leaving.LISTEN_SECONDS]),
        (AlikeOnAllRanks("a; b"), 0, 2, "harness: a; b", []),
        # Nobody ended it meanwhile: the first rank did not find the same.
        (AlikeOnAllRanks("a; b"), 1, 2, "harness: a; b", [leaving.SILENT_SECONDS]),
        (ReportedByAnotherRank(), 1, 2, "", [leaving.SILENT_SECONDS]),
        (ReportedByAnotherRank("a; b"), 1, 2, "harness: a; b", [leaving.SILENT_SECONDS]),
        (RunFailed("the loss is nan"), 0, 1, "harness: the loss is nan", []),
        (RunFailed("the loss is nan"), 1, 1, "", [leaving.LAST_WORDS_SECONDS]),
        (KeyboardInterrupt(), 0, 1, "harness: stopped", []),
        (KeyboardInterrupt(), 1, 1, "", []),
    ],
)
def test_who_speaks_and_who_waits(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    slept: list[float],
    error: BaseException,
    rank: int,
    code: int,
    said: str,
    waits: list[float],
) -> None:
    as_rank(monkeypatch, rank, 2)
    assert left(error) == code
    assert capfd.readouterr().err.strip() == said
    assert slept == waits

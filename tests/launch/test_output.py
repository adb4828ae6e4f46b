"""What horovodrun's lines become: the terminal's picture, and the cause of a failure."""

import io
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.launch.leash import RESUMED, STOPPED
from harness.launch.output import EarlyEnd, Evidence, Line, Log, Screen, Splitter

ENDED = "Horovod detected ... The first process to do so was:\nProcess name: {}\nExit code: {}\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def evidence(*pieces: str) -> Evidence:
    found = Evidence()
    for line in Splitter().feed("".join(pieces).encode(), final=True):
        found.add(line)
    return found


def rank(number: int, text: str) -> str:
    return "".join(f"[{number}]<stderr>:{line}\n" for line in text.splitlines())


def test_lines_come_whole_however_the_bytes_are_cut() -> None:
    said = "[0]<stdout>:naïve ünï 字\n[12]<stderr>: 10%|█\r[12]<stderr>: 20%|██\rplain\nlast"
    expected = [
        Line(0, "stdout", "naïve ünï 字", False),
        Line(12, "stderr", " 10%|█", True),
        Line(12, "stderr", " 20%|██", True),
        Line(None, "stderr", "plain", False),
        Line(None, "stderr", "last", False),
    ]
    for size in (1, 2, 3, 7, 1000):
        splitter, portions = Splitter(), said.encode()
        lines = []
        for start in range(0, len(portions), size):
            lines += splitter.feed(portions[start : start + size])
        lines += splitter.feed(b"", final=True)
        assert lines == expected


def test_no_secret_of_an_address_comes_through() -> None:
    said = b"[0]<stdout>:View run at http://ann:pa55word@host:1/#/x\nno http://t0ken@host\n"
    lines = [line.text for line in Splitter().feed(said)]
    assert lines == ["View run at http://host:1/#/x", "no http://host"]


def test_a_log_that_the_disk_does_not_take_is_given_up_and_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The reader goes on, as ranks would block without it."""
    (tmp_path / "full.log").symlink_to("/dev/full")
    log = Log(tmp_path / "full.log")
    for _ in range(3):
        log.add([Line(0, "stdout", "said", False)])
    log.close()
    (told,) = capfd.readouterr().err.splitlines()
    assert "log cannot be written any more (No space left on device)" in told
    (tmp_path / "none").touch()
    with pytest.raises(UserError, match=r"cannot write .*none/x"):
        Log(tmp_path / "none" / "x")


def test_progress_stays_on_one_line_of_a_terminal_and_words_push_it_down() -> None:
    terminal = Terminal()
    screen = Screen(terminal, 20)
    for line in (
        Line(0, "stderr", "step 1", True),
        Line(1, "stderr", "rank 1 is not shown", False),
        Line(0, "stderr", "step 2, as long as you like", True),
        Line(0, "stdout", "evaluated", False),
        Line(0, "stderr", "step 3", True),
    ):
        screen.show(line)
    start = "\r\x1b[K"
    assert terminal.getvalue() == (
        f"{start}step 1{start}step 2, as long as {start}evaluated\n{start}step 3"
    )


def test_a_file_gets_no_progress_but_every_line() -> None:
    file = io.StringIO()
    screen = Screen(file, 20)
    screen.show(Line(0, "stderr", "step 1", True))
    screen.show(Line(0, "stdout", "a line longer than a terminal is wide", False))
    assert file.getvalue() == "a line longer than a terminal is wide\n"


def test_a_failure_is_not_shown_before_its_report() -> None:
    file = io.StringIO()
    screen = Screen(file, 80)
    for text in ("a warning", "Traceback (most recent call last):", "  File ...", "ValueError: x"):
        screen.show(Line(0, "stderr", text, False))
    assert file.getvalue() == "a warning\n"


TRACE = "Traceback (most recent call last):\n  File x\n{}"


def test_the_cause_is_the_error_that_no_other_rank_explains() -> None:
    found = evidence(
        rank(0, TRACE.format("horovod.common.exceptions.HorovodInternalError: shut down")),
        rank(2, TRACE.format("RuntimeError: [../gloo] Connection closed by peer [127.0.0.1]:1")),
        rank(3, TRACE.format("ZeroDivisionError: division by zero")),
        ENDED.format(0, 1),
    )
    assert found.cause() == f"rank 3 failed:\n{TRACE.format('ZeroDivisionError: division by zero')}"
    assert found.user_error() is None


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: Horovod has been shut down",
        "RuntimeError: [../gloo/transport/tcp/pair.cc] Socket closed",
        "DistStoreError: wait timeout after 600000ms",
        "RuntimeError: Watchdog caught collective operation timeout",
        "RuntimeError: recvValueBytes failed on SocketImpl",
        "RuntimeError: connection reset by peer",
    ],
)
def test_what_shows_that_another_rank_is_gone_is_not_the_cause(error: str) -> None:
    found = evidence(
        rank(0, TRACE.format(error)), rank(1, TRACE.format("KeyError: 3")), ENDED.format(0, 1)
    )
    assert found.cause().startswith("rank 1 failed:")


def test_only_consequences_still_name_the_first() -> None:
    gone = TRACE.format("HorovodInternalError: gone")
    found = evidence(rank(2, gone), rank(1, gone), ENDED.format(1, 1))
    assert found.cause().startswith("rank 2 failed:")


def test_a_users_mistake_is_told_by_the_rank_that_made_it() -> None:
    found = evidence(
        rank(0, "harness: stopped"),
        rank(1, "harness: num_classes is 3; use replicated"),
        "Process 1 exit with status code 2.\nProcess 0 exit with status code 1.\n",
        ENDED.format(1, 2),
    )
    assert found.user_error() == "harness: num_classes is 3; use replicated"
    assert found.exit_codes() == {1: 2, 0: 1}


def test_without_any_word_the_exit_code_is_told() -> None:
    found = evidence("[1]<stdout>:the last words\n", ENDED.format(1, 77))
    assert found.cause() == "rank 1 ended with exit code 77\nthe last words"


def test_horovodruns_own_failure_is_told() -> None:
    found = evidence("RuntimeError: could not connect to some hosts via ssh\n")
    assert found.cause() == "RuntimeError: could not connect to some hosts via ssh"


def victim(number: int, why: str, detail: str) -> str:
    return rank(number, f"harness: rank {number} on h{number}: stopped because {why} ({detail})")


TIMED_OUT = "RuntimeError: [x.cc:84] Timed out waiting 300000ms for recv operation to complete"
HOSTS = ("h0", "h1", "h2", "h3")


def found_on(hosts: tuple[str, ...], *pieces: str) -> Evidence:
    found = Evidence(hosts)
    for line in Splitter().feed("".join(pieces).encode(), final=True):
        found.add(line)
    return found


def test_victims_one_line_is_neither_the_cause_nor_a_users_mistake() -> None:
    found = found_on(
        HOSTS,
        victim(0, "another rank ended", "HorovodInternalError: shut down"),
        rank(3, TRACE.format("ZeroDivisionError: division by zero")),
        ENDED.format(3, 1),
    )
    assert found.cause() == f"rank 3 failed:\n{TRACE.format('ZeroDivisionError: division by zero')}"
    mistaken = found_on(
        HOSTS,
        victim(0, "another rank ended", "HorovodInternalError: shut down"),
        rank(1, "harness: an image is broken; replace it"),
        ENDED.format(1, 2),
    )
    assert mistaken.user_error() == "harness: an image is broken; replace it"


def test_a_stopped_process_is_named() -> None:
    found = found_on(
        HOSTS,
        rank(2, STOPPED),
        victim(0, "another rank did not answer", TIMED_OUT),
        victim(1, "another rank ended", "RuntimeError: Connection closed by peer"),
        ENDED.format(0, 1),
    )
    first, *rest = found.cause().splitlines()
    assert first == "rank 2 on h2 did not answer for 300 s (its process is stopped)"
    assert [line[:15] for line in rest] == ["harness: rank 0", "harness: rank 1"]


def test_one_that_went_on_is_not() -> None:
    found = found_on(
        HOSTS, rank(2, STOPPED), rank(2, RESUMED), rank(1, TRACE.format("E: x")), ENDED.format(1, 1)
    )
    assert found.cause().startswith("rank 1 failed:")


def test_the_ranks_that_said_nothing_are_named_where_others_waited_in_vain() -> None:
    """As after a host has failed silently, when no leash there can report."""
    found = found_on(
        HOSTS,
        victim(0, "another rank did not answer", TIMED_OUT),
        victim(1, "another rank ended", "RuntimeError: Connection closed by peer"),
        ENDED.format(0, 1),
    )
    assert found.cause().startswith("rank 2 on h2, rank 3 on h3 did not answer for 300 s\n")


def test_a_cause_counts_more_than_a_rank_that_did_not_answer() -> None:
    found = found_on(
        HOSTS,
        victim(0, "another rank did not answer", TIMED_OUT),
        rank(1, TRACE.format("MemoryError: x")),
        ENDED.format(0, 1),
    )
    assert found.cause().startswith("rank 1 failed:")


def test_a_stopped_rank_is_shown_at_once() -> None:
    file = io.StringIO()
    screen = Screen(file, 80)
    screen.show(Line(2, "stderr", STOPPED, False))
    screen.show(Line(0, "stderr", RESUMED, False))
    assert file.getvalue() == f"rank 2: {STOPPED}\nrank 0: {RESUMED}\n"


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        (
            "198.51.100.7",
            "the connection to rank 1 on 198.51.100.7 was lost (ssh ended with exit code 255)",
        ),
        ("localhost", "rank 1 ended with exit code 255"),
    ],
)
def test_a_lost_connection_is_no_signal(host: str, cause: str) -> None:
    found = Evidence(["localhost", host])
    said = rank(1, "client_loop: send disconnect: Broken pipe") + ENDED.format(1, 255)
    for line in Splitter().feed(said.encode(), final=True):
        found.add(line)
    first, last = found.cause().splitlines()
    assert first == cause
    assert last.startswith("client_loop")


@pytest.mark.parametrize("code", [1, 3])
def test_who_ended_early_says_by_its_exit_code_whether_it_has_saved(code: int) -> None:
    said = "harness: ended early after 7 of 9 windows, as asked; "
    found = evidence(rank(0, said), ENDED.format(0, code)).early_end()
    assert found == EarlyEnd(code, said)
    assert evidence(rank(0, "another program"), ENDED.format(0, code)).early_end() is None

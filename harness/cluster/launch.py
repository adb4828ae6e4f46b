"""Starts a command on all ranks by horovodrun, shows rank 0, and leaves no process behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from harness.cluster.environment import passed_on
from harness.cluster.hosts import cores, most_ranks_on_a_machine, parse_hosts
from harness.cluster.output import Evidence, Screen, Splitter

START_SECONDS = 300
"""Ranks that outnumber the cores take long to import torch."""
CROWDED_CYCLE_MS = 10
"""Horovod's threads wake less often where ranks outnumber the cores: they would take them away."""
STOP_SECONDS = 12.0
"""horovodrun asks its ranks to end, waits 5 s, ends them, and waits 5 s again."""
LEFTOVER_SECONDS = 3.0
MARK = "HARNESS_LAUNCH"
"""Variable that all processes of one launch inherit: by it they are found again."""


@dataclass(frozen=True)
class Outcome:
    """How a launch ended."""

    exit_code: int
    """0 well, 1 failed or stopped, 2 the user's mistake."""
    reason: str
    """Empty when well; one line for the user's mistake; else the cause, as far as ranks told."""
    log: Path
    """All that all ranks printed."""
    stopped: bool
    """By Ctrl-C or SIGTERM."""


def launch(
    command: Sequence[str], ranks: int, hosts: str | None, log: Path, screen: TextIO | None = None
) -> Outcome:
    """Runs `command` (program and arguments) on so many ranks and waits for all of them.

    Ctrl-C or SIGTERM ends all ranks and comes back as an outcome. Raises UserError for hosts that
    cannot be used. For the main thread: others get no signals.
    """
    where = hosts or f"localhost:{ranks}"
    mark = uuid.uuid4().hex
    crowded = most_ranks_on_a_machine(parse_hosts(where, ranks)) > cores()
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        horovodrun_command(command, ranks, where),
        env=_environment(mark, crowded),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    evidence = Evidence()
    reader = threading.Thread(
        target=_read, args=(process, log, _screen(screen), evidence), daemon=True
    )
    stopped = False
    try:
        with _stop_signals():
            reader.start()
            process.wait()
    except KeyboardInterrupt:
        stopped = True
    finally:
        with _deaf():
            _end(process, mark)
    reader.join(LEFTOVER_SECONDS)
    return _outcome(process.returncode, stopped, evidence, log)


def horovodrun_command(command: Sequence[str], ranks: int, hosts: str) -> list[str]:
    """The line a user would type, each rank held by a leash."""
    seconds = str(START_SECONDS)
    line = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(ranks), "-H", hosts]
    line += ["--gloo-timeout-seconds", seconds, "--start-timeout", seconds]
    return [*line, sys.executable, "-m", "harness.cluster.leash", *command]


def train_command(experiment: Path, overrides: Sequence[str], folder: Path) -> list[str]:
    """What each rank runs for one training."""
    program = [sys.executable, "-m", "harness", "train", str(experiment)]
    return [*program, *overrides, "--folder", str(folder)]


def _environment(mark: str, crowded: bool) -> dict[str, str]:
    variables = passed_on(os.environ)
    columns, lines = shutil.get_terminal_size((100, 24))
    variables |= {MARK: mark, "COLUMNS": str(columns), "LINES": str(lines)}
    # The ranks import this package from wherever this process did.
    root = str(Path(__file__).resolve().parents[2])
    path = variables.get("PYTHONPATH", "").split(os.pathsep)
    variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([root, *filter(None, path)]))
    if crowded:
        variables.setdefault("HOROVOD_CYCLE_TIME", str(CROWDED_CYCLE_MS))
    return variables


def _screen(stream: TextIO | None) -> Screen:
    return Screen(stream or sys.stderr, shutil.get_terminal_size((100, 24)).columns)


def _read(
    process: "subprocess.Popen[bytes]", log: Path, screen: Screen, evidence: Evidence
) -> None:
    assert process.stdout is not None
    splitter = Splitter()
    with log.open("w", encoding="utf-8") as file:
        while True:
            portion = os.read(process.stdout.fileno(), 1 << 16)
            for line in splitter.feed(portion, final=not portion):
                screen.show(line)
                evidence.add(line)
                if not line.passing:
                    of = "horovodrun" if line.rank is None else f"{line.rank} {line.stream}"
                    file.write(f"[{of}] {line.text}\n")
            file.flush()
            if not portion:
                return


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM ends the wait as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf() -> Iterator[None]:
    """Impatience while ranks are being ended would leave some behind; it takes seconds."""

    def ignore(number: int, frame: FrameType | None) -> None:
        return None

    before = [(number, signal.signal(number, ignore)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Ends horovodrun and every process it left; nothing to do after a good run."""
    assert process.stdin is not None
    process.stdin.close()  # all leashes feel this, also those on other machines
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    left = _marked(mark)
    for each in left:
        _signal(each, signal.SIGTERM)
    for each in psutil.wait_procs(left, LEFTOVER_SECONDS)[1]:
        _signal(each, signal.SIGKILL)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue  # another user's, or just ended
    return found


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _outcome(code: int, stopped: bool, evidence: Evidence, log: Path) -> Outcome:
    if stopped:
        return Outcome(1, "stopped by the user", log, True)
    if code == 0:
        return Outcome(0, "", log, False)
    mistake = evidence.user_error()
    if mistake is not None:
        return Outcome(2, mistake, log, False)
    return Outcome(1, evidence.cause(), log, False)

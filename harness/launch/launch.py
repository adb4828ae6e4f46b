"""Starts a command on all ranks by horovodrun, shows rank 0, and leaves no process behind."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from harness.launch.environment import passed_on
from harness.launch.hosts import (
    cores,
    host_of_each_rank,
    in_one_word,
    interface_to,
    most_ranks_on_a_machine,
    parse_hosts,
)
from harness.launch.leash import GRACE_SECONDS
from harness.launch.output import Evidence, Log, Screen, Splitter
from harness.measure.redaction import masked
from harness.signals import handled, ignore, interrupt

START_SECONDS = 300
"""Ranks that outnumber the cores take long to import torch."""
CROWDED_CYCLE_MS = 10
"""Horovod's threads wake less often where ranks outnumber the cores: they would take them away."""
LEASH_SECONDS = GRACE_SECONDS + 2.0
"""For the leashes to end their ranks, and horovodrun with them. Ended by a signal it would cut the
connections at once, and this process would be back before ranks elsewhere are gone."""
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


@dataclass(frozen=True)
class Plan:
    """One horovodrun."""

    options: tuple[str, ...]
    command: tuple[str, ...]
    """Program and arguments of each rank."""
    hosts: tuple[str, ...]
    """Of every rank."""
    added: Mapping[str, str]
    """Variables that the ranks get beside this process's own."""

    def line(self) -> str:
        """As a user would type it, without passwords."""
        horovodrun = Path(sys.executable).with_name("horovodrun")
        words = [f"{name}={value}" for name, value in self.added.items()]
        words += [str(horovodrun), *self.options, *self.command]
        return shlex.join(masked(word) for word in words)

    def held(self) -> list[str]:
        """As it is started, each rank held by a leash."""
        leash = [sys.executable, "-m", "harness.launch.leash"]
        return [sys.executable, "-m", "horovod.runner.launch", *self.options, *leash, *self.command]


def launch(
    command: Sequence[str], ranks: int, hosts: str | None, log: Path, screen: TextIO | None = None
) -> Outcome:
    """Runs `command` (program and arguments) on so many ranks and waits for all of them.

    Ctrl-C or SIGTERM ends all ranks and comes back as an outcome. Raises UserError for hosts that
    cannot be used, and for a log that cannot be made. For the main thread: others get no signals.
    """
    plan = plan_launch(command, ranks, hosts)
    mark = uuid.uuid4().hex
    record = Log(log)
    process = subprocess.Popen(
        plan.held(),
        env=_environment(mark, plan.added),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    evidence = Evidence(plan.hosts)
    reader = threading.Thread(
        target=_read, args=(process, record, _screen(screen), evidence), daemon=True
    )
    stopped = False
    try:
        with handled([signal.SIGTERM], interrupt):
            reader.start()
            process.wait()
    except KeyboardInterrupt:
        stopped = True
    finally:
        # A second Ctrl-C while ranks are being ended, which takes seconds, would leave some behind.
        with handled([signal.SIGINT, signal.SIGTERM], ignore):
            _end(process, mark)
    reader.join(LEFTOVER_SECONDS)
    return _outcome(process.returncode, stopped, evidence, log)


def plan_launch(command: Sequence[str], ranks: int, hosts: str | None) -> Plan:
    """What `launch` will start. Raises UserError for hosts that cannot be used."""
    where = hosts or f"localhost:{ranks}"
    found = parse_hosts(where, ranks)
    # The ranks import this package from wherever this process did.
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    added = {}
    if most_ranks_on_a_machine(found) > cores():
        added["HOROVOD_CYCLE_TIME"] = os.environ.get("HOROVOD_CYCLE_TIME", str(CROWDED_CYCLE_MS))
    added["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([root, *filter(None, path)]))
    seconds = str(START_SECONDS)
    options = ["--gloo", "-np", str(ranks), "-H", in_one_word(found)]
    options += ["--gloo-timeout-seconds", seconds, "--start-timeout", seconds]
    # Without it horovodrun starts servers on all hosts that ask each other for it: they take long,
    # and outlive a horovodrun that is stopped meanwhile.
    interface = interface_to(found)
    if interface is not None:
        options += ["--network-interfaces", interface]
    return Plan(tuple(options), tuple(command), host_of_each_rank(found, ranks), added)


def _environment(mark: str, added: Mapping[str, str]) -> dict[str, str]:
    columns, lines = shutil.get_terminal_size((100, 24))
    shown = {MARK: mark, "COLUMNS": str(columns), "LINES": str(lines)}
    return passed_on(os.environ) | shown | dict(added)


def _screen(stream: TextIO | None) -> Screen:
    return Screen(stream or sys.stderr, shutil.get_terminal_size((100, 24)).columns)


def _read(process: "subprocess.Popen[bytes]", log: Log, screen: Screen, evidence: Evidence) -> None:
    assert process.stdout is not None
    splitter = Splitter()
    portion = b" "
    while portion:
        portion = os.read(process.stdout.fileno(), 1 << 16)
        lines = splitter.feed(portion, final=not portion)
        for line in lines:
            screen.show(line)
            evidence.add(line)
        log.add(lines)
    log.close()


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Ends horovodrun and every process it left; nothing to do after a good run."""
    assert process.stdin is not None
    process.stdin.close()  # all leashes feel this, also those on other machines
    with suppress(subprocess.TimeoutExpired):
        process.wait(LEASH_SECONDS)
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

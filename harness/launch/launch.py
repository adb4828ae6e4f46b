"""Starts a command on all ranks with horovodrun, shows rank 0, and leaves no process behind."""

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import psutil

from harness.launch.environment import passed_on
from harness.launch.hosts import (
    cores,
    host_of_each_rank,
    hosts_option,
    hosts_or_local,
    interface_to,
    parse_hosts,
    ranks_here,
)
from harness.launch.leash import GRACE_SECONDS, IN, PULSE
from harness.launch.output import Evidence, Log, Screen, Splitter
from harness.launch.standstill import Standstill
from harness.launch.warned import WARNINGS, Warned
from harness.measure.redaction import masked
from harness.parallel.pulse import parse
from harness.signals import Noted, handled

START_SECONDS = 300
"""Time for ranks to start: if they outnumber the cores, importing torch takes long."""
CROWDED_CYCLE_MS = 10
"""Horovod's cycle time if ranks outnumber the cores of this machine: with the default its threads
would wake so often that they take the cores from the ranks."""
LEASH_SECONDS = GRACE_SECONDS + 2.0
"""Time for the leashes to end their ranks, whereupon horovodrun ends. A signal to horovodrun would
cut the connections at once, and this process would return before ranks on other hosts are gone."""
STOP_SECONDS = 12.0
"""Time for horovodrun to stop: it terminates its ranks, waits 5 s, kills them, and waits 5 s."""
LOOK_SECONDS = 1.0
"""Time between two questions whether a rank stands still."""
LEFTOVER_SECONDS = 3.0
"""Time for processes that are left over to end after SIGTERM."""
MARK = "HARNESS_LAUNCH"
"""Variable that all processes of a launch inherit, by which they are found again."""


@dataclass(frozen=True)
class Outcome:
    """How a launch ended."""

    exit_code: int
    """0: success, 1: failed or stopped, 2: a user error, 3: ended early as asked, after a
    checkpoint."""
    reason: str
    """Empty after success; one line for a user error; else the cause, as far as it is known."""
    log: Path
    """File of everything that all ranks printed."""
    stopped: bool
    """Whether Ctrl-C, SIGTERM or SIGUSR1 ended it, or arrived while it ended."""

    def after(self, late: Noted) -> "Outcome":
        """The same, as stopped if it failed and a signal has arrived meanwhile: what is to end must
        not be started again."""
        return replace(self, stopped=True) if late.arrived and self.exit_code == 1 else self


@dataclass(frozen=True)
class Plan:
    """One call of horovodrun."""

    options: tuple[str, ...]
    command: tuple[str, ...]
    """Program and arguments of each rank."""
    hosts: tuple[str, ...]
    """Host name of every rank."""
    added: Mapping[str, str]
    """Variables that the ranks get in addition to this process's own."""

    def line(self) -> str:
        """The command line that a user would type, with passwords masked."""
        horovodrun = Path(sys.executable).with_name("horovodrun")
        words = [f"{name}={value}" for name, value in self.added.items()]
        words += [str(horovodrun), *self.options, *self.command]
        return shlex.join(masked(word) for word in words)

    def held(self) -> list[str]:
        """The command that is started, with each rank held by a leash."""
        leash = [sys.executable, "-m", "harness.launch.leash", PULSE, IN, os.getcwd()]
        return [sys.executable, "-m", "horovod.runner.launch", *self.options, *leash, *self.command]


def launch(
    command: Sequence[str],
    ranks: int,
    hosts: str | None,
    log: Path,
    screen: TextIO | None = None,
    grace_seconds: float = 0.0,
) -> Outcome:
    """Runs `command` (program and arguments) on `ranks` ranks and waits for all of them.

    Ctrl-C, SIGTERM or SIGUSR1 ends all ranks and is reported in the outcome. Before the latter two
    do so, a training has `grace_seconds` to save and end by itself. Raises UserError for hosts that
    cannot be used and for a log that cannot be written. Call it from the main thread, the only one
    that can handle signals.
    """
    plan, late = plan_launch(command, ranks, hosts), Noted()
    with handled(WARNINGS, late.arrives):
        return _watched(plan, log, _screen(screen), grace_seconds, late).after(late)


def _watched(plan: Plan, log: Path, screen: Screen, grace_seconds: float, late: Noted) -> Outcome:
    """Starts the ranks and ends them; `late` notes signals before and after the time in which they
    may end by themselves."""
    mark = uuid.uuid4().hex
    record = Log(log)
    process = _started(plan, mark)
    evidence = Evidence(plan.hosts)
    standstill = Standstill(plan.hosts)
    told = process, record, screen, evidence, standstill
    reader = threading.Thread(target=_read, args=told, daemon=True)
    stopped, stuck, warning = False, "", Warned(process, grace_seconds)
    try:
        with handled(WARNINGS, warning.arrives):
            reader.start()
            if late.arrived:
                raise KeyboardInterrupt
            stuck = _wait(process, standstill, warning)
    except KeyboardInterrupt:
        stopped = True
    finally:
        # Ending the ranks takes seconds; a second Ctrl-C meanwhile would leave some of them behind.
        with handled([signal.SIGINT], late.arrives):
            _end(process, mark)
            reader.join(LEFTOVER_SECONDS)
    if stuck and not warning.arrived:
        return Outcome(1, stuck, log, False)
    if warning.arrived and not stopped:
        return _ended_after_warning(process.returncode, evidence, log)
    return _outcome(process.returncode, stopped, evidence, log)


def _started(plan: Plan, mark: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        plan.held(),
        env=_environment(mark, plan.added),
        cwd="/",  # horovodrun hands its own to shells on other hosts, unquoted; leashes change it
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait(process: "subprocess.Popen[bytes]", standstill: Standstill, warning: Warned) -> str:
    """Waits until the process ends, or until it is known which rank stands still, and returns
    that."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
            return ""
        warning.check()
        if stuck := standstill.cause():
            return stuck


def plan_launch(command: Sequence[str], ranks: int, hosts: str | None) -> Plan:
    """What `launch` will start. Raises UserError for hosts that cannot be used."""
    found = parse_hosts(hosts_or_local(hosts, ranks), ranks)
    # Ranks import this package from the folder that this process has imported it from.
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    added = {}
    if ranks_here(found, ranks) > cores():
        added["HOROVOD_CYCLE_TIME"] = os.environ.get("HOROVOD_CYCLE_TIME", str(CROWDED_CYCLE_MS))
    paths = [root, *map(os.path.abspath, filter(None, path))]
    # Otherwise horovodrun, which passes on what ranks print, ends at a character of the progress
    # line that a locale such as ISO-8859-1 lacks.
    added["PYTHONIOENCODING"] = "utf-8"
    added["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    seconds = str(START_SECONDS)
    options = ["--gloo", "-np", str(ranks), "-H", hosts_option(found)]
    # Its cache of former checks would need a home folder that can be written.
    options += ["--disable-cache", "--gloo-timeout-seconds", seconds, "--start-timeout", seconds]
    # Without this option horovodrun starts servers on all hosts to find a common interface. They
    # take long, and outlive a horovodrun that is stopped in the meantime.
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


def _read(
    process: "subprocess.Popen[bytes]",
    log: Log,
    screen: Screen,
    evidence: Evidence,
    standstill: Standstill,
) -> None:
    assert process.stdout is not None
    splitter = Splitter()
    portion = b" "
    while portion:  # an empty read is the end of the output
        portion = os.read(process.stdout.fileno(), 1 << 16)
        lines = []
        for line in splitter.feed(portion, final=not portion):
            report = parse(line.text)
            if report is not None and line.rank is not None:
                standstill.add(line.rank, report)
                continue
            lines.append(line)
            screen.show(line)
            evidence.add(line)
        log.add(lines)
    log.close()


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Ends horovodrun and every process that it left; after a successful run there is none."""
    assert process.stdin is not None
    process.stdin.close()  # all leashes read the end of this pipe, those on other hosts over ssh
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
            continue  # another user's process, or one that has just ended
    return found


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _ended_after_warning(code: int, evidence: Evidence, log: Path) -> Outcome:
    """How a run ended that was asked to: it may have ended by itself, or failed, meanwhile."""
    outcome = _outcome(code, False, evidence, log)
    if outcome.exit_code == 0 or outcome.stopped:
        return outcome
    return Outcome(1, f"stopped, without a checkpoint: {evidence.cause()}", log, True)


def _outcome(code: int, stopped: bool, evidence: Evidence, log: Path) -> Outcome:
    if stopped:
        return Outcome(1, "stopped by the user", log, True)
    if code == 0:
        return Outcome(0, "", log, False)
    if early := evidence.early_end():  # also where a single rank was asked, and not this process
        return Outcome(early.exit_code, early.line, log, True)
    mistake = evidence.user_error()
    if mistake is not None:
        return Outcome(2, mistake, log, False)
    return Outcome(1, evidence.cause(), log, False)

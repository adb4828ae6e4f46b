"""Start a real horovodrun, wait for it, and bring back what its ranks printed.

Two emulated nodes by default: `localhost` and `127.0.0.1` are two hosts for Horovod, and both are
this machine, so that neither ssh nor a second machine is needed.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "HOROVODRUN_TEST"
"""Environment variable that all processes of one call inherit: by it they are found again."""
DUMP_SECONDS = 15


@dataclass(frozen=True)
class Result:
    """What horovodrun returned; its own lines and, after `[rank]<stream>:`, those of the ranks."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return f"{self.stdout}\n{self.stderr}"

    def lines(self, rank: int) -> list[str]:
        """What one rank printed on stdout."""
        start = f"[{rank}]<stdout>:"
        lines = self.stdout.splitlines()
        return [line.removeprefix(start) for line in lines if line.startswith(start)]


class HorovodrunFailed(AssertionError):
    """It did not end in time, or not with exit code 0; the message holds every rank's output."""


def horovodrun(
    command: str | Path | Sequence[str],
    np: int = 4,
    hosts: str | None = "localhost:2,127.0.0.1:2",
    timeout: float = 360.0,
    *,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    folder: Path = ROOT,
    check: bool = True,
) -> Result:
    """Run `command` on np ranks.

    `command` is Python source (str), a Python file (Path) or arguments for this Python, such as
    ["-m", "harness", "train", ...]. `environment` is added to this process's; `options` go to
    horovodrun; `hosts=None` leaves hosts to it. With `check`, an exit code other than 0 raises
    HorovodrunFailed; running longer than `timeout` seconds always does, with the stack of every
    thread of every rank. No process outlives the call.
    """
    mark = uuid.uuid4().hex
    whole = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
    # Makes Python print all stacks when it is aborted, which is how a rank that hangs is asked.
    whole |= {MARK: mark, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    launcher = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", str(np)]
    launcher += ["--gloo-timeout-seconds", "300", "--start-timeout", "300"]
    if hosts is not None:
        launcher += ["-H", hosts]
    with tempfile.TemporaryDirectory(prefix="horovodrun-") as temporary:
        program = [sys.executable, *_arguments(command, Path(temporary))]
        process = subprocess.Popen(
            [*launcher, *options, *program],
            env=whole,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            stdout, stderr = _last_words(process, mark)
            message = f"not ended after {timeout:.0f} s, every rank's stacks follow"
            raise HorovodrunFailed(f"{message}\n{stdout}\n{stderr}") from None
        finally:
            for left in _processes(mark):
                _signal(left, signal.SIGKILL)
            process.wait()
    if check and process.returncode != 0:
        raise HorovodrunFailed(f"exit code {process.returncode}\n{stdout}\n{stderr}")
    return Result(process.returncode, stdout, stderr)


def _arguments(command: str | Path | Sequence[str], temporary: Path) -> list[str]:
    if isinstance(command, str):
        script = temporary / "script.py"
        script.write_text(command)
        return [str(script)]
    return [str(command)] if isinstance(command, Path) else list(command)


def _last_words(process: subprocess.Popen[str], mark: str) -> tuple[str, str]:
    """The output after every rank was asked for its stacks, also one that starts only now."""
    asked: set[psutil.Process] = set()
    for _ in range(DUMP_SECONDS):
        ranks = set(_processes(mark, ranks_only=True))
        for rank in ranks - asked:
            _signal(rank, signal.SIGABRT)
        asked |= ranks
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            continue
    for left in _processes(mark):
        _signal(left, signal.SIGKILL)
    return process.communicate()


def _processes(mark: str, ranks_only: bool = False) -> list[psutil.Process]:
    """The processes of one call; horovodrun has put each rank in a session of its own."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get(MARK) != mark:
                continue
            is_python = re.search(r"python[\d.]*$", process.exe()) is not None
        except (psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, or just ended
            continue
        if not ranks_only or (is_python and "HOROVOD_RANK" in environment):
            found.append(process)
    return found


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended by itself meanwhile

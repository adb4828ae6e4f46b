"""Injects faults into a training of four ranks on two nodes, and reports what became of it.

`python -m benchmarks.faults --folder runs/faults --output analysis/faults` takes about half an hour
on two cores; `--only "kill a rank"` injects one fault. The undisturbed run comes first. Faults of a
host or a link happen in a lab with a spare host, and a full disk is a small one in memory: both
need root.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faulty_rank import EVERY, FAULTS, MARK, RANK, WINDOW
from benchmarks.stopped_store import LONGEST_SECONDS, served, stop_for_a_while, wait_for
from harness.lab.own_lab import own_lab, set_rate
from harness.measure.machine import environment
from harness.tracking.run_folder import META, RESTARTS, RunFolder

LINK, SLOW_LINK = "100mbit", "10mbit"
STEPS, STUCK_SECONDS = 160, 20
EXPERIMENT = f"""name: faults
seed: 1
data: {{dataset: synthetic, num_classes: 403, image_size: 16, synthetic_images: 512}}
backbone: {{feature_dim: 32}}
classifier: {{layout: node}}
exchange: {{kind: delayed, delay: 1, compression: int8}}
optimizer: {{lr: 0.05, warmup_windows: 10}}
train: {{batch_size: 8, steps: {STEPS}, log_every: 5, matmul_seconds: 0, threads: 1, save: true,
        checkpoint_every: {EVERY}, keep_checkpoints: 3, stuck_seconds: {STUCK_SECONDS}}}
launch: {{grace_seconds: 60}}
"""
RESTARTED = 2
"""Restarts that a run may have. It counts as hanging after `LONGEST_SECONDS`."""


@dataclass(frozen=True)
class Place:
    """Where a run is started."""

    hosts: Sequence[str] = ("--hosts", "localhost:2,127.0.0.1:2")
    before: Sequence[str] = ()
    """Words before the command."""


@contextmanager
def on_test_hosts(folder: Path) -> Iterator[Place]:
    """A lab of two hosts and a spare one."""
    with own_lab(3, 2, "--rate", LINK):
        hosts = ("--hosts", "h1:2,h2:2", "--spares", "h3:2")
        yield Place(hosts, (sys.executable, "-m", "harness", "lab", "run", "--"))


@contextmanager
def on_small_disk(folder: Path) -> Iterator[Place]:
    """The run's folder is a disk of its own, of 24 MB: six checkpoints."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    try:
        yield Place()
    finally:
        kept = folder.with_name(f"{folder.name}-kept")
        shutil.copytree(folder, kept)
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()
        kept.rename(folder)


@dataclass(frozen=True)
class Expected:
    """What is to be reported about a fault, and how the run goes on after it."""

    said: str
    """A regular expression."""
    by_hand: bool = False
    """Whether the launcher ends, so that the same command with --continue starts it again."""
    place: Callable[[Path], AbstractContextManager[Place]] = lambda _: nullcontext(Place())
    """What is made for a run in this folder."""


STANDS = rf"rank {RANK} on 127\.0\.0\.1 did not move"
SILENT = r"nothing was heard of rank 2 on h2, rank 3 on h2 for \d+ s"
EXPECTED = {
    "kill a rank": Expected(rf"rank {RANK} was killed by SIGKILL"),
    "stop a rank": Expected(STANDS + r" \(its process is stopped\), and others wait"),
    "sleep in Python": Expected(STANDS + ", and others wait"),
    "NaN": Expected(r"training diverged: the \w+.* of window 7\d is not finite"),
    "truncate a checkpoint": Expected(r"skipped 0+60: backbone.safetensors has [\d,]+ bytes"),
    "flip a bit": Expected(r"skipped 0+60: backbone.safetensors has other content"),
    "kill the launcher": Expected("", by_hand=True),
    "SIGTERM": Expected(rf"ended early after 80 of {STEPS} windows, as asked", by_hand=True),
    "stop the store": Expected(r"the MLflow store .*timed out"),
    "fill the disk": Expected(r"0+80 cannot be written \(.*No space left", place=on_small_disk),
    "a clock that jumps": Expected(""),
    "slow a link": Expected("", place=on_test_hosts),
    "cut a link": Expected(SILENT, place=on_test_hosts),
    "kill a host": Expected(SILENT, place=on_test_hosts),
}


@dataclass(frozen=True)
class Found:
    """What became of a run with a fault; times are seconds since the fault."""

    fault: str
    code: int
    """Exit code of the last launch."""
    ended_after: float | None
    """Until all ranks had ended; None if they were not to end."""
    named: bool | None
    """Whether it was said what the fault was; None if nobody was left to say so."""
    trained_after: float | None
    """Until the first window was trained again."""
    windows_lost: int | None
    """Windows that were trained twice."""
    equal: bool
    """Whether the final parameters are equal to the bit to the undisturbed run's."""
    in_store: bool
    """Whether MLflow has every logged step exactly once."""
    said: str


class Output:
    """The lines that a process prints, each with its time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.lines: list[tuple[float, str]] = []
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((time.time(), line.rstrip("\n")))

    def end(self, seconds: float = LONGEST_SECONDS) -> int:
        """Waits so long for the process, then kills it; returns its exit code."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(30)
        return self._process.returncode

    def first(self, pattern: str) -> tuple[float, str] | None:
        """The first line that contains the regular expression."""
        return next((line for line in self.lines if re.search(pattern, line[1])), None)


@dataclass(frozen=True)
class Bench:
    """The folder of all runs."""

    root: Path

    def launch(
        self, name: str, uri: str, program: Sequence[str], *more: str, place: Place = Place()
    ) -> Output:
        file = self.root / "experiment.yaml"
        command = [*place.before, sys.executable, "-m", *program, "launch", "--np", "4"]
        command += [*place.hosts, "--folder", str(self.root / name), *more, str(file)]
        command += [f"tracking.uri={uri}", f"tracking.folder={self.root}"]
        command += ["tracking.system_metrics_seconds=0"]
        return Output(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )

    def folder(self, fault: str) -> Path:
        return self.root / fault.replace(" ", "-")

    def store(self, fault: str) -> str:
        return f"sqlite:///{self.folder(fault)}.db"


def disturbed(bench: Bench, fault: str, whole: Path) -> Found:
    """Runs a training with one fault to its end."""
    expected, folder = EXPECTED[fault], bench.folder(fault)
    with (
        served(bench.store(fault), fault == "stop the store") as (uri, pid),
        expected.place(folder) as place,
    ):
        program = "benchmarks.faulty_launch", fault, str(pid)
        restarts = "--restarts", str(RESTARTED)
        output = bench.launch(folder.name, uri, program, *restarts, place=place)
        if pid:
            stop_for_a_while(pid, folder / MARK)
        if fault == "slow a link" and wait_for((folder / MARK).exists, LONGEST_SECONDS):
            set_rate(SLOW_LINK)
        code = output.end()
        lines, ended = list(output.lines), time.time()
        if expected.by_hand:
            ended = _all_gone(folder) or ended
            again = bench.launch(folder.name, uri, ("harness",), "--continue")
            code = again.end()
            lines += again.lines
        in_store = _in_store(uri, folder)
    at = json.loads((folder / MARK).read_text())["at"]
    named = (line for _, line in lines if expected.said and re.search(expected.said, line))
    said = next(named, "")
    failed = next((when for when, line in lines if line.startswith("output of all ranks")), ended)
    restarted = RunFolder(folder).restarts() if (folder / RESTARTS).exists() else []
    return Found(
        fault=fault,
        code=code,
        ended_after=round((ended if expected.by_hand else failed) - at, 1) if restarted else None,
        named=bool(said) if expected.said else None,
        trained_after=round(restarted[0]["at"] - at, 1) if restarted else None,
        windows_lost=max(0, WINDOW - restarted[0]["window"]) if restarted else None,
        equal=code == 0 and checksums(folder) == checksums(whole),
        in_store=in_store,
        said=said.strip().replace(f"{bench.root}/", "")[:200],
    )


def checksums(folder: Path, windows: int = STEPS) -> dict[str, str]:
    """Of the files of the checkpoint after so many windows."""
    meta = RunFolder(folder).checkpoint(windows) / META
    return {name: each["sha256"] for name, each in json.loads(meta.read_text())["files"].items()}


def _all_gone(folder: Path) -> float | None:
    """When no rank of the run in the folder is left; None if some never ended."""
    import psutil

    def gone() -> bool:
        lines = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
        return not any(str(folder) in line and "train" in line for line in lines)

    return time.time() if wait_for(gone, 120) else None


def _in_store(uri: str, folder: Path) -> bool:
    from mlflow import MlflowClient

    client, run_id = MlflowClient(uri), RunFolder(folder).mlflow_run_id
    points = client.get_metric_history(run_id, "train/loss") if run_id else []
    return sorted(point.step for point in points) == list(range(5, STEPS + 1, 5))


def table(found: Sequence[Found]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [
        "| fault | all ranks ended after | named | first window again after | windows lost | "
        "final parameters equal to the bit | every step in MLflow once |",
        "|---|--:|---|--:|--:|---|---|",
    ]
    for each in found:
        cells = [
            each.fault,
            _seconds(each.ended_after),
            {True: "yes", False: "NO", None: "-"}[each.named],
            _seconds(each.trained_after),
            "-" if each.windows_lost is None else str(each.windows_lost),
            "yes" if each.equal else "NO",
            "yes" if each.in_store else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new folder for all runs")
    parser.add_argument("--output", type=Path, help="folder for the table and what it is made of")
    parser.add_argument("--only", choices=FAULTS, action="append", help="faults (default: all)")
    chosen = parser.parse_args()
    root: Path = chosen.folder.absolute()
    root.mkdir(parents=True)
    (root / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")
    bench, found = Bench(root), []
    whole = bench.launch("whole", bench.store("whole"), ("harness",))
    if whole.end():
        print("\n".join(line for _, line in whole.lines), file=sys.stderr)
        return 1
    for fault in chosen.only or FAULTS:
        found.append(disturbed(bench, fault, root / "whole"))
        print(json.dumps(asdict(found[-1])), flush=True)
    print("\n".join(table(found)))
    if chosen.output:
        write(chosen.output, found)
    return 0


def circumstances() -> dict[str, Any]:
    """What is needed to judge a result: commit, versions, machine, and how busy it is."""
    facts = environment({})
    shown = ("git_commit", "git_dirty", "versions", "cpu", "usable_cores")
    return {key: facts[key] for key in shown if key in facts} | {"load": os.getloadavg()}


def write(folder: Path, found: Sequence[Found]) -> None:
    """Writes the table, the experiment, and what is needed to judge them.

    Faults that were recorded before and not injected again keep their rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "faults.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows |= {each.fault: {"found": asdict(each), "measured": circumstances()} for each in found}
    known = {fault: rows[fault] for fault in FAULTS if fault in rows}
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    lines = table([Found(**each["found"]) for each in known.values()])
    (folder / "faults.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks`: runs every benchmark under horovodrun and prints a Markdown page."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.alternating import Timing
from benchmarks.lab_page import timing_table
from benchmarks.recording import commit_of, keep, number_of_rounds
from harness.launch.hosts import cores
from harness.launch.launch import launch
from harness.measure.machine import environment

RANKS, HOSTS = 4, "localhost:2,127.0.0.1:2"
LAYOUTS = ("replicated", "node", "world")


class BenchmarkFailed(Exception):
    """A benchmark failed; its log says why."""


def measured(module: str, *arguments: str, ranks: int = RANKS, hosts: str = HOSTS) -> Any:
    """Runs a benchmark and returns the JSON that its rank 0 printed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        with open(os.devnull, "w") as unseen:
            outcome = launch(command, ranks, hosts, log, screen=unseen)
        text = log.read_text()
    if outcome.exit_code:
        raise BenchmarkFailed(f"benchmarks.{module}: {outcome.reason}\n{text[-4000:]}")
    return json.loads(next(line for line in text.splitlines() if "{" in line).split(" ", 2)[2])


def baseline(rounds: int) -> list[str]:
    """The baseline with a small network, and with one in which DDP's buckets matter."""
    small = measured("baseline", "--rounds", str(rounds))
    short = ["--rounds", str(max(3, rounds // 3)), "--steps", "1", "--batch-size", "4"]
    large = measured("baseline", "--model", "resnet50", "--image-size", "64", *short)
    return [
        "## The baseline against other data-parallel libraries",
        "",
        "1,000 classes, K = 1, torch's DDP with its defaults; steps alternate in one run.",
        *["", "Default backbone, 32 images per rank:", "", *timing_table(small)],
        *["", "ResNet-50, 4 images of 64 pixels per rank:", "", *timing_table(large)],
    ]


def overhead(rounds: int) -> list[str]:
    """What clock and MLflow cost."""
    found = measured("overhead", "--rounds", str(rounds))
    timing = Timing(found["rounds"])
    with_it, without = timing.rounds
    step = timing.median(without)
    direct = found["bookkeeping_ms"] + found["log_ms"] / 10
    return [
        "## What measuring costs",
        "",
        "| windows | median ms | ratio |",
        "|---|---|---|",
        f"| with clock and MLflow | {timing.median(with_it):.2f} | "
        f"{timing.ratio(with_it, without):.4f} |",
        f"| with neither | {step:.2f} | |",
        "",
        f"Timed alone, the main thread spends {found['bookkeeping_ms'] * 1e3:.0f} us per window on "
        f"the clock and {found['log_ms'] * 1e3:.0f} us per line of metrics, of which there is one "
        f"in 10 windows: {direct / step:.3%} of the window above.",
    ]


def classifier(rounds: int) -> list[str]:
    """The sliced classifier with 100,000 classes, and with more images than features."""
    lines = [
        "## The sliced classifier, forward and backward",
        "",
        "Two ranks of one node, float32, one thread each; variants alternate in one run. The three "
        "products of a rank cover its half of the classes and all images; torch's fused loss does "
        "the same work on one rank and exchanges nothing.",
    ]
    for classes, features, images in ((100_000, 512, 128), (50_000, 256, 1024)):
        words = ["--classes", str(classes), "--features", str(features), "--images", str(images)]
        words += ["--rounds", str(rounds)]
        found = measured("classifier", *words, ranks=2, hosts="localhost:2")
        timing, least = Timing(found["rounds"]), "three products"
        lines += [
            "",
            f"{classes:,} classes, {features} features, {images:,} gathered images:",
            "",
            "| variant | ms, median (quartiles) | this / three products |",
            "|:--|--:|--:|",
        ]
        for name, times in timing.rounds.items():
            low, middle, high = statistics.quantiles(times, n=4)
            lines.append(
                f"| {name} | {middle:.0f} ({low:.0f} - {high:.0f}) | "
                f"{timing.ratio(name, least):.2f} |"
            )
    return lines


def memory(classes: int) -> list[str]:
    """The memory of a rank's classifier by layout."""
    rows = {layout: measured("memory", layout, "--classes", str(classes)) for layout in LAYOUTS}
    whole = rows["replicated"]["classifier_bytes"]
    lines = [
        "## Memory of a rank's classifier",
        "",
        f"{classes:,} classes x 256 features, float32; weight, gradient and momentum as allocated "
        f"(the largest rank), and the peak of its process.",
        "",
        "| layout | classifier, MB | share of replicated | peak of the process, MB |",
        "|---|---|---|---|",
    ]
    for layout, row in rows.items():
        size, peak = row["classifier_bytes"], row["peak_bytes"]
        share = f"{size / whole:.3f}"
        lines.append(f"| {layout} | {size / 1e6:.1f} | {share} | {peak / 1e6:.0f} |")
    return lines


def saving(rounds: int) -> list[str]:
    """How long a checkpoint holds up training."""
    found = measured("saving", "--rounds", str(rounds))
    median = {
        name: {key: statistics.median(times) for key, times in of.items() if times}
        for name, of in found["ms"].items()
    }
    without = median["no checkpoint"]["whole"]
    lines = [
        "## What a checkpoint costs",
        "",
        f"{found['bytes'] / 1e6:.0f} MB on {found['file_system'] or 'an unknown file system'}, "
        f"100,000 classes; 20 windows follow, in which the thread writes. If it needs longer than "
        f"they take, it would hold up further windows. Training stands still until what is in "
        f"flight has landed, ranks agree, and what it changes is copied. Medians on rank 0; "
        f"variants alternate in one run.",
        "",
        "| variant | training stands still, ms | with 20 windows, ms | more than without, ms | "
        "until it is on the disk, ms |",
        "|:--|--:|--:|--:|--:|",
    ]
    for name, times in median.items():
        written = f"{times['written']:.0f}" if "written" in times else "-"
        lines.append(
            f"| {name} | {times['still']:.0f} | {times['whole']:.0f} | "
            f"{times['whole'] - without:.0f} | {written} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=number_of_rounds, default=15)
    parser.add_argument("--classes", type=int, default=200_000, help="classes of the memory table")
    parser.add_argument("--output", type=Path, help="file for a copy of the page")
    chosen = parser.parse_args()
    facts = environment()
    head = [
        "# Benchmarks",
        "",
        f"Commit {commit_of(facts)}; "
        f"{RANKS} ranks on {HOSTS}; {facts['cpu']}, {cores()} cores; "
        f"torch {facts['versions']['torch']}. Seed 0. `make bench` repeats it.",
    ]
    page = head
    try:
        for benchmark, size in (
            (baseline, chosen.rounds),
            (overhead, chosen.rounds),
            (classifier, chosen.rounds),
            (memory, chosen.classes),
            (saving, chosen.rounds),
        ):
            part = ["", *benchmark(size)]
            page += part
            print("\n".join(part), flush=True)
    except (BenchmarkFailed, subprocess.SubprocessError) as error:
        print(f"harness: {error}", file=sys.stderr)
        return 1
    keep("\n".join(page) + "\n", chosen.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

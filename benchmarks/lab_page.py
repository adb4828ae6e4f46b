"""The page that `make lab` writes: a table for each file of numbers, and the studies."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.draw.scaling import CONDITIONS
from benchmarks.alternating import Timing
from benchmarks.recording import commit_of
from harness.measure.machine import environment

NOT_TABLES = ("rate.json", CONDITIONS)


def page(folder: Path) -> str:
    """The page as Markdown, from all results in the folder."""
    facts = environment()
    known = json.loads((folder / "rate.json").read_text())["mbit_per_second"]
    rates = ", ".join(f"{name} {rate:g} Mbit/s" for name, rate in known.items())
    lines = [
        "# The lab",
        "",
        f"Written at commit {commit_of(facts)}, "
        "from tables that each name the commit of their measurement; test hosts in network "
        f"namespaces of one machine: {facts['cpu']}, {os.cpu_count()} cores. Links: {rates}. "
        "`make lab` repeats it. Ratios to the first variant are medians and quartiles over pairs "
        "of blocks that are neighbours in time; ratios to data_parallel are of two medians. "
        "torch's DDP waits inside its backward pass, where waiting is not seen ('-').",
    ]
    for path in sorted(folder.glob("*.json")):
        if path.name in NOT_TABLES or path.name.endswith(".predictions.json"):
            continue
        numbers = json.loads(path.read_text())
        rows = timing_table(numbers) if isinstance(numbers, dict) else table(numbers)
        lines += ["", f"## {path.stem}", "", *rows, *measured_at(numbers)]
    for study in sorted(folder.glob("comparison*/comparison.md")):
        lines += ["", study.read_text().replace("# ", "## ", 1).rstrip()]
    return "\n".join(lines) + "\n"


def table(variants: Sequence[dict[str, Any]]) -> list[str]:
    """A throughput table: each variant against the first, and against the baseline if present."""
    rates = {each["variant"]: each["images_per_second"] for each in variants}
    baseline = rates.get("data_parallel")
    lines = [
        f"| variant | images/s | of {variants[0]['variant']} | quartiles | "
        "of data_parallel | exchange wait |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for each in variants:
        times = f"{each['images_per_second'] / baseline:.2f}x" if baseline else ""
        wait = each["exchange_wait_percent"]
        waits = "-" if wait is None else f"{wait:.1f} %"
        low, high = each["ratio_quartiles"]
        lines.append(
            f"| {each['variant']} | {each['images_per_second']:.0f} | {each['ratio']:.3f} | "
            f"{low:.2f} - {high:.2f} | {times} | {waits} |"
        )
    return lines


def measured_at(numbers: Any) -> list[str]:
    """The commits and processors of a throughput table; none for tables older than this record."""
    rows = numbers if isinstance(numbers, list) else []
    places = sorted({f"{row['commit']} on {row['cpu']}" for row in rows if "commit" in row})
    return ["", f"Measured at commit {', '.join(places)}."] if places else []


def timing_table(rounds: Mapping[str, list[float]]) -> list[str]:
    """A table of step times of several libraries, ours first."""
    timing = Timing(rounds)
    first, *others = sorted(
        rounds, key=lambda each: (not each.startswith("harness"), timing.median(each))
    )
    lines = [
        f"| variant | step, median ms | {first} / this, median of rounds |",
        "|:--|--:|--:|",
        f"| {first} | {timing.median(first):.1f} | |",
    ]
    for other in others:
        ratio = timing.ratio(first, other)
        lines.append(f"| {other} | {timing.median(other):.1f} | {ratio:.3f} |")
    return lines

"""`make lab`: the headline, from nothing. Test hosts on this machine, with slow links between them.

Throughput against the ceiling at several rates, time to accuracy over seeds, many ranks on four
hosts, and one host that stutters; into one folder, as a Markdown page and the files behind it.
Needs root. `--only PART` measures one part again and keeps the others.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.measure.machine import environment

RATE, FASTER = "125mbit", "1250mbit"
"""data_parallel spends four fifths of its time on the network at the first."""
METHOD = "experiments/lab/hybrid_averaging.yaml"
BASELINE = "experiments/lab/data_parallel.yaml"
CEILING = "experiments/lab/ceiling.yaml"
ASYNC = "experiments/lab/hybrid_async.yaml"
RIVALS = tuple(
    f"experiments/rivals/{name}.yaml"
    for name in ("ddp_powersgd", "ddp_post_local_sgd", "data_parallel_k4_fp16", "world_sync")
)
CYCLE = "HOROVOD_CYCLE_TIME=5"
"""Ranks outnumber the cores: Horovod's threads wake less often."""


class LabFailed(Exception):
    """A measurement did not end well; its output says why."""


@contextmanager
def lab(hosts: int, slots: int, rate: str) -> Iterator[str]:
    """Test hosts while it lasts; the list for -H."""
    harness("lab", "up", "--hosts", str(hosts), "--slots", str(slots), "--rate", rate)
    try:
        yield ",".join(f"h{number}:{slots}" for number in range(1, hosts + 1))
    finally:
        harness("lab", "down")


def harness(*words: str, log: Path | None = None) -> None:
    """One command; what it says is passed on, and kept in the log."""
    line = [sys.executable, "-m", "harness", *words]
    said = []
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for each in process.stdout:
            said.append(each)
            print(each, end="", file=sys.stderr, flush=True)
    if log is not None:
        log.write_text("".join(said))
    if process.returncode:
        raise LabFailed(f"{' '.join(words[:4])} ... ended with exit code {process.returncode}")


def in_lab(words: Sequence[str], log: Path, stutter: Sequence[str] = ()) -> None:
    slow = [word for each in stutter for word in ("--stutter", each)]
    program = ["env", CYCLE, sys.executable, "-m", "harness", *words]
    harness("lab", "run", *slow, "--", *program, log=log)


def rates(
    folder: Path,
    name: str,
    hosts: str,
    experiments: Sequence[str],
    arguments: Sequence[str] = (),
    stutter: Sequence[str] = (),
) -> None:
    """Experiments in turn in one run; their numbers into NAME.json."""
    output = folder / f"{name}.json"
    program = [sys.executable, "-m", "benchmarks.throughput", *experiments, *arguments]
    launch = ["launch", "-H", hosts, "--folder", str(folder / "logs"), "--"]
    in_lab([*launch, *program, "--output", str(output)], folder / f"{name}.log", stutter)


def throughput(folder: Path) -> None:
    everyone = (CEILING, METHOD, ASYNC, BASELINE, *RIVALS)
    for name, rate, classes in (
        ("rate-slow", RATE, 1000),
        ("rate-faster", FASTER, 1000),
        ("rate-unshaped", "none", 1000),
        ("classes-slow", RATE, 3755),
    ):
        with lab(2, 2, rate) as hosts:
            few = ["--rounds", "4", "--micro-batches", "16"]
            rates(folder, name, hosts, everyone, [f"data.num_classes={classes}", *few])


def accuracy(folder: Path) -> None:
    words = ["compare", BASELINE, METHOD, ASYNC, *RIVALS, "--np", "4", "--seeds", "3"]
    runs = folder / "comparison"
    with lab(2, 2, RATE) as hosts:
        options = ["--hosts", hosts, "--study", "lab", "--folder", str(runs)]
        in_lab([*words, *options], folder / "comparison.log")


def many(folder: Path) -> None:
    with lab(4, 4, RATE) as hosts:
        few = ["--rounds", "3", "--micro-batches", "8", "--untimed", "4"]
        rates(folder, "ranks-16", hosts, (CEILING, METHOD, BASELINE), few)


def stutter(folder: Path) -> None:
    """One host slowed for 2 s in every 10; blocks last for several of those."""
    variants = (CEILING, METHOD, ASYNC, BASELINE)
    with lab(2, 2, "none") as hosts:
        long = ["--rounds", "3", "--micro-batches", "192"]
        rates(folder, "steady", hosts, variants, long)
        rates(folder, "stutter", hosts, variants, long, stutter=["h2:2/10"])


PARTS: dict[str, Callable[[Path], None]] = {
    "throughput": throughput,
    "accuracy": accuracy,
    "many": many,
    "stutter": stutter,
}


def page(folder: Path) -> str:
    facts = environment()
    lines = [
        "# The lab",
        "",
        f"Commit {facts['git_commit']}{' with changes' if facts['git_dirty'] else ''}; test hosts "
        f"in network namespaces of one machine: {facts['cpu']}, {os.cpu_count()} cores. "
        "`make lab` repeats it.",
    ]
    for path in sorted(folder.glob("*.json")):
        lines += ["", f"## {path.stem}", "", *table(json.loads(path.read_text()))]
    comparison = folder / "comparison" / "comparison.md"
    if comparison.exists():
        lines += ["", comparison.read_text().replace("# ", "## ", 1).rstrip()]
    return "\n".join(lines) + "\n"


def table(variants: Sequence[dict[str, Any]]) -> list[str]:
    """Against the first, and against the baseline where it is among them."""
    baseline = next((each for each in variants if each["variant"] == "data_parallel"), variants[0])
    lines = [
        f"| variant | images/s | of {variants[0]['variant']} | of {baseline['variant']} | "
        f"exchange wait |",
        "|:--|--:|--:|--:|--:|",
    ]
    for each in variants:
        times = each["images_per_second"] / baseline["images_per_second"]
        wait = each["exchange_wait_percent"]
        lines.append(
            f"| {each['variant']} | {each['images_per_second']:.0f} | {each['ratio']:.3f} | "
            f"{times:.2f}x | {wait:.1f} % |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/lab"))
    parser.add_argument("--only", choices=PARTS, action="append")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, part in PARTS.items():
            if chosen.only is None or name in chosen.only:
                print(f"lab: {name}", file=sys.stderr, flush=True)
                part(folder)
    except LabFailed as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    text = page(folder)
    (folder / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
from harness.study.figures.scaling import CONDITIONS, Condition

WAITING = 0.81
"""The share of its step that the baseline loses to the slow link, the ratio that the link's rate is
chosen for: the ceiling is then about 5.2 times the baseline."""
GUESS_MBIT, STEP_MBIT = 100, 5
METHOD = "experiments/lab/hybrid_averaging.yaml"
BASELINE = "experiments/lab/data_parallel.yaml"
CEILING = "experiments/lab/ceiling.yaml"
ASYNC = "experiments/lab/hybrid_async.yaml"
ASYNC_2 = "experiments/lab/hybrid_async_delay_2.yaml"
RIVALS = tuple(
    f"experiments/rivals/{name}.yaml"
    for name in ("ddp_powersgd", "ddp_post_local_sgd", "data_parallel_k4_fp16", "world_sync")
)
CYCLE = "HOROVOD_CYCLE_TIME=20"
"""Ranks outnumber the cores: Horovod's threads wake less often. At 5 ms all lose a tenth."""


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
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}.json"
    program = [sys.executable, "-m", "benchmarks.throughput", *experiments, *arguments]
    launch = ["launch", "-H", hosts, "--folder", str(folder / "logs"), "--"]
    in_lab([*launch, *program, "--output", str(output)], folder / f"{name}.log", stutter)


def note(folder: Path, name: str, *, hosts: int, ranks: int, classes: int, rate: str) -> None:
    """What a table was measured under, for the figure of scaling."""
    file = folder / CONDITIONS
    noted = json.loads(file.read_text()) if file.exists() else {}
    mbit = None if rate == "none" else float(rate.removesuffix("mbit"))
    condition = Condition(hosts=hosts, ranks=ranks, classes=classes, mbit_per_second=mbit)
    file.write_text(json.dumps(noted | {name: condition.model_dump()}, indent=2))


def slow_rate(folder: Path) -> int:
    """Mbit/s at which the baseline waits for WAITING of its step; measured once for a folder.

    Its step is the transfer's time there, which is in proportion to the rate.
    """
    noted = folder / "rate.json"
    if not noted.exists():
        few = ["--rounds", "4", "--micro-batches", "8"]
        found = {}
        for name, rate in (("free", "none"), ("guess", f"{GUESS_MBIT}mbit")):
            with lab(2, 2, rate) as hosts:
                rates(folder / "calibration", name, hosts, [BASELINE], few)
            (measured,) = json.loads((folder / "calibration" / f"{name}.json").read_text())
            found[name] = measured["images_per_second"]
        exact = GUESS_MBIT * (1 - WAITING) * found["free"] / found["guess"]
        rate = max(1, round(exact / STEP_MBIT)) * STEP_MBIT
        noted.write_text(json.dumps({"mbit_per_second": rate, "images_per_second": found}))
    return int(json.loads(noted.read_text())["mbit_per_second"])


def throughput(folder: Path, slow: int) -> None:
    everyone = (CEILING, METHOD, ASYNC, BASELINE, *RIVALS)
    few = ["--rounds", "4", "--micro-batches", "16"]
    for name, rate, classes in (
        ("classes-1000-slow", f"{slow}mbit", 1000),
        ("classes-3755-slow", f"{slow}mbit", 3755),
        ("classes-3755-tenfold", f"{10 * slow}mbit", 3755),
        ("classes-3755-unshaped", "none", 3755),
    ):
        with lab(2, 2, rate) as hosts:
            rates(folder, name, hosts, everyone, [f"data.num_classes={classes}", *few])
        note(folder, name, hosts=2, ranks=4, classes=classes, rate=rate)


def ceiling(folder: Path, slow: int) -> None:
    """The method against the ceiling alone: machines are noisy, so many short blocks."""
    with lab(2, 2, f"{slow}mbit") as hosts:
        many = ["--rounds", "40", "--micro-batches", "16"]
        rates(folder, "ceiling-slow", hosts, (CEILING, METHOD, ASYNC), many)


def accuracy(folder: Path, slow: int) -> None:
    words = ["compare", BASELINE, METHOD, ASYNC, *RIVALS, "--np", "4", "--seeds", "3"]
    runs = folder / "comparison"
    with lab(2, 2, f"{slow}mbit") as hosts:
        options = ["--hosts", hosts, "--study", "lab", "--folder", str(runs)]
        in_lab([*words, *options], folder / "comparison.log")


def many(folder: Path, slow: int) -> None:
    with lab(4, 4, f"{slow}mbit") as hosts:
        few = ["--rounds", "3", "--micro-batches", "8", "--untimed", "4"]
        rates(folder, "ranks-16", hosts, (CEILING, METHOD, BASELINE), few)
    note(folder, "ranks-16", hosts=4, ranks=16, classes=1000, rate=f"{slow}mbit")


def stutter(folder: Path, _: int) -> None:
    """One host slowed for 2 s in every 10; a block lasts about as long."""
    variants = (CEILING, METHOD, ASYNC, ASYNC_2, BASELINE)
    with lab(2, 2, "none") as hosts:
        long = ["--rounds", "4", "--micro-batches", "128"]
        rates(folder, "steady", hosts, variants, long)
        rates(folder, "stutter", hosts, variants, long, stutter=["h2:2/10"])


PARTS: dict[str, Callable[[Path, int], None]] = {
    "throughput": throughput,
    "ceiling": ceiling,
    "accuracy": accuracy,
    "many": many,
    "stutter": stutter,
}


def page(folder: Path, slow: int) -> str:
    facts = environment()
    lines = [
        "# The lab",
        "",
        f"Commit {facts['git_commit']}{' with changes' if facts['git_dirty'] else ''}; test hosts "
        f"in network namespaces of one machine: {facts['cpu']}, {os.cpu_count()} cores; the slow "
        f"link has {slow} Mbit/s. `make lab` repeats it. Ratios are medians, and "
        "quartiles, of blocks beside each other in time.",
    ]
    others = {folder / "rate.json", folder / CONDITIONS, *folder.glob("*.predictions.json")}
    for path in sorted(set(folder.glob("*.json")) - others):
        lines += ["", f"## {path.stem}", "", *table(json.loads(path.read_text()))]
    comparison = folder / "comparison" / "comparison.md"
    if comparison.exists():
        lines += ["", comparison.read_text().replace("# ", "## ", 1).rstrip()]
    return "\n".join(lines) + "\n"


def table(variants: Sequence[dict[str, Any]]) -> list[str]:
    """Against the first, and against the baseline where that is among them."""
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
        low, high = each["ratio_quartiles"]
        lines.append(
            f"| {each['variant']} | {each['images_per_second']:.0f} | {each['ratio']:.3f} | "
            f"{low:.2f} - {high:.2f} | {times} | {wait:.1f} % |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/lab"))
    parser.add_argument("--only", choices=PARTS, action="append")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    try:
        slow = slow_rate(folder)
        for name, part in PARTS.items():
            if chosen.only is None or name in chosen.only:
                print(f"lab: {name}", file=sys.stderr, flush=True)
                part(folder, slow)
    except LabFailed as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    text = page(folder, slow)
    (folder / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

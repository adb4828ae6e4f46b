"""`make lab`: reproduces the headline on test hosts of this machine with slow links between them.

It measures every rival at its strongest against the method: time to accuracy over seeds on three
links, a map of where lateness pays, the gain from overlapping, a compression among many nodes, many
ranks on four hosts, a host that stutters, and torch's DDP. The results are a Markdown page and its
data in one folder. Results that exist are kept, so an interrupted run continues where it ended; to
measure something again, delete its file. The host that stutters needs root.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from analysis.draw.scaling import CONDITIONS, Condition
from benchmarks.lab_hosts import Grid, LabFailed, Link, in_lab, lab, on_all_ranks, rates
from benchmarks.lab_page import page
from benchmarks.on_link import HOW, on_link, with_early
from benchmarks.throughput import loaded
from harness.compare.conclude import conclude
from harness.compare.folder import failures_in, variants_in, write_runs
from harness.errors import UserError
from harness.tracking.comparison_files import TABLE_FILE
from harness.tracking.failure import diverged_at
from harness.tracking.results import Results, Terms, Variant
from harness.tracking.run_folder import SUMMARY

SHARES = {"third": 1 / 3, "slow": 0.8, "slower": 0.95, "slowest": 0.98}
"""Fraction of its step that data_parallel loses to a link on its faster route, by the link's name.
The ceiling is then 1 / (1 - share) = 1.5, 5, 20 and 50 times as fast as the baseline."""
GUESS_MBIT = 50
LATENCY, FAR = "20ms", "60ms"
"""One way: between cities, and between continents."""
DELAYS = {
    "": {},
    "-latency": {"latency": LATENCY},
    "-jitter": {"latency": LATENCY, "jitter": "10ms"},
}
"""One-way delays of packets that the map combines with each rate."""
METHOD = "experiments/lab/hybrid_averaging.yaml"
BASELINE = "experiments/lab/data_parallel.yaml"
CEILING = "experiments/lab/ceiling.yaml"
ASYNC = "experiments/lab/hybrid_async.yaml"
ASYNC_2 = "experiments/lab/hybrid_async_delay_2.yaml"
ALL_RIVALS = sorted(str(path) for path in Path("experiments/rivals").glob("*.yaml"))
REMEDIES = sorted(str(path) for path in Path("experiments/remedies").glob("*.yaml"))
"""Variants of the method for settings in which it is weak."""
EVERYONE = (BASELINE, METHOD, ASYNC, *ALL_RIVALS, *REMEDIES)
STRONGEST = tuple(
    f"experiments/rivals/{name}.yaml"
    for name in (
        "data_parallel_int8",
        "data_parallel_sign",
        "data_parallel_k2_int4",
        "data_parallel_k2_sign",
        "hybrid_averaging_on_time_sign",
        "ddp_powersgd",
        "world_sync_int8",
    )
)
"""The strongest rivals of each kind on links of any speed, against which the map is measured."""
LATE = (
    METHOD,
    *(
        f"experiments/remedies/hybrid_averaging_{name}.yaml"
        for name in ("direct", "int4_direct", "sign_direct")
    ),
)
"""The method, and the same through torch.distributed in fewer and fewer bytes, for the map."""
ON_THE_LINK = (
    BASELINE,
    METHOD,
    "experiments/rivals/data_parallel_k2_int8.yaml",
    "experiments/rivals/hybrid_averaging_on_time.yaml",
)
"""Variants that are also trained on the slow link itself, to check the headline's times."""
DDP = "experiments/rivals/ddp.yaml"
"""torch's with its defaults, whose speed is also that of PowerSGD's first windows."""
WIRES = ("none", "fp16", "int8", "int4")
LATE_TWIN = "exchange.kind=delayed,exchange.delay=0"
"""The same exchange after the backward pass, against which overlapping is measured."""
SEEDS = (0, 1, 2)
"""Seeds of a study; the sweep uses others."""


def noted(folder: Path) -> dict[str, Any]:
    """The conditions that each table was measured under, by its name, for the figures."""
    file = folder / CONDITIONS
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def condition(grid: Grid, classes: int) -> dict[str, Any]:
    """The conditions of a table."""
    return Condition(
        hosts=grid.hosts,
        ranks=grid.hosts * grid.slots,
        classes=classes,
        mbit_per_second=grid.link.mbit,
        latency=grid.link.latency,
        jitter=grid.link.jitter,
    ).model_dump()


def measure(
    folder: Path,
    name: str,
    grid: Grid,
    classes: int,
    experiments: Sequence[str],
    arguments: Sequence[str],
) -> list[dict[str, Any]]:
    """Measures a table, or reads it if it exists; returns its rows.

    Raises LabFailed if an existing one was measured in other conditions or lacks an experiment.
    """
    file, own = folder / f"{name}.json", condition(grid, classes)
    if not file.exists():
        (folder / CONDITIONS).write_text(json.dumps(noted(folder) | {name: own}, indent=2))
    elif (other := noted(folder).get(name)) != own:
        raise LabFailed(
            f"{file} was measured under {other}, not {own}; delete it to measure it again"
        )
    rates(folder, name, grid, experiments, [f"data.num_classes={classes}", *arguments])
    found: list[dict[str, Any]] = json.loads(file.read_text())
    missing = {loaded(each, ()).name for each in experiments} - {row["variant"] for row in found}
    if missing:
        names = ", ".join(sorted(missing))
        raise LabFailed(f"{file} has no rows of {names}; delete it to measure it again")
    return found


def links(folder: Path) -> dict[str, Link]:
    """Links by name, with rates at which the baseline loses `SHARES` of its step.

    They are measured once for a folder. A step t = c + x / rate loses the fraction s to the link if
    rate = x (1 - s) / (c s).
    """
    file = folder / "rate.json"
    if not file.exists():
        shutil.rmtree(folder / "calibration", ignore_errors=True)
        short = ["--rounds", "4", "--micro-batches", "8"]
        found = {}
        for name, rate in (("free", "none"), ("guess", f"{GUESS_MBIT}mbit")):
            rates(folder / "calibration", name, Grid(Link(rate)), [BASELINE], short)
            (measured,) = json.loads((folder / "calibration" / f"{name}.json").read_text())
            found[name] = measured["images_per_second"]
        lost = found["free"] / found["guess"] - 1  # x / (guess c)
        exact = {name: GUESS_MBIT * lost * (1 - s) / s for name, s in SHARES.items()}
        rounded = {name: float(f"{rate:.2g}") for name, rate in exact.items()}
        file.write_text(json.dumps({"mbit_per_second": rounded, "images_per_second": found}))
    known = json.loads(file.read_text())["mbit_per_second"]
    return {name: Link(f"{rate:g}mbit") for name, rate in known.items()}


def overlap(folder: Path, known: dict[str, Link]) -> None:
    """Synchronous exchanges of all layouts, routes and compressions, during and after backward."""
    short = ["--rounds", "4", "--micro-batches", "8", "--seconds", "3"]
    for layout in ("replicated", "node", "world"):
        variants = []
        for wire in WIRES:
            own = f"classifier.layout={layout},exchange.compression={wire}"
            for route in ("flat", "hierarchical"):
                name = f"name={route}_{wire}"
                waits = "exchange.kind=synchronous"
                variants.append(f"{BASELINE},{own},{waits},exchange.route={route},{name}")
            variants.append(f"{BASELINE},{own},{LATE_TWIN},name=after_backward_{wire}")
        rates(folder, f"overlap-{layout}", Grid(known["slow"]), variants, short)


def accuracy(folder: Path, known: dict[str, Link]) -> None:
    """Trains all variants without a limit; concludes for each link from speeds measured there."""
    variants = _trained(folder / "trainings", Link(), EVERYONE)
    everyone = (CEILING, *with_early(EVERYONE))
    many = ["--rounds", f"{len(SEEDS)}", "--micro-batches", "16", "--untimed", "4"]
    many += ["--seconds", "3"]
    for name, link in (
        ("slow", known["slow"]),
        ("latency", replace(known["slow"], latency=LATENCY)),
        ("far", replace(known["slow"], latency=FAR)),
    ):
        table = measure(folder, f"headline-{name}", Grid(link), 1000, everyone, many)
        study, timed = folder / f"comparison-{name}", on_link(variants, table)
        write_runs(study, timed)
        _conclude(study, timed, timing=HOW)


def clock(folder: Path, known: dict[str, Link]) -> None:
    """Trains some variants on the slow link itself."""
    study = folder / "comparison-clock"
    variants = _trained(study, known["slow"], ON_THE_LINK)
    # An interrupted study has several parts for a seed, whose runs were not made in turn.
    in_turn = len(list(study.glob("part-*/"))) == len(SEEDS)
    _conclude(study, variants, in_turn=in_turn)


def _trained(study: Path, link: Link, experiments: Sequence[str]) -> tuple[Variant, ...]:
    """Trains each experiment with each seed, except for runs that exist already."""
    study.mkdir(exist_ok=True)
    missing = {
        seed: left
        for seed in SEEDS
        if (left := [each for each in experiments if not _is_made(study, each, seed)])
    }
    if missing:
        with lab(2, 2, link) as hosts:
            for seed, left in missing.items():
                if seed % 2:  # there and back: a steady slow-down affects all variants equally
                    left.reverse()
                part = f"part-{1 + len(list(study.glob('part-*/')))}"
                words = ["compare", *left, f"seed={seed}", "--np", "4", "--hosts", hosts]
                own = ["--study", f"lab-{study.name}", "--folder", str(study / part)]
                in_lab(["harness", *words, *own], study / f"{part}.log")
    return variants_in(study)


def _is_made(study: Path, experiment: str, seed: int) -> bool:
    """Whether the run has ended; one that diverged would do so again."""
    name = loaded(experiment, ()).name
    diverged = {
        (each.config.name, each.config.seed)
        for each in failures_in(study)
        if diverged_at(each.reason)
    }
    return (name, seed) in diverged or any(study.glob(f"part-*/{name}-s{seed}/{SUMMARY}"))


def _conclude(
    study: Path, variants: Sequence[Variant], timing: str | None = None, in_turn: bool = False
) -> None:
    results = Results(f"lab-{study.name}", tuple(variants), in_turn=in_turn, timing=timing)
    conclude(results, Terms(), study, None)


def nodes(folder: Path, _: dict[str, Link]) -> None:
    """Accuracy and bytes of compressions on 2 to 16 nodes of one rank, with one total batch."""
    wires = [f"experiments/rivals/data_parallel_{wire}.yaml" for wire in ("int8", "sign")]
    for count in (2, 4, 8, 16):
        name = f"comparison-nodes-{count}"
        if (folder / name / TABLE_FILE).exists():
            continue
        with lab(count, 1, Link()) as hosts:
            words = ["harness", "compare", BASELINE, *wires, "--np", str(count), "--hosts", hosts]
            options = ["--seeds", "2", "--study", f"lab-nodes-{count}"]
            batch = f"train.batch_size={128 // count}"
            folders = ["--folder", str(folder / name)]
            in_lab([*words, batch, *options, *folders], folder / f"{name}.log")


def many(folder: Path, known: dict[str, Link]) -> None:
    """16 ranks on four hosts."""
    short = ["--rounds", "3", "--micro-batches", "8", "--untimed", "4"]
    grid = Grid(known["slow"], hosts=4, slots=4)
    measure(folder, "ranks-16", grid, 1000, (CEILING, METHOD, BASELINE, *STRONGEST), short)


def stutter(folder: Path, _: dict[str, Link]) -> None:
    """One host is slowed for 2 s in every 10 s, which is about the length of a block."""
    variants = (CEILING, METHOD, ASYNC, ASYNC_2, BASELINE)
    long = ["--rounds", "4", "--micro-batches", "128"]
    rates(folder, "steady", Grid(Link()), variants, long)
    rates(folder, "stutter", Grid(Link()), variants, long, stutter=["h2:2/10"])


def baseline(folder: Path, known: dict[str, Link]) -> None:
    """The baseline against torch's DDP and Horovod's optimizer, for a small and a large network."""
    small = ["--rounds", "10", "--steps", "2"]
    large = ["--model", "resnet50", "--image-size", "64", "--batch-size", "4"]
    large += ["--rounds", "4", "--steps", "1", "--bucket-mb", "4", "--bucket-mb", "25"]
    fast = Link("1000mbit")
    for name, link, words in (
        ("baseline-small", known["slow"], small),
        ("baseline-large", fast, large),
    ):
        on_all_ranks(folder, name, Grid(link), "baseline", words)


def lateness(folder: Path, known: dict[str, Link]) -> None:
    """The map of where lateness pays: all rates, with and without latency; in between, a link with
    jitter, and more classes. The tables of `accuracy` are on it too."""
    variants = (CEILING, *with_early((BASELINE, *LATE, *STRONGEST, DDP)))
    short = [
        "--rounds",
        f"{len(SEEDS)}",
        "--micro-batches",
        "16",
        "--untimed",
        "2",
        "--seconds",
        "2",
    ]
    others = [name for name in known if name != "slow"]
    places = [("unlimited", "", 1000), *product(others, ("", "-latency"), (1000,))]
    places += product(("slow", "slower"), ("-jitter",), (1000,))
    places += product(("slow", "slower"), ("", "-latency"), (3755,))
    for name, wait, classes in places:
        there = replace(known.get(name, Link()), **DELAYS[wait])
        measure(folder, f"map-{name}{wait}-{classes}", Grid(there), classes, variants, short)


PARTS: dict[str, Callable[[Path, dict[str, Link]], None]] = {
    "accuracy": accuracy,
    "clock": clock,
    "overlap": overlap,
    "nodes": nodes,
    "many": many,
    "stutter": stutter,
    "baseline": baseline,
    "lateness": lateness,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/lab"))
    parser.add_argument("--only", choices=PARTS, action="append")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = links(folder)
        for name, part in PARTS.items():
            if chosen.only is None or name in chosen.only:
                print(f"lab: {name}", file=sys.stderr, flush=True)
                part(folder, known)
    except (LabFailed, UserError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    text = page(folder)
    (folder / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scores `harness plan` in the lab: one calibration, then the errors on runs that it never saw.

`python -m benchmarks.predictions --folder runs/predictions` needs root. One lab of 2 x 2 ranks is
calibrated at one rate. Other rates, ranks, layouts, exchanges, K, delays, compressions and numbers
of classes are predicted from it, and measured in blocks as in benchmarks.throughput. `--keep`
continues with the results that a folder already has.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lab_hosts import LabFailed, Link, in_lab, lab, launched
from benchmarks.recording import commit_of
from harness.calibrate.result import read_calibration
from harness.config import load
from harness.lab import lab as running_lab
from harness.measure.machine import environment
from harness.plan.cost_model import predict
from harness.plan.from_calibration import cluster_from
from harness.plan.machines import Cluster

NAME = "lab-2x2"
"""Name of the calibrated cluster; the recorded one is in experiments/clusters/."""
CALIBRATED_MBIT = 500
BASE = "experiments/lab/base.yaml"
UNSHAPED_BYTES_PER_SECOND = 1e12
"""Rate of a link without a limit, at which the processors are the bottleneck."""
BLOCKS = ("--rounds", "4", "--micro-batches", "24", "--untimed", "8")
"""Long blocks, because each ends with a wait for its last rank, which is not part of a window."""


@dataclass(frozen=True)
class Variant:
    """The layout and the complete exchange settings of a variant of the base experiment."""

    layout: str
    exchange: dict[str, Any]

    @property
    def name(self) -> str:
        words = [self.layout, *map(str, self.exchange.values())]
        return "-".join(word.replace("_", "") for word in words)


@dataclass(frozen=True)
class Setting:
    """One lab, and the variants that run on it in turn."""

    hosts: int
    ranks: int
    """Ranks per host."""
    mbit: int | None
    """Rate of a host's link, Mbit/s; None means no limit."""
    classes: int
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        return f"{self.hosts}x{self.ranks}-{self.mbit or 'unshaped'}-{self.classes}"


def waits(layout: str, passes: int = 1, compression: str = "none") -> Variant:
    return Variant(layout, _exchange("synchronous", passes, 0, compression))


def late(layout: str, passes: int, delay: int, compression: str = "none") -> Variant:
    return Variant(layout, _exchange("delayed", passes, delay, compression))


def averages(passes: int, pieces: int, compression: str) -> Variant:
    return Variant("node", _exchange("averaging", passes, 1, compression) | {"pieces": pieces})


def _exchange(kind: str, passes: int, delay: int, compression: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "backward_passes_per_step": passes,
        "delay": delay,
        "compression": compression,
    }


SETTINGS = (
    Setting(
        2, 2, 100, 1000, (waits("replicated"), late("node", 1, 1, "int8"), averages(2, 2, "int8"))
    ),
    Setting(
        2, 2, 200, 3755, (waits("node", 1, "fp16"), waits("world"), late("node", 2, 1, "fp16"))
    ),
    Setting(
        2, 2, 1000, 3755, (waits("replicated"), waits("replicated", 4, "fp16"), late("world", 1, 1))
    ),
    Setting(2, 2, None, 1000, (waits("replicated"), late("node", 1, 2, "int8"), waits("world"))),
    Setting(2, 1, 200, 1000, (waits("replicated"), late("node", 1, 1), waits("node", 2, "int8"))),
    Setting(4, 1, 200, 1000, (waits("replicated", 2), averages(2, 1, "int8"))),
    Setting(4, 2, 500, 1000, (waits("replicated"), late("node", 2, 1, "int8"))),
)
"""None of them equals the calibration's, and no term of the model is fitted to any of them."""


def calibrate(folder: Path) -> None:
    output = folder / "calibration.json"
    program = [sys.executable, "-m", "harness", "calibrate", BASE, "train.threads=1"]
    with lab(2, 2, Link(f"{CALIBRATED_MBIT}mbit")) as hosts:
        launch = [
            "harness",
            "launch",
            "-H",
            hosts,
            "--folder",
            str(folder / "logs"),
            "--",
            *program,
        ]
        in_lab([*launch, "--output", str(output)], folder / "calibration.log")


def measure(folder: Path, setting: Setting) -> None:
    experiments = [_write(folder, setting, variant) for variant in setting.variants]
    link = Link() if setting.mbit is None else Link(f"{setting.mbit}mbit")
    arguments = [f"data.num_classes={setting.classes}", *BLOCKS]
    with lab(setting.hosts, setting.ranks, link) as hosts:
        cores = _cores_per_host()
        launched(folder, setting.name, hosts, "throughput", [*experiments, *arguments])
    (folder / f"{setting.name}.cores").write_text(f"{cores}")


def _write(folder: Path, setting: Setting, variant: Variant) -> str:
    values = {
        "base": str(Path(BASE).absolute()),
        "name": variant.name,
        "classifier": {"layout": variant.layout},
        "exchange": variant.exchange,
    }
    path = folder / "experiments" / f"{setting.name}-{variant.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return str(path)


def _cores_per_host() -> float:
    """A host's number of cores, where a core that n hosts use counts as 1 / n."""
    hosts = running_lab.running()
    takers = [core for host in hosts for core in host.cores]
    return sum(1 / takers.count(core) for core in hosts[0].cores)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Predictions beside measurements, for all settings that were measured."""
    cluster = _calibrated(folder)
    found = []
    for setting in SETTINGS:
        path = folder / f"{setting.name}.json"
        if not path.exists():
            continue
        cores = float((folder / f"{setting.name}.cores").read_text())
        there = lab_like(cluster, setting.hosts, setting.ranks, setting.mbit, cores)
        by_name = {each["variant"]: each for each in json.loads(path.read_text())}
        for variant in setting.variants:
            experiment = _write(folder, setting, variant)
            config = load(experiment, [f"data.num_classes={setting.classes}"])
            predicted = predict(there, config)
            images = predicted.images_per_second * predicted.step_ms
            measured = by_name[variant.name]
            step_ms = images / measured["images_per_second"]
            found.append(
                {
                    "setting": setting.name,
                    "variant": variant.name,
                    "predicted_ms": predicted.step_ms,
                    "measured_ms": step_ms,
                    "error": predicted.step_ms / step_ms - 1,
                    "predicted_phases_ms": predicted.phases_ms,
                    "measured_phases_ms": measured["phases_ms"],
                }
            )
    return found


def _calibrated(folder: Path) -> Cluster:
    return cluster_from(read_calibration(folder / "calibration.json"), name=NAME)


def lab_like(
    calibrated: Cluster, hosts: int, ranks_per_host: int, mbit: float | None, cores: float
) -> Cluster:
    """The calibrated cluster in another lab of the same machine; `cores` is per host."""
    rate = UNSHAPED_BYTES_PER_SECOND
    if mbit is not None:
        rate = calibrated.link.bytes_per_second * mbit / CALIBRATED_MBIT
    there = calibrated.on(hosts, ranks_per_host).with_rate(rate)
    return there.model_copy(update={"cores_per_node": cores})


def page(found: Sequence[dict[str, Any]]) -> str:
    facts = environment()
    errors = [abs(row["error"]) for row in found]
    lines = [
        "# Predicted and measured",
        "",
        f"Commit {commit_of(facts)}; "
        f"{facts['cpu']}, {facts['cores']} cores. One calibration on 2 x 2 ranks at "
        f"{CALIBRATED_MBIT} Mbit/s, which contains none of the rows. "
        "`python -m benchmarks.predictions` repeats it.",
        "",
        f"**Error of the step time: median {statistics.median(errors):.1%}, worst "
        f"{max(errors):.1%}, {len(found)} configurations.**",
        "",
        "Setting: hosts x ranks - Mbit/s - classes. Variant: layout - exchange - K - delay - "
        "compression - pieces.",
        "",
        "| setting | variant | predicted, ms | measured, ms | error |",
        "|:--|:--|--:|--:|--:|",
    ]
    lines += [
        f"| {row['setting']} | {row['variant']} | {row['predicted_ms']:.1f} | "
        f"{row['measured_ms']:.1f} | {row['error']:+.1%} |"
        for row in found
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/predictions"))
    parser.add_argument("--keep", action="store_true", help="measure only what is missing")
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not (chosen.keep and (folder / "calibration.json").exists()):
            calibrate(folder)
        for setting in SETTINGS:
            if not (chosen.keep and (folder / f"{setting.name}.json").exists()):
                measure(folder, setting)
    except LabFailed as error:
        print(f"predictions: {error}", file=sys.stderr)
        return 1
    found = rows(folder)
    _calibrated(folder).write(folder / f"{NAME}.yaml")
    (folder / "predictions-table.json").write_text(json.dumps(found, indent=1))
    text = page(found)
    (folder / "README.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

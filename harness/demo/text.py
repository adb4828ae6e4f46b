"""The demo's closing text: two tables, what they mean, and next steps."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.compare.table import aligned, comparison, top1_columns
from harness.errors import RunFailed
from harness.measure.summary import RunSummary
from harness.tracking.results import PRIMARY, Target, Variant, baseline_of, target_of
from harness.tracking.ui import command_of

COLUMNS = 80
"""Width of the text."""
LOST_SHARE = 0.75
"""Fraction of its step that the baseline is meant to lose to the slow link."""
BYTES = 4
"""Bytes of one value of a gradient."""


@dataclass(frozen=True)
class Link:
    """The slow link, and the measurements that its rate was chosen from."""

    megabits_per_second: float
    sent_bytes: float
    """Bytes that each node sends in a step of the baseline."""
    step_seconds: float
    """Seconds of a step of the baseline without a limit."""

    @classmethod
    def for_baseline(cls, variant: Variant) -> "Link":
        """Chooses the rate from the baseline's run without a limit.

        A step that computes for c seconds and sends x bytes takes c + x / rate over a link. It
        loses the fraction s of that to the link if rate = x (1 - s) / (c s).
        """
        run: RunSummary = variant.summaries[0]
        sent = BYTES * (run.parameters_backbone + run.parameters_classifier)
        seconds = run.step_ms.mean / 1000
        megabits = 8e-6 * sent * (1 - LOST_SHARE) / (LOST_SHARE * seconds)
        return cls(float(f"{megabits:.2g}"), sent, seconds)

    @property
    def rate(self) -> str:
        """The rate in the form that `harness lab rate` accepts."""
        return f"{self.megabits_per_second:g}mbit"

    def __str__(self) -> str:
        return f"{self.megabits_per_second:g} Mbit/s"


def summary(slow: Sequence[Variant], unlimited: Sequence[Variant], link: Link) -> str:
    """Both tables and what they mean, in lines of at most 80 columns."""
    target = target_of(baseline_of(slow), None)
    if target is None:
        raise RunFailed("the baseline learned nothing, so there is no target accuracy")
    baseline = baseline_of(slow).name
    parts = [
        f"Two hosts of two ranks, {link} between them",
        _table(slow, target),
        "The same hosts without a limit on the link",
        _speeds(unlimited),
        _filled(
            f"The link: the kernel limits it to {link} in each direction, to emulate a network "
            f"between two machines. The rate was chosen so that {baseline}, whose hosts send each "
            f"other {link.sent_bytes / 1e6:.1f} MB in a step of {1000 * link.step_seconds:.0f} ms, "
            f"loses {LOST_SHARE:.0%} of its time to the link."
        ),
        _filled(
            "What it shows: this is one seed, so a few percent are chance. int8 sends a quarter of "
            "the bytes; the rest of the method's gain comes from rarer and later exchanges. "
            "analysis/README.md has all rivals with three seeds."
        ),
    ]
    return "\n\n".join(parts)


def next_steps(folder: Path, store: str, study: str) -> str:
    """The files to look at and the commands to try next."""
    harness = command_of(store, study)[0]
    lines = [
        ("chart", folder / "comparison.png"),
        ("report", folder / "report.html"),
        ("details", folder / "comparison.md"),
        ("MLflow", shlex.join(command_of(store, study))),
        ("your own machines", f"{harness} doctor --np 8 -H host1:4,host2:4"),
    ]
    return "\n".join(f"{name:18} {what}" for name, what in lines)


def _table(variants: Sequence[Variant], target: Target) -> str:
    frame = comparison(variants, baseline_of(variants), target)
    head = ["", "images/s", "ratio", f"seconds to {target.top1:.1%}", "ratio", "final top-1"]
    primary = (top1_columns(frame) or [PRIMARY])[0]
    rows = [_row(str(name), row, primary) for name, row in frame.iterrows()]
    return aligned([head, *rows])


def _speeds(variants: Sequence[Variant]) -> str:
    frame = comparison(variants, baseline_of(variants), None)
    rows = [_speed(str(name), row) for name, row in frame.iterrows()]
    return aligned([["", "images/s", "ratio"], *rows])


def _speed(name: str, row: "pd.Series[float]") -> list[str]:
    rate, ratio = row["images_per_second"], row["speedup"]
    speed = "-" if math.isnan(rate) else f"{rate:,.0f}"
    return [name, speed, "-" if math.isnan(ratio) else f"{ratio:.2f}x"]


def _row(name: str, row: "pd.Series[float]", primary: str) -> list[str]:
    seconds = ["not reached", ""]
    if not math.isnan(row["seconds_to_target"]):
        seconds = [f"{row['seconds_to_target']:.1f}", f"{row['speedup_to_target']:.2f}x"]
    return [*_speed(name, row), *seconds, f"{row[primary]:.1%}"]


def _filled(text: str) -> str:
    return textwrap.fill(text, COLUMNS)

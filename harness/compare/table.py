"""The table of a comparison: the numbers as a data frame, and the frame as text and Markdown."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

import numpy as np
import pandas as pd

from harness.compare.alignment import aligned_left
from harness.compare.intervals import mean_interval
from harness.compare.sentences import WIDTH, as_paragraphs
from harness.compare.verdict import reached_in, seconds_to
from harness.compare.waits import WAITS, phase_ms, wait_ms, wait_percent, waits_measured
from harness.config import Config
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary
from harness.tracking.results import PRIMARY, Target, Variant

PHASES = tuple(phase.value for phase in Phase)
LEGEND = (
    "columns, ms per step (one window), means over ranks. data: fetching images; fwd, bwd: forward "
    "and backward pass; slice, node, exch: waiting for the slice group, inside the node, for the "
    "exchange; optim: optimizer; other: the rest; wait = slice + node + exch",
    "MB/step: sent by one node. Columns named after validation sets: final top-1. to target s, "
    "training s: seconds of training until the target, and in all. img/step: images of all ranks "
    "in a step",
)
"""What the columns mean."""
SPREAD = (
    "\N{PLUS-MINUS SIGN}: half of the 95% confidence interval of the mean over seeds (Student's t)"
)

Measure = Callable[[RunSummary], float]


def comparison(
    variants: Sequence[Variant], baseline: Variant, target: Target | None
) -> pd.DataFrame:
    """The table of a study: a row per variant, with means over its seeds.

    Speeds, phases, waits and bytes are those of the runs in `timed` alone. With several seeds there
    are also `<column>_sd`, the standard deviation, and `<column>_ci`, half of the mean's 95 %
    interval. Values that do not exist are NaN.
    """
    sets = _validation_sets(variants)
    rows = [_row(variant, target, sets) for variant in variants]
    frame = pd.DataFrame(rows, index=pd.Index([v.name for v in variants], name="variant"))
    speed, seconds = frame["images_per_second"], frame["seconds_to_target"]
    # Means over different seeds are of different trainings.
    timed = [same_seeds(each.timed, baseline.timed) for each in variants]
    ended = [same_seeds(each.summaries, baseline.summaries) for each in variants]
    frame.insert(1, "speedup", (speed / speed[baseline.name]).where(np.array(timed)))
    frame["speedup_to_target"] = (seconds[baseline.name] / seconds).where(np.array(ended))
    return frame


def same_seeds(some: Sequence[RunSummary], others: Sequence[RunSummary]) -> bool:
    """Whether these runs have the same seeds, so that a ratio of their means compares them."""
    return {run.seed for run in some} == {run.seed for run in others}


def _row(variant: Variant, target: Target | None, sets: Sequence[str]) -> dict[str, float]:
    reached = reached_in(variant, target)
    row = _means(_costs(variant.config), variant.timed)
    row |= _means(_outcomes(sets, target if reached.always else None), variant.summaries)
    row["reached"] = reached.runs
    row["runs"] = len(variant.summaries)
    row["timed"] = len(variant.timed)
    row["failed"] = variant.failed
    row["diverged"] = len(variant.diverged)
    row["running"] = variant.running
    return row


def _costs(config: Config) -> dict[str, Measure]:
    """What is measured in timed windows."""
    measures: dict[str, Measure] = {
        "images_per_second": lambda run: run.images_per_second,
        "step_ms": lambda run: run.step_ms.mean,
    }
    measures |= {f"{phase}_ms": _phase(config, phase) for phase in PHASES}
    measures |= {
        "wait_ms": lambda run: wait_ms(config, run),
        "wait_percent": lambda run: wait_percent(config, run),
        "cross_node_mb_per_step": lambda run: run.cross_node_mb_per_step,
        "cross_node_mb_per_1000_images": lambda run: (
            1000 * run.cross_node_mb_per_step / run.images_per_step
        ),
    }
    return measures


def _outcomes(sets: Sequence[str], target: Target | None) -> dict[str, Measure]:
    """What is known of every completed run."""
    measures: dict[str, Measure] = {"images_per_step": lambda run: run.images_per_step}
    measures |= {name: _final(name) for name in sets}
    measures |= {
        "images": lambda run: run.images,
        "train_seconds": lambda run: run.train_seconds,
        "seconds_to_target": lambda run: _seconds(run, target),
    }
    return measures


def _means(measures: Mapping[str, Measure], runs: Sequence[RunSummary]) -> dict[str, float]:
    """Each measure's mean over the runs, and the spread of several; NaN without runs."""
    row: dict[str, float] = {}
    for name, measure in measures.items():
        found = [measure(run) for run in runs]
        row[name] = mean(found) if found else math.nan
        if len(found) > 1:
            row[f"{name}_sd"] = stdev(found) if math.isfinite(row[name]) else math.nan
            row[f"{name}_ci"] = mean_interval(found).half
    return row


def _phase(config: Config, name: str) -> Measure:
    def measure(run: RunSummary) -> float:
        found = phase_ms(run, name)
        hidden = name in WAITS and not found and not waits_measured(config)
        return math.nan if hidden else found

    return measure


def _final(name: str) -> Measure:
    return lambda run: run.final.get(name, math.nan)


def _seconds(run: RunSummary, target: Target | None) -> float:
    seconds = seconds_to(run, target)
    return math.nan if seconds is None else seconds


def _validation_sets(variants: Sequence[Variant]) -> list[str]:
    """Names of the final top-1 metrics, the primary set's first.

    If the runs name their validation sets, there is one per set and the unnamed one is left out.
    """
    finals = [run.final for variant in variants for run in variant.summaries]
    names = dict.fromkeys(name for final in finals for name in final if name.endswith("/top1"))
    named = [name for name in names if name != PRIMARY]
    return named or list(names)


def top1_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of final top-1, the primary validation set's first."""
    return [str(name) for name in frame.columns if str(name).endswith("/top1")]


def as_text(frame: pd.DataFrame, baseline: Variant, target: Target | None) -> str:
    """The table as text: blocks that fit a terminal, then notes on how to read them."""
    blocks = [aligned(cells) for cells in cell_blocks(frame)]
    return "\n\n".join([*blocks, as_paragraphs(notes(frame, baseline, target))])


def as_markdown(frame: pd.DataFrame, baseline: Variant, target: Target | None) -> str:
    """The table as Markdown, with its notes."""
    blocks = [piped(cells) for cells in cell_blocks(frame)]
    return "\n\n".join([*blocks, "\n".join(f"* {note}" for note in notes(frame, baseline, target))])


def piped(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a header row and rows."""
    head, *rows = cells
    lines = [head, [":--" if left else "--:" for left in aligned_left(cells)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(frame: pd.DataFrame, baseline: Variant, target: Target | None) -> list[str]:
    """Notes that a reader needs to understand the numbers."""
    found = [
        f"baseline: {baseline.name}; ratio: to its images/s, and how much sooner a variant is at "
        f"the target; above 1 is faster",
        *LEGEND,
    ]
    if target is None:
        found.append(f"no target accuracy: {baseline.name} learned nothing; set one with --target")
    else:
        set_name = _set_name((top1_columns(frame) or [PRIMARY])[0])
        found.append(f"target: top-1 of {target.text}, on {set_name}")
        if (frame["reached"] < frame["runs"] + frame["diverged"]).any():
            found.append("'1 of 3' to target: 1 of 3 runs reached it, so there is no mean time")
    found += _caveats(frame)
    return found + ([SPREAD] if frame["runs"].max() > 1 else [])


def _caveats(frame: pd.DataFrame) -> list[str]:
    """Notes on numbers that are missing or not comparable."""
    found = []
    hidden = frame.index[frame["wait_ms"].isna() & (frame["timed"] > 0)]
    if len(hidden):
        found.append(
            f"wait '-': torch's DDP waits inside its backward pass, where waiting cannot be "
            f"separated from computing ({', '.join(hidden)})"
        )
    if untimed := list(frame.index[(frame["timed"] == 0) & (frame["runs"] > 0)]):
        found.append(
            f"warning: no window of {', '.join(untimed)} was timed, so no speed is known; lower "
            f"train.untimed_windows or train longer"
        )
    found += [
        f"warning: no window was timed in {row['runs'] - row['timed']:.0f} of {row['runs']:.0f} "
        f"runs of {name}: its speed, phases, waits and bytes are those of the others"
        for name, row in frame.iterrows()
        if 0 < row["timed"] < row["runs"]
    ]
    images = frame["images"].dropna()
    # Runs of equal epochs may differ by less than a step, because each ends with a whole one.
    if len(images) and images.max() - images.min() > frame["images_per_step"].max():
        each = ", ".join(f"{name} {seen:,.0f}" for name, seen in images.items())
        found.append(f"warning: the variants did not see the same number of images: {each}")
    return found


def cell_blocks(frame: pd.DataFrame) -> tuple[list[list[str]], ...]:
    """Three tables of cells, each with a header row: speed, waits with bytes, and accuracy."""
    # Steps of seconds are shown without decimals, so that the columns fit a terminal.
    ms = _plain("{:.0f}" if frame["step_ms"].max() >= 1000 else "{:.1f}")
    speed = {
        "images/s": ("images_per_second", _spread(0)),
        "ratio": ("speedup", _plain("{:.2f}x")),
        "step ms": ("step_ms", ms),
    }
    short = ("data", "fwd", "bwd", "slice", "node", "exch", "optim", "other")
    for phase, name in zip(PHASES, short, strict=True):
        speed[name] = (f"{phase}_ms", ms)
    waits = {
        "wait ms": ("wait_ms", _spread(1)),
        "wait %": ("wait_percent", _spread(1)),
        "MB/step": ("cross_node_mb_per_step", _spread(2)),
    }
    if frame["images_per_step"].nunique() > 1:
        waits["MB/1,000 images"] = ("cross_node_mb_per_1000_images", _spread(2))
    accuracy = {f"{_set_name(name)} %": (name, _percent) for name in top1_columns(frame)}
    accuracy |= {
        "to target s": ("seconds_to_target", _to_target),
        "ratio": ("speedup_to_target", _plain("{:.2f}x")),
        "training s": ("train_seconds", _spread(1)),
        "images": ("images", _plain("{:,.0f}")),
        "img/step": ("images_per_step", _plain("{:,.0f}")),
        "runs": ("runs", _runs),
    }
    return tuple(_cells(frame, columns) for columns in (speed, waits, accuracy))


def primary_set(variants: Sequence[Variant]) -> str:
    """The name of the first validation set."""
    return _set_name(next(iter(_validation_sets(variants)), PRIMARY))


def _set_name(metric: str) -> str:
    return metric.removeprefix("val/").removesuffix("top1").strip("/") or "the validation set"


Cell = Callable[["pd.Series[float]", str], str]


def _cells(frame: pd.DataFrame, columns: dict[str, tuple[str, Cell]]) -> list[list[str]]:
    rows = [["variant", *columns]]
    for name, row in frame.iterrows():
        rows.append([str(name), *(cell(row, column) for column, cell in columns.values())])
    return rows


def _plain(form: str) -> Cell:
    return lambda row, name: "-" if math.isnan(row[name]) else form.format(row[name])


def _spread(digits: int, factor: float = 1.0) -> Cell:
    def cell(row: "pd.Series[float]", name: str) -> str:
        value, half = row[name] * factor, row.get(f"{name}_ci", math.nan) * factor
        if math.isnan(value):
            return "-"
        text = f"{value:.{digits}f}"
        # What is equal to the last bit in all seeds was not measured in each of them.
        return (
            text if math.isnan(half) or half == 0 else f"{text}\N{PLUS-MINUS SIGN}{half:.{digits}f}"
        )

    return cell


_percent = _spread(2, 100.0)


def _to_target(row: "pd.Series[float]", name: str) -> str:
    """Seconds to the target, or in how many runs it was reached if some missed it."""
    runs = int(row["runs"] + row["diverged"])
    missed = math.isnan(row[name]) and runs > 0
    return f"{int(row['reached'])} of {runs}" if missed else _spread(1)(row, name)


def _runs(row: "pd.Series[float]", name: str) -> str:
    others = [f"{int(row[kind])} {kind}" for kind in ("failed", "diverged", "running") if row[kind]]
    return ", ".join([f"{int(row[name])}", *others])


def aligned(rows: list[list[str]]) -> str:
    """A text table: text is aligned left, numbers are aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lefts = aligned_left(rows)
    gap = "  " if sum(widths) + 2 * len(widths) <= WIDTH else " "
    return "\n".join(
        gap.join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, lefts, strict=True)
        ).rstrip()
        for row in rows
    )

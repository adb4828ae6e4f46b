"""The report of a comparison: one HTML page with the winner first, then the evidence."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from harness.compare.chart import accuracy_figure, times_figure
from harness.compare.colours import styles_of
from harness.compare.forest import forest_figure
from harness.compare.ladder import Ladder
from harness.compare.ladder_chart import draw as ladder_figure
from harness.compare.ladder_text import TITLE, closing, ladder_cells, ladder_notes
from harness.compare.levers import BOOKKEEPING
from harness.compare.page import facts, figure, items, page, table
from harness.compare.scoring import score_cells, scores_meaning
from harness.compare.sentences import meaning, rival_lines
from harness.compare.table import cell_blocks, notes
from harness.compare.verdict import Verdict
from harness.compare.winner import overall
from harness.tracking.results import Results

READING = (
    "The criterion is time to accuracy. Throughput alone would favour variants that learn less "
    "from each image.",
    "In the figure of differences, a dot is the mean over seeds and a bar its 95% confidence "
    "interval. A bar within the grey band means no difference. The bars are not corrected for the "
    "number of rivals, but the verdict is: better or worse requires that the bar excludes the "
    "central line and that the corrected p is below 0.05. A hollow dot has too few seeds for a "
    "bar.",
    "Waiting is time in which a rank only waits for others. Communication that is hidden behind "
    "computing is not waiting.",
)
IN_TURN = (
    "Variants ran in turn on the same hosts, seed by seed, with every other seed in reverse order, "
    "so that a temporary slow-down of the machines affects all of them."
)
CLOCKED = (
    "Times are wall time on every rank, in phases that add up to the step, without the first "
    "windows of a run. Training time excludes evaluations, estimates of the curvature (which only "
    "late exchanges make), the writing of checkpoints, and set-up; it includes draining the "
    "exchange before a checkpoint."
)
MEASURED = (
    "Runs with the same seed see the same images in the same order.",
    "Accuracy is that of the mean over nodes after the last exchange has landed, on whole "
    "validation sets at the end and on a part of them before. The target counts as reached at the "
    "first evaluation that reaches it.",
    "Bytes are counted at every collective.",
)


def write_report(
    results: Results,
    frame: pd.DataFrame,
    verdict: Verdict,
    scored: pd.DataFrame | None,
    ladder: Ladder | None,
    path: Path,
) -> None:
    """Writes the report to `path` as one file with embedded figures, which needs no network."""
    found = styles_of(each.name for each in results.variants)
    colours = {name: style.colour for name, style in found.items()}
    title = question(verdict)
    in_turn = [IN_TURN] if results.in_turn else []
    measured = [*in_turn, results.timing or CLOCKED, *MEASURED]
    body = [
        f'<header><h1>{escape(title)}</h1><p class="about">{escape(_about(results))}</p></header>',
        *_verdict(verdict, colours),
        *_pictures(results, verdict),
        *([] if ladder is None else _ladder(ladder)),
        *_numbers(results, frame, verdict, scored, colours),
        "<h2>Settings that differ</h2>",
        _settings(results),
        "<h2>Where it ran</h2>",
        facts(_environment(results.environments, results)),
        f"<h2>How to read it</h2>{items(READING, 'notes')}",
        f"<h2>How it was measured</h2>{items(measured, 'notes')}",
    ]
    path.write_text(page(title, body), encoding="utf-8")


def question(verdict: Verdict) -> str:
    """The question that the study answers, as the page's title."""
    names = [each.name for each in verdict.variants]
    who = " or ".join(names) if len(names) < 3 else f"which of {len(names)} variants"
    if verdict.target is None:
        return f"{who[0].upper()}{who[1:]}: what does each cost?"
    goal = f"{verdict.target.top1:.2%} accuracy"
    if len(names) == 1:
        return f"How fast does {who} reach {goal}?"
    return f"Which reaches {goal} first: {who}?" if len(names) < 3 else f"Who reaches {goal} first?"


def _about(results: Results) -> str:
    config = results.variants[0].config.data
    seeds = {run.seed for each in results.variants for run in each.summaries}
    parts = [results.title, f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"]
    return " · ".join([*parts, f"{config.num_classes:,} classes of {config.dataset}"])


def _verdict(verdict: Verdict, colours: Mapping[str, str]) -> list[str]:
    lines = [
        f'<li style="--colour:{colours[each.variant]}">'
        f"<b>{escape(each.variant)}: {escape(each.head)}</b>. {escape(each.why)}</li>"
        for each in rival_lines(verdict)
    ]
    winner = f'<p class="winner">{escape(overall(verdict))}</p>'
    return [winner, f'<ul class="rivals">{"".join(lines)}</ul>']


def _pictures(results: Results, verdict: Verdict) -> list[str]:
    found = []
    if verdict.rivals:
        found.append(
            figure(
                forest_figure(verdict),
                "Speed and accuracy of each rival against the baseline, with intervals",
                f"Differences from {verdict.baseline.name}: means over seeds with 95% confidence "
                f"intervals. Differences within the grey bands do not matter.",
            )
        )
    return [
        *found,
        figure(
            accuracy_figure(results.variants, verdict.target),
            "Accuracy of every run over its training time",
            "Accuracy over training time. A run's line ends when its training ended.",
        ),
        figure(
            times_figure(results.variants),
            "Phases of a step of each variant, with waiting in colour",
            "Grey is computing, orange is waiting for others.",
        ),
    ]


def _ladder(ladder: Ladder) -> list[str]:
    return [
        f"<h2>{escape(TITLE)}</h2><p>{escape(closing(ladder))}</p>",
        figure(
            ladder_figure(ladder),
            "Images per second and time to the target of each rung, one step per lever",
            "Each step begins where the rung below ended. Scales are logarithmic, so equal lengths "
            "are equal ratios. The bar at the end of a step is the 95% CI of its ratio.",
            wide=True,
        ),
        table(ladder_cells(ladder)),
        items(ladder_notes(ladder), "notes"),
    ]


def _numbers(
    results: Results,
    frame: pd.DataFrame,
    verdict: Verdict,
    scored: pd.DataFrame | None,
    colours: dict[str, str],
) -> list[str]:
    speed, waits, accuracy = cell_blocks(frame)
    found = ["<h2>Accuracy and time to it</h2>", table(accuracy, colours)]
    found += ["<h2>Speed, and where a step's time goes</h2>", table(speed, colours)]
    found += [table(waits, colours), items(notes(frame, verdict.baseline, verdict.target), "notes")]
    if scored is not None:
        found += ["<h2>Predictions and measurements</h2>", table(score_cells(scored), colours)]
        found.append(items([scores_meaning(results.predicted_before)], "notes"))
    if len(verdict.frame):
        found += ["<h2>Tests</h2>", table(_tests(verdict), colours)]
        found.append(items(meaning(verdict), "notes"))
    return found


def _tests(verdict: Verdict) -> list[list[str]]:
    head = ["variant", "against", "question", "seeds", "estimate", "95% CI", "p", "corrected p"]
    rows = [[*head, "judgement"]]
    others = [each for each in verdict.contest if each.against != verdict.baseline.name]
    for each in (*verdict.findings, *others):
        interval = each.interval
        numbers = [f"{each.difference.pairs}", _short(interval.estimate)]
        numbers.append(f"{_short(interval.low)} to {_short(interval.high)}")
        numbers += [_short(each.difference.p), _short(each.p)]
        asked = f"{each.question.name.replace('_', ' ')}, {each.question.unit}"
        rows.append([each.variant, each.against, asked, *numbers, str(each.judged)])
    return rows


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _settings(results: Results) -> str:
    configs = {each.name: each.config.flattened() for each in results.variants}
    keys = dict.fromkeys(key for values in configs.values() for key in values)
    rows = []
    for key in keys:
        values = [str(config.get(key, "-")) for config in configs.values()]
        if len(set(values)) > 1 and not key.startswith(BOOKKEEPING):
            rows.append([key, *values])
    if not rows:
        return "<p>None: the variants have the same settings.</p>"
    return table([["setting", *configs], *rows])


def _environment(
    environments: Sequence[Mapping[str, Any]], results: Results
) -> list[tuple[str, str]]:
    """Commits, machines and package versions of the runs; different values are joined."""
    runs = [run for each in results.variants for run in each.summaries]
    commits = {f"{run.commit}" for run in runs if run.commit}
    changed = any(each.get("git_dirty") for each in environments)
    found = [("commit", ", ".join(sorted(commits)) + (" with local changes" if changed else ""))]
    machines = {_machine(each) for each in environments if "cpu" in each}
    found.append(("machines", "; ".join(sorted(machines))))
    versions = [each["versions"] for each in environments if "versions" in each]
    for package in dict.fromkeys(name for each in versions for name in each):
        found.append((package, ", ".join(sorted({str(each.get(package)) for each in versions}))))
    return [(name, value) for name, value in found if value] or [("environment", "not recorded")]


def _machine(environment: Mapping[str, Any]) -> str:
    """A description of the machine that rank 0 was on."""
    cores, memory = environment.get("usable_cores"), environment.get("memory_bytes", 0) / 1e9
    host = f"{environment['cpu']}, {cores} cores, {memory:.0f} GB, {environment.get('system')}"
    gpus = environment.get("gpus") or []
    return f"{host}, {', '.join(gpus)}" if gpus else host

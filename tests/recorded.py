"""Run summaries as runs leave them, with round numbers that can be checked by hand."""

from harness.config import Config
from harness.measure.summary import Evaluation, RunSummary, Spread
from harness.tracking.results import Variant

PHASES_MS = {
    "data": 5.0,
    "forward": 20.0,
    "backward": 40.0,
    "slice_wait": 0.0,
    "node_wait": 0.0,
    "exchange_wait": 30.0,
    "optimizer": 4.0,
    "other": 1.0,
}
"""Of a step of 100 ms."""


def spread(value: float) -> Spread:
    return Spread(minimum=0.5 * value, mean=value, maximum=2 * value)


def summary(
    name: str = "data_parallel",
    *,
    seed: int = 0,
    images_per_second: float = 1280.0,
    phases_ms: dict[str, float] | None = None,
    accuracies: tuple[float, ...] = (0.5, 0.8, 0.9),
    seconds: float = 10.0,
    passes: int = 1,
) -> RunSummary:
    """A run with an evaluation each so many seconds; the second set is always 5 points better."""
    phases = PHASES_MS if phases_ms is None else phases_ms
    windows = 300
    evaluations = tuple(
        Evaluation(
            window=100 * number,
            images=128 * passes * 100 * number,
            train_seconds=seconds * number,
            metrics={
                "val/top1": top1,
                "val/loss": 1 - top1,
                "val/unseen_design/top1": top1,
                "val/unseen_weight/top1": top1 + 0.05,
            },
        )
        for number, top1 in enumerate(accuracies, start=1)
    )
    return RunSummary(
        name=name,
        seed=seed,
        ranks=4,
        nodes=2,
        windows=windows,
        images=windows * 128 * passes,
        parameters_backbone=1000,
        parameters_classifier=2000,
        images_per_second=images_per_second,
        untimed_windows=10,
        timed_windows=windows - 10,
        step_ms=spread(sum(phases.values())),
        phases_ms={phase: spread(value) for phase, value in phases.items()},
        cross_node_mb_per_step=12.5,
        cross_node_mb_per_step_formula=12.5,
        in_node_mb_per_step=3.0,
        in_node_mb_per_step_formula=3.0,
        train_seconds=seconds * len(accuracies) + 1.0,
        evaluations=evaluations,
        mlflow_run_id=None,
        commit=None,
    )


def untimed(run: RunSummary) -> RunSummary:
    """The run as it is recorded if none of its windows was timed."""
    nothing = spread(0.0)
    return run.model_copy(
        update={
            "images_per_second": 0.0,
            "timed_windows": 0,
            "step_ms": nothing,
            "phases_ms": dict.fromkeys(run.phases_ms, nothing),
            "cross_node_mb_per_step": 0.0,
            "in_node_mb_per_step": 0.0,
        }
    )


def variant(
    name: str,
    *summaries: RunSummary,
    layout: str = "replicated",
    kind: str = "synchronous",
    failures: tuple[str, ...] = (),
) -> Variant:
    values = {
        "name": name,
        "classifier": {"layout": layout},
        "exchange": {"kind": kind},
        "train": {"steps": 300},
    }
    return Variant(Config.model_validate(values), summaries, failures)

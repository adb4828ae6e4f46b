"""The summary of a run: the file that comparisons read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from harness.measure.phase import Phase
from harness.measure.traffic import Bytes

COMPUTED = (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
"""The useful phases of a step; the rest is waiting, loading and bookkeeping."""
RESTARTS_TAG = "restarts"
"""MLflow tag of a run that was started again after a failure: how often."""
DIVERGED_TAG = "diverged"
"""MLflow tag of a diverged run: what was not finite, and in which window."""


class Record(BaseModel):
    # A run that diverged has a loss of NaN, which JSON's null would not bring back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


Metric = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; null, which older files have for values that are not finite, is read as NaN."""


class Spread(Record):
    """The spread of one quantity over the ranks."""

    minimum: float
    mean: float
    maximum: float


class RankCost(Record):
    """How one rank spent its time, over the timed windows."""

    rank: int
    node: int
    images_per_second: float
    """Images of this rank."""
    phases_ms: dict[str, float]
    """Mean time in each phase of a window; they add up to `step_ms`."""
    counter_percent: float | None
    """Utilisation by the processor's own counter, including waits that spin: CPU time of all the
    process's threads divided by wall time and by the cores that it can keep busy: `train.threads`,
    or its share if ranks outnumber the cores. None on a card, whose counter MLflow's monitor
    reads."""
    flop_per_second: float
    """Model operations of its micro-batches per second of wall time."""
    matmul_flop_per_second: float
    """Speed of a plain matrix product while all ranks do one; on CPUs the mean over the ranks of a
    machine; 0 if not measured."""
    waits_in_backward: bool = False
    """Its backward passes include waits for other ranks, as in torch's DistributedDataParallel."""

    @property
    def step_ms(self) -> float:
        return sum(self.phases_ms.values())

    def percent(self, *phases: Phase) -> float:
        """Percentage of the step spent in these phases; 0 if nothing was timed."""
        return 100 * sum(self.phases_ms[phase] for phase in phases) / (self.step_ms or 1.0)

    @property
    def computed_percent(self) -> float | None:
        """Percentage of the step spent in forward, backward and optimizer; None if not
        separable."""
        if self.waits_in_backward:
            return None
        return self.percent(*COMPUTED)

    @property
    def matmul_percent(self) -> float | None:
        """Speed of the model's operations, in percent of the plain product's; None if not
        measured."""
        if not self.matmul_flop_per_second:
            return None
        return 100 * self.flop_per_second / self.matmul_flop_per_second


class Evaluation(Record):
    """One evaluation, of the mean of the nodes."""

    window: int
    images: int
    """Training images of all ranks so far."""
    train_seconds: float
    """Wall time of training so far, with drains before checkpoints, without writing these, without
    evaluations and set-up. Windows that use what a late exchange sent before an evaluation are
    charged the mean of the timed windows."""
    metrics: dict[str, Metric]
    """`val/top1` and the like; accuracies are fractions, not percentages."""
    drained: bool = False
    """Whether `train_seconds` has the drain that reaching this model takes: at a checkpoint."""


@dataclass(frozen=True)
class Restarts:
    """How often a run was started again after a failure, and what that cost."""

    number: int = 0
    lost_seconds: float = 0.0


UNDISTURBED = Restarts()


@dataclass(frozen=True)
class Provenance:
    """Where the record of a run is kept, which code ran, and how often it was started again."""

    mlflow_run_id: str | None = None
    """None if nothing goes to MLflow."""
    commit: str | None = None
    """None if unknown; only the first rank looks it up."""
    restarts: Restarts = UNDISTURBED


UNRECORDED = Provenance()


@dataclass(frozen=True)
class Trained:
    """The part of a summary beside times, bytes and evaluations."""

    parameters_backbone: int
    parameters_classifier: int
    """Parameters of all classes, including those of other ranks."""
    expected: Bytes
    """Bytes that a window sends, by formula."""
    validation_images: Mapping[str, int] = field(default_factory=dict)
    """Number of images of each validation set, the primary one first."""
    exponentials: str = ""
    """Where the classifier's exponentials waited for the second pass."""


class RunSummary(Record):
    """The result of one training."""

    name: str
    seed: int
    ranks: int
    nodes: int
    windows: int
    images: int
    images_per_window: int = 0
    """Images of all ranks in a window of this run, which may go on from one on other ranks; 0 in
    records older than this field."""
    parameters_backbone: int
    parameters_classifier: int
    images_per_second: float
    """All ranks, over the timed windows; 0 if there are none, see `speed_known`."""
    untimed_windows: int
    """Windows at the start that are left out of all times here."""
    timed_windows: int
    """The other windows, without traced ones and those that use what a late exchange sent before a
    pause, such as an evaluation, during which it arrived."""
    step_ms: Spread
    """Wall time of a window."""
    phases_ms: dict[str, Spread]
    """Mean time in each phase of a window, over ranks; the means add up to `step_ms.mean`."""
    cross_node_mb_per_step: float
    """Sent through one node's link per window, counted, MB (1e6 bytes)."""
    cross_node_mb_per_step_formula: float
    in_node_mb_per_step: float
    """Sent by one rank inside its node per window, counted, MB."""
    in_node_mb_per_step_formula: float
    train_seconds: float
    """Wall time of all windows, including the untimed ones, without evaluations; see
    `Evaluation.train_seconds`. If the run was resumed, it includes the runs before."""
    train_seconds_known: bool = True
    """False if the run was resumed from a checkpoint that does not record how long it had trained;
    all seconds here then count this run alone."""
    drain_seconds: float = 0.0
    """Seconds at the end to land what was in flight and to make differing nodes agree. Part of
    `train_seconds`; 0 in records older than this field."""
    evaluations: tuple[Evaluation, ...]
    """The evaluations in order; the last is at the end of the run, on all validation images."""
    validation_images: dict[str, int] = {}
    """Images of each validation set, the primary one first; empty in records older than this
    field."""
    exponentials: str = ""
    """Where the classifier's exponentials waited for the second pass; empty in records older than
    this field."""
    restarts: int = 0
    """How often the run was started again after a failure."""
    lost_seconds: float = 0.0
    """Wall time that failures cost, in no other number here: windows that were trained twice, the
    time until the failure was noticed, and the start."""
    mlflow_run_id: str | None
    commit: str | None
    per_rank: tuple[RankCost, ...] = ()
    """The costs of each rank, in order; empty in summaries older than this field."""

    @property
    def final(self) -> dict[str, float]:
        return self.evaluations[-1].metrics

    @property
    def speed_known(self) -> bool:
        """Whether speed, phases and bytes are known; if no window was timed, they are stored as 0.

        The speed tells, because it may also come from a table of another link's speeds.
        """
        return self.images_per_second > 0

    @property
    def images_per_step(self) -> float:
        """Images of all ranks in a step (one window).

        For older records it is the mean over all windows, also over those before a resume, which
        may have had another size.
        """
        return self.images_per_window or self.images / self.windows

    @property
    def diverged(self) -> str | None:
        """What is not finite at the run's end; None if nothing. A diverged run has no comparable
        accuracy."""
        for last in self.evaluations[-1:]:
            losses = [value for name, value in last.metrics.items() if name.endswith("/loss")]
            if not all(map(math.isfinite, losses)):
                return f"the validation loss after window {last.window} is not finite"
        return None

    def seconds_to(self, target_top1: float) -> float | None:
        """Training seconds until `val/top1` first reached the target, with a finite loss.

        Evaluations with a loss that is not finite are skipped, because in older records they have
        the accuracy of a fixed class. An evaluation during the run judges the mean of the nodes,
        which nobody holds: to stop there takes one drain, which is charged.

        None if the target was never reached, or if the time of the run before a resume is unknown.
        """
        if not self.train_seconds_known:
            return None
        for evaluation in self.evaluations:
            finite = math.isfinite(evaluation.metrics.get("val/loss", 0.0))
            if finite and evaluation.metrics.get("val/top1", 0.0) >= target_top1:
                return self.seconds_at(evaluation)
        return None

    def seconds_at(self, evaluation: Evaluation) -> float:
        """Training seconds of a run that ends with what this evaluation judged: with one drain."""
        drained = evaluation.drained or evaluation.window == self.windows
        return evaluation.train_seconds + (0.0 if drained else self.drain_seconds)

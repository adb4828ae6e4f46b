"""What one run says of itself at the end: the file that a comparison reads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from harness.measure.phase import Phase
from harness.measure.traffic import Bytes

COMPUTED = (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
"""What a step is for; the rest of it is waiting, loading and bookkeeping."""
DIVERGED_TAG = "diverged"
"""Tag of a run in MLflow: what was not finite, and in which window."""


class Record(BaseModel):
    # A run that diverged has a loss of NaN, which JSON's null would not bring back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


Metric = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""Null, as older files have it for what is not finite, is read as NaN."""


class Spread(Record):
    """One quantity over the ranks."""

    minimum: float
    mean: float
    maximum: float


class RankCost(Record):
    """What one rank did with its time, over the timed windows."""

    rank: int
    node: int
    images_per_second: float
    """Its own images."""
    phases_ms: dict[str, float]
    """Mean time in each phase of a window; they add up to `step_ms`."""
    counter_percent: float | None
    """How busy the processor's own counter says it is, waits that spin included: CPU time of all
    the process's threads by wall time and the cores that it can keep busy: `train.threads`, or its
    share where ranks outnumber the cores. None on a card, where MLflow's monitor reads the card's
    counter."""
    flop_per_second: float
    """Model operations of its micro-batches by wall time."""
    matmul_flop_per_second: float
    """Of a plain matrix product, while all ranks did one; of a processor the mean over the ranks of
    a machine; 0: not measured."""
    waits_in_backward: bool = False
    """Its backward passes hold the waiting for others, as in torch's DistributedDataParallel."""

    @property
    def step_ms(self) -> float:
        return sum(self.phases_ms.values())

    def percent(self, *phases: Phase) -> float:
        """The share of the step that these phases took; 0 where nothing was timed."""
        return 100 * sum(self.phases_ms[phase] for phase in phases) / (self.step_ms or 1.0)

    @property
    def computed_percent(self) -> float | None:
        """The useful share of the step: forward, backward and optimizer; None: not separable."""
        if self.waits_in_backward:
            return None
        return self.percent(*COMPUTED)

    @property
    def matmul_percent(self) -> float | None:
        """Of the plain product's speed, how much the model's operations reach."""
        if not self.matmul_flop_per_second:
            return None
        return 100 * self.flop_per_second / self.matmul_flop_per_second


class Evaluation(Record):
    """One evaluation, of the mean over nodes."""

    window: int
    images: int
    """Training images of all ranks so far."""
    train_seconds: float
    """Wall time of training so far, evaluations, checkpoints and set-up left out; windows that use
    what a late exchange sent before such a pause count as long as a timed one."""
    metrics: dict[str, Metric]
    """`val/top1` and the like; shares, not per cent."""


@dataclass(frozen=True)
class Provenance:
    """Where the record of a run is kept, and which code it ran."""

    mlflow_run_id: str | None = None
    """None: nothing goes to MLflow."""
    commit: str | None = None
    """None: not known; only the first rank looks it up."""


UNRECORDED = Provenance()


@dataclass(frozen=True)
class Trained:
    """What a summary holds beside times, bytes and evaluations."""

    parameters_backbone: int
    parameters_classifier: int
    """All classes, those of other ranks too."""
    expected: Bytes
    """What a window sends, by formula."""
    validation_images: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the validation sets, the primary one first."""
    exponentials: str = ""
    """Where the classifier's waited for its second pass."""


class RunSummary(Record):
    """The result of one training."""

    name: str
    seed: int
    ranks: int
    nodes: int
    windows: int
    images: int
    parameters_backbone: int
    parameters_classifier: int
    images_per_second: float
    """All ranks, over the timed windows."""
    untimed_windows: int
    """Windows at the start left out of every time here."""
    timed_windows: int
    """The rest, less those that were traced, and those that use what a late exchange sent before an
    evaluation or another pause: it had the pause to arrive in."""
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
    """Wall time of all windows, the untimed ones included, evaluations left out; see
    `Evaluation.train_seconds`. With the runs before it, where a run was resumed."""
    train_seconds_known: bool = True
    """False: resumed from a checkpoint that does not say how long it had been trained; all seconds
    here are of this run alone."""
    drain_seconds: float = 0.0
    """At the end: to land what was under way, and to make nodes that differ agree. In
    `train_seconds`; 0 in records older than this field."""
    evaluations: tuple[Evaluation, ...]
    """In order; the last is the end of the run, over all validation images."""
    validation_images: dict[str, int] = {}
    """Of each validation set, the primary one first; empty in records older than this field."""
    exponentials: str = ""
    """Where the classifier's waited for its second pass; empty in records older than this field."""
    mlflow_run_id: str | None
    commit: str | None
    per_rank: tuple[RankCost, ...] = ()
    """In order of rank; none in summaries from before there were any."""

    @property
    def final(self) -> dict[str, float]:
        return self.evaluations[-1].metrics

    @property
    def diverged(self) -> str | None:
        """What is not finite at its end; such a run has no accuracy to be compared."""
        for last in self.evaluations[-1:]:
            losses = [value for name, value in last.metrics.items() if name.endswith("/loss")]
            if not all(map(math.isfinite, losses)):
                return f"the validation loss after window {last.window} is not finite"
        return None

    def seconds_to(self, target_top1: float) -> float | None:
        """Training seconds until `val/top1` first reached the target, with a finite loss: without,
        older records have the accuracy of a fixed class.

        Whoever stops there has the model only after one drain, which is charged: an evaluation on
        the way judges the mean over nodes without its being in their hands.

        None: it never did, or nobody knows how long the run it goes on from had taken.
        """
        if not self.train_seconds_known:
            return None
        for evaluation in self.evaluations:
            finite = math.isfinite(evaluation.metrics.get("val/loss", 0.0))
            if finite and evaluation.metrics.get("val/top1", 0.0) >= target_top1:
                ended = evaluation.window == self.windows
                return evaluation.train_seconds + (0.0 if ended else self.drain_seconds)
        return None

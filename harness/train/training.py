"""One training from its first window to its summary: the loop, its pauses, its results."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from harness.data.loader import Batch
from harness.errors import Diverged, RunFailed
from harness.measure.summary import UNRECORDED, Provenance, RunSummary
from harness.measure.utilisation import UNKNOWN, Capacity
from harness.tracing.gather import Tracing
from harness.tracking.run_folder import TRACES
from harness.train.checkpoint.meta import STARTED, Meta, Origin
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.saves import Saves
from harness.train.checkpoint.states import optimizer_strips
from harness.train.course import what_changed
from harness.train.curvature import Curvature
from harness.train.early_end import EarlyEnd, EndedEarly
from harness.train.evaluation import (
    NONFINITE,
    average_statistics,
    averaged_statistics,
    distance,
    evaluate_sets,
)
from harness.train.ledger import Journal, Ledger
from harness.train.staleness import StalenessLedger
from harness.train.step import Step
from harness.train.windows import traced_windows


class Training:
    """One training on one rank. Every method is collective over the world."""

    def __init__(
        self,
        step: Step,
        folder: Path,
        capacity: Capacity = UNKNOWN,
        places: Places | None = None,
        early_end: EarlyEnd | None = None,
    ) -> None:
        """`capacity` describes this rank's processor; the operations of a window are filled in
        here. `places`: None if all ranks see the same folder. `early_end`: a request to end."""
        self._step = step
        self._config = config = step.config
        self._world = world = step.world
        self._pulse = world.meters.pulse
        self._course = course = step.course
        resumed = step.resumed
        self._windows = course.windows
        self._early_end = early_end or EarlyEnd()
        self._ends_early_after: int | None = None
        self._curvature = Curvature(step)
        self._ledger = Ledger(
            config,
            world,
            course,
            replace(capacity, flop_per_window=step.model.flop_per_window()),
            resumed.progress if resumed else STARTED,
        )
        traced = traced_windows(config.trace, course.first, course.windows)
        self._tracing = Tracing(config.trace, traced, world, folder)
        warned = resumed.next_warning if resumed else None
        self._staleness = StalenessLedger(config, world, course, warned)
        self._saves = Saves(step, folder, places or Places.shared(world.topology.world_size))

    def run(self, journal: Journal, provenance: Provenance = UNRECORDED) -> RunSummary:
        """Runs all windows, evaluating in between and, on the drained model, at the end.

        An evaluation does not change the training and is not counted in its time. If the training
        diverges, the error says what it can go back to.
        """
        try:
            self._run(journal)
        except Diverged as error:
            self._saves.settle(journal)
            # All ranks find it in the same window, but not at the same time, and one that leaves
            # ends Horovod for those that still wait for results of this window.
            self._world.gather_objects(None, "diverged")
            advice = f"{error.advice}; {self._saves.advice()}"
            raise Diverged(error.found, advice, error.window) from error
        finally:
            self._saves.close()
        return self._ledger.summary(self._step.model.trained(), provenance)

    def _run(self, journal: Journal) -> None:
        self._say_what_changed(journal)
        first = self._course.first
        if first == self._windows:
            self._conclude(journal)
            return
        batches = self._step.batches(first)
        self._step.model.backbone.train()
        self._staleness.begins(journal)
        self._estimate_if_due(first, journal)
        self._ledger.begins(journal)
        self._began = time.monotonic()
        self._evaluate_if_lost(first, journal)
        for window in range(first, self._windows):
            if self._tracing.starts(window):
                with self._paused(window):
                    self._settle(window, journal)
                    self._tracing.start()
            self._window(window, batches, journal)
            ended = window + 1
            if self._tracing.stops(ended):
                with self._paused(ended):
                    self._stop_tracing(ended, journal)
            if ended == self._windows:
                self._end(ended, journal)
            elif self._saves.due(ended):
                self._ledger.draining()
                divergence = self._drain(ended)
                with self._paused(ended, drained=True):
                    self._estimate_if_due(ended, journal)
                    self._judge_drained(ended, divergence, journal)
            elif self._pauses(ended):
                with self._paused(ended):
                    self._pause(ended, journal)
            if self._step.watch.must_end and ended < self._windows:
                self._end_early_if_due(ended, journal)
        batches.close()
        self._saves.settle(journal)
        self._pulse.end()

    def _evaluate_if_lost(self, first: int, journal: Journal) -> None:
        """Makes up for the evaluation of the checkpoint that is resumed, if it was due: the run may
        have ended between saving and evaluating. Nothing is in flight, as it was then."""
        due = self._step.resumed is not None and self._evaluates(first)
        if due and not self._ledger.has_evaluated(first):
            self._ledger.draining()
            with self._paused(first, drained=True):
                metrics = self.evaluate(self._config.train.evaluate_images)
                self._ledger.evaluated(first, metrics, journal)

    def _conclude(self, journal: Journal) -> None:
        """Ends a run that has failed after the checkpoint of its last window, which is drained."""
        ended = self._windows
        journal.warn(
            "timing",
            f"the run goes on from the checkpoint of its last window, {ended}: its throughput and "
            f"the times of its windows are not known any more, and comparisons leave them out",
        )
        self._pulse.pause(f"the end after {ended} windows")
        if not self._ledger.has_evaluated(ended):
            self._ledger.evaluated(ended, self.evaluate(), journal)
        self._pulse.end()

    def _window(self, window: int, batches: Iterator[Batch], journal: Journal) -> None:
        """Runs one window and records it."""
        # In the first one, libraries compile and try out variants.
        self._pulse.window(window, slow=window == self._course.first)
        if self._early_end.asked:
            self._step.watch.ask_to_end()
        self._ledger.window_begins(window)
        for scores in self._step.window(window, batches, journal):
            self._ledger.add_scores(scores.loss, scores.top1)
        self._ledger.window_ended(window, journal)
        self._check_order(window + 1)
        self._staleness.window_ended(window, self._step.exchange, journal)
        self._saves.look(journal)

    def _check_order(self, ended: int) -> None:
        """Raises RunFailed, on all ranks, if they have launched different collectives."""
        order, every = self._world.meters.order, self._config.train.check_collectives
        if (
            order is not None
            and ended % every == 0
            and (found := order.difference(self._world.gather_objects))
        ):
            raise RunFailed(f"{found}; seen after window {ended} (train.check_collectives)")

    @contextmanager
    def _paused(self, ended: int, drained: bool = False) -> Iterator[None]:
        """Inside the block training is paused, after `ended` windows."""
        self._pulse.pause(f"the pause after {ended} windows")
        with self._ledger.paused(ended, drained):
            yield

    def evaluate(self, limit: int = 0) -> dict[str, float]:
        """Metrics of the mean of all nodes: `val/...` of the primary set, `val/<set>/...` of each.

        `limit` is the number of images of each set; 0 takes all. If nodes may differ,
        `exchange/distance` is their distance from the mean, as a share of the mean's norm.
        """
        step, model = self._step, self._step.model
        with (
            step.exchange.at_mean() as squares,
            averaged_statistics(model.backbone, self._world),
            step.autocast(),
        ):
            metrics = evaluate_sets(
                model.network,
                model.data,
                self._world,
                dtype=model.shared.values.dtype,
                batch_size=self._config.train.batch_size,
                limit=limit,
                prefetch=self._config.data.prefetch,
            )
        return metrics | distance(squares, self._world)

    def _pauses(self, ended: int) -> bool:
        return self._evaluates(ended) or self._staleness.estimates(ended)

    def _evaluates(self, ended: int) -> bool:
        every = self._config.train.evaluate_every
        return ended == self._windows or bool(every and ended % every == 0)

    def _estimate_if_due(self, ended: int, journal: Journal) -> None:
        if self._staleness.estimates(ended):
            self._staleness.estimated(ended, self._curvature.after(ended), journal)

    def _pause(self, ended: int, journal: Journal) -> None:
        self._step.watch.settle(ended, journal)
        self._estimate_if_due(ended, journal)
        if self._evaluates(ended):
            limit = self._config.train.evaluate_images
            self._ledger.evaluated(ended, self.evaluate(limit), journal)

    def _drain(self, ended: int) -> Callable[[], Tensor] | None:
        """Applies all that is in flight; the wait counts as training time. Returns a function that
        computes how far the nodes had diverged before."""
        self._pulse.pause(f"the drain after {ended} windows")
        with self._ledger.stopwatch.paused():
            divergence = self._step.exchange.divergence_before_drain()
        self._step.exchange.drain(self._step.update)
        return divergence

    def _end(self, ended: int, journal: Journal) -> None:
        """Drains the exchange after the last window, and judges."""
        self._ledger.draining()
        before = self._ledger.stopwatch.seconds
        divergence = self._drain(ended)
        self._ledger.stopwatch.stop()
        self._ledger.drained(self._ledger.stopwatch.seconds - before)
        self._judge_drained(ended, divergence, journal)

    def _judge_drained(
        self, ended: int, divergence: Callable[[], Tensor] | None, journal: Journal
    ) -> None:
        """Saves, then evaluates, as due. Saving comes first so that a failed evaluation loses
        nothing.

        `divergence` computes how far the nodes had diverged before the drain.
        """
        self._step.watch.settle(ended, journal)
        divergence_before = distance(divergence() if divergence else None, self._world)
        if self._saves.due(ended):
            self._save_drained(ended, journal)
        metrics = divergence_before
        # A run that was asked to end has no time to lose; who goes on from here evaluates first.
        ends_early = ended == self._ends_early_after and ended < self._windows
        if self._evaluates(ended) and not ends_early:
            limit = 0 if ended == self._windows else self._config.train.evaluate_images
            metrics = self.evaluate(limit) | divergence_before
            self._ledger.evaluated(ended, metrics, journal)
        elif divergence_before:
            journal.log(ended, divergence_before)
        if self._saves.due(ended):
            good = not any(name.endswith(NONFINITE) for name in metrics)
            self._saves.judged(self._meta(ended), good)

    def _save_drained(self, ended: int, journal: Journal) -> None:
        """Begins to save the model, of which nothing may be in flight."""
        self._ledger.end_interval(ended, journal)
        self._staleness.settle(journal)
        strips = optimizer_strips(self._step.optimizer, self._step.model.flats)
        self._step.exchange.agree_on([strip.tensor for strip in strips if strip.tensor.dim()])
        average_statistics(self._step.model.backbone, self._world)
        self._saves.save(self._meta(ended), self._step.exchange.carried(), journal)

    def _end_early_if_due(self, ended: int, journal: Journal) -> None:
        if self._ends_early_after is None:
            self._ends_early_after = self._last_window(ended)
        if ended == self._ends_early_after:
            with self._paused(ended):
                self._end_early(ended, journal)

    def _last_window(self, ended: int) -> int:
        """After how many windows a run ends that is asked to.

        That is at the next planned checkpoint if it comes within half of the time of grace, counted
        from the request: a drain that the undisturbed run does not make changes what late exchanges
        compute. Otherwise it is now.
        """
        if not self._config.train.saves:
            return ended
        later = range(ended, self._windows)
        planned = next((each for each in later if self._saves.due(each)), self._windows)
        pace = (time.monotonic() - self._began) / (ended - self._course.first)
        own = pace, self._early_end.seconds_ago
        paces, gone = zip(*self._world.gather_objects(own, "time left"), strict=True)
        until = max(gone) + (planned - ended) * max(paces)
        in_time = until <= self._config.launch.grace_seconds / 2
        return planned if in_time else ended

    def _end_early(self, ended: int, journal: Journal) -> None:
        """Saves, unless that has just been done or the run saves nothing, and raises EndedEarly."""
        if self._config.train.saves and not self._saves.due(ended):
            self._step.exchange.drain(self._step.update)
            self._step.watch.settle(ended, journal)
            self._save_drained(ended, journal)
            self._saves.judged(self._meta(ended), good=True)
        self._saves.settle(journal)
        raise EndedEarly(ended, self._windows, self._saves.has(ended))

    def _meta(self, ended: int) -> Meta:
        data, progress, dropper = self._step.model.data, self._ledger.progress(), self._step.dropper
        return Meta(
            window=ended,
            num_classes=data.num_classes,
            at=time.time(),
            progress=dropper.added_to(progress) if dropper else progress,
            passed=self._course.passed(ended),
            next_warning=self._staleness.next_warning,
            pretrained=self._step.model.begun.parameters,
            origin=Origin.of(self._config, self._world.topology, data.channels, data.levels),
        )

    def check_saved(self) -> None:
        """Raises RunFailed if the run has ended and its model could not be saved."""
        self._saves.check_last()

    def _say_what_changed(self, journal: Journal) -> None:
        fit = self._step.model.begun.fit
        if fit is not None and fit.is_odd:
            journal.warn("weights", fit.line)
        if self._step.resumed is None:
            return
        if line := what_changed(self._course, self._step.resumed.passed):
            journal.warn("resume", line)
        if self._step.left_out:
            left = ", ".join(self._step.left_out)
            line = f"{left} of the checkpoint is ignored: this run's exchange has no such state"
            journal.warn("resume_exchange", line)

    def _stop_tracing(self, ended: int, journal: Journal) -> None:
        self._settle(ended, journal)
        for file in self._tracing.stop():
            journal.attach(file, TRACES)

    def _settle(self, ended: int, journal: Journal) -> None:
        """Ends all that is under way beside the windows; late results arrive, to be used later."""
        # A Gloo collective that ends after the profiler it began under writes into freed memory.
        self._step.watch.settle(ended, journal)
        self._saves.settle(journal)
        self._world.aside.quiet()

"""Times a window of training in which nodes do not communicate."""

import statistics
from dataclasses import dataclass, replace

from harness.calibrate.repeated import mean, timed
from harness.calibrate.result import Point
from harness.config import Config
from harness.data.images import Dataset
from harness.measure.clock import CardTimeline, Clock, HostTimeline, Timeline, Times
from harness.measure.phase import Phase
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.world import Links
from harness.train.trial import Trial

WARM_WINDOWS = 6
"""Windows before the timed ones."""


@dataclass(frozen=True)
class WindowTime:
    """Time of a window of one micro-batch, with classes sliced over the node and nodes apart."""

    whole: Point
    phases: dict[str, float]
    """Phase -> its mean seconds."""


def window_time(config: Config, dataset: Dataset, links: Links, seconds: float) -> WindowTime:
    """Times windows of a trial run for about 8 * `seconds`. Collective over the world."""
    clock = KeepingClock(CardTimeline() if links.device.type == "cuda" else HostTimeline())
    own = replace(links, meters=Meters(clock, Traffic()))
    world = own.world("node", user="calibration.window.")
    trial = Trial(config.with_nodes_apart("node", passes=1), dataset, world)
    for _ in range(WARM_WINDOWS):
        trial.window()
    clock.kept.clear()
    whole = timed(world, trial.window, config.train.batch_size, 8 * seconds)
    trial.close()
    phases = {
        phase.value: mean(world, statistics.mean(times[phase] for times in clock.kept)) / 1e3
        for phase in Phase
    }
    return WindowTime(whole, phases)


class KeepingClock(Clock):
    """A clock that also keeps the times that are read from it."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self.kept: list[Times] = []

    def read(self) -> list[Times]:
        times = super().read()
        self.kept += times
        return times

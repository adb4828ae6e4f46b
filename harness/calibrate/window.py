"""Times a window of nodes that do not meet, as training runs it."""

import statistics
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.calibrate.repeated import mean, timed
from harness.config import Config
from harness.data.images import Dataset
from harness.data.loader import Batch
from harness.measure.clock import CardTimeline, Clock, HostTimeline, Timeline, Times
from harness.measure.phase import Phase
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.world import Links, World
from harness.train.ledger import Unheard
from harness.train.trainer import Trainer

WARM_WINDOWS = 6
ENDLESS = 1_000_000


def batches_of(config: Config, dataset: Dataset, world: World) -> Generator[Batch, None, None]:
    """This rank's micro-batches, as training reads them."""
    return Trainer(_alone(config), dataset, world, Path()).batches()


def _alone(config: Config) -> Config:
    """Nodes that do not meet, classes sliced over each, and no end."""
    exchange = {"kind": "isolated", "route": "auto", "compression": "none", "delay": 0}
    exchange |= {"backward_passes_per_step": 1, "pieces": 1, "most_pieces": 0}
    exchange |= {"outer_lr": 1.0, "outer_momentum": 0.0}
    train = {"steps": ENDLESS, "epochs": None, "resume": None, "untimed_windows": ENDLESS}
    return config.model_copy(
        update={
            "exchange": config.exchange.model_copy(update=exchange),
            "classifier": config.classifier.model_copy(update={"layout": "node"}),
            "train": config.train.model_copy(update=train | {"log_every": ENDLESS}),
        }
    )


def window_time(
    config: Config, dataset: Dataset, links: Links, folder: Path, seconds: float
) -> dict[str, Any]:
    """A window of `_alone`, as training runs it, and its phases."""
    clock = KeepingClock(CardTimeline() if links.device.type == "cuda" else HostTimeline())
    own = replace(links, meters=Meters(clock, Traffic()))
    world = own.world("node", user="calibration.window.")
    trainer = Trainer(_alone(config), dataset, world, folder)
    batches = trainer.batches()
    windows = iter(range(ENDLESS))
    for _ in range(WARM_WINDOWS):
        trainer.run_window(next(windows), batches, Unheard())
    clock.kept.clear()
    point = timed(
        world,
        lambda: trainer.run_window(next(windows), batches, Unheard()),
        config.train.batch_size,
        8 * seconds,
    )
    batches.close()
    spent = {
        phase.value: mean(world, statistics.mean(times[phase] for times in clock.kept)) / 1e3
        for phase in Phase
    }
    return {"window": point, "window_phases": spent}


class KeepingClock(Clock):
    """Keeps what its reader took."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self.kept: list[Times] = []

    def read(self) -> list[Times]:
        times = super().read()
        self.kept += times
        return times

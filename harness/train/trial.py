"""A few windows of this run in another form, timed before it begins."""

import gc
import time
from pathlib import Path

import torch
from torch import Tensor

from harness.config import Config, TraceConfig
from harness.data.images import Dataset
from harness.parallel.world import World
from harness.train.ledger import Unheard
from harness.train.trainer import Trainer

ENDLESS = 1_000_000
PROBE = {
    "steps": ENDLESS,
    "epochs": None,
    "resume": None,
    "log_every": ENDLESS,
    "untimed_windows": ENDLESS,
}
"""In place of the run's own `train`: nothing is logged, and no run's clock is started."""


class Trial:
    """A training of its own that leaves no trace in the run's."""

    def __init__(self, config: Config, dataset: Dataset, world: World, folder: Path) -> None:
        """Of the run's config with another exchange. Collective over the world."""
        parts = {"train": config.train.model_copy(update=PROBE), "trace": TraceConfig()}
        self.trainer = Trainer(config.model_copy(update=parts), dataset, world, folder)
        self._world = world
        self._batches = self.trainer.batches()
        self._window = 0

    def window_ms(self, windows: int) -> float:
        """Of this rank, on the mean over the next so many. Collective over the world."""
        started = now(self._world.device)
        for _ in range(windows):
            self.trainer.run_window(self._window, self._batches, Unheard())
            self._window += 1
        return (now(self._world.device) - started) / windows * 1e3

    def close(self) -> None:
        """No more windows; what reads images ahead ends, and memory is free for the next trial."""
        self._batches.close()
        del self._batches, self.trainer
        gc.collect()  # a training's parts know each other


def slowest(times_ms: list[float], world: World) -> list[float]:
    """Of each time the slowest rank's. Collective over the world."""
    rows = world.launch_gather(torch.tensor(times_ms, dtype=torch.float64), "trial").wait()
    found: Tensor = rows.max(dim=0).values
    return [float(each) for each in found]


def now(device: torch.device) -> float:
    """Seconds, what a card has to do being done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""A few windows of this run in another form, timed before it begins."""

import gc
import time
from itertools import count

import torch
from torch import Tensor

from harness.config import Config
from harness.data.images import Dataset
from harness.parallel.world import World
from harness.train.ledger import Unheard
from harness.train.step import make_step

ENDLESS = 1_000_000
"""Windows of a run that is never asked for its end."""


def endless(config: Config) -> Config:
    """The same run from its seed on, without an end.

    It logs nothing: nodes apart would wait for each other to gather their metrics.
    """
    train = {"steps": ENDLESS, "epochs": None, "resume": None, "log_every": ENDLESS}
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


class Trial:
    """The windows of a training, one after the other, without a record and without an end."""

    def __init__(self, config: Config, dataset: Dataset, world: World) -> None:
        """Collective over the world."""
        self.step = make_step(endless(config), dataset, world)
        self._world = world
        self._batches = self.step.batches()
        self._numbers = count()

    def window(self) -> None:
        """The next one. Collective over the world."""
        self.step.window(next(self._numbers), self._batches, Unheard())
        self._world.meters.clock.read()  # else it would keep the times of all windows

    def window_ms(self, windows: int) -> float:
        """On this rank, the mean over the next so many. Collective over the world."""
        started = now(self._world.device)
        for _ in range(windows):
            self.window()
        return (now(self._world.device) - started) / windows * 1e3

    def close(self) -> None:
        """No more windows; what reads images ahead ends, and memory is free for the next trial."""
        self._batches.close()
        del self._batches, self.step
        gc.collect()  # a training's parts know each other


def slowest(times_ms: list[float], world: World) -> list[float]:
    """The slowest rank's of each time. Collective over the world."""
    rows = world.launch_gather(torch.tensor(times_ms, dtype=torch.float64), "trial").wait()
    found: Tensor = rows.max(dim=0).values
    return [float(each) for each in found]


def now(device: torch.device) -> float:
    """Seconds, after a card has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

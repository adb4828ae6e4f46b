"""Times a few windows of a run in another form before the run begins."""

import gc
from itertools import count

import torch
from torch import Tensor

from harness.config import Config
from harness.data.images import Dataset
from harness.measure.clock import now
from harness.parallel.world import World
from harness.train.ledger import NullJournal
from harness.train.step import make_step

ENDLESS = 1_000_000
"""Number of windows of a run that never reaches its end."""


def endless(config: Config) -> Config:
    """The same run, started from its seed and without an end.

    It logs nothing, because logging makes nodes wait for each other to gather metrics. If the run
    resumes, it reads no `backbone.weights`, which may be gone since the run began.
    """
    train = {"steps": ENDLESS, "epochs": None, "resume": None, "log_every": ENDLESS}
    weights = None if config.train.resume else config.backbone.weights
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "backbone": config.backbone.model_copy(update={"weights": weights}),
        }
    )


class Trial:
    """Runs the windows of a training one by one, without recording and without end."""

    def __init__(self, config: Config, dataset: Dataset, world: World) -> None:
        """Collective over the world."""
        with world.together():
            self.step = make_step(endless(config), dataset, world)
        self._world = world
        self._batches = self.step.batches()
        self._numbers = count()

    def window(self) -> None:
        """Runs the next window. Collective over the world."""
        self.step.window(next(self._numbers), self._batches, NullJournal())
        self._world.meters.clock.read()  # otherwise it would keep the times of all windows

    def window_ms(self, windows: int) -> float:
        """Mean milliseconds of the next `windows` windows on this rank. Collective over the
        world."""
        started = now(self._world.device)
        for _ in range(windows):
            self.window()
        ended = now(self._world.device)
        self._world.meters.clock.read()  # on a card, times of the last windows are ready only now
        return (ended - started) / windows * 1e3

    def drain_ms(self) -> float:
        """Milliseconds on this rank of applying all that is in flight, after which nodes agree.
        Collective over the world."""
        started = now(self._world.device)
        self.step.exchange.drain(self.step.update)
        ended = now(self._world.device)
        self._world.meters.clock.read()
        return (ended - started) * 1e3

    def close(self) -> None:
        """Ends the prefetching thread and frees the memory for the next trial."""
        self._batches.close()
        del self._batches, self.step
        gc.collect()  # the parts of a training refer to each other in cycles


def slowest(times_ms: list[float], world: World) -> list[float]:
    """For each time, that of the slowest rank. Collective over the world."""
    rows = world.launch_gather(torch.tensor(times_ms, dtype=torch.float64), "trial").wait()
    found: Tensor = rows.max(dim=0).values
    return [float(each) for each in found]

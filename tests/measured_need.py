"""What a rank's tensors really take, moment by moment, to be compared with what is counted."""

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.config import Config
from harness.data.images import ArraySource, Dataset
from harness.parallel.world import World
from harness.train.ledger import NullJournal
from harness.train.step import make_step
from harness.train.training import Training
from tests.live_bytes import live_bytes


@dataclass(frozen=True)
class Measured:
    """Peaks in bytes, everything that lives included; `resting` is what lives between windows."""

    resting: int
    training: int
    evaluation: int
    estimate: int
    saving: int


def measured(config: Config, world: World, folder: Path) -> Measured:
    """Of a run on this rank: after a first window every tensor that stays is there."""
    dataset, journal = noise(config), NullJournal()
    with live_bytes() as starting:
        step = make_step(config, dataset, world)
        training = Training(step, folder)
        batches = step.batches()
        for window in range(FIRST):
            training._window(window, batches, journal)
    resting = starting.kept
    with live_bytes() as windows:
        for window in range(FIRST, FIRST + 2):
            training._window(window, batches, journal)
    with live_bytes() as evaluation:
        training.evaluate(limit=8 * config.train.batch_size * world.topology.world_size)
    with live_bytes() as estimate:
        training._curvature.after(FIRST + 2)
    with live_bytes() as saving:
        training._saves.save(training._meta(FIRST + 2), step.exchange.carried(), journal)
    training._saves.settle(journal)
    return Measured(
        resting,
        resting + windows.peak,
        resting + evaluation.peak,
        resting + estimate.peak,
        resting + saving.peak,
    )


FIRST = 4
"""Windows after which a late exchange has all under way that it will have."""
IMAGES = 2048


def noise(config: Config) -> Dataset:
    """Enough images for several batches of an evaluation; nothing is altered."""
    size, classes = config.data.image_size, config.data.num_classes
    images = torch.randint(0, 256, (IMAGES, 3, size, size), dtype=torch.uint8)
    source = ArraySource(images, torch.randint(0, classes, (IMAGES,)))
    return Dataset(classes, 3, size, source, {"same": source}, lambda images, generator: images)

"""Do ranks read images as fast as their network takes them, all at the same time?"""

import time
from collections.abc import Sequence
from contextlib import closing

import torch

from harness.config import Config
from harness.data.loader import Augmentation, train_batches
from harness.data.open import open_dataset
from harness.data.shares import BatchSplit
from harness.doctor.compute import Speed
from harness.doctor.finding import Facts, Finding
from harness.doctor.seat import Seat
from harness.errors import UserError
from harness.measure.data_bound import LEAST_PERCENT
from harness.model.anatomy import anatomy_of
from harness.model.flops import PRODUCTS, backward_of

CHECK = "data"
SECONDS = 1.5
"""Length of the measurement, after a first batch that opens files and starts threads."""
REACHED = 0.5
"""Share of the speed of plain matrix products that a network is assumed to reach."""


class Reading(Facts):
    """What one rank found when it read training images as a step does."""

    images_per_second: float = 0.0
    problem: str = ""
    """Why it could not read them; "" if it could."""


def reads_files(config: Config) -> bool:
    """Whether images are decoded again in every epoch, or copied out of a pack."""
    return config.data.dataset == "image_folder"


def measure_reading(config: Config, seat: Seat) -> Reading:
    """Reads micro-batches of this rank for a while, decoded, cut and augmented in its threads."""
    try:
        dataset = open_dataset(config.data)
        shares = BatchSplit(
            len(dataset.train), config.train.batch_size, seat.rank, seat.size, config.seed
        )
        augmentation = Augmentation(config.seed, seat.rank) if config.data.augment else None
        cpu = torch.device("cpu")
        with closing(train_batches(dataset, shares, augmentation=augmentation, device=cpu)) as read:
            next(read)
            began, images = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - began) < SECONDS or not images:
                images += len(next(read)[1])
    except (UserError, OSError) as error:
        return Reading(problem=str(error))
    return Reading(images_per_second=images / elapsed)


def image_flops(config: Config, nodes: int, ranks_per_node: int) -> float:
    """Operations of a training image on one rank: backbone and classifier, there and back.

    Raises UserError for an impossible backbone.
    """
    anatomy = anatomy_of(config, nodes, ranks_per_node)
    backbone = backward_of(config.backbone, anatomy.channels, config.data.image_size)
    classes = anatomy.taking_part(positives=config.train.batch_size)
    # A rank multiplies the features of its whole slice group with its slice.
    return backbone.flops_per_image + PRODUCTS * 2.0 * anatomy.owners * classes * anatomy.features


def judge_reading(
    seats: Sequence[Seat], readings: Sequence[Reading], speeds: Sequence[Speed], flops: float
) -> Finding:
    """One finding: a warning if images take much of a step on the rank that reads slowest.

    `flops`: operations of an image. On a card images are read ahead, so they take what is left
    after the network's time; on a processor both take the same cores.
    """
    for seat, reading in zip(seats, readings, strict=True):
        if reading.problem:
            found = f"rank {seat.rank} on {seat.host}: {reading.problem}"
            return Finding(check=CHECK, level="fail", found=found)
    pairs = list(zip(readings, speeds, strict=True))
    shares = [_share(reading, speed, flops) for reading, speed in pairs]
    most = max(range(len(pairs)), key=lambda n: (shares[n], -readings[n].images_per_second))
    reading, speed = pairs[most]
    taken = REACHED * speed.flop_per_second / flops
    figures = (
        f"rank {seats[most].rank} on {seats[most].host} reads {reading.images_per_second:,.0f} "
        f"images/s, and would train {taken:,.0f} at {REACHED:.0%} of its speed in products"
    )
    if 100 * shares[most] < LEAST_PERCENT:
        return Finding(check=CHECK, level="ok", found=figures)
    return Finding(
        check=CHECK,
        level="warn",
        found=f"bound by data: images would take {shares[most]:.0%} of a step: {figures}",
        advice="read a pack (harness pack), give ranks more cores, or use smaller images",
    )


def _share(reading: Reading, speed: Speed, flops: float) -> float:
    """The share of a step that images take."""
    read = 1 / reading.images_per_second
    trained = flops / (REACHED * speed.flop_per_second)
    if speed.cpu_share is None:
        return max(0.0, read - trained) / max(read, trained)
    return read / (read + trained)

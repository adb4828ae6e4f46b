"""Noise with labels, for benchmarks: nothing to learn, to store or to wait for."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from harness.config import DataConfig
from harness.data.augment import CropAndFlip
from harness.data.images import Dataset, Part
from harness.seeding import seeded_generator

CHANNELS = 3
VALIDATION_SHARE = 16
"""Number of training images per validation image."""
WINDOWS = 1 << 16
"""Number of positions in the pool of noise at which an image can start."""


def open_synthetic(config: DataConfig) -> Dataset:
    """`data.synthetic_images` images of noise, and other ones for validation."""
    count = config.synthetic_images
    return Dataset(
        num_classes=config.num_classes,
        channels=CHANNELS,
        image_size=config.image_size,
        train=NoiseSource(0, count, config.num_classes, config.image_size),
        validation={
            "validation": NoiseSource(
                count, max(count // VALIDATION_SHARE, 1), config.num_classes, config.image_size
            )
        },
        augment=CropAndFlip(config.augment),
    )


class NoiseSource:
    """Images `first` .. `first` + `count` - 1 of an endless sequence of noise images.

    Image i depends on i alone: it is a window of one pool of noise, with its bytes XORed by a
    pattern that depends on i. Labels are spread evenly: any `num_classes` consecutive images have
    every label once, in an order that jumps over the classes.
    """

    def __init__(self, first: int, count: int, num_classes: int, image_size: int) -> None:
        self._first = first
        self._count = count
        self._num_classes = num_classes
        self._shape = (CHANNELS, image_size, image_size)
        self._stride = _coprime_near(num_classes * (math.sqrt(5) - 1) / 2, num_classes)
        pool = torch.empty(WINDOWS + math.prod(self._shape), dtype=torch.uint8)
        pool.random_(generator=seeded_generator(0, "noise"))
        self._windows = pool.unfold(0, math.prod(self._shape), 1)

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> Tensor:
        return self._labels(torch.arange(self._first, self._first + self._count))

    def parts(self) -> Iterator[Part]:
        return iter(())

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        numbers = indices + self._first
        rounds, places = numbers // WINDOWS, numbers % WINDOWS
        # An odd factor permutes the starts modulo a power of two, so that consecutive images do not
        # overlap almost entirely.
        starts = places * 40503 % WINDOWS
        pattern = (rounds % 256).to(torch.uint8)
        images = self._windows[starts] ^ pattern[:, None]
        return images.view(-1, *self._shape), self._labels(numbers)

    def _labels(self, numbers: Tensor) -> Tensor:
        return numbers * self._stride % self._num_classes


def _coprime_near(target: float, number: int) -> int:
    candidate = max(round(target), 1)
    while math.gcd(candidate, number) != 1:
        candidate += 1
    return candidate

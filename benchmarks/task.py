"""The task of the benchmarks: the default backbone on noise, so that images cost no reading."""

import torch
from torch import Tensor

from harness.config import Config
from harness.data.images import ArraySource, Dataset


def config(layout: str = "replicated", classes: int = 1000, **sections: object) -> Config:
    values: dict[str, object] = {
        "data": {"num_classes": classes, "augment": 0.0},
        "classifier": {"layout": layout},
        "train": {"steps": 1_000_000, "untimed_windows": 0},
    }
    return Config.model_validate(values | sections)


def dataset(classes: int, images: int = 4096) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 32, 32), generator=generator, dtype=torch.uint8)
    source = ArraySource(pixels, torch.arange(images) * 7919 % classes)
    return Dataset(classes, 1, 32, source, {"noise": source}, lambda batch, generator: batch)


def batch(
    classes: int, size: int, rank: int, channels: int = 1, pixels: int = 32
) -> tuple[Tensor, Tensor]:
    """One micro-batch, the same at every step."""
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(size, channels, pixels, pixels, generator=generator)
    return images, torch.randint(0, classes, (size,), generator=generator)

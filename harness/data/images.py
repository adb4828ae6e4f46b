"""What a data set is: images by index, what validates them, how training alters them."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ImageSource(Protocol):
    """Labelled images by index."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, channels, height, width] and labels int64 [B] at int64 `indices` [B].

        Both are new tensors on the CPU. May be called from another thread than the one that made
        the source, but from one thread at a time.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """Images to learn from and to be judged by."""

    num_classes: int
    channels: int
    image_size: int
    train: ImageSource
    validation: Mapping[str, ImageSource]
    """Sets never trained on, by name; the first is the primary one."""
    augment: Callable[[Tensor, torch.Generator], Tensor]
    """Training's alteration of float images in [0, 1], [B, channels, height, width] on any device,
    drawn from a generator of that device. May reuse the memory it is given."""


class ArraySource:
    """Images that lie in one array, in memory or mapped from a file."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """`images` uint8 [N, channels, height, width], `labels` int64 [N]."""
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images have {len(labels)} labels")
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._images[indices], self._labels[indices]


class OneAtATime:
    """A source that threads may read at once: they take turns."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        with self._turn:
            return self._source.read(indices)

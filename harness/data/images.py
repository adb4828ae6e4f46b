"""Data sets: images by index, validation sets, and the augmentation of training images."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.data.levels import HALF, Levels
from harness.errors import UserError


@dataclass(frozen=True)
class Part:
    """One ingredient of the images, by which two copies of a data set are compared."""

    of: str
    """The class, or the file with many images, that it belongs to."""
    item: str
    """A file with its size, or a digest of its content."""


class ImageSource(Protocol):
    """Labelled images by index."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """int64 [images], on the CPU."""
        ...

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, channels, height, width] and labels int64 [B] at int64 `indices` [B].

        Both are new tensors on the CPU. May be called from another thread than the one that made
        the source, but only from one thread at a time.
        """
        ...

    def parts(self) -> Iterator[Part]:
        """What the images are made from, in order; nothing if the config determines them."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Images for training and for validation."""

    num_classes: int
    channels: int
    image_size: int
    train: ImageSource
    validation: Mapping[str, ImageSource]
    """Sets that are never trained on, by name; the first is the primary one."""
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    """The augmentation of float images in [0, 1], [B, channels, height, width] on any device, by
    draws from a generator of the CPU. It may reuse the memory of its input. None: none."""
    validation_size: int | None = None
    """Height and width of the images that are validated on; None: those of training."""
    read_random: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None
    """Reads training images as `train.read` does, each cut at random by a generator of the CPU; for
    any thread. None: there is nothing random about reading."""
    alter: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Alters uint8 images on their device, before `augment`, by draws from a generator of the CPU;
    in place."""
    levels: Levels = HALF
    """What images are normalised by."""
    class_names: tuple[str, ...] = ()
    """The names of the labels 0, 1, ..., if classes have names."""
    notes: tuple[str, ...] = ()
    """Notes for the user from opening the data set, one line each."""
    decodes: bool = False
    """Whether reading an image takes so much work that it is done ahead, also on processors."""

    def __post_init__(self) -> None:
        """Raises UserError for a set without images, or with labels outside the classes."""
        for name, source in {"train": self.train, **self.validation}.items():
            labels = source.labels
            if not len(labels):
                raise UserError(f"the data set's {name} part has no images; add some")
            low, high = int(labels.min()), int(labels.max())
            # A label outside the classes would be on no slice: its images would silently have a
            # wrong loss.
            if low < 0 or high >= self.num_classes:
                raise UserError(
                    f"the data set's {name} part has labels from {low} to {high}, but labels of "
                    f"data.num_classes={self.num_classes} go from 0 to {self.num_classes - 1}; "
                    f"correct the labels or data.num_classes"
                )


class ArraySource:
    """Images in one array, in memory or mapped from a file."""

    def __init__(
        self, images: Tensor, labels: Tensor, parts: tuple[Part, ...] | None = None
    ) -> None:
        """`images` uint8 [N, channels, height, width], `labels` int64 [N].

        `parts`: what they were made from, if that is known without reading all of them.
        """
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images have {len(labels)} labels")
        self._images = images
        self.labels = labels
        self._parts = parts

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._images[indices], self.labels[indices]

    def parts(self) -> Iterator[Part]:
        if self._parts is not None:
            yield from self._parts
            return
        for name, tensor in (("images", self._images), ("labels", self.labels)):
            yield Part(name, hashlib.sha256(tensor.contiguous().numpy().data).hexdigest())


class WrappedSource:
    """A source with the labels and parts of another one; subclasses define how images are read."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @property
    def labels(self) -> Tensor:
        return self._source.labels

    def parts(self) -> Iterator[Part]:
        return self._source.parts()


class OneAtATime(WrappedSource):
    """A source that several threads may read: they take turns."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source)
        self._turn = threading.Lock()

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        with self._turn:
            return self._source.read(indices)

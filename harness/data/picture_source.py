"""Pictures that are decoded on demand, by threads, and cut to the size that the network takes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.data.cut import Cut, Frame, middle_square
from harness.data.images import Part
from harness.data.pixels import Undecodable
from harness.errors import UserError

CHANNELS = 3
Item = TypeVar("Item")
Result = TypeVar("Result")


class Files(Protocol):
    """The files that pictures come from, as far as a check of them takes it."""

    root: bytes

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> str:
        """The file's path."""
        ...

    def name(self, number: int, /) -> bytes:
        """The file's path below the root."""
        ...

    @property
    def stats(self) -> np.ndarray:
        """[files, 3]: inode, size in bytes, time of the last change in ns."""
        ...

    def identity(self) -> str:
        """A digest that is equal only if two processes see the very same files, or those of copied
        disks."""
        ...


class Pictures(Protocol):
    """Labelled pictures of any size, by number."""

    @property
    def files(self) -> Files: ...

    @property
    def files_are_pictures(self) -> bool:
        """Whether file i is picture i."""
        ...

    @property
    def together(self) -> int:
        """Files that are checked in one go, within a second or so."""
        ...

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """int64 [pictures], on the CPU."""
        ...

    def cut(self, number: int, frame: Frame, size: int) -> np.ndarray:
        """What `frame` cuts out of a picture, uint8 [size, size, 3]; for any thread.

        Raises Undecodable.
        """
        ...

    def shown(self, number: int) -> str:
        """The picture's place on the disk, for messages."""
        ...

    def check(self, number: int, closely: bool) -> None:
        """Raises Undecodable for a file that cannot be read; `closely` reads all of it."""
        ...

    def remedy(self, them: str) -> str:
        """What the user can do about files that cannot be read: `it` or `them`."""
        ...

    def parts(self) -> Iterator[Part]:
        """As in `ImageSource`."""
        ...


@dataclass(frozen=True)
class PictureFolder:
    """Pictures to train on and to validate on."""

    train: Pictures
    val: Pictures
    classes: tuple[str, ...]
    notes: tuple[str, ...]


class Threads:
    """Threads that decode, shared by the parts of a data set.

    They start with the first picture; their number is torch's number of threads at that time, a
    rank's share of the machine's cores. Two parts may use them at the same time, first come, first
    served.
    """

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Applies the function to each item, in order. It should release the GIL, as decoders
        do."""
        return list(self._pool.map(function, items))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "decode")


class PictureSource:
    """Pictures as RGB images of one size."""

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        threads: Threads,
        frame: Frame = middle_square,
        draw: Callable[[int, torch.Generator], Sequence[Cut]] | None = None,
        skips: bool = False,
    ) -> None:
        """`draw` is how `read_random` cuts that many pictures. With `skips`, a picture that cannot
        be read is replaced by the next one of its class that can."""
        self.pictures = pictures
        self.size = size
        self.threads = threads
        self.labels = pictures.labels
        self._frame = frame
        self._draw = draw
        self._skips = skips
        self.skipped: dict[int, str] = {}
        """The pictures that were replaced, and why."""

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._read(indices, [Cut(self._frame)] * len(indices))

    def read_random(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `read`, each picture cut at random; the generator is the CPU's."""
        assert self._draw is not None
        return self._read(indices, self._draw(len(indices), generator))

    def _read(self, indices: Tensor, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        images = torch.empty(len(indices), CHANNELS, self.size, self.size, dtype=torch.uint8)
        self.threads.map(self._fill, zip(images.numpy(), indices.tolist(), cuts, strict=True))
        return images, self.labels[indices]

    def parts(self) -> Iterator[Part]:
        return self.pictures.parts()

    def _fill(self, place: tuple[np.ndarray, int, Cut]) -> None:
        image, number, cut = place
        pixels = self._pixels(number, cut.frame)
        # By numpy, not by torch, whose copies would start threads of their own in each thread here.
        np.copyto(image, (np.fliplr(pixels) if cut.mirrored else pixels).transpose(2, 0, 1))

    def _pixels(self, number: int, frame: Frame) -> np.ndarray:
        try:
            return self.pictures.cut(number, frame, self.size)
        except Undecodable as error:
            if not self._skips:
                name, remedy = self.pictures.shown(number), self.pictures.remedy("it")
                raise UserError(f"cannot decode {name}: {error}; {remedy}") from error
            self.skipped[number] = str(error)
        for other in self._others(number):
            with suppress(Undecodable):
                return self.pictures.cut(other, frame, self.size)
        raise UserError(
            f"no image of the class of {self.pictures.shown(number)} can be read; "
            f"{self.pictures.remedy('them')}"
        )

    def _others(self, number: int) -> list[int]:
        """The other pictures of the class, beginning behind this one. Classes are contiguous."""
        label = self.labels[number]
        first, end = (
            int(torch.searchsorted(self.labels, label, right=right)) for right in (False, True)
        )
        return [*range(number + 1, end), *range(first, number)]

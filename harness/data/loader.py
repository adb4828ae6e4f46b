"""Batches on their device: decoded ahead by threads; for a card, copied ahead on a side stream."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

from harness.data.images import Dataset, ImageSource
from harness.data.levels import HALF, Levels
from harness.data.shares import BatchSplit, evaluation_share
from harness.parallel.host_memory import up
from harness.seeding import seeded_generator

Item = TypeVar("Item")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """The random augmentation of one rank's training images."""

    seed: int
    rank: int

    def generator(self, purpose: str, t: int) -> torch.Generator:
        """The random generator of micro-batch `t`: a batch is the same wherever a run resumes. It
        is the CPU's, so that its draws are the same for every device."""
        return seeded_generator(self.seed, purpose, t, self.rank)


def train_batches(
    dataset: Dataset,
    shares: BatchSplit,
    *,
    augmentation: Augmentation | None,
    device: torch.device,
    start: int = 0,
    prefetch: int = 0,
) -> Generator[Batch, None, None]:
    """Endless micro-batches from `start` on: float32 images [B, C, H, W], labels [B].

    For a card, a thread keeps up to `prefetch` of them ready, copied and augmented on its own
    stream. On a CPU, a thread keeps as many decoded if the data set decodes, and the step augments
    them. With 0 all is done in the step. The images are the same in every case. Errors of the
    thread are raised here. Closing the iterator ends the thread.
    """

    def read(t: int) -> Batch:
        if augmentation is None or dataset.read_random is None:
            return dataset.train.read(shares.indices(t))
        return dataset.read_random(shares.indices(t), augmentation.generator("cut", t))

    def augmented(images: Tensor, t: int) -> Tensor:
        if augmentation is not None and dataset.alter is not None:
            images = dataset.alter(images, augmentation.generator("alter", t))
        if augmentation is None or dataset.augment is None:
            return dataset.levels.of_bytes(images)
        generator = augmentation.generator("augment", t)
        return dataset.levels.of_floats(dataset.augment(images.float().div_(255), generator))

    batches = (read(t) for t in count(start))
    if device.type == "cuda" and prefetch:
        made = _made_batches(batches, device, augmented, start)
        return _ready_on_card(read_ahead(_on_side_stream(made, device), prefetch), device)
    ahead = prefetch if dataset.decodes else 0
    return _made_batches(ahead_of(batches, ahead), device, augmented, start)


def evaluation_batches(
    source: ImageSource,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    device: torch.device,
    limit: int = 0,
    prefetch: int = 0,
    levels: Levels = HALF,
) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
    """This rank's images, labels and validity, in the same number of batches on every rank.

    A thread reads up to `prefetch` of them ahead.
    """
    share = evaluation_share(len(source), rank, world_size, batch_size, limit)
    read = ((source.read(indices), valid) for indices, valid in share)
    with closing(ahead_of(read, prefetch)) as batches:
        for batch, valid in batches:
            images, labels = _moved(batch, device)
            yield levels.of_bytes(images), labels, valid.to(device)


def _made_batches(
    read: Generator[Batch, None, None],
    device: torch.device,
    augmented: Callable[[Tensor, int], Tensor],
    start: int,
) -> Generator[Batch, None, None]:
    with closing(read):
        for t, batch in enumerate(read, start):
            images, labels = _moved(batch, device)
            yield augmented(images, t), labels


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, labels = batch
    return up(images, device), up(labels, device)


def _on_side_stream(
    batches: Iterator[Batch], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, torch.cuda.Event]]:
    """Runs in the reading thread: copies and augments while the step's own kernels run."""
    stream = torch.cuda.Stream(device)
    while True:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            images, labels = next(batches)
            done = torch.cuda.Event()
            done.record(stream)
        yield images, labels, done


def _ready_on_card(
    batches: Generator[tuple[Tensor, Tensor, torch.cuda.Event], None, None], device: torch.device
) -> Generator[Batch, None, None]:
    with closing(batches):
        for images, labels, done in batches:
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            # The side stream owns their memory and must not reuse it before the current stream is
            # done.
            images.record_stream(current)
            labels.record_stream(current)
            yield images, labels


class _Failed:
    """An error raised in the reading thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_ENDED = object()


def ahead_of(items: Generator[Item, None, None], depth: int) -> Generator[Item, None, None]:
    """The same items, prepared ahead by a thread unless `depth` is 0."""
    return read_ahead(items, depth) if depth else items


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, up to `depth` of them prepared ahead by a thread.

    The thread starts with the first item and ends, at the latest, when the iterator is closed. An
    error in the thread is raised here with its own traceback.
    """
    made: SimpleQueue[object] = SimpleQueue()
    room = threading.Semaphore(depth)
    closed = threading.Event()

    def read() -> None:
        try:
            while room.acquire() and not closed.is_set():
                made.put(next(items, _ENDED))
        except BaseException as error:
            made.put(_Failed(error))

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not _ENDED:
            if isinstance(item, _Failed):
                raise item.error
            room.release()
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        room.release()
        thread.join()

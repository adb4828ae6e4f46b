"""Batches on their device: read in the step on a CPU, by a thread and a side stream on a card."""

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
from harness.data.shares import BatchSplit, evaluation_share
from harness.seeding import seeded_generator

MEAN, DEVIATION = 0.5, 0.5

Item = TypeVar("Item")
Batch = tuple[Tensor, Tensor]


def normalise(images: Tensor) -> Tensor:
    """Maps images from [0, 1] to [-1, 1], as the backbone takes them; in place."""
    return images.sub_(MEAN).div_(DEVIATION)


@dataclass(frozen=True)
class Augmentation:
    """The random augmentation of one rank's training images."""

    seed: int
    rank: int

    def generator(self, t: int, device: torch.device) -> torch.Generator:
        """The random generator of micro-batch `t`: a batch is the same wherever a run resumes."""
        return seeded_generator(self.seed, "augment", t, self.rank, device=device)


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
    stream. With 0, or on a CPU, they are read in the step. Errors of the thread are raised here.
    Closing the iterator ends the thread.
    """

    def augmented(images: Tensor, t: int) -> Tensor:
        if augmentation is None:
            return images
        return dataset.augment(images, augmentation.generator(t, device))

    made = _made_batches(dataset.train, shares, device, augmented, start)
    if device.type != "cuda" or not prefetch:
        return made
    return _ready_on_card(read_ahead(_on_side_stream(made, device), prefetch), device)


def evaluation_batches(
    source: ImageSource,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    device: torch.device,
    limit: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This rank's images, labels and validity, in the same number of batches on every rank."""
    for indices, valid in evaluation_share(len(source), rank, world_size, batch_size, limit):
        images, labels = _moved(source.read(indices), device)
        yield normalise(images.float().div_(255)), labels, valid.to(device)


def _made_batches(
    source: ImageSource,
    shares: BatchSplit,
    device: torch.device,
    augmented: Callable[[Tensor, int], Tensor],
    start: int,
) -> Generator[Batch, None, None]:
    for t in count(start):
        images, labels = _moved(source.read(shares.indices(t)), device)
        yield normalise(augmented(images.float().div_(255), t)), labels


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, labels = batch
    if device.type != "cuda":
        return images, labels
    # The caching host allocator reuses a pinned block only after its copy has ended.
    return (
        images.pin_memory().to(device, non_blocking=True),
        labels.pin_memory().to(device, non_blocking=True),
    )


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

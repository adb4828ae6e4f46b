"""Which images each rank gets: seeded, disjoint, of equal number, the same for any world size."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from harness.data.balance import Balance
from harness.errors import UserError
from harness.seeding import seeded_generator


@dataclass(frozen=True)
class Place:
    """A place in the image orders of all epochs."""

    epoch: int = 0
    images: int = 0
    """Images of the epoch's order that come before this place."""


@dataclass(frozen=True)
class BatchSplit:
    """One rank's part of the training images.

    Micro-batch t of the world is `world_size * batch_size` consecutive entries of the epoch's
    order, which depends on (seed, epoch) alone; rank r takes the r-th run of `batch_size`. So a
    single process with the whole batch sees the same images. The remainder of an epoch is dropped;
    it is other images in each epoch.

    A resumed run starts at the place in the order where its checkpoint was, whatever its
    micro-batches were: images already seen in the epoch are not repeated, and the rest follow,
    except for what does not fill a micro-batch at the end. Micro-batches are numbered so that an
    epoch's last one has the same number wherever the run started.
    """

    length: int
    """Number of training images."""
    batch_size: int
    """Images per rank in a micro-batch."""
    rank: int
    world_size: int
    seed: int
    begun: Place = Place()
    balance: Balance | None = None
    """Which images an epoch consists of; None: of each image once."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.world_size}")
        if self.length < self.world_batch_size:
            raise UserError(
                f"the data set has {self.length} training images, but one micro-batch of all "
                f"ranks takes {self.world_batch_size} ({self.world_size} ranks x train.batch_size="
                f"{self.batch_size}); lower train.batch_size or use fewer ranks"
            )

    @property
    def world_batch_size(self) -> int:
        """Images of all ranks in one micro-batch."""
        return self.world_size * self.batch_size

    @property
    def micro_batches_per_epoch(self) -> int:
        return self.length // self.world_batch_size

    @property
    def dropped(self) -> int:
        """Images that an epoch drops because they do not fill a micro-batch of all ranks."""
        return self.length % self.world_batch_size

    def indices(self, t: int) -> Tensor:
        """This rank's images in micro-batch `t`, which must not be before `first`: int64 [B]."""
        place = self.place(t)
        start = place.images + self.rank * self.batch_size
        order = epoch_order(self.length, self.seed, place.epoch)[start : start + self.batch_size]
        return order if self.balance is None else self.balance.images(place.epoch)[order]

    @property
    def first(self) -> int:
        """The number of the run's first micro-batch."""
        # Counted back from the epoch's end: the last micro-batch of epoch e has number (e + 1) *
        # (micro-batches per epoch) - 1, and `left` of them still fit behind the place.
        left = max(0, self.length - self.begun.images) // self.world_batch_size
        return (self.begun.epoch + 1) * self.micro_batches_per_epoch - left

    def place(self, t: int) -> Place:
        """The place at which micro-batch `t` begins; a run that resumes there has it as `begun`."""
        epoch, number = divmod(t, self.micro_batches_per_epoch)
        images = number * self.world_batch_size
        if epoch == self.begun.epoch:
            first_of_epoch = epoch * self.micro_batches_per_epoch
            images += self.begun.images - (self.first - first_of_epoch) * self.world_batch_size
        return Place(epoch, images)


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The order of all images in one epoch, int64 [length]."""
    return torch.randperm(length, generator=seeded_generator(seed, "order", epoch))


def evaluation_share(
    length: int, rank: int, world_size: int, batch_size: int, limit: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """One rank's batches (indices int64 [B], valid bool [B]), the same number on every rank.

    Each image (or each of `limit` images, evenly spread; 0 takes all) is valid in exactly one batch
    of one rank; the others are padding that keeps the shapes equal.
    """
    count = min(limit, length) if limit else length
    per_rank = -(-count // world_size)
    batches = -(-per_rank // batch_size)
    place = rank * per_rank + torch.arange(batches * batch_size)
    valid = place < min((rank + 1) * per_rank, count)
    indices = place.clamp(max=count - 1) * length // count
    return list(zip(indices.split(batch_size), valid.split(batch_size), strict=True))

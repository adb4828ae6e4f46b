"""torch's own methods for slow links, with this harness's data, model and clock.

Everything happens inside the backward pass of torch's DistributedDataParallel, including its waits,
so these kinds show all of it as `backward`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.config import ExchangeConfig
from harness.exchange.carried import Strip, agree
from harness.exchange.flat import Flat
from harness.exchange.kinds import Crosses
from harness.exchange.parts import squares_of
from harness.exchange.synchronous import NothingInFlight
from harness.parallel.ddp import (
    Averager,
    PowerSgdErrors,
    plain,
    with_post_local_sgd,
    with_power_sgd,
)
from harness.parallel.world import World


@dataclass(frozen=True)
class Through:
    """The module that forward passes use: the network, or DDP around it."""

    network: nn.Module
    errors: PowerSgdErrors | None = None


def through_ddp(
    config: ExchangeConfig,
    network: nn.Module,
    world: World,
    shared: Flat,
    images: Tensor,
    first_window: int,
) -> Through:
    """The network itself, or wrapped in DDP if the kind is torch's own.

    `images` [2, channels, height, width] are arbitrary: a run that resumes at `first_window` makes
    one pass with them. Collective over the world.
    """
    if not config.is_torchs or world.topology.world_size == 1:
        return Through(network)
    bucket_mb = config.bucket_mb
    passes, values = config.backward_passes_per_step, shared.values[: shared.elements]
    start, taken = config.synchronous_windows * passes, first_window * passes
    if config.traits.crosses is Crosses.GRADIENTS:
        parallel = plain(network, world, bucket_mb, halves=config.compression == "fp16")
        _settle_buckets(parallel, images, taken)
        return Through(parallel)
    if config.traits.crosses is Crosses.VALUES:
        parallel, state = with_post_local_sgd(network, world, start, bucket_mb)
        _settle_buckets(parallel, images, taken)
        state.iter = taken
        return Through(parallel)
    parallel, errors = with_power_sgd(
        network, world, config.powersgd_rank, start, bucket_mb, values
    )
    _settle_buckets(parallel, images, taken)
    errors.begin_at(taken)
    return Through(parallel, errors)


def _settle_buckets(parallel: nn.Module, images: Tensor, taken: int) -> None:
    """Makes DDP's first pass, which a resumed run has already behind it.

    After its first pass DDP cuts its buckets anew, in the order in which gradients arrived. The
    place of an element in its bucket decides the order in which a ring adds it up, so a resumed run
    needs the same buckets.
    """
    if not taken:
        return
    before = [buffer.clone() for buffer in parallel.buffers()]
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    parallel(images, labels).loss.backward()
    with torch.no_grad():
        for buffer, value in zip(parallel.buffers(), before, strict=True):
            buffer.copy_(value)


class InBackward(NothingInFlight):
    """An exchange that DDP has completed when the backward pass ends."""

    passes_per_step = 1

    def gradients_ready(self, last: bool) -> bool:
        return True


class PowerSgd(InBackward):
    """PowerSGD: DDP averages low-rank factors; each rank keeps what they left out for the next
    step."""

    def __init__(self, errors: PowerSgdErrors, shared: Flat) -> None:
        self._errors = errors
        self._shared = shared

    def carried(self) -> list[Strip]:
        owed = self._errors.owed
        return [Strip("exchange.unsent", self._shared, 0, len(owed), owed)]

    def agree_on(self, states: Sequence[Tensor]) -> None:
        # The optimizers' states are equal already: all ranks stepped with the same gradients.
        self._errors.agree()


class PostLocal(InBackward):
    """Post-local SGD: additionally averages parameters over all ranks every K steps, while all
    wait."""

    def __init__(
        self, config: ExchangeConfig, shared: Flat, world: World, first_window: int = 0
    ) -> None:
        period = config.backward_passes_per_step
        start, taken = config.synchronous_windows * period, first_window * period
        self._shared = shared
        self._world = world
        self._averager = Averager(shared.values[: shared.elements], world, period, start, taken)

    def after_step(self) -> None:
        self._averager.step()

    @contextmanager
    def at_mean(self) -> Iterator[Tensor]:
        own = self._shared.values.clone()
        self.drain(lambda: None)
        mean = self._shared.values
        yield squares_of(own, mean)
        self._shared.values.copy_(own)

    def divergence_before_drain(self) -> Callable[[], Tensor]:
        own = self._shared.values.clone()
        everyone = self._world.everyone
        return lambda: squares_of(own, everyone.launch_average(own.clone()).wait())

    def drain(self, step: Callable[[], None]) -> None:
        self._world.everyone.launch_average(self._shared.values).wait()

    def agree_on(self, states: Sequence[Tensor]) -> None:
        agree(states, self._world.everyone)

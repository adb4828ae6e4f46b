"""The strongest that torch itself has against a slow link, with our data, model and clock.

Everything happens inside the backward pass of torch's DistributedDataParallel, its waiting too:
these kinds show it as `backward`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from harness.config import ExchangeConfig
from harness.exchange.flat import Flat
from harness.exchange.on_time import OnTime
from harness.exchange.parts import squares_of
from harness.parallel.ddp import Averager, with_post_local_sgd, with_power_sgd
from harness.parallel.world import World

KINDS = ("ddp_powersgd", "ddp_post_local_sgd")


def through_ddp(config: ExchangeConfig, network: nn.Module, world: World) -> nn.Module:
    """What forward passes go through: the network, or DDP around it. Collective over the world."""
    if config.kind not in KINDS or world.topology.world_size == 1:
        return network
    start = config.synchronous_windows * config.backward_passes_per_step
    if config.kind == "ddp_powersgd":
        return with_power_sgd(network, world, config.matrix_rank, start, config.bucket_mb)
    return with_post_local_sgd(network, world, start, config.bucket_mb)


class InBackward(OnTime):
    """DDP has averaged the gradients when the backward pass ends."""

    passes_per_step = 1

    def after_backward(self, last: bool) -> bool:
        return True


class PostLocal(InBackward):
    """And every K steps parameters are averaged over all ranks, while all wait."""

    def __init__(self, config: ExchangeConfig, shared: Flat, world: World) -> None:
        period = config.backward_passes_per_step
        start = config.synchronous_windows * period
        self._shared = shared
        self._world = world
        self._averager = Averager(shared.values[: shared.elements], world, period, start)

    def after_step(self) -> None:
        self._averager.step()

    @contextmanager
    def averaged(self) -> Iterator[Tensor]:
        own = self._shared.values.clone()
        self.drain(lambda: None)
        mean = self._shared.values
        yield squares_of(own, mean)
        self._shared.values.copy_(own)

    def apart(self) -> Callable[[], Tensor]:
        own = self._shared.values.clone()
        everyone = self._world.everyone
        return lambda: squares_of(own, everyone.launch_average(own.clone()).wait())

    def drain(self, step: Callable[[], None]) -> None:
        self._world.everyone.launch_average(self._shared.values).wait()

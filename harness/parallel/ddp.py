"""torch's DistributedDataParallel, and torch's methods to make it send less."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as post_local_sgd
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel

from harness.config import TORCHS_BUCKET_MB
from harness.measure.phase import Phase
from harness.measure.traffic import Bytes, all_reduce_bytes
from harness.parallel.world import World

FutureTensor = torch.futures.Future[Tensor]
Hook = Callable[[Any, dist.GradBucket], FutureTensor]

BYTES_OF_MB = 1024 * 1024
"""Bytes of a MB as DDP counts them for buckets."""
HALF_BYTES = 2
LEAST_RATE = 2
"""PowerSGD sends a matrix uncompressed unless its factors are this many times smaller."""


class Counting(Protocol):
    """The state of one of torch's hooks, which counts the steps taken."""

    iter: int


class PowerSgdErrors:
    """PowerSGD's unsent error: held by buckets while training runs, and by elements in checkpoints.

    `agree` also ends the warm start: P and Q are stored by DDP's buckets, which a checkpoint must
    not depend on. The next step starts from random factors, as the first one did, and what they
    miss of the gradient goes into the error.
    """

    def __init__(self, state: power_sgd.PowerSGDState, values: Tensor, world: World) -> None:
        self.owed = torch.zeros(values.shape, dtype=values.dtype)
        """This rank's unsent error of each element of the flat values, as found by `agree`; in host
        memory, because only checkpoints read all of it."""
        self._state = state
        self._first = values.storage_offset()
        self._spans: dict[int, list[tuple[int, int]]] = {}
        self._world = world

    def give(self, bucket: dist.GradBucket) -> None:
        """Gives PowerSGD the unsent error of a bucket that it sends for the first time since
        `agree`."""
        if bucket.index() in self._state.error_dict:
            return
        starts = [int(each.storage_offset() - self._first) for each in bucket.parameters()]
        sizes = [each.numel() for each in bucket.parameters()]
        spans = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        owed = torch.cat([self.owed[start:stop] for start, stop in spans])
        self._state.error_dict[bucket.index()] = owed.to(bucket.buffer().device)
        self._spans[bucket.index()] = spans

    def agree(self) -> None:
        """Makes each rank owe the mean of what all owe. Collective over the world."""
        for index, error in sorted(self._state.error_dict.items()):
            self._world.everyone.launch_average(error).wait()
            spans = self._spans[index]
            pieces = error.split([stop - start for start, stop in spans])
            for (start, stop), piece in zip(spans, pieces, strict=True):
                self.owed[start:stop] = piece
        for memory in (
            self._state.error_dict,
            self._state.p_memory_dict,
            self._state.q_memory_dict,
        ):
            memory.clear()
        self.begin_at(self._state.iter)

    def begin_at(self, step: int) -> None:
        """Continues after `step` steps."""
        self._state.iter = step
        self._state.rng = np.random.RandomState(step % 2**32)


def plain(network: nn.Module, world: World, bucket_mb: float | None, halves: bool) -> nn.Module:
    """DDP itself, or DDP sending half precision by torch's own hook."""
    size = HALF_BYTES if halves else None
    send = default_hooks.fp16_compress_hook if halves else default_hooks.allreduce_hook

    def hook(state: object, bucket: dist.GradBucket) -> FutureTensor:
        buffer = bucket.buffer()
        sent = buffer.numel() * (size or buffer.element_size())
        world.meters.traffic.add(world_bytes(world, sent))
        return send(cast(dist.ProcessGroup, dist.group.WORLD), bucket)

    return _wrapped(network, None, hook, bucket_mb)


def with_power_sgd(
    network: nn.Module, world: World, rank: int, start: int, bucket_mb: float | None, values: Tensor
) -> tuple[nn.Module, PowerSgdErrors]:
    """DDP that sends rank-`rank` factors of its gradients after `start` steps.

    Vogels et al., "PowerSGD", NeurIPS 2019, with error feedback and warm start, torch's defaults.
    Matrices of one shape are processed as one batch. The parameters are views of `values`.
    """
    state = power_sgd.PowerSGDState(
        process_group=None,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=max(2, start),
        min_compression_rate=LEAST_RATE,
        batch_tensors_with_same_shape=True,
    )
    errors = PowerSgdErrors(state, values, world)

    groups = _groups_of_buckets(values, world, bucket_mb)

    def hook(state: power_sgd.PowerSGDState, bucket: dist.GradBucket) -> FutureTensor:
        state.process_group = groups[bucket.index()] if groups else None
        plain, before = state.iter < state.start_powerSGD_iter, state.total_numel_after_compression
        if not plain:
            errors.give(bucket)
        future = power_sgd.powerSGD_hook(state, bucket)
        sent = state.total_numel_after_compression - before
        elements = bucket.buffer().numel() if plain else sent
        size = bucket.buffer().element_size()
        world.meters.traffic.add(world_bytes(world, elements * size))
        return future

    _turn_first_output(network)
    return _wrapped(network, state, hook, bucket_mb), errors


def _groups_of_buckets(
    values: Tensor, world: World, bucket_mb: float | None
) -> list[dist.ProcessGroup | None]:
    """A process group for each bucket that DDP can make; none with NCCL, which queues what is
    launched.

    The collectives of a PowerSGD bucket follow each other in a chain of callbacks. Gloo's threads
    run the chains of several buckets in a different order on each rank: in one group they would be
    mixed up.
    """
    if world.device.type == "cuda":
        return []
    # All buckets reach the size, except the first, of 1 MB, and the last.
    cut = (TORCHS_BUCKET_MB if bucket_mb is None else bucket_mb) * BYTES_OF_MB
    most = int(values.numel() * values.element_size() / cut) + 2
    everyone = world.topology.world
    return [world.beside(everyone, f"powersgd {n}").process_group for n in range(most)]


def with_post_local_sgd(
    network: nn.Module, world: World, start: int, bucket_mb: float | None
) -> tuple[nn.Module, Counting]:
    """DDP that averages gradients over all ranks for `start` steps, then over the node only.

    Lin et al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020. `Averager` does the rest.
    """
    state = post_local_sgd.PostLocalSGDState(
        process_group=None,
        subgroup=world.node.process_group,
        start_localSGD_iter=start,
        post_local_gradient_allreduce=world.node.size > 1,
    )

    def hook(state: post_local_sgd.PostLocalSGDState, bucket: dist.GradBucket) -> FutureTensor:
        sent = bucket.buffer().numel() * bucket.buffer().element_size()
        together = world_bytes(world, sent) if state.iter < start else node_bytes(world, sent)
        world.meters.traffic.add(together)
        return post_local_sgd.post_localSGD_hook(state, bucket)

    return _wrapped(network, state, hook, bucket_mb), state


class Averager:
    """Averages parameters over all ranks every `period` steps after the first `start`, by torch's
    averager.

    torch's averager puts new tensors into the parameters; their values are written back.
    """

    def __init__(self, values: Tensor, world: World, period: int, start: int, step: int) -> None:
        """Starts after `step` steps."""
        self._values = values
        self._given = nn.Parameter(values)
        self._given.grad = values.new_zeros(1).expand_as(values)  # torch skips it without a grad
        self._averager = PeriodicModelAverager(period=period, warmup_steps=start)
        self._averager.step = step
        self._world = world

    def step(self) -> None:
        """Called after each step of the optimizer. Collective over the world."""
        with self._world.meters.clock.phase(Phase.EXCHANGE_WAIT):
            self._averager.average_parameters([self._given])
        if self._given.data_ptr() == self._values.data_ptr():
            return
        self._values.copy_(self._given.detach())
        self._given.data = self._values
        sent = self._values.numel() * self._values.element_size()
        self._world.meters.traffic.add(world_bytes(self._world, sent))


def world_bytes(world: World, sent: float) -> Bytes:
    """Bytes of a flat ring over all ranks."""
    return all_reduce_bytes(sent, world.topology.world_size, world.topology.nodes)


def node_bytes(world: World, sent: float) -> Bytes:
    """Bytes of a ring over the node's ranks."""
    return all_reduce_bytes(sent, world.node.size, 1)


def power_sgd_elements(shapes: Sequence[torch.Size], rank: int) -> int:
    """Elements that `with_power_sgd` sends for parameters of these shapes, by PowerSGD's own
    rule."""
    total = 0
    for shape in shapes:
        rows, columns = shape[0], shape.numel() // shape[0]
        factors = (rows + columns) * rank
        small = len(shape) > 1 and factors * LEAST_RATE < rows * columns
        total += factors if small else rows * columns
    return total


def _turn_first_output(network: nn.Module) -> None:
    """Makes activations channels-last from the first convolution on, although filters are not."""
    first = next((each for each in network.modules() if isinstance(each, nn.Conv2d)), None)
    if first is not None:
        first.register_forward_hook(
            lambda layer, given, output: output.contiguous(memory_format=torch.channels_last)
        )


def _wrapped(network: nn.Module, state: object, hook: Hook, bucket_mb: float | None) -> nn.Module:
    """Wraps the network in DDP with a hook; `bucket_mb` None takes DDP's default, 25 and 1 for the
    first bucket."""
    # Batch statistics are each rank's own in every variant, and are averaged for evaluations.
    parallel = DistributedDataParallel(
        network,
        bucket_cap_mb=bucket_mb,
        forward_sync_buffers=False,
    )
    parallel.register_comm_hook(state, hook)
    return parallel

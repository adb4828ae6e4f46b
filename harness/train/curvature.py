"""The largest curvature of the loss: power iterations on differences of gradients."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor
from torch.func import functional_call

from harness.data.loader import Batch
from harness.exchange.flat import Flat
from harness.model.network import Network
from harness.parallel.rehearsal import Rehearsal
from harness.train.stability import runs_of
from harness.train.step import Step

SCALE = 0.006
"""Length of the step to either side of the values, as a share of their norm.

About as far as an update goes. Rectifiers and batch norm make the loss rough: a hundredth of it
finds five to ten times the curvature, and rates that learn well far above their limit.
"""
BLOCK = 1 << 16
"""Elements that are taken to float64 at once."""


class Curvature:
    """Of the loss over all parameters: shared ones and all slices.

    A Hessian times a vector is the difference of two gradients (the classifier's own backward pass
    cannot be differentiated once more). They are averaged over the ranks that hold one copy of the
    model, a node's, or all where all hold the slices of one: so next to nothing crosses between
    nodes. Each product takes a fresh batch, lest the direction fit the noise of one: 16 of 64
    images came within a quarter of what 2,048 fixed ones gave.

    It works in the run's own values and gradients, and keeps a copy of the values in the host's
    memory: on a card it takes no more than a micro-batch of the training does.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._network = step.model.network
        self._flats = step.model.flats
        self._world = world = step.world
        self._runs = runs_of(step.config.train.precision)
        wide = world.slices.size == world.topology.world_size
        self._copy = world.everyone if wide else world.node

    def after(self, window: int) -> float | None:
        """The largest one after so many windows, at the mean over nodes; see `largest`.

        By the next micro-batches, which the training takes all the same, and in the parameters' own
        precision: bf16 would leave nothing of a small difference. Collective over the world.
        """
        step, config = self._step, self._step.config
        with closing(step.batches(window)) as batches, step.exchange.averaged():
            next_ones = islice(batches, config.staleness.curvature_products)
            cast = ((step.cast(images), labels) for images, labels in next_ones)
            return self.largest(cast, config.seed)

    def largest(self, batches: Iterable[Batch], seed: int, scale: float = SCALE) -> float | None:
        """The largest one, by one product a batch: the mean over the last quarter, and over nodes.

        NaN where the loss is not finite any more; None where some rank's memory did not suffice.
        Takes values as they stand and batch statistics of each batch; leaves values, running
        statistics and random states as they were, to the bit, and gradients at zero. Collective
        over the world.
        """
        device = self._world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = self._power_iteration(batches, seed, scale)
        if found is None:
            return None
        last = found[len(found) * 3 // 4 :]
        rows = self._world.launch_gather(torch.tensor([fmean(last)]).double(), "curvature").wait()
        return float(rows.mean())

    def _power_iteration(
        self, batches: Iterable[Batch], seed: int, scale: float
    ) -> list[float] | None:
        """Of one product a batch. The gradients hold it, and the values the direction."""
        found, step, before = list[float](), 0.0, None
        for batch in batches:
            if before is None:
                before = self._rehearsed(batch, seed)
                if before is None:
                    return None
                step = scale * self._dot("values", "values") ** 0.5
                # Gradients lie mostly along the largest curvatures: a start that saves products.
                self._gradient(batch, seed)
                self._average()
                self._point_along_gradient(0.0)
            self._multiply(before, step, batch, seed)
            found.append(self._dot("grads", "values"))
            # Half of it stays: what batches have in common adds up, and each one's noise does not.
            self._point_along_gradient(1.0)
        if before is not None:
            self._put_back(before)
        return found

    def _rehearsed(self, batch: Batch, seed: int) -> "_Before | None":
        """What is to be put back, where all ranks have the memory for a gradient, else None.

        Each finds out without the others, who would wait for one that fails in a collective.
        """
        slices, before, fits = self._world.slices, None, True
        alone = Rehearsal(slices.size, slices.index, self._world.meters)
        network = Network(self._network.backbone, self._network.classifier.among(alone))
        try:
            before = _Before.of(self._network, self._flats)
            self._gradient(batch, seed, network=network)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            fits = False
        all_fit = self._world.launch_gather(torch.tensor([float(fits)]), "curvature fits").wait()
        if bool(all_fit.min() > 0):
            return before
        if before is not None:
            self._put_back(before)
        return None

    def _multiply(self, before: "_Before", step: float, batch: Batch, seed: int) -> None:
        """Makes the gradients the Hessian times the direction; one average for both gradients.

        With w the values before and d the direction, the values are d, w + s d, w - s d, d.
        """
        self._combine(step, before, 1.0)
        self._gradient(batch, seed)
        self._combine(-1.0, before, 2.0)
        self._gradient(batch, seed, sign=-1.0, anew=False)
        self._combine(-1.0, before, 1.0)
        for flat in self._flats:
            flat.values.div_(step)
            flat.grads.div_(2 * step)
        self._average()

    @torch.no_grad()
    def _combine(self, factor: float, before: "_Before", factor_before: float) -> None:
        """Makes the values `factor` times themselves and `factor_before` times what they were."""
        for flat, own in zip(self._flats, before.values, strict=True):
            for piece, kept in zip(flat.values.split(BLOCK), own.split(BLOCK), strict=True):
                piece.mul_(factor).add_(kept.to(piece.device), alpha=factor_before)

    def _point_along_gradient(self, share: float) -> None:
        """Makes the direction `share` times itself and the gradients' own, of length 1."""
        length = self._dot("grads", "grads") ** 0.5
        for flat in self._flats:
            flat.values.mul_(share).add_(flat.grads, alpha=1 / length)
        length = self._dot("values", "values") ** 0.5
        for flat in self._flats:
            flat.values.div_(length)

    def _average(self) -> None:
        """The gradients, in place; a slice's is the mean over the copy's images already."""
        self._copy.launch_average(self._flats[0].grads).wait()

    def _gradient(
        self,
        batch: Batch,
        seed: int,
        sign: float = 1.0,
        anew: bool = True,
        network: Network | None = None,
    ) -> None:
        """Adds this rank's own, of the mean over its images, to the gradients; `anew`: to zeros.

        Collective over the slice group.
        """
        if anew:
            for flat in self._flats:
                flat.grads.zero_()
        torch.manual_seed(seed)  # what is dropped must be the same in both gradients
        images, labels = batch
        rows = -(-len(labels) // self._runs)
        rows = rows if len(labels) % rows != 1 and rows > 1 else len(labels)
        leaves = self._leaves()
        for run in zip(images.split(rows), labels.split(rows), strict=True):
            scores = functional_call(network or self._network, leaves, run)
            (scores.loss * (sign * len(run[1]) / len(labels))).backward()

    def _leaves(self) -> dict[str, Tensor]:
        """Stand-ins of the parameters, by name, with the same values and gradients.

        Exchanges wait for what accumulates in the parameters themselves.
        """
        names = {id(parameter): name for name, parameter in self._network.named_parameters()}
        leaves = {}
        for flat in self._flats:
            for parameter, start, stop in flat.spans:
                leaf = flat.shaped(flat.values[start:stop], parameter).detach().requires_grad_()
                leaf.grad = flat.shaped(flat.grads[start:stop], parameter)
                leaves[names[id(parameter)]] = leaf
        return leaves

    def _dot(self, one: str, other: str) -> float:
        """Of `values` or `grads`, over one copy: shared parameters once and every slice once; the
        same on its ranks."""
        shared, own = (_dot(getattr(flat, one), getattr(flat, other)) for flat in self._flats)
        return float(self._copy.launch_sum(shared / self._copy.size + own).wait())

    @torch.no_grad()
    def _put_back(self, before: "_Before") -> None:
        for flat, own in zip(self._flats, before.values, strict=True):
            flat.values.copy_(own)
            flat.grads.zero_()
        for buffer, kept in zip(self._network.buffers(), before.buffers, strict=True):
            buffer.copy_(kept)


@dataclass(frozen=True)
class _Before:
    """What an estimate changes."""

    values: tuple[Tensor, ...]
    """In the host's memory, whatever the device."""
    buffers: tuple[Tensor, ...]

    @classmethod
    def of(cls, network: Network, flats: tuple[Flat, ...]) -> "_Before":
        return cls(
            tuple(torch.empty_like(f.values, device="cpu").copy_(f.values) for f in flats),
            tuple(buffer.clone() for buffer in network.buffers()),
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The host's allocator has no error of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """In float64, block by block: whole vectors would be copied six times."""
    total = one.new_zeros((), dtype=torch.float64)
    for a, b in zip(one.split(BLOCK), other.split(BLOCK), strict=True):
        total += a.double().dot(b.double())
    return total

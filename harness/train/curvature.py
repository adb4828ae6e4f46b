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
from harness.exchange.flat import Flat, in_blocks
from harness.model.network import Network
from harness.parallel.rehearsal import Rehearsal
from harness.train.stability import runs_of
from harness.train.step import Step

SCALE = 0.006
"""Length of the finite-difference step to either side, as a share of the values' norm.

It is about the length of an update. Rectifiers and batch norm make the loss rough: a step a hundred
times shorter finds five to ten times the curvature, which would put rates that train well far above
their limit.
"""


class Curvature:
    """Estimates the largest curvature of the loss over all parameters: shared ones and all slices.

    A Hessian-vector product is the difference of two gradients, because the classifier's own
    backward pass cannot be differentiated again. Gradients are averaged over the ranks that hold
    one copy of the model: one node's, or all ranks if together they hold the slices of one copy. So
    next to nothing crosses between nodes. Each product uses a fresh batch, so that the direction
    does not fit the noise of one batch: 16 batches of 64 images came within a quarter of
    the result from 2,048 fixed images.

    It works in the run's own values and gradients and keeps a copy of the values in host memory, so
    on a card it needs no more memory than a micro-batch of training.
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
        """The largest curvature after `window` windows, at the mean of the nodes; see `largest`.

        Uses copies of the next micro-batches, which training still receives, in the parameters' own
        precision: bf16 would lose the small difference. Collective over the world.
        """
        step, config = self._step, self._step.config
        with closing(step.batches(window)) as batches, step.exchange.at_mean():
            next_ones = islice(batches, config.staleness.curvature_products)
            cast = ((step.cast(images), labels) for images, labels in next_ones)
            first = window * config.exchange.backward_passes_per_step
            return self.largest(cast, config.seed, micro_batch=first)

    def largest(
        self,
        batches: Iterable[Batch],
        seed: int,
        scale: float = SCALE,
        micro_batch: int | None = None,
    ) -> float | None:
        """The largest curvature, one product per batch: the mean over the last quarter and over
        nodes.

        NaN if the loss is not finite; None if some rank lacks memory. `micro_batch` is the number
        of the first batch, by which classes are sampled; None samples none. Uses the current values
        and the batch statistics of each batch. Afterwards values, running statistics and random
        states are unchanged to the bit, and gradients are zero. Collective over the world.
        """
        device = self._world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = self._power_iteration(batches, seed, scale, micro_batch)
        if found is None:
            return None
        last = found[len(found) * 3 // 4 :]
        rows = self._world.launch_gather(torch.tensor([fmean(last)]).double(), "curvature").wait()
        return float(rows.mean())

    def _power_iteration(
        self, batches: Iterable[Batch], seed: int, scale: float, first: int | None
    ) -> list[float] | None:
        """The Rayleigh quotient of each batch's product.

        During the iteration the gradients hold the product and the values hold the direction.
        """
        found, step, before = list[float](), 0.0, None
        for number, batch in enumerate(batches):
            self._network.classifier.micro_batch = None if first is None else first + number
            if before is None:
                before = self._rehearsed(batch, seed)
                if before is None:
                    return None
                step = scale * self._dot("values", "values") ** 0.5
                # Gradients lie mostly along the directions of largest curvature, so starting there
                # saves products.
                self._gradient(batch, seed)
                self._average()
                self._point_along_gradient(0.0)
            self._multiply(before, step, batch, seed)
            found.append(self._dot("grads", "values"))
            # d <- d + Hd/|Hd|, normalised. Keeping half of the old direction accumulates what
            # batches have in common and averages out the noise of each.
            self._point_along_gradient(1.0)
        if before is not None:
            self._put_back(before)
        return found

    def _rehearsed(self, batch: Batch, seed: int) -> "_Before | None":
        """What the estimate must restore; None unless all ranks have the memory for a gradient.

        Each rank tries alone, with no collective inside: if one failed in a collective, the others
        would wait for it.
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
        """Makes the gradients Hd, the Hessian times the direction; one average serves both
        gradients.

        Hd = (g(w + s d) - g(w - s d)) / 2s, with w the values before and d the direction. The
        values become in turn d, w + s d, w - s d, d.
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
        """Sets values <- factor * values + factor_before * (values before the estimate)."""
        for flat, own in zip(self._flats, before.values, strict=True):
            for piece, kept in in_blocks(flat.values, own):
                piece.mul_(factor).add_(kept.to(piece.device), alpha=factor_before)

    def _point_along_gradient(self, share: float) -> None:
        """Sets d <- share * d + g/|g|, then normalises d to length 1."""
        length = self._dot("grads", "grads") ** 0.5
        for flat in self._flats:
            flat.values.mul_(share).add_(flat.grads, alpha=1 / length)
        length = self._dot("values", "values") ** 0.5
        for flat in self._flats:
            flat.values.div_(length)

    def _average(self) -> None:
        """Averages the shared gradients in place. A slice's gradient is already the mean over the
        images of the copy. Collective over the ranks of the copy."""
        self._copy.launch_average(self._flats[0].grads).wait()

    def _gradient(
        self,
        batch: Batch,
        seed: int,
        sign: float = 1.0,
        anew: bool = True,
        network: Network | None = None,
    ) -> None:
        """Adds this rank's gradient of the mean loss over its images; `anew` zeroes gradients
        first.

        Collective over the slice group.
        """
        if anew:
            for flat in self._flats:
                flat.grads.zero_()
        torch.manual_seed(seed)  # both gradients must use the same dropout
        images, labels = batch
        # The batch may go through the network in several runs, to save memory. Batch norm needs two
        # images, so a split that leaves a run with one image is not made.
        rows = -(-len(labels) // self._runs)
        rows = rows if len(labels) % rows != 1 and rows > 1 else len(labels)
        leaves = self._leaves()
        for run in zip(images.split(rows), labels.split(rows), strict=True):
            scores = functional_call(network or self._network, leaves, run)
            (scores.loss * (sign * len(run[1]) / len(labels))).backward()

    def _leaves(self) -> dict[str, Tensor]:
        """Stand-ins for the parameters, by name, that share their values and gradients.

        The exchange's hooks react to gradients of the parameters themselves, so those must not be
        used.
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
        """The dot product of `values` or `grads` over one copy of the model: shared parameters once
        and every slice once. The same on all ranks of the copy."""
        # Every rank of the copy adds the shared part, so each adds 1/N of it.
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
    """State that an estimate changes and then restores."""

    values: tuple[Tensor, ...]
    """Kept in host memory, whatever the device."""
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
    """The dot product in float64, block by block, to avoid float64 copies of whole vectors."""
    total = one.new_zeros((), dtype=torch.float64)
    for a, b in in_blocks(one, other):
        total += a.double().dot(b.double())
    return total

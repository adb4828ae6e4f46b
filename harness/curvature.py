"""The largest curvature of the loss: power iterations on differences of gradients."""

from collections.abc import Iterable
from statistics import fmean

import torch
from torch import Tensor

from harness.data.loader import Batch
from harness.exchange.flat import Flat
from harness.model.network import Network
from harness.parallel.world import World

SCALE = 0.006
"""Length of the step to either side of the values, as a share of their norm.

About as far as an update goes. Rectifiers and batch norm make the loss rough: a hundredth of it
finds five to ten times the curvature, and rates that learn well far above their limit.
"""
BLOCK = 1 << 20
"""Elements that are taken to float64 at once."""


class Curvature:
    """Of the loss over all parameters: shared ones and all slices.

    A Hessian times a vector is the difference of two gradients (the classifier's own backward pass
    cannot be differentiated once more). They are averaged over the ranks that hold one copy of the
    model, a node's, or all where all hold the slices of one: so next to nothing crosses between
    nodes. Each product takes a fresh batch, lest the direction fit the noise of one: 16 of 64
    images came within a quarter of what 2,048 fixed ones gave.
    """

    def __init__(self, network: Network, shared: Flat, sliced: Flat, world: World) -> None:
        self._network = network
        self._flats = shared, sliced
        self._sizes = [shared.elements, sliced.elements]
        self._world = world
        wide = world.slices.size == world.topology.world_size
        self._copy = world.everyone if wide else world.node

    def largest(self, batches: Iterable[Batch], seed: int, scale: float = SCALE) -> float:
        """The largest one, by one product a batch: the mean over the last quarter, and over nodes.

        NaN where the loss is not finite any more. Takes values as they stand and batch statistics
        of each batch; leaves values, gradients, running statistics and random states as they were,
        to the bit. Collective over the world.
        """
        values = self._values()
        buffers = [buffer.clone() for buffer in self._network.buffers()]
        device = self._world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = self._power_iteration(values, batches, seed, scale)
        self._put(values)
        with torch.no_grad():
            for buffer, before in zip(self._network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        last = found[len(found) * 3 // 4 :]
        rows = self._world.launch_gather(torch.tensor([fmean(last)]).double(), "curvature").wait()
        return float(rows.mean())

    def _power_iteration(
        self, values: Tensor, batches: Iterable[Batch], seed: int, scale: float
    ) -> list[float]:
        direction, product = torch.empty_like(values), torch.empty_like(values)
        found, step = list[float](), scale * self._dot(values, values) ** 0.5
        for batch in batches:
            if not found:
                # Gradients lie mostly along the largest curvatures: a start that saves products.
                self._add_gradient(batch, seed, direction.zero_(), 1.0)
                self._average(direction)
                direction /= self._dot(direction, direction) ** 0.5
            self._multiply(values, direction, step, batch, seed, out=product)
            found.append(self._dot(product, direction))
            # Half of it stays: what batches have in common adds up, and each one's noise does not.
            direction.add_(product, alpha=1 / self._dot(product, product) ** 0.5)
            direction /= self._dot(direction, direction) ** 0.5
        return found

    def _multiply(
        self, values: Tensor, direction: Tensor, step: float, batch: Batch, seed: int, out: Tensor
    ) -> None:
        """Writes the Hessian times a direction; one average for both gradients."""
        out.zero_()
        for sign in (1.0, -1.0):
            self._put(values)
            self._move(direction, sign * step)
            self._add_gradient(batch, seed, out, sign)
        out /= 2 * step
        self._average(out)

    def _average(self, gradient: Tensor) -> None:
        """In place; a slice's is the mean over the copy's images already."""
        shared, _ = gradient.split(self._sizes)
        self._copy.launch_average(shared).wait()

    def _add_gradient(self, batch: Batch, seed: int, into: Tensor, factor: float) -> None:
        """This rank's own, of the mean over its images. Collective over the slice group."""
        torch.manual_seed(seed)  # what is dropped must be the same in both gradients
        spans = [(flat, *span) for flat in self._flats for span in flat.spans]
        parameters = [parameter for _, parameter, _, _ in spans]
        loss = self._network(*batch).loss
        # Not `backward`: exchanges wait for what accumulates in the parameters' own gradients.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        places = zip(self._flats, into.split(self._sizes), strict=True)
        place_of = {id(flat): place for flat, place in places}
        for (flat, parameter, start, stop), gradient in zip(spans, gradients, strict=True):
            if gradient is not None:
                piece = place_of[id(flat)][start:stop]
                flat.shaped(piece, parameter).add_(gradient, alpha=factor)

    def _dot(self, one: Tensor, other: Tensor) -> float:
        """Over one copy: shared parameters once and every slice once; the same on its ranks."""
        pieces = zip(one.split(self._sizes), other.split(self._sizes), strict=True)
        shared, own = (_dot(a, b) for a, b in pieces)
        return float(self._copy.launch_sum(shared / self._copy.size + own).wait())

    def _values(self) -> Tensor:
        return torch.cat([flat.values[: flat.elements] for flat in self._flats])

    @torch.no_grad()
    def _put(self, values: Tensor) -> None:
        for flat, own in zip(self._flats, values.split(self._sizes), strict=True):
            flat.values[: flat.elements] = own

    @torch.no_grad()
    def _move(self, direction: Tensor, step: float) -> None:
        for flat, own in zip(self._flats, direction.split(self._sizes), strict=True):
            flat.values[: flat.elements].add_(own, alpha=step)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """In float64, block by block: whole vectors would be copied six times."""
    total = one.new_zeros((), dtype=torch.float64)
    for a, b in zip(one.split(BLOCK), other.split(BLOCK), strict=True):
        total += a.double().dot(b.double())
    return total

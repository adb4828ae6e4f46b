"""The largest curvature of the loss: Lanczos' iteration on differences of gradients."""

import math

import torch
from torch import Tensor

from harness.exchange.flat import Flat
from harness.model.network import Network
from harness.parallel.world import World
from harness.seeding import seeded_generator


class Curvature:
    """Of the loss of one fixed batch, over all parameters: shared ones and all slices.

    A Hessian times a vector is the difference of two gradients (the classifier's own backward pass
    cannot be differentiated once more), averaged over ranks as gradients are: what is shared over
    all, a slice over its replicas. Lanczos' iteration takes as many products as the power
    iteration and is never further from the largest eigenvalue; from below, both.
    """

    def __init__(
        self, network: Network, shared: Flat, sliced: Flat, has_replicas: bool, world: World
    ) -> None:
        self._network = network
        self._flats = shared, sliced
        self._sizes = [shared.elements, sliced.elements]
        self._has_replicas = has_replicas
        self._world = world

    def largest(self, images: Tensor, labels: Tensor, products: int, seed: int) -> float:
        """By so many Hessian-vector products; NaN where the loss is not finite any more.

        Takes values as they stand, and batch statistics of the batch; leaves values, gradients,
        running statistics and random states as they were, to the bit. Collective over the world.
        """
        values = self._values()
        buffers = [buffer.clone() for buffer in self._network.buffers()]
        device = self._world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = self._lanczos(values, (images, labels), products, seed)
        self._put(values)
        with torch.no_grad():
            for buffer, before in zip(self._network.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return found

    def _lanczos(
        self, values: Tensor, batch: tuple[Tensor, Tensor], products: int, seed: int
    ) -> float:
        """The largest eigenvalue of the Hessian on the space that the products span."""
        direction = self._start(seed)
        direction /= self._dot(direction, direction) ** 0.5
        before, beyond = torch.zeros_like(direction), 0.0
        diagonal: list[float] = []
        beside: list[float] = []
        for _ in range(products):
            product = self._product(values, direction, batch, seed)
            diagonal.append(self._dot(product, direction))
            product -= diagonal[-1] * direction + beyond * before
            beyond = self._dot(product, product) ** 0.5
            if not math.isfinite(beyond):
                return math.nan
            if beyond <= 1e-9 * max(abs(entry) for entry in diagonal):
                break
            beside.append(beyond)
            before, direction = direction, product / beyond
        below = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        small = small + torch.diag(below, 1) + torch.diag(below, -1)
        return float(torch.linalg.eigvalsh(small)[-1])

    def _start(self, seed: int) -> Tensor:
        """The same on every rank in what is shared, and on the replicas of a slice."""
        first = self._network.classifier.owned.start
        pieces = [
            torch.randn(size, generator=seeded_generator(seed, "curvature", *numbers))
            for size, numbers in zip(self._sizes, ((), (first,)), strict=True)
        ]
        return torch.cat(pieces).to(self._flats[0].values)

    def _product(
        self, values: Tensor, direction: Tensor, batch: tuple[Tensor, Tensor], seed: int
    ) -> Tensor:
        """The Hessian times a direction of length 1; one average for both gradients."""
        # Where rounding and the third derivative cost about as much.
        step = torch.finfo(values.dtype).eps ** (1 / 3)
        self._put(values + step * direction)
        change = self._gradient(batch, seed)
        self._put(values - step * direction)
        change = (change - self._gradient(batch, seed)) / (2 * step)
        shared, sliced = change.split(self._sizes)
        self._world.everyone.launch_average(shared).wait()
        if self._has_replicas:
            self._world.replicas.launch_average(sliced).wait()
        return change

    def _gradient(self, batch: tuple[Tensor, Tensor], seed: int) -> Tensor:
        """This rank's own, of the mean over its images. Collective over the slice group."""
        torch.manual_seed(seed)  # what is dropped must be the same in both gradients
        spans = [(flat, *span) for flat in self._flats for span in flat.spans]
        parameters = [parameter for _, parameter, _, _ in spans]
        loss = self._network(*batch).loss
        # Not `backward`: exchanges wait for what accumulates in the parameters' own gradients.
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        pieces = []
        for (flat, parameter, start, stop), gradient in zip(spans, found, strict=True):
            piece = flat.values.new_zeros(stop - start)
            if gradient is not None:
                flat.shaped(piece, parameter).copy_(gradient)
            pieces.append(piece)
        return torch.cat(pieces)

    def _dot(self, one: Tensor, other: Tensor) -> float:
        """Over the shared parameters once and every slice once; the same on all ranks."""
        pieces = zip(one.split(self._sizes), other.split(self._sizes), strict=True)
        own = torch.stack([(a.double() * b.double()).sum() for a, b in pieces]).cpu()
        rows = self._world.launch_gather(own, "curvature").wait()
        return float(rows[0, 0] + rows[: self._world.slices.size, 1].sum())

    def _values(self) -> Tensor:
        return torch.cat([flat.values[: flat.elements] for flat in self._flats])

    @torch.no_grad()
    def _put(self, values: Tensor) -> None:
        for flat, own in zip(self._flats, values.split(self._sizes), strict=True):
            flat.values[: flat.elements] = own

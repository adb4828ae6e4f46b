"""Parameters as views of one tensor, so that a collective takes all of them in one piece."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.parallel.slices import padded


class Flat:
    """Values and gradients of some parameters, each in one tensor of a multiple of `chunks`.

    Matrices and filters stand first: they decay. Biases and norms stand behind them.
    The parameters become views: a step or a collective on the flat tensors changes them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], chunks: int, like: Tensor) -> None:
        ordered = sorted(parameters, key=lambda parameter: parameter.dim() < 2)
        total = sum(parameter.numel() for parameter in ordered)
        self.elements = total
        self.values = like.new_zeros(padded(total, chunks))
        self.grads = torch.zeros_like(self.values)
        self.spans: list[tuple[nn.Parameter, int, int]] = []
        """Each parameter and where it stands, start..stop-1."""
        start = 0
        for parameter in ordered:
            stop = start + parameter.numel()
            value = shaped(self.values[start:stop], parameter)
            parameter.data = value.copy_(parameter.detach())
            parameter.grad = shaped(self.grads[start:stop], parameter)
            self.spans.append((parameter, start, stop))
            start = stop
        decayed = sum(parameter.numel() for parameter in ordered if parameter.dim() >= 2)
        self.decayed = self._view(0, decayed)
        self.undecayed = self._view(decayed, total)

    def _view(self, start: int, stop: int) -> nn.Parameter:
        view = nn.Parameter(self.values[start:stop])
        view.grad = self.grads[start:stop]
        return view


def shaped(piece: Tensor, parameter: Tensor) -> Tensor:
    """A piece of a flat tensor with the shape of its parameter; filters lie channels last.

    Convolutions are up to 1.7 times faster so on a CPU, and take this order on a card.
    """
    if parameter.dim() != 4:
        return piece.view_as(parameter)
    filters, channels, height, width = parameter.shape
    return piece.view(filters, height, width, channels).permute(0, 3, 1, 2)

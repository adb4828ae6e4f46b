"""Which elements of the dense model nodes send in a window, when each part is sent in turns."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from harness.config import Config

Turn = tuple[Tensor, Tensor]
"""Of each element of a parameter: of how many pieces it is in one, and the number of that piece."""


def turns_of(config: Config, trained: Sequence[Tensor], ranks_per_node: int) -> list[Turn]:
    """In the order of the trained parameters: weight, bias, and those of the backbone.

    Each rank of a node has an equal chunk of what they share and a slice of what they slice. A
    chunk is cut into `pieces`, a slice into `slice_pieces`.
    """
    weight, bias, *backbone = [parameter.detach() for parameter in trained]
    exchange, ranks = config.exchange, ranks_per_node
    of_slice = exchange.slice_pieces or exchange.pieces
    if config.classifier.layout == "replicated":
        *of_backbone, of_weight, of_bias = _chunks(
            [*backbone, weight, bias], ranks, exchange.pieces
        )
        return [of_weight, of_bias, *of_backbone]
    rows = [len(weight) * rank // ranks for rank in range(ranks + 1)]
    sliced = [
        list(_chunks([weight[start:stop], bias[start:stop]], 1, of_slice))
        for start, stop in pairwise(rows)
    ]
    of_classes = [
        (torch.cat([turn[0] for turn in each]), torch.cat([turn[1] for turn in each]))
        for each in zip(*sliced, strict=True)
    ]
    return [*of_classes, *_chunks(backbone, ranks, exchange.pieces)]


def _chunks(parameters: Sequence[Tensor], chunks: int, pieces: int) -> Iterator[Turn]:
    """The turns of parameters that lie one behind the other: matrices before vectors, the last one
    first, filters with their channels last."""
    order = [number for number in range(len(parameters)) if parameters[number].dim() >= 2][::-1]
    order += [number for number in range(len(parameters)) if parameters[number].dim() < 2][::-1]
    elements = sum(parameter.numel() for parameter in parameters)
    size = -(-elements // chunks)
    numbers = torch.empty(chunks * size, dtype=torch.int64)
    for chunk in numbers.split(size):
        for piece in range(pieces):
            chunk[size * piece // pieces : size * (piece + 1) // pieces] = piece
    found, start = {}, 0
    for number in order:
        shape = parameters[number].shape
        flat = numbers[start : start + shape.numel()]
        start += shape.numel()
        if len(shape) == 4:
            filters, channels, height, width = shape
            flat = flat.view(filters, height, width, channels).permute(0, 3, 1, 2)
        found[number] = flat.reshape(shape)
    for number in range(len(parameters)):
        yield torch.full_like(found[number], pieces), found[number]

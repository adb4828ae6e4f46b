"""Codecs: blocks of values, each with its own scale, written as narrow numbers and read back.

A scale is a float32. The sign of the scale marks a block with a value that is not finite: it is
negative, and the block reads as NaN. The block's other values are written as usual, so that the
writer knows what they became.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 1024
"""Number of values that share a scale."""
SCALE_BYTES = 4


class Codec(Protocol):
    """A rule for writing a value in `bits` bits."""

    bits: int

    def scales(self, magnitudes: Tensor) -> Tensor:
        """Scales, [..., 1] float32, for blocks of values with these magnitudes, [..., BLOCK]."""

    def write(self, units: Tensor, out: Tensor) -> None:
        """Writes values divided by their scales, [..., BLOCK], as bytes, [..., b]. May overwrite
        `units`."""

    def read(self, codes: Tensor, out: Tensor) -> None:
        """Reads bytes, [..., b], into values divided by their scales, [..., BLOCK]."""


class Halves:
    """Half-precision numbers. The scale is a power of two, which rounds nothing, and prevents
    overflow."""

    bits = 16
    reach = 14
    """Magnitudes over their scale stay below 2^15, with room to the overflow at 2^16. Values 2^28
    times smaller than the largest keep their 11 bits; values 2^40 times smaller become 0."""

    def scales(self, magnitudes: Tensor) -> Tensor:
        exponent = torch.frexp(_largest(magnitudes)).exponent - self.reach - 1
        # A float32 of exponent x has the bits (x + 127) << 23: exact on every machine.
        return ((exponent.clamp_(-126, 127) + 127) << 23).to(torch.int32).view(torch.float32)

    def write(self, units: Tensor, out: Tensor) -> None:
        out.view(torch.float16).copy_(units)

    def read(self, codes: Tensor, out: Tensor) -> None:
        out.copy_(codes.view(torch.float16))


class Integers:
    """Whole numbers from -127 to 127, times the scale."""

    bits = 8
    reach = 127

    def scales(self, magnitudes: Tensor) -> Tensor:
        return _largest(magnitudes) / self.reach

    def write(self, units: Tensor, out: Tensor) -> None:
        out.view(torch.int8).copy_(units.round_())

    def read(self, codes: Tensor, out: Tensor) -> None:
        out.copy_(codes.view(torch.int8))


class Nibbles:
    """Whole numbers from -7 to 7, times the scale. A byte holds element i of the block's first half
    (low 4 bits) and of its second half (high 4 bits)."""

    bits = 4
    reach = 7

    def scales(self, magnitudes: Tensor) -> Tensor:
        return _largest(magnitudes) / self.reach

    def write(self, units: Tensor, out: Tensor) -> None:
        low, high = units.round_().add_(self.reach).chunk(2, dim=-1)
        out.copy_(low.add_(high, alpha=16))

    def read(self, codes: Tensor, out: Tensor) -> None:
        low, high = out.chunk(2, dim=-1)
        low.copy_(codes & 15)
        high.copy_(codes >> 4)
        out.sub_(self.reach)


class Signs:
    """The sign of a value, times the mean magnitude of its block; eight signs in a byte.

    Needs error feedback (Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014).
    """

    bits = 1
    in_byte = 8

    def scales(self, magnitudes: Tensor) -> Tensor:
        # Zeros are not counted in the mean: a block may hold few values and be padded with zeros.
        values = magnitudes.count_nonzero(dim=-1).clamp_min_(1)
        return (magnitudes.sum(dim=-1) / values)[..., None].float()

    def write(self, units: Tensor, out: Tensor) -> None:
        positive = units.ge(0.0).unflatten(-1, (self.in_byte, -1))
        out.zero_()
        for place, bits in enumerate(positive.unbind(-2)):
            out.add_(bits, alpha=1 << place)

    def read(self, codes: Tensor, out: Tensor) -> None:
        for place, signs in enumerate(out.unflatten(-1, (self.in_byte, -1)).unbind(-2)):
            signs.copy_((codes >> place) & 1)
        out.mul_(2).sub_(1)


def _largest(magnitudes: Tensor) -> Tensor:
    return magnitudes.amax(dim=-1, keepdim=True).float()


CODECS: dict[str, Codec] = {
    "fp16": Halves(),
    "int8": Integers(),
    "int4": Nibbles(),
    "sign": Signs(),
}
"""By the name in `exchange.compression`, the widest first."""
COMPRESSIONS = ("none", *CODECS)
"""What `exchange.compression` may be, from the widest to the narrowest."""


def blocks_of(elements: int) -> int:
    """Number of whole blocks that hold `elements` values."""
    return -(-elements // BLOCK)


def row_bytes(codec: Codec, blocks: int) -> int:
    """Bytes of a row: the scales of `blocks` blocks, then their codes."""
    return blocks * (SCALE_BYTES + BLOCK * codec.bits // 8)


def encode(
    codec: Codec, values: Tensor, spare: Tensor, rows: Tensor, marked: Tensor | None = None
) -> None:
    """Writes values [r, blocks, BLOCK] into rows of bytes [r, b]; `spare` has the shape of
    `values`.

    Values that are not finite become 0 in `values`, and their block reads as NaN. `marked` blocks,
    [r, blocks], read as NaN as well.
    """
    magnitudes = torch.abs(values, out=spare)
    finite = magnitudes.amax(dim=-1, keepdim=True).isfinite()
    # On a card the test is skipped, because the host would wait for its result.
    if values.is_cuda or not bool(finite.all()):
        magnitudes = torch.abs(values.nan_to_num_(0.0, 0.0, 0.0), out=spare)
    if marked is not None:
        finite &= ~marked[..., None]
    scales = codec.scales(magnitudes)
    of_scales, codes = _split(rows, values.shape[1])
    of_scales.copy_(scales.where(finite, -scales).squeeze(-1))
    # A block of zeros has scale 0; 1/0 is replaced by 0, and it is written as zeros.
    inverse = (1 / scales).nan_to_num_(0.0, 0.0, 0.0).to(values.dtype)
    codec.write(torch.mul(values, inverse, out=spare), codes)


def decode(codec: Codec, rows: Tensor, values: Tensor) -> Tensor:
    """Reads rows of bytes [r, b] into [r, blocks, BLOCK], which it returns."""
    scales, codes = _split(rows, values.shape[1])
    codec.read(codes, values)
    return values.mul_(scales.where(~scales.signbit(), math.nan)[..., None])


def marks(rows: Tensor, blocks: int) -> Tensor:
    """Which blocks hold a value that is not finite, bool [r, blocks]."""
    return _split(rows, blocks)[0].signbit()


def written(codec: Codec, rows: Tensor, values: Tensor) -> Tensor:
    """What the writer of rows sent, as receivers read it, but finite where its values were
    finite."""
    scales, codes = _split(rows, values.shape[1])
    codec.read(codes, values)
    return values.mul_(scales.abs()[..., None])


def add_written(codec: Codec, rows: Tensor, factor: float, total: Tensor, spare: Tensor) -> None:
    """Adds `factor` times `written` to `total`, [r, blocks, BLOCK]; `spare` has its shape."""
    scales, codes = _split(rows, total.shape[1])
    codec.read(codes, spare)
    total.addcmul_(spare, scales.abs()[..., None].to(total.dtype) * factor)


def _split(rows: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """The scales, float32 [r, blocks], and the bytes of the codes, [r, blocks, b]."""
    scales = rows[:, : blocks * SCALE_BYTES].view(torch.float32)
    return scales, rows[:, blocks * SCALE_BYTES :].unflatten(1, (blocks, -1))

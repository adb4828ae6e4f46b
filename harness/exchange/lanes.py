"""A wire of small integers that add up inside the words of an ordinary integer all-reduce.

A block of values shares a scale, and a value is sent as an integer of -L .. L times it, moved to
0 .. 2L. L is such that the sum over the nodes stays below 2^bits: no lane runs over into the next,
and an all-reduce of 32-bit integers, which Horovod has, sums four or eight lanes at once.

All nodes must use the same scales before they know each other's values. So each message carries,
in bytes that the other nodes leave 0, the scales that this node's blocks would need; messages to
come use the largest. Values that outgrew their scale are clamped: the rest is not sent.

A block with a value that is not finite says so in place of a scale, and all nodes read NaN from it;
its other values are sent and booked as ever, so that the messages to come know nothing of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.exchange.wire import Carrier, Launched, Sent

BLOCK = 1024
"""Values that share a scale."""
STEPS = 4
"""Scales to a factor of two."""
ONE = 192
"""Code of the scale 1: codes 0 .. 254 are scales of 2^-48 .. 2^15.5."""
NOT_FINITE = 255
"""The code that is no scale."""


def largest(bits: int, nodes: int) -> int:
    """L, so that 2L from each node stays below 2^bits; 0 where there are too many nodes."""
    return int((2**bits - 1) // (2 * nodes))


def message_bytes(elements: int, bits: int, nodes: int) -> int:
    """Lanes in whole blocks, a scale's code per block and node, made up to whole words."""
    blocks = -(-elements // BLOCK)
    return blocks * BLOCK * bits // 8 + _words(nodes * blocks)


def _words(size: int) -> int:
    return -(-size // 4) * 4


class Lanes:
    """Sends each element in `bits` bits, 4 or 8."""

    exact = False

    def __init__(
        self, elements: int, slots: int, like: Tensor, carrier: Carrier, name: str, bits: int
    ) -> None:
        self._carrier = carrier
        self._name = name
        self.elements = elements
        self.nodes = carrier.size
        self.largest = largest(bits, carrier.size)
        self._bits = bits
        self._blocks = -(-elements // BLOCK)
        self._lane_bytes = self._blocks * BLOCK * bits // 8
        size = message_bytes(elements, bits, self.nodes)
        self._messages = [like.new_zeros(size, dtype=torch.uint8) for _ in range(slots)]
        self._own = [like.new_zeros(self._blocks * BLOCK, dtype=torch.int8) for _ in range(slots)]
        scales = [2.0 ** ((code - ONE) / STEPS) for code in range(NOT_FINITE)]
        self._scales = like.new_tensor(scales)
        self._codes: Tensor | None = None
        self._room, self._spare = like.new_zeros(2, self._blocks, BLOCK)

    def launch(self, part: Tensor, slot: int) -> Sent:
        self._room.view(-1)[: self.elements] = part
        self._room.view(-1)[self.elements :] = 0.0  # NaN may have been read from its block
        wanted = self._wanted()
        self._room.nan_to_num_(0.0, 0.0, 0.0)
        if self._codes is None:
            self._codes = self._agree(self._wanted())
        scales = self._scales[self._codes.long()][:, None]
        self._room.mul_(1 / scales).round_().clamp_(-self.largest, self.largest)
        own, message = self._own[slot], self._messages[slot]
        own.copy_(self._room.view(-1))
        self._pack(own, message[: self._lane_bytes].view(torch.int8))
        self._declare(wanted, message[self._lane_bytes :])
        launched = self._carrier.launch_sum(message.view(torch.int32), f"{self._name}.{slot}")
        return _SentLanes(self, scales, own, message, launched)

    def forget(self) -> None:
        self._codes = None

    def _wanted(self) -> Tensor:
        """Codes of the scales that just hold each block of the room, [blocks]."""
        most = torch.abs(self._room, out=self._spare).amax(dim=1)
        codes = (most / self.largest).log2_().mul_(STEPS).ceil_().add_(ONE)
        codes = codes.clamp_(0, NOT_FINITE - 1).where(most.isfinite(), NOT_FINITE)
        return codes.to(torch.uint8)

    def _agree(self, wanted: Tensor) -> Tensor:
        """The first message's scales, of finite values, waited for. Collective over the group."""
        declared = wanted.new_zeros(_words(self.nodes * self._blocks))
        self._declare(wanted, declared)
        self._carrier.launch_sum(declared.view(torch.int32), f"{self._name}.scales").wait()
        return self._declared(declared).amax(dim=0)

    def _declare(self, wanted: Tensor, places: Tensor) -> None:
        start = self._carrier.index * self._blocks
        places.zero_()[start : start + self._blocks] = wanted

    def _declared(self, places: Tensor) -> Tensor:
        """The codes of all nodes, [nodes, blocks]."""
        return places[: self.nodes * self._blocks].view(self.nodes, self._blocks)

    def _pack(self, own: Tensor, lanes: Tensor) -> None:
        if self._bits == 8:
            torch.add(own, self.largest, out=lanes)
            return
        low, high = own.view(2, -1)
        torch.add(low, high, alpha=16, out=lanes).add_(17 * self.largest)

    def unpacked(self, message: Tensor) -> Tensor:
        """Sums of all nodes' integers, [blocks, BLOCK]. Room that the next call takes again."""
        lanes = message[: self._lane_bytes]
        room = self._room.view(-1)
        if self._bits == 8:
            room.copy_(lanes)
        else:
            low, high = room.view(2, -1)
            low.copy_(lanes & 15)
            high.copy_(lanes >> 4)
        return self._room.sub_(self.nodes * self.largest)

    def read_scales(self, message: Tensor, sent_with: Tensor) -> Tensor:
        """Takes the scales that come with a message for those to come; returns what its integers
        are multiplied by, [blocks, 1]: NaN where a value of some node was not finite."""
        declared = self._declared(message[self._lane_bytes :])
        finite = declared < NOT_FINITE
        most = declared.where(finite, 0).amax(dim=0)
        assert self._codes is not None
        self._codes = most.where(finite.any(dim=0), self._codes)
        return sent_with.where(finite.all(dim=0)[:, None], math.nan)

    def floats(self, integers: Tensor) -> Tensor:
        """[n] -> [blocks, BLOCK] of their own."""
        self._spare.view(-1).copy_(integers)
        return self._spare


@dataclass(frozen=True)
class _SentLanes:
    lanes: Lanes
    scales: Tensor
    own: Tensor
    message: Tensor
    launched: Launched

    def add_own(self, target: Tensor, factor: float) -> None:
        values = self.lanes.floats(self.own).mul_(self.scales * factor)
        target.add_(values.view(-1)[: self.lanes.elements])

    def mean(self, into: Tensor) -> None:
        self.launched.wait()
        self._write(self.lanes.unpacked(self.message), into)

    def correction(self, into: Tensor) -> None:
        self.launched.wait()
        total = self.lanes.unpacked(self.message)
        total.sub_(self.lanes.floats(self.own), alpha=self.lanes.nodes)
        self._write(total, into)

    def _write(self, total: Tensor, into: Tensor) -> None:
        scales = self.lanes.read_scales(self.message, self.scales)
        values = total.mul_(scales / self.lanes.nodes)
        into.copy_(values.view(-1)[: self.lanes.elements])

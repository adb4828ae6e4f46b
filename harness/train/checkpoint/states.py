"""Optimizer and exchange states as strips: gathered for writing, filled after reading."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.exchange.carried import Strip
from harness.exchange.flat import Flat
from harness.parallel.world import World
from harness.train.optimizer import Optimizer


def optimizer_strips(optimizer: Optimizer, flats: Sequence[Flat]) -> list[Strip]:
    """The optimizer's state of the parameters that this rank steps."""
    found = []
    for flat in flats:
        for view in flat.stepped:
            start = int(view.storage_offset() - flat.values.storage_offset())
            stop = start + view.numel()
            for key, state in sorted(optimizer.state.get(view, {}).items()):
                tensor = state.view(-1) if state.dim() else state
                found.append(Strip(f"optimizer.{key}", flat, start, stop, tensor))
    return found


@dataclass(frozen=True)
class _Held:
    """How much of one state a rank has."""

    single: float | None
    """The state's value, if one number holds for all elements."""
    elements: int


def gathered(
    strips: Sequence[Strip], flats: Sequence[Flat], world: World, nodes: Container[int]
) -> Iterator[Strip]:
    """Each state in full, in host memory, on the ranks that write it; one after the other, because
    they take much. Collective over the world.

    What the ranks of a node hold in parts, as chunks or as shares of buckets, is put together on
    the given nodes only, because the other nodes hold the same.
    """
    own: dict[tuple[str, int], _Held] = {}
    for strip in strips:
        if strip.start < strip.stop:  # a chunk of nothing but padding has no state
            place = strip.key, flats.index(strip.flat)
            before = own[place].elements if place in own else 0
            single = None if strip.tensor.dim() else float(strip.tensor)
            own[place] = _Held(single, before + strip.stop - strip.start)
    everyone = world.gather_objects(own, "checkpoint states")
    for key, number in sorted({place for each in everyone for place in each}):
        flat = flats[number]
        held = [each[key, number] for each in everyone if (key, number) in each]
        if held[0].single is not None:
            yield Strip(key, flat, 0, flat.elements, torch.tensor(held[0].single))
            continue
        in_parts = _in_chunks(flat) or max(each.elements for each in held) < flat.elements
        if not in_parts or world.topology.node in nodes:
            own_strips = [each for each in strips if each.key == key and each.flat is flat]
            whole = _whole(own_strips, flat, world, in_parts)
            yield Strip(key, flat, 0, len(whole), whole)
            del whole  # before the next one is made


def _in_chunks(flat: Flat) -> bool:
    return flat.owned.size != len(flat.values)


def _whole(strips: Sequence[Strip], flat: Flat, world: World, in_parts: bool) -> Tensor:
    """The whole state, in host memory because a card may be full.

    Collective over the node if its ranks hold parts.
    """
    if _in_chunks(flat):
        chunk = torch.zeros(flat.owned.size, dtype=flat.values.dtype)
        _put(strips, flat.owned.start, chunk)
        whole = torch.empty(len(flat.values), dtype=flat.values.dtype)
        return world.node.launch_all_gather(chunk, whole).wait()
    whole = torch.zeros(len(flat.values), dtype=flat.values.dtype)
    _put(strips, 0, whole)
    # No two ranks of a node hold the same element, and elements that a rank lacks are 0 there.
    return world.node.launch_sum(whole).wait() if in_parts else whole


def _put(strips: Sequence[Strip], before: int, into: Tensor) -> None:
    for strip in strips:
        into[strip.start - before : strip.stop - before] = strip.tensor.cpu()


def of_module(module: nn.Module, strip: Strip) -> dict[str, Tensor]:
    """Copies of one state of a module's parameters, shaped like these, or the single number."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {}
    for parameter, start, stop in strip.flat.spans:
        if parameter in names:
            one = strip.tensor.dim() == 0
            piece = strip.tensor if one else strip.flat.shaped(strip.tensor[start:stop], parameter)
            found[f"{strip.key}.{names[parameter]}"] = on_host(piece)
    return found


def on_host(tensor: Tensor) -> Tensor:
    """A contiguous copy in host memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def fill(strip: Strip, read: Callable[[nn.Parameter, str], Tensor | None]) -> None:
    """Fills a strip with what `read` finds for each of its parameters; None leaves it unchanged."""
    for parameter, start, stop in strip.flat.spans:
        low, high = max(start, strip.start), min(stop, strip.stop)
        if low >= high:
            continue
        found = read(parameter, strip.key)
        if found is None:
            continue
        if strip.tensor.dim() == 0:
            copy(found, strip.tensor, strip.key)
            continue
        piece = torch.empty(stop - start, dtype=strip.tensor.dtype)
        copy(found, strip.flat.shaped(piece, parameter), strip.key)
        strip.tensor[low - strip.start : high - strip.start] = piece[low - start : high - start]


@torch.no_grad()
def copy(found: Tensor, target: Tensor, name: str) -> None:
    """Copies `found` into `target`. Raises ValueError if kind or shape differ."""
    # A plain copy would broadcast a single row to all rows and convert between floats and integers.
    if found.shape != target.shape:
        raise ValueError(f"{name} is {tuple(found.shape)} there, but {tuple(target.shape)} here")
    if found.is_complex() or found.is_floating_point() != target.is_floating_point():
        raise ValueError(f"{name} is {found.dtype} there, but {target.dtype} here")
    target.copy_(found)

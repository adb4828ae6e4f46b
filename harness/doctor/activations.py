"""Memory that a backbone's activations take in a training step, counted on two or three images."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.config import BackboneConfig
from harness.model.backbone import Backbone, make_backbone
from harness.model.trainable import training_pass


@dataclass(frozen=True)
class Kept:
    """Bytes of activations of some number of images, in float32 or in half precision."""

    kept: int
    """Bytes that autograd keeps at the end of the forward pass."""
    way_back: int
    """Peak of the backward pass, with the gradients of a layer's output and input."""
    seen: int
    """Peak of a forward pass without autograd."""
    frozen: int = 0
    """Peak of the forward pass of a frozen body, of which nothing is kept."""


@dataclass(frozen=True)
class Activations:
    """Activations of a backbone; the size of each tensor is linear in the number of images."""

    largest: int
    """Elements of the largest parameter."""
    half: bool
    """Whether the backbone computes in half precision."""
    images: int
    """Images for which `sizes` holds."""
    sizes: tuple[int, ...]
    """Bytes of each kept tensor, in the order of the forward pass."""
    per_image: tuple[int, ...]
    """Bytes that each of them grows by per image."""
    thawed: "Activations | None" = None
    """The same of the whole backbone, if its body is frozen and its forward pass keeps nothing."""

    def of(self, images: int) -> Kept:
        """Memory for any number of images, to which the kept tensors are extrapolated."""
        more = images - self.images
        sizes = [size + more * each for size, each in zip(self.sizes, self.per_image, strict=True)]
        before = list(accumulate(sizes))
        # When the backward pass reaches layer i, the layers behind it have freed their tensors:
        # s_1 + ... + s_i are alive, and two gradients of size s_i are added.
        moments = [alive + 2 * size for alive, size in zip(before, sizes, strict=True)]
        kept, way_back = sum(sizes), max(moments, default=0)
        if self.thawed is not None:
            seen = self.thawed.of(images).seen
            return Kept(kept, way_back, seen, frozen=seen)
        seen = 3 * max(sizes) if self.half else 2 * max(sizes) + 4 * self.largest
        return Kept(kept, way_back, seen)


@cache
def activations_of(
    config: BackboneConfig, channels: int, size: int, images: int, half: bool
) -> Activations:
    """Counts the kept tensors with `images` images and with one more.

    Raises UserError if the backbone cannot be trained with so few.
    """
    backbone, thawed = make_backbone(config, channels, size, seed=0), None
    if backbone.frozen:
        whole = config.model_copy(update={"frozen": "none"})
        thawed = activations_of(whole, channels, size, images, half)
    few, more = (_kept_sizes(backbone, channels, size, n, half) for n in (images, images + 1))
    return Activations(
        largest=max((parameter.numel() for parameter in backbone.trained), default=0),
        half=half,
        images=images,
        sizes=tuple(few),
        per_image=tuple(b - a for a, b in zip(few, more, strict=True)),
        thawed=thawed,
    )


def _kept_sizes(backbone: Backbone, channels: int, size: int, images: int, half: bool) -> list[int]:
    """Bytes of each tensor that autograd keeps."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # a reference, so that its address is not used again
        return tensor

    with (
        _without_numbers(backbone) as own,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        training_pass(backbone, channels, size, images)
    return [storage.nbytes() for key, storage in kept.items() if key not in own]


@contextmanager
def _without_numbers(backbone: Backbone) -> Iterator[set[int]]:
    """Makes a large backbone compute shapes only, in the block; yields the backbone's own storages.

    A processor takes 10 s for a ResNet-50 in half precision. The first use of fake tensors costs
    2 s, unless torchvision has used them already; a small backbone computes faster than that.
    """
    own = {tensor.untyped_storage()._cdata for tensor in backbone.state_dict().values()}
    small = isinstance(backbone.body, nn.Sequential)
    with nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True):
        yield own

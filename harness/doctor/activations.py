"""What a backbone keeps of its images in a training step, counted on two or three of them."""

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
    """Bytes in float32, or with half precision, of some images."""

    kept: int
    """What autograd keeps when the forward pass ends."""
    way_back: int
    """The most that lives in the backward pass, with gradients of an output and of an input."""
    seen: int
    """The most that lives in a forward pass that keeps nothing."""


@dataclass(frozen=True)
class Activations:
    """Of a backbone; each tensor that is kept has a size that is linear in the images."""

    largest: int
    """Elements of the largest parameter."""
    half: bool
    images: int
    sizes: tuple[int, ...]
    """Bytes of each kept tensor, in their order, for `images`."""
    per_image: tuple[int, ...]
    """Bytes more for one image more."""

    def of(self, images: int) -> Kept:
        more = images - self.images
        sizes = [size + more * each for size, each in zip(self.sizes, self.per_image, strict=True)]
        before = list(accumulate(sizes))
        # A layer's gradients come when all layers behind it have given back what they kept.
        moments = [alive + 2 * size for alive, size in zip(before, sizes, strict=True)]
        seen = 3 * max(sizes) if self.half else 2 * max(sizes) + 4 * self.largest
        return Kept(kept=before[-1], way_back=max(moments), seen=seen)


@cache
def activations_of(
    config: BackboneConfig, channels: int, size: int, images: int, half: bool
) -> Activations:
    """Counted on `images` and on one more; raises UserError where it cannot train with so few."""
    backbone = make_backbone(config, channels, size, seed=0)
    few, more = (_kept_sizes(backbone, channels, size, n, half) for n in (images, images + 1))
    return Activations(
        largest=max(parameter.numel() for parameter in backbone.parameters()),
        half=half,
        images=images,
        sizes=tuple(few),
        per_image=tuple(b - a for a, b in zip(few, more, strict=True)),
    )


def _kept_sizes(backbone: Backbone, channels: int, size: int, images: int, half: bool) -> list[int]:
    """Bytes of each tensor that autograd keeps."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, or its address could be given to another
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
    """In it a large backbone computes shapes alone; yields its own storages.

    A processor takes 10 s for a ResNet-50 in half precision. Tensors without numbers cost 2 s to be
    used first, more than a small backbone computes for, unless torchvision has done so already.
    """
    own = {tensor.untyped_storage()._cdata for tensor in backbone.state_dict().values()}
    small = isinstance(backbone.body, nn.Sequential)
    with nullcontext() if small else FakeTensorMode(allow_non_fake_inputs=True):
        yield own

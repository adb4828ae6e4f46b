"""TrivialAugment (wide), drawn anew for each image of a batch, with torchvision's operations.

Mueller and Hutter, arXiv 2103.10158. torchvision's own class draws one operation for a whole batch,
from the global generator.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from harness.model.torchvision import torchvision
from harness.parallel.host_memory import up

BINS = 31
"""Strengths of an operation, from none to the largest."""
SHEAR, SHIFT, TURN, CHANGE = 0.99, 32.0, 135.0, 0.99
"""Largest tangent; pixels; degrees; change of a factor of 1."""

# Imported by the name of what was imported above, because its own import would come before that.
v2 = import_module(f"{torchvision.__name__}.transforms.v2")
functional, BILINEAR = v2.functional, v2.InterpolationMode.BILINEAR

Operation = Callable[[Tensor, float], Tensor]
"""Images uint8 [n, channels, height, width] and a strength from 0 to 1, or from -1 if signed."""


def _sheared(x: float, y: float) -> Operation:
    def shear(images: Tensor, strength: float) -> Tensor:
        angles = [math.degrees(math.atan(SHEAR * strength * axis)) for axis in (x, y)]
        moved = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": angles}
        return functional.affine(images, **moved, interpolation=BILINEAR, center=[0, 0])

    return shear


def _shifted(x: int, y: int) -> Operation:
    def shift(images: Tensor, strength: float) -> Tensor:
        pixels = int(SHIFT * strength)
        moved = {"angle": 0.0, "translate": [pixels * x, pixels * y], "scale": 1.0}
        return functional.affine(images, **moved, shear=[0.0, 0.0], interpolation=BILINEAR)

    return shift


def _changed(of: Callable[[Tensor, float], Tensor]) -> Operation:
    return lambda images, strength: of(images, 1 + CHANGE * strength)


SIGNED: dict[str, Operation] = {
    "shear_x": _sheared(1, 0),
    "shear_y": _sheared(0, 1),
    "translate_x": _shifted(1, 0),
    "translate_y": _shifted(0, 1),
    "rotate": lambda images, strength: functional.rotate(
        images, TURN * strength, interpolation=BILINEAR
    ),
    "brightness": _changed(functional.adjust_brightness),
    "color": _changed(functional.adjust_saturation),
    "contrast": _changed(functional.adjust_contrast),
    "sharpness": _changed(functional.adjust_sharpness),
}
UNSIGNED: dict[str, Operation] = {
    "identity": lambda images, strength: images,
    "posterize": lambda images, strength: functional.posterize(images, 8 - round(6 * strength)),
    "solarize": lambda images, strength: functional.solarize(images, 255 * (1 - strength)),
    "auto_contrast": lambda images, strength: functional.autocontrast(images),
    "equalize": lambda images, strength: functional.equalize(images),
}
OPERATIONS = tuple((SIGNED | UNSIGNED).items())


def trivial_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Alters each image by one random operation of random strength.

    Images are uint8 [B, 3, height, width], on any device, and change in place; `generator` is the
    CPU's, so that the draws are the same on every device. Images with the same draw are altered
    together.
    """
    alike = defaultdict[tuple[int, float], list[int]](list)
    for number, draw in enumerate(draws(len(images), generator)):
        alike[draw].append(number)
    # One copy to a card for all groups: on a real batch hardly two images have the same draw.
    order = torch.tensor([number for members in alike.values() for number in members])
    groups = up(order, images.device).split([len(members) for members in alike.values()])
    for (operation, strength), of in zip(alike, groups, strict=True):
        images[of] = OPERATIONS[operation][1](images[of], strength)
    return images


def draws(count: int, generator: torch.Generator) -> list[tuple[int, float]]:
    """The operation of each image, and its strength."""
    operations = torch.randint(len(OPERATIONS), (count,), generator=generator).tolist()
    strengths = torch.randint(BINS, (count,), generator=generator).div(BINS - 1)
    signs = torch.randint(2, (count,), generator=generator).mul(2).sub(1)
    return [
        (operation, float(sign * strength if operation < len(SIGNED) else strength))
        for operation, strength, sign in zip(operations, strengths, signs, strict=True)
    ]

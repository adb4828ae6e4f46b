"""Backbones, from images to features: a small CNN, and torchvision's models without their heads."""

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import BackboneConfig
from harness.errors import UserError, one_line

SMALL_WIDTHS = (32, 64, 128, 192)


class Backbone(nn.Module):
    """[B, channels, height, width] -> [B, features]."""

    def __init__(self, body: nn.Module, body_features: int, config: BackboneConfig) -> None:
        super().__init__()
        self.body = body
        self.features = config.feature_dim or body_features
        self.embedding = embedding(body_features, config) if config.feature_dim else nn.Identity()
        self.frozen = config.frozen == "body"
        if self.frozen:
            body.requires_grad_(False).eval()

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that training changes."""
        return [each for each in self.parameters() if each.requires_grad]

    @property
    def statistics(self) -> list[Tensor]:
        """The batch statistics that training changes."""
        changing = self.embedding if self.frozen else self
        return [each for each in changing.buffers() if each.is_floating_point()]

    def train(self, mode: bool = True) -> "Backbone":
        """A frozen body stays in evaluation, so that its batch statistics stay as they are."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding(self.body(images).flatten(1))


def make_backbone(config: BackboneConfig, channels: int, image_size: int, seed: int) -> Backbone:
    """The backbone that the config names, with weights that depend only on the seed.

    Raises UserError for an unknown name, or images that the network cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            body = _body(config, channels, image_size)
            features = _features_of(body, channels, image_size)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = one_line(error, 120)
            if "memory" in reason:
                raise UserError(
                    f"backbone.name={config.name} with {channels} x {image_size} x {image_size} "
                    f"images needs more memory than is free; lower data.image_size"
                ) from error
            raise UserError(
                f"backbone.name={config.name} cannot take {channels} x {image_size} x {image_size} "
                f"images ({reason}); {_advice(config, channels, image_size)}"
            ) from error
        return Backbone(body, features, config)


def check_size(backbone: Backbone, config: BackboneConfig, channels: int, size: int) -> None:
    """Raises UserError if the backbone, made for training images, takes no images of `size`."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            fits = backbone(torch.zeros(1, channels, size, size)).shape[1] == backbone.features
    except (RuntimeError, AssertionError, ValueError):
        fits = False
    backbone.train(training)
    if not fits:
        raise UserError(
            f"backbone.name={config.name} is made for images of data.image_size and cannot take "
            f"data.validation_size={size}; leave data.validation_size out, or use another backbone"
        )


def _advice(config: BackboneConfig, channels: int, image_size: int) -> str:
    """Advice on image sizes near this one that work, found on tensors without memory."""
    # Networks need multiples of a patch, of their stride, or of both times a window's side.
    units = [(unit, image_size // unit) for unit in (14, 16, 32, 224)]
    tried = sorted({unit * (times + more) for unit, times in units for more in (-1, 0, 1, 2)})
    below = [size for size in reversed(tried) if 0 < size < image_size]
    above = [size for size in tried if size > image_size]
    found = [
        next((size for size in sizes if _works(config, channels, size)), None)
        for sizes in (below, above)
    ]
    sizes = " or ".join(f"data.image_size={size}" for size in found if size)
    return f"set {sizes}, or use another backbone" if sizes else "use another backbone"


def _works(config: BackboneConfig, channels: int, image_size: int) -> bool:
    try:
        with torch.device("meta"):
            _features_of(_body(config, channels, image_size), channels, image_size)
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def _body(config: BackboneConfig, channels: int, image_size: int) -> nn.Module:
    if config.name == "small_cnn":
        return small_cnn(channels, config.norm)
    return _torchvision_body(config, channels, image_size)


def embedding(body_features: int, config: BackboneConfig) -> nn.Sequential:
    """A linear layer to `feature_dim`, normalised so that the initial logits have a sane size."""
    width = config.feature_dim
    norms = {"batch": nn.BatchNorm1d, "group": nn.LayerNorm, "none": nn.Identity}
    linear = nn.Linear(body_features, width, bias=config.norm == "none")
    return nn.Sequential(linear, norms[config.norm](width))


def small_cnn(channels: int, norm: str) -> nn.Sequential:
    """Four 3x3 convolutions, the first three followed by pooling; trains well on a CPU core."""
    layers: list[nn.Module] = []
    for stage, width in enumerate(SMALL_WIDTHS):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none"))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(width))
        elif norm == "group":
            layers.append(nn.GroupNorm(width // 16, width))
        layers.append(nn.ReLU(inplace=True))
        if stage < 3:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(*layers)


def _torchvision_body(config: BackboneConfig, channels: int, image_size: int) -> nn.Module:
    if config.norm != "batch":
        raise UserError(
            f"backbone.norm={config.norm} applies only to small_cnn, but backbone.name is "
            f"{config.name}; use norm=batch"
        )
    # Imported here, because it takes a second and our own backbone does not need it.
    from harness.model.torchvision import torchvision

    models = torchvision.models
    known = models.list_models(module=models)
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown backbone.name={config.name}; use small_cnn or one of torchvision's, e.g. "
            f"resnet18; the nearest is {near}"
        )
    body = _with_head(config.name, image_size)
    _replace(body, _head_of(body), nn.Identity())
    _fit_first_convolution(body, channels)
    return body


def head_of(name: str) -> str:
    """The name, in torchvision's model, of the layer that is left out; "" in `small_cnn`."""
    if name == "small_cnn":
        return ""
    with torch.device("meta"):
        return _head_of(_with_head(name, image_size=224))


def _with_head(name: str, image_size: int) -> nn.Module:
    from harness.model.torchvision import torchvision

    builder = torchvision.models.get_model_builder(name)
    body: nn.Module = builder(weights=None, **_options(builder, name, image_size))
    return body


def _options(builder: Any, name: str, image_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    assert "weights" in inspect.signature(builder).parameters
    return options


def _head_of(body: nn.Module) -> str:
    """The last layer that makes class scores; without it the features before it come out."""
    scoring = [
        name
        for name, module in body.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ]
    return scoring[-1]


def _fit_first_convolution(body: nn.Module, channels: int) -> None:
    name, first = next(
        (name, module) for name, module in body.named_modules() if isinstance(module, nn.Conv2d)
    )
    if first.in_channels == channels:
        return
    fitted = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    _replace(body, name, fitted)


def _replace(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(body.get_submodule(parent), child, module)


def _features_of(body: nn.Module, channels: int, image_size: int) -> int:
    training = body.training
    body.eval()
    with torch.no_grad():
        features = body(torch.zeros(1, channels, image_size, image_size))
    body.train(training)
    return features.flatten(1).shape[1]

"""Checks that a backbone can be trained with a number of images per rank, by a short pass."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.errors import UserError
from harness.model.backbone import Backbone


def training_pass(backbone: Backbone, channels: int, image_size: int, images: int) -> Tensor:
    """Features of black images in a forward pass in training mode, [images, D].

    Leaves torch's random state unchanged. Raises UserError, naming the layer, if batch norm gets
    only one value per channel.
    """
    reached: list[str] = []
    names = {module: name for name, module in backbone.named_modules()}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: reached.append(names[module]))
        for module in names
        if isinstance(module, _BatchNorm)
    ]
    parameter = next(backbone.parameters())
    black = torch.zeros(images, channels, image_size, image_size).to(parameter)
    devices = [parameter.device] if parameter.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            features: Tensor = backbone.train()(black)
            return features
    except ValueError as error:
        if images > 1 or not reached:
            raise
        raise UserError(_one_value(backbone, reached[-1])) from error
    finally:
        for hook in hooks:
            hook.remove()


def _one_value(backbone: Backbone, layer: str) -> str:
    advice = ["raise train.batch_size"]
    if layer.startswith("embedding"):
        advice.append("set backbone.feature_dim=0")
    else:
        advice.append("raise data.image_size")
    if isinstance(backbone.body, nn.Sequential):  # small_cnn, which has a choice of norms
        advice.append("set backbone.norm=group")
    return (
        f"train.batch_size=1 gives batch norm one value per channel in the backbone's layer "
        f"{layer}, but it needs two; {', or '.join(advice)}"
    )

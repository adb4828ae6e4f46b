"""The update rule over flat parameters, and the learning rate over the run."""

import math
from collections.abc import Sequence

import torch

from harness.config import OptimizerConfig
from harness.exchange.flat import Flat


def make_optimizer(config: OptimizerConfig, flats: Sequence[Flat]) -> torch.optim.Optimizer:
    """The optimizer over the few flat tensors; biases and norm parameters are not decayed."""
    decayed = [flat.decayed for flat in flats if flat.decayed.numel()]
    undecayed = [flat.undecayed for flat in flats if flat.undecayed.numel()]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True
    )


def lr_at(config: OptimizerConfig, window: int, windows: int) -> float:
    """Learning rate of one of `windows` windows: linear warm-up, then the schedule."""
    span = max(1, windows - config.warmup_windows)
    return scheduled_lr(config, window, (window - config.warmup_windows) / span)


def scheduled_lr(config: OptimizerConfig, window: int, done: float) -> float:
    """The same as `lr_at`; `done` is the completed share of the run after the warm-up."""
    if window < config.warmup_windows:
        return config.lr * (window + 1) / config.warmup_windows
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(done >= at for at in config.milestones)
    return config.lr

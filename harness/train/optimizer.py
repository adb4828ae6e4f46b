"""The update rule over flat parameters, and the learning rate over the run."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.config import OptimizerConfig
from harness.exchange.flat import Flat
from harness.train.row_optimizer import BETA2, EPSILON, RowOptimizer

FACTOR = "lr_factor"
"""The key in a group of its factor on the learning rate."""


class Optimizer(Protocol):
    """What training needs of an optimizer; torch's have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    @property
    def state(self) -> Mapping[Any, dict[str, Tensor]]: ...

    def step(self) -> object: ...


class Together:
    """Several optimizers that step as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> Mapping[Any, dict[str, Tensor]]:
        """A copy of what the parts have by now, with the same tensors."""
        return {view: states for part in self._parts for view, states in part.state.items()}

    def step(self) -> None:
        for part in self._parts:
            part.step()


def make_optimizer(
    config: OptimizerConfig,
    flats: Sequence[Flat],
    drawn: Callable[[], Tensor] | None = None,
    loaded: float = 1.0,
) -> Optimizer:
    """The optimizer over the few flat tensors; biases and norm parameters are not decayed.

    What flats step row by row has a `RowOptimizer`, which `drawn` is for. `loaded` is the factor on
    the learning rate of what flats have as loaded.
    """
    parts: list[torch.optim.Optimizer] = []
    whole = _groups(
        config,
        (view for flat in flats for view in flat.decayed),
        (view for flat in flats for view in flat.undecayed),
    )
    whole += _groups(
        config,
        (view for flat in flats for view in flat.decayed_loaded),
        (view for flat in flats for view in flat.undecayed_loaded),
        loaded,
    )
    if whole:
        parts.append(_whole(config, whole))
    decayed = (view for flat in flats for view in flat.decayed_rows)
    undecayed = (view for flat in flats for view in flat.undecayed_rows)
    if rows := _groups(config, decayed, undecayed):
        parts.append(RowOptimizer(rows, config, drawn))
    return parts[0] if len(parts) == 1 else Together(parts)


def _groups(
    config: OptimizerConfig,
    decayed: Iterable[nn.Parameter],
    undecayed: Iterable[nn.Parameter],
    factor: float = 1.0,
) -> list[dict[str, Any]]:
    """The groups of these parameters that are not empty, with a factor on their learning rate."""
    groups: list[dict[str, Any]] = [
        {"params": [each for each in decayed if each.numel()], "weight_decay": config.weight_decay},
        {"params": [each for each in undecayed if each.numel()], "weight_decay": 0.0},
    ]
    rate = {"lr": config.lr * factor, FACTOR: factor}
    return [group | rate for group in groups if group["params"]]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate, which each group multiplies by its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[FACTOR]


def _whole(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if config.name == "adamw":
        betas = config.momentum, BETA2
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=EPSILON, fused=True)
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

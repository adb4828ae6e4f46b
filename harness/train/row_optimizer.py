"""The update rules row by row, for a classifier of which few classes take part in a step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.config import OptimizerConfig

BETA2, EPSILON = 0.999, 1e-8
"""AdamW's second momentum, and the smallest root that it divides by."""
TILE_BYTES = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Size of the rows that are stepped at once, bytes of each tensor: small enough for a processor's
cache, large enough for a card."""
SEARCHED_TILES = 4
"""Tiles of gradients that a processor searches at once."""
PACKS = {"cpu": True, "cuda": False}
"""Whether rows that rest are left out of a tile. A card would have to tell the host how many there
are; it computes them, too, and puts their old values back."""

Tensors = Mapping[str, Tensor]


class Rule(Protocol):
    """An update rule."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the states that it keeps for each element."""

    @property
    def counts(self) -> bool:
        """Whether it needs the number of steps, with the one under way, as the state `step`."""

    def __call__(self, values: Tensor, gradient: Tensor, states: Tensors, group: Any) -> None:
        """Changes values and states in place. `group` holds `lr` and `weight_decay`."""


@dataclass(frozen=True)
class Sgd:
    """Torch's SGD."""

    momentum: float
    nesterov: bool
    counts = False

    @property
    def kept(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def __call__(self, values: Tensor, gradient: Tensor, states: Tensors, group: Any) -> None:
        gradient = gradient.add(values, alpha=group["weight_decay"])
        if self.momentum:
            buffer = states["momentum_buffer"].mul_(self.momentum).add_(gradient)
            gradient = gradient.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        values.sub_(gradient, alpha=group["lr"])


@dataclass(frozen=True)
class AdamW:
    """Torch's AdamW, except that a row keeps its momenta while it rests. Steps are counted for all
    rows together, as torch's SparseAdam does."""

    beta1: float
    kept = ("exp_avg", "exp_avg_sq")
    counts = True

    def __call__(self, values: Tensor, gradient: Tensor, states: Tensors, group: Any) -> None:
        count, first, second = states["step"].double(), states["exp_avg"], states["exp_avg_sq"]
        values.mul_(1 - group["lr"] * group["weight_decay"])
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = (second / (1 - BETA2**count)).sqrt_().add_(EPSILON)
        values.sub_(first / root * (group["lr"] / (1 - self.beta1**count)))


def rule_of(config: OptimizerConfig) -> Rule:
    if config.name == "adamw":
        return AdamW(config.momentum)
    return Sgd(config.momentum, config.nesterov)


class RowOptimizer(torch.optim.Optimizer):
    """Steps the rows whose gradient is not zero throughout, and then sets that gradient to zero.

    A row that rests keeps its value and its states: no momentum, no weight decay. What decides is
    the gradient that all replicas step with, so that all of them step the same rows; it is zero for
    a class that took part in no micro-batch of the step on any of them. The zeros leave nothing to
    clear before the next step, and let a row that `drawn` names twice step once.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        config: OptimizerConfig,
        drawn: Callable[[], Tensor] | None = None,
    ) -> None:
        """Parameters are [rows, width]. `drawn` returns the rows whose gradient may not be zero,
        the same in each parameter, so that no other is read; None reads all."""
        self._rule = rule_of(config)
        self._drawn = drawn
        super().__init__([dict(group) for group in groups], {"lr": config.lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; the gradients of rows that moved are zero afterwards."""
        for group in self.param_groups:
            for parameter in group["params"]:
                states = self._states(parameter)
                if self._rule.counts:
                    states["step"] += 1
                for rows in self._tiles(parameter):
                    self._step(parameter, states, rows, group)

    def _states(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        states: dict[str, Tensor] = self.state[parameter]
        if not states:
            states |= {name: torch.zeros_like(parameter) for name in self._rule.kept}
            if self._rule.counts:
                states["step"] = torch.zeros((), device=parameter.device)
        return states

    def _tiles(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """All rows that may move, some at a time."""
        size = max(1, TILE_BYTES[parameter.device.type] // parameter[:1].nbytes)
        if self._drawn is not None:
            yield from self._drawn().split(size)
        elif PACKS[parameter.device.type]:
            assert parameter.grad is not None
            parts = parameter.grad.split(SEARCHED_TILES * size)
            found = torch.cat([_moves(part) for part in parts])
            yield from found.nonzero()[:, 0].split(size)
        else:
            yield from torch.arange(len(parameter), device=parameter.device).split(size)

    def _step(
        self, parameter: nn.Parameter, states: Tensors, rows: Tensor, group: Mapping[str, Any]
    ) -> None:
        """Steps those of `rows` that move."""
        whole = parameter.grad
        assert whole is not None
        gradient = whole.index_select(0, rows)
        moves = _moves(gradient)
        packs = PACKS[parameter.device.type]
        if packs and not bool(moves.all()):
            packed = moves.nonzero()[:, 0]
            rows, gradient = rows[packed], gradient.index_select(0, packed)
        wholes = {"values": parameter} | {name: states[name] for name in self._rule.kept}
        new = {name: each.index_select(0, rows) for name, each in wholes.items()}
        self._rule(new["values"], gradient, {**states, **new}, group)
        for name, each in wholes.items():
            if not packs:
                new[name] = new[name].where(moves[:, None], each.index_select(0, rows))
            each.index_copy_(0, rows, new[name])
        whole.index_fill_(0, rows, 0.0)


def _moves(gradient_rD: Tensor) -> Tensor:
    """Which rows are not zero throughout, NaN included, bool [r]."""
    return gradient_rD.abs().amax(dim=1) != 0

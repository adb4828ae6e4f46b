"""The learning rate over a run, and which parameters decay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from harness.config import OptimizerConfig
from harness.exchange.flat import Flat
from harness.train.optimizer import lr_at, make_optimizer


def rates(windows: int, **values: object) -> list[float]:
    config = OptimizerConfig.model_validate({"lr": 8.0, **values})
    return [lr_at(config, window, windows) for window in range(windows)]


def test_constant() -> None:
    assert rates(4, schedule="constant") == [8, 8, 8, 8]


def test_the_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    assert rates(6, schedule="constant", warmup_windows=4) == [2, 4, 6, 8, 8, 8]


def test_steps_fall_at_shares_of_what_follows_the_warm_up() -> None:
    found = rates(10, schedule="step", warmup_windows=2, gamma=0.5)
    assert found == [4, 8, 8, 8, 8, 8, 4, 4, 2, 2]


def test_cosine_goes_from_the_peak_towards_zero() -> None:
    found = rates(4, schedule="cosine")
    assert found == pytest.approx([4 * (1 + math.cos(math.pi * part / 4)) for part in range(4)])


@given(st.sampled_from(["constant", "step", "cosine"]), st.integers(1, 200), st.integers(0, 250))
def test_the_rate_rises_while_warming_up_and_never_after(
    schedule: str, windows: int, warmup: int
) -> None:
    found = rates(windows, schedule=schedule, warmup_windows=warmup)
    assert all(0 < rate <= 8 for rate in found)
    rising, falling = found[:warmup], found[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_matrices_and_filters_decay(name: str) -> None:
    matrix, bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    flat = Flat([matrix, bias], 1, matrix)
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.5)
    make_optimizer(config, [flat, Flat([], 1, matrix)]).step()
    assert (matrix < 1).all()
    assert (bias == 1).all()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(lr=0.1, momentum=0.8, nesterov=False, weight_decay=0), torch.optim.SGD),
        (OptimizerConfig(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0), torch.optim.SGD),
        (OptimizerConfig(lr=0.1, momentum=0.0, nesterov=True, weight_decay=0), torch.optim.SGD),
        (OptimizerConfig(name="adamw", lr=0.1, momentum=0.8, weight_decay=0), torch.optim.AdamW),
    ],
)
def test_steps_are_those_of_the_rule(
    config: OptimizerConfig, expected: type[torch.optim.Optimizer]
) -> None:
    """momentum is SGD's, and AdamW's beta1; Nesterov's means nothing without it."""
    mine, theirs = (nn.Parameter(torch.ones(2, 2, dtype=torch.float64)) for _ in range(2))
    optimizer = make_optimizer(config, [Flat([mine], 1, mine)])
    if expected is torch.optim.AdamW:
        oracle = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.999), weight_decay=0)
    else:
        nesterov = config.nesterov and config.momentum > 0
        oracle = torch.optim.SGD([theirs], lr=0.1, momentum=config.momentum, nesterov=nesterov)
    for _ in range(3):
        mine.grad.copy_(mine.detach().cos())
        theirs.grad = theirs.detach().cos()
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)

"""Rows with a gradient step as torch steps them; the others rest, and all is cleared."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.config import OptimizerConfig
from harness.exchange.flat import Flat, by_rows
from harness.train import row_optimizer
from harness.train.optimizer import Together, make_optimizer
from harness.train.row_optimizer import RowOptimizer

CLASSES, FEATURES, STEPS = 11, 4, 5
CONFIGS = {
    "sgd": OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.05),
    "heavy ball": OptimizerConfig(lr=0.1, momentum=0.8, nesterov=False, weight_decay=0.05),
    "nesterov": OptimizerConfig(lr=0.1, momentum=0.8, weight_decay=0.05),
    "adamw": OptimizerConfig(name="adamw", lr=0.1, momentum=0.8, weight_decay=0.05),
}
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(params=[True, False], ids=["packed", "as on a card"])
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(row_optimizer.PACKS, "cpu", request.param)
    monkeypatch.setitem(row_optimizer.TILE_BYTES, "cpu", 3 * FEATURES * 8)


def parameters() -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """A backbone's matrix; weight and bias of the classes."""
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 3), (CLASSES, FEATURES), (CLASSES,)
    return tuple(
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in shapes
    )


def moving(step: int) -> list[int]:
    """All rows, then few, then none, then others."""
    return [list(range(CLASSES)), [1, 4, 9], [], [4, 10], [0, 1, 2]][step]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(each.shape, generator=generator).double() for each in parameters()]
    rest = [row for row in range(CLASSES) if row not in moving(step)]
    for each in found[1:]:
        each[rest] = 0.0
    return found


def expected(config: OptimizerConfig) -> list[Tensor]:
    """Torch's own optimizer, after which rows that rest are put back, their states too."""
    made = parameters()
    groups = [{"params": made[:2], "weight_decay": 0.05}, {"params": made[2:], "weight_decay": 0.0}]
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.999))
    else:
        nesterov = config.nesterov and config.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=config.momentum, nesterov=nesterov)
    for step in range(STEPS):
        for parameter, gradient in zip(made, gradients(step), strict=True):
            parameter.grad = gradient
        rest = [row for row in range(CLASSES) if row not in moving(step)]
        held = [each for part in made[1:] for each in (part.data, *states_of(optimizer, part))]
        before = [each[rest].clone() for each in held]
        optimizer.step()
        for each, rows in zip(held, before, strict=True):
            each[rest] = rows
    return [each.detach() for each in made]


def states_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    return [each for _, each in sorted(optimizer.state[parameter].items()) if each.dim()]


def stepped(
    config: OptimizerConfig, flats: list[Flat], made: tuple[nn.Parameter, ...], **options: object
) -> None:
    optimizers = [make_optimizer(config, [flat], **options) for flat in flats]
    for step in range(STEPS):
        for parameter, gradient in zip(made, gradients(step), strict=True):
            parameter.grad.copy_(gradient)
        for optimizer in optimizers:
            optimizer.step()


@EACH_CONFIG
@pytest.mark.usefixtures("packs")
def test_rows_step_or_rest(config: OptimizerConfig) -> None:
    made = parameters()
    flat = Flat(list(made), 1, made[0], by_row=made[1:])
    stepped(config, [flat], made)
    for own, oracle in zip(made, expected(config), strict=True):
        torch.testing.assert_close(own.detach(), oracle, rtol=1e-12, atol=1e-14)
    assert not made[1].grad.any()
    assert not made[2].grad.any()


@EACH_CONFIG
@pytest.mark.usefixtures("packs")
def test_drawn_rows_are_all_that_is_read_and_one_drawn_twice_steps_once(
    config: OptimizerConfig,
) -> None:
    """Rows that are not drawn do not step, whatever is in their gradient."""
    made, steps = parameters(), iter(range(STEPS))
    flat = Flat(list(made[1:]), 1, made[1], by_row=made[1:])

    def drawn() -> Tensor:
        return torch.tensor([*rows, *rows[::-1], *([3] if rows else [])], dtype=torch.int64)

    optimizer = make_optimizer(config, [flat], drawn)
    for step in steps:
        rows = moving(step)
        for parameter, gradient in zip(made[1:], gradients(step)[1:], strict=True):
            parameter.grad.copy_(gradient)
            parameter.grad[[each for each in range(CLASSES) if each not in {*rows, 3}]] = 7.0
        optimizer.step()
        flat.grads.zero_()
    for own, oracle in zip(made[1:], expected(config)[1:], strict=True):
        torch.testing.assert_close(own.detach(), oracle, rtol=1e-12, atol=1e-14)


@EACH_CONFIG
@pytest.mark.parametrize("chunks", [2, 3, 5, 13])
def test_chunks_that_end_within_rows_step_them_together(
    config: OptimizerConfig, chunks: int
) -> None:
    found = torch.zeros(0, dtype=torch.float64)
    for owner in range(chunks):
        made = parameters()
        flat = Flat(list(made), chunks, made[0], owner, by_row=made[1:])
        stepped(config, [flat], made)
        found = torch.cat((found, flat.values[flat.owned.start : flat.owned.stop]))
    whole = expected(config)
    oracle = torch.cat([whole[1].flatten(), whole[0].flatten(), whole[2]])
    torch.testing.assert_close(found[: len(oracle)], oracle, rtol=1e-12, atol=1e-14)
    assert not found[len(oracle) :].any()


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 7), st.integers(0, 5))
def test_cuts_are_parts_of_rows_and_whole_rows(
    start: int, length: int, width: int, origin: int
) -> None:
    start += origin
    cuts = by_rows(start, start + length, origin, width)
    assert [place for low, high, _ in cuts for place in range(low, high)] == list(
        range(start, start + length)
    )
    for low, high, wide in cuts:
        rows = {(place - origin) // width for place in range(low, high)}
        assert (high - low) == wide * len(rows)
        assert wide == width or len(rows) == 1


def test_a_number_that_is_zero_is_not_a_row_that_is() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    flat = Flat([weight], 1, weight, by_row=[weight])
    weight.grad[0, 1] = 1.0
    make_optimizer(CONFIGS["sgd"], [flat]).step()
    assert (weight[0] < 1).all(), "weight decay"
    assert (weight[1] == 1).all()


def test_a_gradient_that_is_not_finite_is_not_taken_for_rest() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    flat = Flat([weight], 1, weight, by_row=[weight])
    weight.grad[0, 1] = math.nan
    make_optimizer(CONFIGS["nesterov"], [flat]).step()
    assert weight[0, 1].isnan()


@pytest.mark.parametrize("config", [CONFIGS["nesterov"], CONFIGS["adamw"]], ids=["sgd", "adamw"])
def test_states_have_the_names_of_torchs(config: OptimizerConfig) -> None:
    """A checkpoint of a run with sampling resumes one without, and the other way round."""
    made = parameters()
    flat = Flat(list(made), 1, made[0], by_row=made[1:])
    optimizer = make_optimizer(config, [flat])
    assert isinstance(optimizer, Together)
    assert not optimizer.state
    optimizer.step()
    whole, rows = optimizer.state[flat.decayed[0]], optimizer.state[flat.decayed_rows[0]]
    assert whole.keys() == rows.keys()
    assert all((whole[key].dim() > 0) is (rows[key].dim() > 0) for key in whole)
    assert {id(view) for view in optimizer.state} <= {id(view) for view in flat.stepped}


def test_a_rate_that_is_set_holds_for_all_parts() -> None:
    made = parameters()
    flat = Flat(list(made), 1, made[0], by_row=made[1:])
    optimizer = make_optimizer(CONFIGS["sgd"], [flat])
    assert len(optimizer.param_groups) == 3
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    flat.grads.fill_(1.0)
    optimizer.step()
    assert all(torch.equal(own, old) for own, old in zip(made, parameters(), strict=True))


def test_only_rows_need_no_other_optimizer() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = make_optimizer(CONFIGS["sgd"], [Flat([weight], 1, weight, by_row=[weight])])
    assert isinstance(optimizer, RowOptimizer)

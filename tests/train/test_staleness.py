"""When a run is measured, what is made of it, and when its user is warned."""

import math
from dataclasses import replace

import pytest
import torch

from harness.config import Config
from harness.exchange.lateness import Lateness
from harness.parallel.topology import Topology
from harness.train.course import course_of
from harness.train.stability import Dynamics, dynamics_of, largest_stable_product
from harness.train.staleness import StalenessLedger
from tests.alone import world_of_one

WINDOWS = 100


class Record:
    """A journal that keeps everything."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.warnings: list[str] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append((step, metrics))

    def advance(self, window: int, windows: int, note: str) -> None:
        return None

    def warn(self, name: str, line: str) -> None:
        self.warnings.append(line)


class Late:
    """An exchange's lateness, by hand."""

    def __init__(self, *found: Lateness) -> None:
        self._found = iter(found)

    def lateness(self) -> Lateness:
        return next(self._found)


def config(**sections: dict[str, object]) -> Config:
    plain = {"lr": 0.2, "momentum": 0.9, "nesterov": False, "schedule": "constant"}
    values = {
        "train": {"steps": WINDOWS},
        "exchange": {"kind": "delayed", "delay": 1},
        **sections,
        "optimizer": plain | sections.get("optimizer", {}),
    }
    return Config.model_validate(values)


def ledger(settings: Config, nodes: int = 2, first: int = 0) -> StalenessLedger:
    """Of the first rank, which alone is there."""
    world = replace(world_of_one(), topology=Topology(0, nodes, 1))
    return StalenessLedger(settings, world, course_of(settings, 1000, 0, 1, first))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, Dynamics(0.9, False, delay=1)),
        ({"exchange": {"kind": "synchronous"}}, Dynamics(0.9, False)),
        (
            {"exchange": {"kind": "delayed", "delay": 2, "synchronous_windows": 9}},
            Dynamics(0.9, False),
        ),
        ({"exchange": {"kind": "isolated"}}, Dynamics(0.9, False)),
        (
            {"exchange": {"kind": "delayed", "delay": 1, "backward_passes_per_step": 4}},
            Dynamics(0.9, False, delay=1),
        ),
        (
            {"exchange": {"kind": "averaging", "delay": 1, "backward_passes_per_step": 4}},
            Dynamics(0.9, False, delay=1, averaging=True, passes=4),
        ),
        ({"optimizer": {"momentum": 0.0, "nesterov": True}}, Dynamics(0.0, False, delay=1)),
        ({"optimizer": {"name": "adamw"}}, None),
    ],
)
def test_what_decides(sections: dict[str, dict[str, object]], expected: Dynamics | None) -> None:
    assert dynamics_of(config(**sections), window=5, nodes=2) == expected


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        ({}, Dynamics(0.9, False)),
        (
            {"outer_lr": 0.7, "outer_momentum": 0.5, "pieces": 2},
            Dynamics(0.9, False, 1, True, 4, 2, 0.7, 0.5, alone=True),
        ),
    ],
)
def test_a_node_alone_averages_with_nobody(outer: dict[str, object], expected: Dynamics) -> None:
    """Only an outer optimizer makes it late: the node's own movement comes back as another."""
    averaging = {"kind": "averaging", "delay": 1, "backward_passes_per_step": 4, **outer}
    settings = config(exchange=averaging)
    assert dynamics_of(settings, window=5, nodes=1) == expected
    assert any(ledger(settings, nodes=1).estimates(n) for n in range(WINDOWS)) == bool(outer)
    together = replace(expected, alone=False)
    assert largest_stable_product(expected) >= largest_stable_product(together)


def test_post_local_sgd_of_one_node_is_plain_sgd() -> None:
    settings = config(exchange={"kind": "ddp_post_local_sgd", "backward_passes_per_step": 4})
    assert dynamics_of(settings, window=5, nodes=1) == Dynamics(0.9, False)


def test_a_run_resumed_after_its_warm_up_is_measured_at_its_own_first_window() -> None:
    settings = config(optimizer={"warmup_windows": 30})
    for first, expected in ((0, [30]), (30, [30]), (50, [50])):
        of_run = ledger(settings, first=first)
        assert [n for n in range(first, WINDOWS + 1) if of_run.estimates(n)] == expected


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"optimizer": {"warmup_windows": 30}}, [30]),
        ({}, [0]),
        (
            {"exchange": {"kind": "averaging", "delay": 1, "synchronous_windows": 7}},
            [7],
        ),
        ({"exchange": {"kind": "averaging", "delay": 0}}, []),
        ({"exchange": {"kind": "synchronous"}}, []),
        ({"optimizer": {"name": "adamw"}}, []),
        ({"optimizer": {"warmup_windows": 200}}, []),
        ({"staleness": {"curvature_after_warmup": False}}, []),
        (
            {"exchange": {"kind": "synchronous"}, "staleness": {"curvature_every": 40}},
            [40, 80],
        ),
    ],
)
def test_when_the_curvature_is_estimated(
    sections: dict[str, dict[str, object]], expected: list[int]
) -> None:
    settings = ledger(config(**sections))
    assert [ended for ended in range(WINDOWS + 1) if settings.estimates(ended)] == expected


def test_an_estimate_beside_the_rate_of_its_window() -> None:
    """Momentum 0.9 one window late: lr * curvature up to 0.1. Half the warm-up: half the rate."""
    record = Record()
    settings = config(optimizer={"warmup_windows": 20})
    ledger(settings).estimated(9, 0.25, record)
    ((step, found),) = record.logged
    assert step == 9
    assert found == pytest.approx(
        {
            "staleness/curvature": 0.25,
            "staleness/stable_lr": 0.4,
            "staleness/lr_over_stable": 0.25,
            "staleness/above_limit": 0.0,
        },
        rel=1e-5,
    )
    assert record.warnings == []


def test_a_rate_above_the_limit_is_told_once_and_again_when_it_doubles() -> None:
    record, of_run = Record(), ledger(config())
    for number, curvature in enumerate((0.45, 1.4, 1.6, 2.0, 3.1, 0.2, 3.3)):
        of_run.estimated(number, curvature, record)
    above = [found["staleness/above_limit"] for _, found in record.logged]
    assert above == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert [line.split(" is ")[1].split(" times")[0] for line in record.warnings] == [
        "3.2",
        "6.6",
    ]
    assert record.warnings[0].startswith("lr 0.2 at window 2 with momentum 0.9 and delay 1 is 3.2")
    assert "0.062" in record.warnings[0], "the largest stable rate"
    assert "use nesterov or less momentum" in record.warnings[0]


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"momentum": 0.9}, "momentum 0.9 and delay 1 leave 2.6% of the learning rate"),
        ({"momentum": 0.9, "nesterov": True}, ""),
        ({"name": "adamw"}, ""),
    ],
)
def test_settings_that_leave_little_are_told_before_training(
    optimizer: dict[str, object], told: str
) -> None:
    """Of 2 (1 + m) without a delay, 1 - m is left with one: 0.1 of 3.8."""
    record = Record()
    ledger(config(optimizer=optimizer)).begins(record)
    assert [line[: len(told)] for line in record.warnings] == ([told] if told else [])


@pytest.mark.parametrize("curvature", [-1.0, 0.0, math.nan])
def test_without_a_curvature_there_is_no_limit(curvature: float) -> None:
    record = Record()
    ledger(config()).estimated(3, curvature, record)
    assert list(record.logged[0][1]) == ["staleness/curvature"]
    assert record.warnings == []


def test_lateness_is_logged_at_intervals_and_the_cosine_when_the_next_one_ends() -> None:
    record = Record()
    sampled = torch.tensor([3.0, 1.0, 36.0], dtype=torch.float64)
    exchange = Late(Lateness(7.0, 9, sampled), Lateness(10.0, 10), Lateness())
    of_run = ledger(config(), nodes=1)  # gathers from nobody
    for window in range(30):
        of_run.window_ended(window, exchange, record)
    assert record.logged == [
        (10, {"staleness/applied_delay": 7 / 9}),
        (10, {"staleness/cosine": 0.5}),
        (20, {"staleness/applied_delay": 1.0}),
    ]

"""The simulator against the cost model, order statistics, and what stalls must do."""

import math
from typing import Any

import pytest

from harness.config import Config
from harness.errors import UserError
from harness.plan.cost_model import largest_normal, predict
from harness.plan.machines import Cluster, Link, Stalls
from harness.plan.simulate import Simulation, simulate
from harness.plan.workload import workload_of
from tests.plan.clusters import cluster, exchanging

KINDS = [
    exchanging("synchronous", "replicated"),
    exchanging("synchronous", "replicated", backward_passes_per_step=4, compression="fp16"),
    exchanging("synchronous"),
    exchanging("synchronous", route="flat"),
    exchanging("synchronous", "world", backward_passes_per_step=2),
    exchanging("synchronous", "world", route="flat", compression="fp16"),
    exchanging("delayed", delay=1),
    exchanging("delayed", delay=3, compression="int8"),
    exchanging("delayed", "world", delay=1),
    exchanging("averaging", delay=1, backward_passes_per_step=2),
    exchanging("averaging", delay=2),
    exchanging("averaging", delay=0),
    exchanging("isolated"),
    exchanging("ddp_powersgd", "replicated"),
    exchanging("ddp_post_local_sgd", "replicated", backward_passes_per_step=2),
]


def run(there: Cluster, config: Config, windows: int = 24, **how: Any) -> Simulation:
    work = workload_of(config, there.nodes, there.ranks_per_node)
    return simulate(there, work, windows, **how)


@pytest.mark.parametrize("cores", [None, 1.0], ids=["cards", "busy-cores"])
@pytest.mark.parametrize("rate", [1e6, 2e7, 1e8, 1e10])
@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.name)
def test_without_jitter_a_window_is_what_the_cost_model_says(
    config: Config, rate: float, cores: float | None
) -> None:
    link = Link(
        bytes_per_second=rate,
        step_seconds=1e-3,
        burst_seconds=5e-4,
        cpu_seconds=2e-4,
        cpu_seconds_per_byte=1e-9,
    )
    there = cluster(link=link, nodes=3, cores_per_node=cores)
    # A queue of late exchanges builds up over many windows where they are little too slow.
    assert run(there, config, windows=240).step_seconds == pytest.approx(
        predict(there, config).step_ms / 1e3, rel=1e-6
    )


@pytest.mark.parametrize("cores", [None, 1.0], ids=["cards", "busy-cores"])
@pytest.mark.parametrize("config", KINDS[:5], ids=lambda config: config.name)
def test_one_machine_by_itself(config: Config, cores: float | None) -> None:
    there = cluster(nodes=1, cores_per_node=cores)
    assert window_of(there, config) == pytest.approx(predict(there, config).step_ms / 1e3)


def test_too_few_windows_are_told() -> None:
    config = exchanging("delayed", delay=3)
    with pytest.raises(UserError, match="give 8 or more"):
        run(cluster(), config, windows=7)
    assert run(cluster(), config, windows=8).step_seconds > 0
    with pytest.raises(UserError, match="give 2 or more"):
        run(cluster(), exchanging("averaging"), windows=1)


def window_of(there: Cluster, config: Config, **how: Any) -> float:
    return run(there, config, **how).step_seconds


@pytest.mark.parametrize("nodes", [2, 8])
def test_nodes_that_wait_take_as_long_as_the_slowest(nodes: int) -> None:
    """One rank on each: the mean of the largest of so many."""
    fast = Link(bytes_per_second=1e18, step_seconds=0.0)
    there = cluster(nodes=nodes, ranks_per_node=1, link=fast, jitter=0.1)
    config = exchanging("synchronous", "replicated")
    calm = there.model_copy(update={"jitter": 0.0})
    compute = workload_of(config, nodes, 1)
    base = window_of(calm, config)
    varying = compute.backbone_flops / 0.5e9 + compute.classifier_flops / 0.5e9
    largest = largest_normal(nodes)[0]
    found = window_of(there, config, windows=6000)
    assert (found - base) / varying == pytest.approx(0.1 * largest, rel=0.08)


def test_the_cost_model_has_the_same_mean_under_jitter() -> None:
    fast = Link(bytes_per_second=1e9, step_seconds=0.0)
    for config in (exchanging("synchronous", backward_passes_per_step=4), exchanging("isolated")):
        there = cluster(nodes=4, ranks_per_node=4, link=fast, jitter=0.05)
        found = window_of(there, config, windows=1500)
        assert found == pytest.approx(predict(there, config).step_ms / 1e3, rel=0.004)


def test_a_stalled_node_holds_up_all_that_wait_for_it_by_all_of_its_stall() -> None:
    fast = Link(bytes_per_second=1e18, step_seconds=0.0)
    calm = cluster(link=fast)
    config = exchanging("synchronous")
    step = window_of(calm, config)
    # Less than once in two windows, each shorter than one.
    stalls = Stalls(every_seconds=2.5 * step, for_seconds=0.5 * step)
    stalled = cluster(link=fast, stalls=stalls)
    # Of every 2.5 steps of time, 2 are left to work in.
    assert window_of(stalled, config, windows=2000) == pytest.approx(step * 1.25, rel=0.01)


def test_a_late_exchange_rides_out_short_stalls_of_several_nodes() -> None:
    """Waiting, the stalls of all nodes add up; late, those that fall together count once."""
    fast = Link(bytes_per_second=1e18, step_seconds=0.0)
    step = window_of(cluster(link=fast), exchanging("synchronous"))
    stalls = Stalls(every_seconds=7.3 * step, for_seconds=0.6 * step, nodes=4)
    there = cluster(nodes=4, link=fast, stalls=stalls)
    waiting, late = (
        window_of(there, config, windows=1000) / window_of(cluster(nodes=4, link=fast), config) - 1
        for config in (exchanging("synchronous"), exchanging("delayed", delay=1))
    )
    assert late == pytest.approx(0.6 / (7.3 - 0.6), rel=0.02)
    assert waiting > 2 * late


def test_the_seed_decides() -> None:
    there = cluster(jitter=0.2)
    config = exchanging("delayed", delay=1)
    first, again, other = (run(there, config, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_ranks_on_shared_cores_even_out() -> None:
    """A core does the same work in any order: the mean over ranks, not the largest."""
    there = cluster(nodes=1, ranks_per_node=4, cores_per_node=1.0, jitter=0.2)
    config = exchanging("isolated")
    calm = there.model_copy(update={"jitter": 0.0})
    assert window_of(there, config, windows=2000) == pytest.approx(
        window_of(calm, config), rel=0.01
    )


def test_thousands_of_ranks() -> None:
    there = cluster(nodes=512, ranks_per_node=8, jitter=0.02)
    config = exchanging("synchronous", "world")
    many = config.model_copy(
        update={"data": config.data.model_copy(update={"num_classes": 100_000})}
    )
    found = run(there, many, windows=20)
    assert math.isfinite(found.step_seconds)
    assert found.wait_seconds > 0

"""The route that is taken, from times at hand, and by a run that measures them."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from harness.config import Config, load
from harness.data.images import Dataset
from harness.data.open import open_dataset
from harness.parallel.topology import Topology
from harness.parallel.world import World
from harness.train import routing
from harness.train.checkpoint.meta import Meta
from harness.train.course import course_of
from harness.train.routing import choose_route
from tests.alone import world_of_one
from tests.horovodrun import horovodrun

EXPERIMENT = """
name: choose_route
data: {dataset: synthetic, num_classes: 200, image_size: 16, synthetic_images: 256}
backbone: {feature_dim: 64}
train: {batch_size: 8, steps: 3, untimed_windows: 0}
tracking: {enabled: false}
doctor: {before_training: false}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(EXPERIMENT)
    return path


def two_by_two() -> World:
    """Nothing is sent over it."""
    return replace(world_of_one(), topology=Topology(0, 2, 2))


def picked(config: Config, times: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> str:
    def given(config: Config, dataset: Dataset, world: World) -> dict[str, float]:
        return times

    monkeypatch.setattr(routing, "measured_ms", given)
    world = two_by_two()
    return choose_route(config, open_dataset(config.data), world).exchange.route


@pytest.mark.parametrize(
    ("hierarchical", "flat", "route"),
    [(100, 90, "flat"), (90, 100, "hierarchical"), (100, 99, "hierarchical")],
)
def test_the_faster_route_is_taken_and_of_equals_the_one_that_sends_less(
    hierarchical: float,
    flat: float,
    route: str,
    experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    times = {"hierarchical": float(hierarchical), "flat": float(flat)}
    assert picked(load(experiment, []), times, monkeypatch) == route
    told = capfd.readouterr().err
    assert told.startswith(
        f"exchange.route={route}: a window takes {hierarchical}.0 ms on the hier"
    )


@pytest.mark.parametrize(("flat", "rounds"), [(160.0, 1), (110.0, 2)])
def test_a_clear_difference_needs_one_round(
    flat: float, rounds: int, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    class Stub:
        def __init__(self, config: Config, dataset: Dataset, world: World) -> None:
            self.route = config.exchange.route

        def window_ms(self, windows: int) -> float:
            return flat if self.route == "flat" else 100.0

        def close(self) -> None:
            timed.append(self.route)

    monkeypatch.setattr(routing, "Trial", Stub)
    monkeypatch.setattr(routing, "slowest", lambda times, world: times)
    config = load(experiment, [])
    found = routing.measured_ms(config, open_dataset(config.data), two_by_two())
    assert found == {"hierarchical": 100.0, "flat": flat}
    assert timed == ["hierarchical", "flat"] * rounds


def test_a_route_that_is_given_is_kept(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load(experiment, ["exchange.route=flat"])
    times = {"hierarchical": 1.0, "flat": 2.0}
    assert picked(config, times, monkeypatch) == "flat"
    late = load(experiment, ["exchange.kind=delayed", "exchange.delay=1"])
    assert picked(late, times, monkeypatch) == "auto", "a late exchange has one route alone"
    assert capfd.readouterr().err == ""


def test_one_rank_has_no_choice(experiment: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = load(experiment, [])
    found = choose_route(config, open_dataset(config.data), world_of_one())
    assert found == config
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("ranks", "expected"), [(4, "flat"), (2, "hierarchical")])
def test_a_resumed_run_keeps_the_route_that_was_picked(
    ranks: int,
    expected: str,
    experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On as many ranks; on others it is picked anew."""
    config = load(experiment, [])
    passed = course_of(config, 256, 0, ranks).passed(0).model_copy(update={"route": "flat"})
    meta = Meta(window=0, num_classes=config.data.num_classes, passed=passed)
    (tmp_path / "checkpoint.json").write_text(meta.to_json())
    again = load(experiment, [f"train.resume={tmp_path}"])
    times = {"hierarchical": 1.0, "flat": 2.0}
    assert picked(again, times, monkeypatch) == expected


def test_a_run_measures_both_prints_it_and_keeps_it_in_its_config(
    experiment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    found = horovodrun(
        ["-m", "harness", "train", str(experiment), "--folder", str(folder)],
        np=4,
        hosts="localhost:2,127.0.0.1:2",
        timeout=200,
    )
    route = yaml.safe_load((folder / "config.yaml").read_text())["exchange"]["route"]
    assert route in ("flat", "hierarchical")
    assert f"exchange.route={route}: a window takes" in found.output

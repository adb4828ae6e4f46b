"""As many pieces as the link needs: from numbers, and in the lab at two rates."""

from pathlib import Path

import pytest
import yaml

from harness.config import load
from harness.data.open import open_dataset
from harness.train.checkpoint.meta import Meta
from harness.train.choose_pieces import PieceTimes, choose_pieces, measured
from harness.train.course import course_of
from tests.alone import world_of_one
from tests.labs import HARNESS, harness, lab_of

EXPERIMENT = """
name: choose_pieces
data: {dataset: synthetic, num_classes: 200, image_size: 16, synthetic_images: 2048}
backbone: {feature_dim: 64}
classifier: {layout: node}
exchange: {kind: averaging, delay: 1, compression: fp16, max_pieces: 16}
optimizer: {lr: 0.01}
train: {batch_size: 16, steps: 3, untimed_windows: 0}
tracking: {enabled: false}
doctor: {before_training: false}
"""


@pytest.mark.parametrize(
    ("transfer_ms", "delay", "pieces"),
    [(0, 1, 1), (69, 1, 1), (71, 1, 2), (211, 1, 4), (211, 2, 2), (211, 0, 4), (9000, 1, 16)],
)
def test_each_piece_lands_in_seven_tenths_of_its_time(
    transfer_ms: float, delay: int, pieces: int
) -> None:
    assert (
        PieceTimes(compute_ms=100, transfer_ms=transfer_ms).fewest_pieces(delay, most=16) == pieces
    )


@pytest.mark.parametrize(("beside_ms", "pieces"), [(0, 3), (20, 3), (40, 5), (70, 16), (90, 16)])
def test_what_is_sent_beside_takes_its_time(beside_ms: float, pieces: int) -> None:
    assert PieceTimes(100, 140.5, beside_ms).fewest_pieces(1, most=16) == pieces


def test_a_slice_with_its_own_pace_is_timed_beside_the_chunk(tmp_path: Path) -> None:
    experiment = tmp_path / "run.yaml"
    experiment.write_text(EXPERIMENT)
    config = load(experiment, ["data.synthetic_images=64", "exchange.slice_pieces=2"])
    found = measured(config, open_dataset(config.data), world_of_one())
    assert min(found.compute_ms, found.transfer_ms, found.beside_ms) > 0


def test_an_epoch_of_few_windows_is_enough_to_measure(tmp_path: Path) -> None:
    experiment = tmp_path / "run.yaml"
    experiment.write_text(EXPERIMENT)
    config = load(experiment, ["data.synthetic_images=64"])  # 4 windows
    found = measured(config, open_dataset(config.data), world_of_one())
    assert found.compute_ms > 0


def test_a_resumed_run_keeps_the_pieces_that_were_picked(tmp_path: Path) -> None:
    """As far as they are still allowed; times would give another number."""
    experiment = tmp_path / "run.yaml"
    experiment.write_text(EXPERIMENT)
    config, world = load(experiment, ["data.synthetic_images=64"]), world_of_one()
    passed = course_of(config, 64, 0, 1).passed(0).model_copy(update={"pieces": 5})
    meta = Meta(window=0, num_classes=config.data.num_classes, passed=passed)
    (tmp_path / "checkpoint.json").write_text(meta.to_json())
    for most, expected in ((8, {5}), (4, {1, 2, 3, 4})):
        changes = [f"exchange.max_pieces={most}", f"train.resume={tmp_path}"]
        again = load(experiment, ["data.synthetic_images=64", *changes])
        found = choose_pieces(again, open_dataset(again.data), world)
        assert found.exchange.pieces in expected


def test_a_slow_link_takes_more_pieces(tmp_path: Path) -> None:
    experiment = tmp_path / "run.yaml"
    experiment.write_text(EXPERIMENT)
    picked = {}
    with lab_of("--hosts", "2", "--slots", "2"):
        for rate in ("none", "20mbit"):
            harness("lab", "rate", rate)
            folder = tmp_path / rate
            launch = ["launch", "-H", "h1:2,h2:2", "--folder", str(folder), str(experiment)]
            done = harness("lab", "run", "--", *HARNESS, *launch, timeout=200)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            picked[rate] = config["exchange"]["pieces"]
            assert f"\nexchange.pieces={picked[rate]}: computing a window takes" in done.stderr
    assert 1 <= picked["none"] < picked["20mbit"] <= 16

"""`exchange.kind=auto`: measured, printed, recorded, kept when a run resumes."""

from pathlib import Path

import pytest

from harness.config import Config, load, load_resolved
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.exchange.kinds import PLANNED
from harness.exchange.pace import Choice, Pace
from harness.plan.workload import workload_of
from harness.train import choose_kind as module
from harness.train.checkpoint.meta import read_meta
from harness.train.choose_kind import choose_kind, measured, settings
from tests.alone import world_of_one
from tests.horovodrun import horovodrun
from tests.train.test_checkpoint import checkpoint_at, trained

EXPERIMENT = """
name: chosen
data: {dataset: synthetic, num_classes: 50, image_size: 8, synthetic_images: 96}
backbone: {feature_dim: 16}
classifier: {layout: node}
exchange: {kind: auto, delay: 1, backward_passes_per_step: 2, compression: int8}
optimizer: {lr: 0.01}
train: {batch_size: 4, epochs: 1, save: true, untimed_windows: 0, matmul_seconds: 0}
tracking: {enabled: false}
doctor: {before_training: false}
"""
SLOW = Pace(10, {"none": 1000, "fp16": 500, "int8": 250}, 1010)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen(config: Config) -> Config:
    return choose_kind(config, open_dataset(config.data), world_of_one())


def test_alone_nothing_is_sent(here: Path) -> None:
    config = load(here / "run.yaml")
    times = measured(config, open_dataset(config.data), world_of_one())
    assert times.compute_ms > 0
    assert set(times.transfer_ms) == {"none", "fp16", "int8"}
    assert all(ms < times.compute_ms for ms in times.transfer_ms.values())


def test_the_choice_is_the_runs_and_kept_when_it_resumes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "measured", lambda *_: SLOW)
    config = chosen(load(here / "run.yaml"))
    exchange = config.exchange
    assert (exchange.kind, exchange.backward_passes_per_step) == ("averaging", 2)
    assert (exchange.delay, exchange.compression) == (1, "int8")
    assert 1 < exchange.pieces <= 16
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("exchange.kind=auto takes kind=averaging K=2 delay=1 compression=int8 ")
    assert "sending takes ms: none 1000, fp16 500, int8 250; expected window" in line
    (here / "resolved.yaml").write_text(config.to_yaml())
    assert load_resolved(here / "resolved.yaml") == config
    trained(config, here / "run")
    (checkpoint,) = (here / "run/checkpoints").iterdir()
    assert read_meta(checkpoint).origin is not None
    # Now the link is fast, and would be given another exchange.
    monkeypatch.setattr(
        module, "measured", lambda *_: Pace(10, dict.fromkeys(SLOW.transfer_ms, 0), 10)
    )
    again = chosen(load(here / "run.yaml", [f"train.resume={checkpoint}", "train.epochs=2"]))
    assert again.exchange == exchange
    fresh = chosen(load(here / "run.yaml"))
    assert fresh.exchange.kind == "synchronous"


def test_settings_are_those_of_a_config(here: Path) -> None:
    config = load(here / "run.yaml")
    for kind in PLANNED:
        whole = config.exchanging(**settings(Choice(kind, 1, 0, "fp16")))
        assert Config.model_validate(whole.model_dump()) == whole


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["train.epochs=null", "train.steps=4"],
            "counts windows of K micro-batches; give train.ep",
        ),
        (["exchange.kind=delayed", "exchange.kinds=[delayed]"], "kinds belongs to kind=auto"),
        (["exchange.kinds=[]"], "chooses among exchange.kinds, found none; name some"),
        (["exchange.kinds=[averaging]", "classifier.layout=world"], "lets nodes step alone"),
        (["exchange.kinds=[isolated]"], "exchange.kinds"),
        (["exchange.pieces=4"], "belong to kind="),
    ],
)
def test_what_does_not_fit(here: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(here / "run.yaml", overrides)
    assert said in str(caught.value)


def test_a_plan_needs_a_kind(here: Path) -> None:
    with pytest.raises(UserError, match="chosen by times that are measured when a run begins"):
        workload_of(load(here / "run.yaml"), 2, 2)


def test_all_ranks_take_the_same(here: Path) -> None:
    """Two nodes of two, which really measure; what they took is in the run's config."""
    command = ["-m", "harness", "train", "run.yaml", "--folder", "run"]
    ended = horovodrun(command, folder=here, environment={"HOROVOD_CYCLE_TIME": "5"})
    lines = [line for line in ended.output.splitlines() if "exchange.kind=auto takes kind=" in line]
    assert len(lines) == 1
    exchange = load_resolved(here / "run/config.yaml").exchange
    assert exchange.kind in PLANNED
    assert f"takes kind={exchange.kind} K={exchange.backward_passes_per_step} " in lines[0]
    assert read_meta(checkpoint_at(here / "run", newest(here))).origin is not None


def newest(here: Path) -> int:
    return max(int(path.name) for path in (here / "run/checkpoints").iterdir())


def test_slices_of_different_sizes_that_do_not_cross(here: Path) -> None:
    """Of 51 classes over the world one of two nodes has more, and exchanges none of them."""
    command = ["-m", "harness", "train", "run.yaml", "--folder", "run"]
    command += ["classifier.layout=world", "data.num_classes=51"]
    ended = horovodrun(command, np=2, folder=here, environment={"HOROVOD_CYCLE_TIME": "5"})
    assert "exchange.kind=auto takes kind=" in ended.output
    assert load_resolved(here / "run/config.yaml").exchange.kind in PLANNED

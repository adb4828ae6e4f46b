"""A run resumes only where its labels mean the classes that they meant in the checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import Config, load
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.train.checkpoint.choice import choose_checkpoint
from harness.train.checkpoint.files import CLASSES
from harness.train.going_on import Place, choose_start
from harness.train.step import Step, make_step
from harness.train.training import Training
from tests.alone import world_of_one
from tests.data.test_folder import write_tree
from tests.horovodrun import horovodrun
from tests.train.checkpoint_program import Journal
from tests.train.test_checkpoint import checkpoint_at, experiment

NAMES = tuple("abcdefghijklm")
RENAMED = (*NAMES[:3], "new", *NAMES[3:-1])
"""A class was added between others, and the last one removed."""


def made(config: Config, names: tuple[str, ...]) -> Step:
    data = replace(open_dataset(config.data), class_names=names)
    return make_step(config, data, world_of_one())


@pytest.fixture(params=[NAMES, ()], ids=["named", "nameless"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    Training(made(load(experiment(tmp_path)), request.param), tmp_path).run(Journal())
    return tmp_path


def config_of(run: Path, *changes: str) -> Config:
    return load(run / "sgd.yaml", ["train.steps=8", *changes])


def resumed(run: Path) -> Config:
    return config_of(run, f"train.resume={checkpoint_at(run, 6)}")


@pytest.mark.parametrize("run", [NAMES], indirect=True)
@pytest.mark.parametrize("goes_on", [False, True])
def test_labels_do_not_shift(run: Path, goes_on: bool) -> None:
    config = resumed(run)
    if goes_on:
        plain = config_of(run)
        config = choose_start(plain, Place(run, goes_on=True), world_of_one()).given(plain)
    with pytest.raises(UserError, match="label 3 is 'new' in the images and 'd' in the") as said:
        made(config, RENAMED)
    assert "give the class folders the names that they had, or train anew" in str(said.value)


def test_what_has_no_names_is_not_compared(run: Path) -> None:
    for names in (NAMES, ()):
        assert made(resumed(run), names).course.first == 6


@pytest.mark.parametrize("run", [NAMES], indirect=True)
def test_lost_names_are_a_bad_checkpoint(run: Path) -> None:
    (checkpoint_at(run, 6) / CLASSES).write_text("[]")
    chosen = choose_checkpoint(config_of(run, f"train.resume={run}"), world_of_one())
    assert chosen is not None
    assert f"skipped 000000006: {CLASSES} has 2 bytes instead of " in chosen.note
    (checkpoint_at(run, 6) / CLASSES).unlink()
    with pytest.raises(UserError, match=f"its {CLASSES} cannot be read; give another checkpoint"):
        made(resumed(run), NAMES)


FOLDER_EXPERIMENT = """
name: named
data: {dataset: image_folder, root: images, num_classes: 3, image_size: 8, verify: none}
backbone: {feature_dim: 6}
train: {batch_size: 2, steps: 2, save: true, matmul_seconds: 0, threads: 1}
tracking: {enabled: false}
"""


def test_all_ranks_refuse_renamed_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "images")
    (tmp_path / "run.yaml").write_text(FOLDER_EXPERIMENT)
    command = ["-m", "harness", "train", "run.yaml", "--folder", "run"]
    horovodrun(command, np=2, hosts="localhost:2", folder=tmp_path)
    for part in ("train", "val"):
        (tmp_path / "images" / part / "cat").rename(tmp_path / "images" / part / "aardvark")
    more = ["train.resume=run", "train.steps=4"]
    command = ["-m", "harness", "train", "run.yaml", *more, "--folder", "new"]
    ended = horovodrun(command, np=2, hosts="localhost:2", folder=tmp_path, check=False)
    assert "label 0 is 'aardvark' in the images and 'ant' in the checkpoint; give" in ended.output
    assert "Exit code: 2" in ended.output
    assert not (tmp_path / "new").exists()

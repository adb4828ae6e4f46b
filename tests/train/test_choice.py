"""Of the checkpoints of a run the newest good one is taken; a bad one is named, and left alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.config import Config, load
from harness.errors import UserError
from harness.train.checkpoint.choice import Chosen, choose_checkpoint
from tests.alone import world_of_one
from tests.train.test_checkpoint import checkpoint_at, experiment, trained

EVERY = (2, 4, 6)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that saved three times."""
    folder = tmp_path_factory.mktemp("original")
    trained(load(experiment(folder), ["train.checkpoint_every=2"]), folder)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def resuming(resume: Path, *changes: str) -> Config:
    file = next(path for path in (resume, *resume.parents) if (path / "sgd.yaml").exists())
    return load(file / "sgd.yaml", [f"train.resume={resume}", *changes])


def chosen(resume: Path, *changes: str) -> Chosen:
    found = choose_checkpoint(resuming(resume, *changes), world_of_one())
    assert found
    return found


def refusal(resume: Path, *changes: str) -> str:
    with pytest.raises(UserError) as caught:
        chosen(resume, *changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def backbone(run: Path, window: int) -> Path:
    return checkpoint_at(run, window) / "backbone.safetensors"


def cut(run: Path, window: int) -> str:
    path = backbone(run, window)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    return f"backbone.safetensors has {size - 100:,} bytes instead of {size:,}"


def flip(run: Path, window: int) -> str:
    (path,) = checkpoint_at(run, window).glob("classifier-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return "classifier-000000000-000000013.safetensors has other content than was written (sha256"


def from_another(run: Path, window: int) -> str:
    """The file of another window has the same size."""
    shutil.copy(backbone(run, 2), backbone(run, window))
    return "backbone.safetensors has other content than was written (sha256"


def lose_file(run: Path, window: int) -> str:
    backbone(run, window).unlink()
    return "backbone.safetensors is missing"


def lose_meta(run: Path, window: int) -> str:
    (checkpoint_at(run, window) / "checkpoint.json").unlink()
    return "checkpoint.json is missing"


def change_meta(run: Path, window: int) -> str:
    path = checkpoint_at(run, window) / "checkpoint.json"
    path.write_text(path.read_text().replace('"batch_size": 3', '"batch_size": 2'))
    return "its checkpoint.json is damaged: it does not match its own checksum"


def cut_meta(run: Path, window: int) -> str:
    path = checkpoint_at(run, window) / "checkpoint.json"
    path.write_text(path.read_text()[:-10])
    return "its checkpoint.json is damaged, or was written by another version"


def interrupt(run: Path, window: int) -> str:
    folder = checkpoint_at(run, window)
    (folder / "checkpoint.json").unlink()
    folder.rename(folder.with_name(folder.name + ".partial"))
    return "it is incomplete: its writing was interrupted, or goes on"


Damage = Callable[[Path, int], str]
DAMAGES: tuple[Damage, ...] = (
    *(cut, flip, from_another, lose_file, lose_meta, change_meta, cut_meta, interrupt),
)
EACH = pytest.mark.parametrize("damage", DAMAGES)


def test_the_newest_is_taken(run: Path) -> None:
    for given in (run, run / "checkpoints", checkpoint_at(run, 6)):
        assert chosen(given) == Chosen(checkpoint_at(run, 6), "")
    assert chosen(checkpoint_at(run, 2)) == Chosen(checkpoint_at(run, 2), "")


@EACH
def test_a_newer_bad_one_is_skipped_and_named(run: Path, damage: Damage) -> None:
    said = damage(run, 6)
    found = chosen(run)
    assert found.folder == checkpoint_at(run, 4)
    assert found.note.startswith(f"train.resume={run} takes 000000004; skipped 000000006")
    assert f": {said}" in found.note
    assert "\n" not in found.note


@EACH
def test_a_bad_one_that_was_asked_for_is_refused(run: Path, damage: Damage) -> None:
    said = damage(run, 6)
    if damage in (lose_meta, interrupt):
        said = "is not a checkpoint (no readable checkpoint.json) and holds none; give a folder"
    assert said in refusal(checkpoint_at(run, 6))


def test_an_older_bad_one_does_not_matter(run: Path) -> None:
    cut(run, 4)
    assert chosen(run) == Chosen(checkpoint_at(run, 6), "")


def test_none_is_good(run: Path) -> None:
    said = [f"{window:09d}: {cut(run, window)}" for window in reversed(EVERY)]
    assert f"cannot be resumed: {', '.join(said)}; give another" in refusal(run)


def test_what_is_beside_its_files_does_not_matter(run: Path) -> None:
    folder = checkpoint_at(run, 6)
    shutil.copy(backbone(run, 6), folder / "classifier-000000000-000000006.safetensors")
    assert chosen(run) == Chosen(folder, "")
    (run / "checkpoints" / "notes").mkdir()
    (run / "checkpoints" / "000000006.old").mkdir()
    assert chosen(run) == Chosen(folder, "")


def test_another_number_of_classes(run: Path) -> None:
    line = refusal(run, "data.num_classes=12")
    assert line.endswith("has 13 classes, but data.num_classes is 12; set data.num_classes=13")


def test_one_from_before_checksums(run: Path) -> None:
    """It may be all that is left of a long training, so it is taken, and that is said."""
    path = checkpoint_at(run, 6) / "checkpoint.json"
    meta = json.loads(path.read_text())
    del meta["files"], meta["sha256"]
    path.write_text(json.dumps(meta))
    assert chosen(run) == Chosen(
        checkpoint_at(run, 6),
        f"train.resume={run} takes 000000006; it is older than checksums, so nobody can tell "
        f"whether its files are whole",
    )
    lose_file(run, 6)
    assert chosen(run).folder == checkpoint_at(run, 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@EACH
def test_a_refused_run_leaves_everything_as_it_was(
    run: Path, damage: Damage, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(run, 6)
    before = contents(run.parent)
    resume = f"train.resume={checkpoint_at(run, 6)}"
    changes = [resume, "tracking.enabled=false", f"tracking.folder={run.parent}/runs"]
    assert main(["train", str(run / "sgd.yaml"), *changes]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"harness: {resume} ")
    assert contents(run.parent) == before
    assert not (run.parent / "runs").exists()


def test_a_run_that_resumes_a_run(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its config names the checkpoint that was taken, and it says which it left out."""
    said = cut(run, 6)
    changes = [f"train.resume={run}", "tracking.enabled=false", "train.steps=5"]
    changes += ["train.matmul_seconds=0", "train.checkpoint_every=0"]
    folder = run.parent / "resumed"
    arguments = ["train", str(run / "sgd.yaml"), *changes, "--folder", str(folder)]
    assert main(arguments) == 0
    warned = [line for line in capfd.readouterr().err.splitlines() if "warning:" in line]
    assert any(f"000000004; skipped 000000006: {said}" in line for line in warned)
    assert load(folder / "config.yaml").train.resume == str(checkpoint_at(run, 4))

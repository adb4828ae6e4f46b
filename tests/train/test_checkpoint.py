"""A checkpoint goes from any number of ranks to any other, whole; a resumed run is the same run."""

import errno
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from harness.config import Config, load
from harness.errors import RunFailed, UserError
from harness.exchange.flat import Flat
from harness.measure.phase import Phase
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.files import write_tensors
from harness.train.checkpoint.manifest import BadCheckpoint
from harness.train.checkpoint.meta import read_meta
from harness.train.optimizer import make_optimizer
from harness.train.step import Step
from harness.train.training import Training
from tests.alone import meters, world_of_one
from tests.horovodrun import horovodrun
from tests.train.checkpoint_program import Journal, Losses, held, made

CLASSES, STEPS = 13, 6
EXPERIMENT = """
data: {dataset: synthetic, num_classes: 13, image_size: 8, synthetic_images: 64}
backbone: {feature_dim: 6}
optimizer: {name: OPTIMIZER, lr: 0.05, warmup_windows: 2}
train: {batch_size: 3, steps: 6, precision: fp64, checkpoint_every: 3, log_every: 1}
"""


def experiment(folder: Path, optimizer: str = "sgd") -> Path:
    path = folder / f"{optimizer}.yaml"
    path.write_text(EXPERIMENT.replace("OPTIMIZER", optimizer))
    return path


def trained(config: Config, folder: Path) -> tuple[Step, dict[int, float]]:
    losses = Losses()
    step = made(config, world_of_one())
    Training(step, folder).run(losses)
    return step, losses.by_window


def checkpoint_at(folder: Path, window: int) -> Path:
    return folder / "checkpoints" / f"{window:09d}"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [name for name in found if not torch.equal(found[name], expected[name])]
    assert differing == []


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def one_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path, dict[str, Tensor]]:
    """A config, the folder of its run by one process, what that held at the end."""
    folder = tmp_path_factory.mktemp(request.param)
    config = load(experiment(folder, request.param))
    step, _ = trained(config, folder)
    return config, folder, held(step)


def test_what_is_loaded_is_what_was_saved(
    one_process: tuple[Config, Path, dict[str, Tensor]],
) -> None:
    config, folder, expected = one_process
    update = {"resume": str(checkpoint_at(folder, STEPS)), "steps": STEPS + 1, "save": False}
    resumed = config.model_copy(update={"train": config.train.model_copy(update=update)})
    found = held(made(resumed, world_of_one()))
    assert any("exp_avg" in name or "momentum_buffer" in name for name in expected)
    assert_same(found, expected)


def slice_loaded(
    config: Config, folder: Path, owners: int, owner: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias, and the weight's momentum of one of many ranks, of which only it is there."""
    process_group = dist.ProcessGroup(owner, owners) if owners > 1 else None
    group = Group(tuple(range(owners)), owner, 1, process_group, meters(), Phase.SLICE_WAIT)
    step = made(config, world_of_one())
    classifier = SlicedClassifier(6, CLASSES, config.classifier, group, seed=9).double()
    flats = (
        Flat(list(step.model.backbone.parameters()), 1, step.model.shared.values),
        Flat(list(classifier.parameters()), 1, step.model.shared.values),
    )
    optimizer = make_optimizer(config.optimizer, flats)
    checkpoint = Checkpoint(step.model.backbone, classifier, flats, optimizer, world_of_one())
    checkpoint.load(checkpoint_at(folder, STEPS), read_meta(checkpoint_at(folder, STEPS)))
    (state,) = [
        state.view_as(classifier.weight)
        for key, state in optimizer.state[flats[1].decayed[0]].items()
        if key in ("momentum_buffer", "exp_avg")
    ]
    return classifier.weight.detach(), classifier.bias.detach(), state


@pytest.mark.parametrize("owners", [2, 5, 13])
def test_any_number_of_ranks_reads_its_own_rows(
    one_process: tuple[Config, Path, dict[str, Tensor]], owners: int
) -> None:
    config, folder, expected = one_process
    parts = [slice_loaded(config, folder, owners, owner) for owner in range(owners)]
    weight, bias, momentum = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    key = "momentum_buffer" if config.optimizer.name == "sgd" else "exp_avg"
    assert torch.equal(weight, expected["classifier.weight"])
    assert torch.equal(bias, expected["classifier.bias"])
    assert torch.equal(momentum, expected[f"classifier.weight {key}"])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """One process trains 3 windows; two ranks of a node go on with slices, and save."""
    folder = tmp_path_factory.mktemp("two")
    file = experiment(folder)
    step, _ = trained(load(file, ["train.steps=3"]), folder)
    program = Path(__file__).with_name("checkpoint_program.py")
    resume = checkpoint_at(folder, 3)
    horovodrun([str(program), str(file), str(resume), str(folder)], np=2, hosts="localhost:2")
    return folder, held(step)


def joined(folder: Path, name: str) -> dict[str, Tensor]:
    """What two ranks held, the slices of the classifier put together."""
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in range(2))
    shared = [key for key in first if key.startswith("backbone.")]
    assert_same({key: first[key] for key in shared}, {key: second[key] for key in shared})
    assert [len(each["classifier.weight"]) for each in (first, second)] == [6, 7]
    sliced = {key: torch.cat((first[key], second[key])) for key in first.keys() - set(shared)}
    return {key: first[key] for key in shared} | sliced


def test_two_ranks_load_what_one_saved(two_ranks: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = two_ranks
    assert_same(joined(folder, "loaded"), expected)


def test_one_loads_what_two_ranks_saved(two_ranks: tuple[Path, dict[str, Tensor]]) -> None:
    folder, before = two_ranks
    resume = checkpoint_at(folder, STEPS)
    assert len(list(resume.glob("classifier-*"))) == 2
    config = load(experiment(folder), [f"train.resume={resume}", "train.steps=7"])
    found, expected = held(made(config, world_of_one())), joined(folder, "trained")
    assert_same(found, expected)
    assert not torch.equal(found["classifier.weight"], before["classifier.weight"])


RESUMED = {
    "sgd": [],
    "adamw, step schedule": ["optimizer.name=adamw", "optimizer.schedule=step"],
    "two micro-batches": ["exchange.backward_passes_per_step=2", "exchange.route=hierarchical"],
    "late": ["exchange.kind=delayed", "exchange.delay=1", "classifier.layout=node"],
    "late from window 4 on": [
        "exchange.kind=delayed",
        "exchange.delay=2",
        "exchange.synchronous_windows=4",
    ],
    "averaging": ["exchange.kind=averaging", "exchange.delay=1", "classifier.layout=node"],
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_run_is_the_same_run_to_the_bit(tmp_path: Path, changes: list[str]) -> None:
    file = experiment(tmp_path)
    whole, losses = trained(load(file, changes), tmp_path / "whole")
    resume = f"train.resume={checkpoint_at(tmp_path / 'whole', 3)}"
    resumed, later_losses = trained(load(file, [*changes, resume]), tmp_path / "resumed")
    assert set(losses) == {1, 2, 3, 4, 5, 6}
    assert later_losses == {window: losses[window] for window in (4, 5, 6)}
    assert_same(held(resumed), held(whole))


def test_time_goes_on_where_the_run_before_ended(tmp_path: Path) -> None:
    """A loss that is no number comes back too; a checkpoint older than the time has none."""
    file = experiment(tmp_path)
    summary = Training(made(load(file, ["train.steps=3"]), world_of_one()), tmp_path).run(Losses())
    folder = checkpoint_at(tmp_path, 3)
    meta = read_meta(folder)
    assert meta.progress.train_seconds == pytest.approx(summary.train_seconds)
    (last,) = meta.progress.evaluations
    assert last.metrics == summary.final
    lost = last.model_copy(update={"metrics": last.metrics | {"val/loss": math.nan}})
    progress = meta.progress.model_copy(update={"evaluations": (lost,)})
    saved = meta.model_copy(update={"progress": progress}).to_json()
    (folder / "checkpoint.json").write_text(saved)
    (read,) = read_meta(folder).progress.evaluations
    assert math.isnan(read.metrics["val/loss"])
    resumed = load(file, [f"train.resume={folder}"])
    further = Training(made(resumed, world_of_one()), tmp_path).run(Losses())
    assert further.train_seconds > summary.train_seconds
    assert [each.window for each in further.evaluations] == [3, 6]
    assert further.evaluations[0].train_seconds == summary.evaluations[0].train_seconds
    (folder / "checkpoint.json").write_text('{"window": 3, "num_classes": 13}')
    unknown = Training(made(resumed, world_of_one()), tmp_path).run(Losses())
    assert not unknown.train_seconds_known
    assert unknown.seconds_to(0.0) is None
    assert read_meta(checkpoint_at(tmp_path, 6)).progress.train_seconds is None


def damage_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def damage_meta(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


def damage_json(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"window": 3')


def damage_kind(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("[3, 13]")


def damage_key(folder: Path) -> None:
    (folder / "checkpoint.json").write_text('{"window": 3}')


def damage_backbone(folder: Path) -> None:
    path = folder / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_classifier(folder: Path) -> None:
    for path in folder.glob("classifier-*"):
        path.unlink()


def damage_rows(folder: Path) -> None:
    (path,) = folder.glob("classifier-*")
    path.rename(path.with_name("classifier-000000000-000000001.safetensors"))


NO_CHECKPOINT = "it is not a checkpoint (no readable checkpoint.json); give another checkpoint"
DAMAGED = "its checkpoint.json is damaged, or was written by another version"
NO_FIT = "does not fit this model"


@pytest.mark.parametrize(
    ("damage", "changes", "said"),
    [
        (damage_nothing, [], NO_CHECKPOINT),
        (damage_meta, [], NO_CHECKPOINT),
        (damage_json, [], DAMAGED),
        (damage_kind, [], DAMAGED),
        (damage_key, [], DAMAGED),
        (damage_backbone, [], NO_FIT),
        (damage_classifier, [], "cannot be read ([Errno 2] no such file"),
        (damage_rows, [], "cannot be read ([Errno 2] no such file"),
        (None, ["data.num_classes=12"], "has 13 classes, but data.num_classes is 12"),
        (None, ["backbone.feature_dim=7"], NO_FIT),
        (None, ["backbone.norm=group"], NO_FIT),
        (None, ["optimizer.name=adamw"], NO_FIT),
        (None, ["optimizer.momentum=0"], NO_FIT),
        (None, ["train.steps=3"], "is at window 3 and the run ends at 3; raise train.steps"),
    ],
)
def test_a_bad_folder_is_told_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None] | None, changes: list[str], said: str
) -> None:
    file = experiment(tmp_path)
    trained(load(file, ["train.steps=3"]), tmp_path)
    if damage is not None:
        damage(checkpoint_at(tmp_path, 3))
    config = load(file, [*changes, f"train.resume={checkpoint_at(tmp_path, 3)}"])
    with pytest.raises(UserError) as caught:
        made(config, world_of_one())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_slice_is_not_made_up_from_the_row_that_is_there(tmp_path: Path) -> None:
    """One row in the place of two would fit, if it were spread."""
    file, changes = experiment(tmp_path), ["data.num_classes=2", "train.steps=3"]
    trained(load(file, changes), tmp_path)
    folder = checkpoint_at(tmp_path, 3)
    (path,) = folder.glob("classifier-*")
    tensors = load_file(path)
    halved = {
        name: tensor[:1].clone() if tensor.dim() else tensor for name, tensor in tensors.items()
    }
    path.unlink()
    write_tensors(folder / "classifier-000000000-000000001.safetensors", halved)
    listed = read_meta(folder).model_copy(update={"files": None})
    (folder / "checkpoint.json").write_text(listed.to_json())
    with pytest.raises(UserError, match="class 1 is in no file"):
        made(load(file, ["data.num_classes=2", f"train.resume={folder}"]), world_of_one())


def cannot_write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(path, tensors)
    if path.name.startswith("classifier"):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


WRITE = "harness.train.checkpoint.writing.write_tensors"


def test_one_that_cannot_be_written_is_told_and_ends_nothing_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(experiment(tmp_path), ["train.checkpoint_every=2"])
    journal = Journal()
    training = Training(made(config, world_of_one()), tmp_path)
    monkeypatch.setattr(WRITE, cannot_write)
    summary = training.run(journal)
    assert [name for name, _ in journal.warnings] == ["checkpoint"] * 3
    for (_, line), window in zip(journal.warnings, (2, 4, 6), strict=True):
        assert f"checkpoints/{window:09d} cannot be written ([Errno 28] No space left" in line
        assert "\n" not in line
    assert summary.final["val/top1"] >= 0, "it was evaluated all the same"
    with pytest.raises(RunFailed, match=r"000000006 cannot be written .* model is not saved"):
        training.check_saved()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_one_before_stays_where_its_successor_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another window, and of the same one."""
    file = experiment(tmp_path)
    trained(load(file), tmp_path)
    before = contents(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(WRITE, cannot_write)
        trained(load(file, ["seed=1"]), tmp_path)
    assert contents(tmp_path / "checkpoints") == before
    replace = Path.replace

    def fails_into_place(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial") and path.is_dir():
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fails_into_place)
    trained(load(file, ["seed=1"]), tmp_path)
    assert contents(tmp_path / "checkpoints") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_that_is_interrupted_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal may end a run in the middle of it. What is left is no checkpoint, and nothing to the
    next one, which may have other slices."""
    config, folder = load(experiment(tmp_path), ["train.steps=3"]), checkpoint_at(tmp_path, 3)
    partial = folder.with_name(f"{folder.name}.partial")

    def stops_at_the_classifier(path: Path, tensors: dict[str, Tensor]) -> None:
        write_tensors(path, tensors)
        if path.name.startswith("classifier"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WRITE, stops_at_the_classifier)
        with pytest.raises(KeyboardInterrupt):
            trained(config, tmp_path)
    assert not folder.exists()
    with pytest.raises(BadCheckpoint, match="is not a checkpoint"):
        read_meta(partial)
    (partial / "classifier-000000000-000000006.safetensors").write_bytes(b"of two ranks")
    trained(config, tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(list(folder.glob("classifier-*"))) == 1


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_may_read_it_is_the_umask_s_affair(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        trained(load(experiment(tmp_path), ["train.steps=3"]), tmp_path)
    finally:
        os.umask(before)
    folder = checkpoint_at(tmp_path, 3)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o777 & ~umask}


@pytest.mark.parametrize("window", [3, 6])
def test_an_evaluation_that_fails_leaves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """In the middle and at the end; and the model goes on to where the undisturbed run ends."""
    file, changes = experiment(tmp_path), ["train.evaluate_every=3"]
    whole, _ = trained(load(file, changes), tmp_path / "whole")
    training = Training(made(load(file, changes), world_of_one()), tmp_path / "run")
    evaluate, calls = training.evaluate, list[int]()

    def fails(limit: int = 0) -> dict[str, float]:
        calls.append(limit)
        if 3 * len(calls) == window:
            raise RuntimeError("out of memory")
        return evaluate(limit)

    monkeypatch.setattr(training, "evaluate", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        training.run(Losses())
    folder = checkpoint_at(tmp_path / "run", window)
    evaluated = [each.window for each in read_meta(folder).progress.evaluations]
    assert evaluated == list(range(3, window, 3))
    if window == STEPS:
        again = load(file, [f"train.resume={folder}", "train.steps=7"])
        assert_same(held(made(again, world_of_one())), held(whole))
        return
    resumed, _ = trained(load(file, [*changes, f"train.resume={folder}"]), tmp_path / "resumed")
    assert_same(held(resumed), held(whole))


def test_an_evaluation_is_added_to_the_checkpoint_of_its_window(tmp_path: Path) -> None:
    trained(load(experiment(tmp_path), ["train.evaluate_every=2"]), tmp_path)
    evaluated = [
        [each.window for each in read_meta(checkpoint_at(tmp_path, at)).progress.evaluations]
        for at in (3, 6)
    ]
    assert evaluated == [[2], [2, 4, 6]]


def test_what_is_no_checkpoint_s_own_is_told_of(tmp_path: Path) -> None:
    """What an exchange carried on and this one has no use for, and nothing else."""
    file = experiment(tmp_path)
    trained(load(file, ["train.steps=3"]), tmp_path)
    folder = checkpoint_at(tmp_path, 3)
    (backbone,) = folder.glob("backbone*")
    tensors = load_file(backbone)
    name = next(iter(tensors))
    write_tensors(backbone, tensors | {f"exchange.unsent.{name}": tensors[name].clone()})
    journal = Journal()
    Training(made(load(file, [f"train.resume={folder}"]), world_of_one()), tmp_path).run(journal)
    assert journal.warnings == [
        (
            "resume_exchange",
            "exchange.unsent of the checkpoint is ignored: this run's exchange has no such state",
        )
    ]


def test_a_run_with_other_numbers_goes_on_from_its_images(tmp_path: Path) -> None:
    """6 images a window up to window 3, then 4 (K = 2 of 3, then 1 of 4)."""
    file = experiment(tmp_path)
    first = ["train.steps=3", "exchange.backward_passes_per_step=2"]
    trained(load(file, first), tmp_path)
    folder = checkpoint_at(tmp_path, 3)
    changes = ["train.batch_size=4", "train.evaluate_every=2", f"train.resume={folder}"]
    journal = Journal()
    summary = Training(made(load(file, changes), world_of_one()), tmp_path).run(journal)
    assert [(each.window, each.images) for each in summary.evaluations] == [
        (3, 18),
        (4, 22),
        (6, 30),
    ]
    assert summary.images == 30
    assert journal.warnings == [
        (
            "resume",
            "resumed at window 3, after 18 images, with train.batch_size 4 instead of 3, "
            "exchange.backward_passes_per_step 1 instead of 2: a window takes 4 images, before it "
            "took 6; the run ends at window 6, after 30 images",
        )
    ]
    changes[-1:] = [f"train.resume={checkpoint_at(tmp_path, 6)}", "train.steps=7"]
    again = Training(made(load(file, changes), world_of_one()), tmp_path).run(journal)
    assert again.images == 34
    assert len(journal.warnings) == 1, "nothing changed any more"


def test_one_from_before_images_were_counted(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    _, losses = trained(load(file), tmp_path)
    folder = checkpoint_at(tmp_path, 3)
    (folder / "checkpoint.json").write_text('{"window": 3, "num_classes": 13}')
    journal = Journal()
    resumed = made(load(file, [f"train.resume={folder}"]), world_of_one())
    assert Training(resumed, tmp_path).run(journal).images == 18
    assert journal.by_window == {window: losses[window] for window in (4, 5, 6)}
    ((name, line),) = journal.warnings
    assert name == "resume"
    assert "its 3 windows are assumed to have 3 images each, as in this run" in line


def test_one_of_the_same_window_is_replaced(tmp_path: Path) -> None:
    file, folder = experiment(tmp_path), checkpoint_at(tmp_path, 3)
    trained(load(file, ["train.steps=3"]), tmp_path)
    (folder / "left over").touch()
    trained(load(file, ["train.steps=3", "seed=1"]), tmp_path)
    config = load(file, [f"train.resume={folder}", "train.steps=7"])
    found = held(made(config, world_of_one()))
    other, _ = trained(load(file, ["train.steps=3", "seed=1"]), tmp_path / "other")
    assert_same(found, held(other))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not (folder / "left over").exists()

"""Weights that a backbone begins with: where they come from, what fits, what stays as it was."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.checkpoint.export import export
from harness.cli import main
from harness.config import BackboneConfig, Config, load
from harness.data.open import open_dataset
from harness.doctor.need import need_of
from harness.errors import UserError
from harness.model.anatomy import anatomy_of
from harness.model.backbone import Backbone, make_backbone
from harness.model.torchvision import torchvision
from harness.plan.workload import workload_of
from harness.train.checkpoint.verdict import mark_bad
from harness.train.pretrained import Fit, begin, load_weights
from harness.train.trial import Trial
from tests.alone import world_of_one
from tests.horovodrun import horovodrun
from tests.train.checkpoint_program import made
from tests.train.test_checkpoint import checkpoint_at, experiment, trained

EXPERIMENT = """
name: fine
data: {dataset: synthetic, num_classes: 12, image_size: 8, synthetic_images: 64}
backbone: {feature_dim: 6}
train: {batch_size: 4, steps: 2, matmul_seconds: 0, threads: 1}
tracking: {enabled: false}
"""
RESNET = {"name": "resnet18", "feature_dim": 16}


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """What torchvision itself saves, with the statistics of some images."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = torchvision.models.resnet18(weights=None)
        model(torch.randn(4, 3, 32, 32))
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def begun(file: Path, channels: int = 3, **values: object) -> tuple[Backbone, Fit]:
    config = BackboneConfig.model_validate(RESNET | values | {"weights": str(file)})
    backbone = make_backbone(config, channels, 32, seed=1)
    return backbone, load_weights(backbone, config)


def saved(resnet: dict[str, Tensor], how: str, folder: Path) -> Path:
    if how == "safetensors":
        save_file(resnet, folder / "w.safetensors")
        return folder / "w.safetensors"
    wrapped = {f"module.{name}": each for name, each in resnet.items()}
    state = {"plain": resnet, "inside": {"model": resnet, "epoch": 3}, "wrapped": wrapped}[how]
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


@pytest.mark.parametrize("how", ["plain", "inside", "wrapped", "safetensors"])
def test_a_state_dict_of_torchvision(resnet: dict[str, Tensor], how: str, tmp_path: Path) -> None:
    backbone, fit = begun(saved(resnet, how, tmp_path))
    body = backbone.body.state_dict()
    assert resnet.keys() - body.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(body[name], resnet[name]) for name in body)
    assert len(fit.parameters) == 60
    assert fit.statistics == 40
    assert sorted(fit.head) == ["fc.bias", "fc.weight"]
    assert set(fit.anew) == {name for name, _ in backbone.named_parameters() if "embed" in name}
    assert not fit.is_odd
    assert "gives 60 parameters and 40 batch statistics; the head is left out: fc." in fit.line


def test_what_does_not_fit_is_listed(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    """Grey images need another first convolution; a name of the file is unknown."""
    there = resnet | {"layer9.weight": torch.ones(3), "bn1.bias": torch.ones(64).long()}
    del there["layer1.0.conv1.weight"]
    backbone, fit = begun(saved(there, "plain", tmp_path), channels=1)
    fresh = make_backbone(BackboneConfig.model_validate(RESNET), 1, 32, seed=1)
    assert torch.equal(backbone.body.conv1.weight, fresh.body.conv1.weight)
    assert torch.equal(backbone.body.layer2[0].conv1.weight, there["layer2.0.conv1.weight"])
    assert set(fit.misfits) == {
        "body.conv1.weight is (64, 3, 7, 7) there, (64, 1, 7, 7) here",
        "body.bn1.bias is int64 (64,) there, (64,) here",
    }
    assert fit.unused == ("body.layer9.weight",)
    assert "body.layer1.0.conv1.weight" in fit.anew
    assert "body.conv1.weight" not in fit.anew
    assert fit.is_odd
    assert all(said in fit.line for said in ("does not fit: ", "begins anew: ", "has no place: "))


def test_half_the_precision_is_read(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    halves = {n: e.half() if e.is_floating_point() else e for n, e in resnet.items()}
    backbone, _ = begun(saved(halves, "safetensors", tmp_path))
    assert backbone.body.conv1.weight.dtype == torch.float32
    assert torch.equal(backbone.body.conv1.weight, resnet["conv1.weight"].half().float())


class Danger:
    """Unpickled by a careless program, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._trace),)


def refused(file: Path, **values: object) -> str:
    with pytest.raises(UserError) as caught:
        begun(file, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_file_of_weights(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    assert "cannot be read (no such file); correct the path" in refused(tmp_path / "none.pth")
    torch.save({"a": Danger(tmp_path / "trace")}, tmp_path / "danger.pth")
    assert "is no file of weights (" in refused(tmp_path / "danger.pth")
    assert not (tmp_path / "trace").exists()
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    for name in ("noise.pth", "noise.safetensors", "list.pth", "number.pth"):
        assert "is no file of weights (" in refused(tmp_path / name), name
    assert "it is no checkpoint and holds none; give a run, a" in refused(tmp_path)


def test_nothing_that_fits(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({"stem.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    said = refused(tmp_path / "w.safetensors")
    assert "gives nothing to backbone.name=resnet18: no name is known, the first is stem.we" in said
    save_file({"fc.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    assert "it has a head only" in refused(tmp_path / "w.safetensors")
    resnet = resnet | {"bn1.weight": torch.full((64,), torch.nan)}
    assert "has values of body.bn1.weight that are not finite" in refused(
        saved(resnet, "plain", tmp_path)
    )


def test_a_frozen_body_must_be_given_in_full(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    file = saved(resnet, "plain", tmp_path)
    assert "would leave body.conv1.weight as drawn" in refused(file, channels=1, frozen="body")
    without = {name: each for name, each in resnet.items() if name != "bn1.running_mean"}
    file = saved(without, "plain", tmp_path)
    assert "would leave body.bn1.running_mean as drawn" in refused(file, frozen="body")


def test_checkpoints_of_ours(tmp_path: Path) -> None:
    """An exported model, a checkpoint, a run whose newest is damaged; states are no weights."""
    step, _ = trained(load(experiment(tmp_path)), tmp_path)
    expected = {name: each.clone() for name, each in step.model.backbone.state_dict().items()}
    assert export(tmp_path, tmp_path / "model.safetensors") == 0
    for given in (tmp_path / "model.safetensors", checkpoint_at(tmp_path, 6), tmp_path):
        config = step.config.backbone.model_copy(update={"weights": str(given)})
        backbone = make_backbone(config, 3, 8, seed=5)
        fit = load_weights(backbone, config)
        assert all(torch.equal(e, expected[n].to(e)) for n, e in backbone.state_dict().items())
        assert (fit.anew, fit.misfits, fit.unused) == ((), (), ())
    damaged = checkpoint_at(tmp_path, 6) / "backbone.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    load_weights(backbone, config)
    older = load_file(checkpoint_at(tmp_path, 3) / "backbone.safetensors")
    assert all(torch.equal(e, older[n].to(e)) for n, e in backbone.state_dict().items())
    mark_bad(checkpoint_at(tmp_path, 3), "the training loss is not finite")
    with pytest.raises(UserError, match="000000003: it is marked bad"):
        load_weights(backbone, config)


@pytest.mark.parametrize(
    ("name", "recipe", "before", "refused"),
    [
        ("googlenet", "imagenet", "", True),
        ("googlenet", "imagenet", "module.", True),
        ("googlenet", "own", "", False),
        ("googlenet", "imagenet", "body.", False),
        ("googlenet", "imagenet", "module.body.", False),
        ("resnet18", "imagenet", "", False),
    ],
)
def test_weights_see_the_levels_that_they_were_trained_on(
    tmp_path: Path, name: str, recipe: str, before: str, refused: bool
) -> None:
    """A file of ours was trained on those of a recipe; torchvision's GoogLeNet on others."""
    file = tmp_path / "w.safetensors"
    data = {"dataset": "image_folder", "recipe": recipe, "num_classes": 2}
    network = {"name": name, "feature_dim": 0, "weights": str(file)}
    config = Config.model_validate({"data": data, "backbone": network, "train": {"steps": 1}})
    backbone = make_backbone(config.backbone, 3, 32, seed=0)
    save_file({before + n: e for n, e in backbone.body.state_dict().items()}, file)
    if refused:
        with pytest.raises(UserError, match=r"of mean and deviation 0\.5, and data\.recipe=imag"):
            begin(backbone, config)
    else:
        assert begin(backbone, config).parameters


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    body = make_backbone(BackboneConfig(feature_dim=0), 3, 8, seed=9).body.state_dict()
    for name, each in body.items():
        if "running" in name:
            each += 0.01
    save_file(body, tmp_path / "body.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FROZEN = ["backbone.weights=body.safetensors", "backbone.frozen=body"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_body_does_not_change(here: Path, precision: str) -> None:
    """Neither values nor batch statistics, to the bit; the embedding learns."""
    given = load_file(here / "body.safetensors")
    more = ["train.save=true", "staleness.curvature_every=1", f"train.precision={precision}"]
    config = load(here / "run.yaml", [*FROZEN, *more, "classifier.layout=node"])
    step, _ = trained(config, here / "run")
    model = step.model
    assert all(torch.equal(each, given[n]) for n, each in model.backbone.body.state_dict().items())
    before = make_backbone(config.backbone, 3, 8, config.seed).embedding.state_dict()
    after = model.backbone.embedding.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert model.shared.elements == sum(p.numel() for p in model.backbone.embedding.parameters())
    written = load_file(checkpoint_at(here / "run", 2) / "backbone.safetensors")
    assert all(torch.equal(written[f"body.{name}"], given[name]) for name in given)


def test_a_frozen_body_costs_no_gradients_and_no_bytes(here: Path) -> None:
    whole, frozen = (load(here / "run.yaml", more) for more in ([], FROZEN))
    sizes = [anatomy_of(config, 2, 2) for config in (whole, frozen)]
    body = sizes[1].frozen
    embedding = sum(p.numel() for p in made(frozen, world_of_one()).model.backbone.trained)
    assert sizes[0].frozen == 0
    assert sizes[0].backbone_elements == body + embedding
    assert sizes[1].backbone_elements == embedding
    works = [workload_of(config, 2, 2) for config in (whole, frozen)]
    # Each rank of a node sends its half of the body to the other node.
    assert works[0].window.cross_node - works[1].window.cross_node == pytest.approx(4 * body / 2)
    assert works[1].forward_share is not None
    assert works[1].forward_share > 0.8 > 1 / 3
    needs = [need_of(config, 2, 2) for config in (whole, frozen)]
    # Gradient and momentum, but not the values.
    assert needs[0].model - needs[1].model == 2 * 4 * body
    assert needs[0].checkpoint - needs[1].checkpoint == 4 * body


def test_a_probe_of_the_body_trains_classes_alone(here: Path) -> None:
    config = load(here / "run.yaml", [*FROZEN, "backbone.feature_dim=0"])
    step, _ = trained(config, here / "run")
    assert step.model.shared.elements == 12 * (step.model.backbone.features + 1)
    assert step.model.classifier.bias is not None
    assert step.model.classifier.bias.abs().sum() > 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["backbone.weights=none.pth"], "backbone.weights=none.pth cannot be read (no such file)"),
        (
            [*FROZEN, "backbone.norm=none"],
            "backbone.frozen=body would leave",
        ),
        (["backbone.lr_factor=0.1"], "backbone.lr_factor=0.1 is for a network with weights; set"),
        (["backbone.frozen=body"], "backbone.frozen=body is for a network with weights; set back"),
        (
            [*FROZEN, "backbone.feature_dim=0", "classifier.layout=node"],
            "leaves only classes to train, and classifier.layout=node slices them; set feature_dim",
        ),
    ],
)
def test_mistakes_are_found_at_once(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    said: str,
) -> None:
    def met(*_: object) -> None:
        raise AssertionError("ranks went on to compare their data")

    monkeypatch.setattr("harness.train.run.agree_on_data", met)
    assert main(["train", "run.yaml", *overrides]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


OTHER = "has other content for rank 1 than for rank 0; give all hosts the same file"


def test_hosts_with_other_files(here: Path) -> None:
    whole = load_file(here / "body.safetensors")
    for rank in range(2):
        save_file(whole | {"0.weight": whole["0.weight"] + rank}, here / f"of{rank}.safetensors")
    own = "backbone.weights=of${oc.env:HOROVOD_RANK}.safetensors"
    command = ["-m", "harness", "train", "run.yaml", own]
    ended = horovodrun(command, np=2, hosts="localhost:2", folder=here, check=False)
    assert OTHER in ended.output
    assert "Exit code: 2" in ended.output


AGREE = """
from harness.config import load
from harness.errors import ReportedByAnotherRank, UserError
from harness.parallel.ranks import launched_topology, open_ranks
from harness.train.pretrained import agree_on_weights

topology = launched_topology()
given = ["backbone.weights=body.safetensors"] if topology.rank == 0 else []
with open_ranks(topology) as ranks:
    try:
        agree_on_weights(load("run.yaml", given), ranks)
    except (UserError, ReportedByAnotherRank) as error:
        print(type(error).__name__, error)
"""


def test_a_host_without_weights(here: Path) -> None:
    """No rank waits for one that has nothing to compare."""
    ended = horovodrun(AGREE, np=2, hosts="localhost:2", folder=here)
    (line,) = ended.lines(0)
    assert line.startswith("UserError backbone.weights=body.safetensors has other content")
    assert ended.lines(1) == ["ReportedByAnotherRank "]


def test_weights_and_a_checkpoint_that_had_none(here: Path) -> None:
    config = load(here / "run.yaml", ["train.save=true"])
    trained(config, here / "run")
    with pytest.raises(UserError, match=r"goes on with its own values, .* leave backbone\.weights"):
        made(
            load(
                here / "run.yaml",
                [f"train.resume={checkpoint_at(here / 'run', 2)}", *FROZEN[:1], "train.steps=4"],
            ),
            world_of_one(),
        )


def test_a_run_that_goes_on_needs_its_weights_no_more(here: Path) -> None:
    words = ["train", "run.yaml", *FROZEN[:1], "train.checkpoint_every=1", "--folder", "run"]
    assert main(words) == 0
    last = max((here / "run" / "checkpoints").iterdir())
    shutil.rmtree(last)  # as if the run had ended before
    (here / "run" / "summary.json").unlink()
    (here / "body.safetensors").unlink()
    assert main([*words, "--continue"]) == 0
    assert last.exists()


def test_a_trial_of_a_resumed_run_reads_no_weights(here: Path) -> None:
    config = load(here / "run.yaml", [*FROZEN[:1], "train.save=true"])
    trained(config, here / "run")
    (here / "body.safetensors").unlink()
    resume = f"train.resume={checkpoint_at(here / 'run', 2)}"
    resumed = load(here / "run.yaml", [*FROZEN[:1], resume, "train.steps=4"])
    trial = Trial(resumed, open_dataset(resumed.data), world_of_one())
    assert trial.window_ms(1) > 0
    trial.close()

"""`harness checkpoint`: what it says of good and bad ones; a model that needs nothing of this."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from harness.cli import main
from harness.config import Config, load
from harness.data.levels import HALF
from harness.data.open import open_dataset
from harness.train.step import Step, make_step
from harness.train.training import Training
from tests.alone import world_of_one
from tests.horovodrun import ROOT
from tests.train.checkpoint_program import Journal
from tests.train.test_checkpoint import checkpoint_at, experiment, trained

FOLDER_EXPERIMENT = """
name: pictures
seed: 5
data: {{dataset: image_folder, root: {root}, num_classes: 5, image_size: 32, verify: none}}
backbone: {{name: resnet18, feature_dim: 8}}
train: {{batch_size: 4, steps: 1, save: true, threads: 1}}
"""
CLASSES = ("a b", "b", "c", "ä", "e")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that saved at windows 3 and 6."""
    folder = tmp_path_factory.mktemp("original")
    trained(load(experiment(folder)), folder)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def said(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    assert main(["checkpoint", *map(str, arguments)]) == code
    out, err = capfd.readouterr()
    assert (err == "") == (code != 2)
    return (out + err).splitlines()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_show(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = said(capfd, "show", run)
    assert lines[0].startswith(f"{checkpoint_at(run, 6)}: 6 windows, 18 images, ")
    assert lines[1].startswith(f"{checkpoint_at(run, 3)}: 3 windows, 9 images, ")
    assert [line.split(maxsplit=1)[0] for line in lines[2:]] == [
        *("experiment", "ranks", "exchange", "model", "optimizer", "evaluation", "file", "file")
    ]
    text = "\n".join(lines)
    assert "run, seed 0" in text
    assert "1 on 1 nodes, classifier.layout replicated" in text
    assert "synchronous, delay 0, K 1, compression none" in text
    assert "small_cnn, 13 classes, images of 3 x 8 x 8" in text
    assert re.search(r"after 6 windows: .*val/top1 \d", text)
    assert re.search(r"backbone.safetensors [\d.]+ MB", text)
    assert said(capfd, "show", checkpoint_at(run, 6)) == [lines[0], *lines[2:]]


def test_show_of_what_cannot_be_read(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkpoint_at(run, 6) / "checkpoint.json").write_text("{")
    first, second, *_ = said(capfd, "show", run)
    assert "its checkpoint.json is damaged" in first
    assert "3 windows" in second
    (checkpoint_at(run, 3) / "checkpoint.json").write_text("{")
    assert len(said(capfd, "show", run, code=1)) == 2


def test_show_of_an_old_one(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint_at(run, 6)
    (folder / "checkpoint.json").write_text('{"window": 6, "num_classes": 13}')
    assert said(capfd, "show", folder) == [
        f"{folder}: 6 windows",
        "  origin       unknown: the checkpoint is older than this entry",
        "  classes      13",
    ]
    (line,) = said(capfd, "verify", folder, code=1)
    assert "older than checksums" in line


def test_verify(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for line in said(capfd, "verify", run):
        assert re.search(
            r"/00000000[36]: good: 2 files, [\d.]+ MB, are as they were written$", line
        )
    (damaged,) = checkpoint_at(run, 3).glob("classifier-*")
    flip(damaged)
    good, bad = said(capfd, "verify", run, code=1)
    assert "good" in good
    assert bad.startswith(f"{checkpoint_at(run, 3)}: bad: {damaged.name} has other content")
    (checkpoint_at(run, 3) / "backbone.safetensors").unlink()
    (first,) = said(capfd, "verify", checkpoint_at(run, 3), code=1)
    assert first.endswith("bad: backbone.safetensors is missing")


@pytest.mark.parametrize("action", ["show", "verify", "export"])
def test_no_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str], action: str) -> None:
    more = ["--output", tmp_path / "out"] if action == "export" else []
    (line,) = said(capfd, action, tmp_path / "none", *more, code=2)
    assert line.startswith(f"harness: {tmp_path}/none is no checkpoint and holds none; give the")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_one_is_not_exported(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = run / "model.safetensors"
    flip(checkpoint_at(run, 6) / "backbone.safetensors")
    (line,) = said(capfd, "export", run, "--output", output, code=2)
    assert "000000006 cannot be exported: backbone.safetensors has other content" in line
    assert not output.exists()
    output.touch()
    (line,) = said(capfd, "export", checkpoint_at(run, 3), "--output", output, code=2)
    assert f"{output} exists; remove it" in line
    assert output.stat().st_size == 0
    there = run / "none" / "model.safetensors"
    (line,) = said(capfd, "export", checkpoint_at(run, 3), "--output", there, code=2)
    assert f"cannot write {there}" in line


def exported(folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[Path, dict[str, str]]:
    output = folder / "model.safetensors"
    (line,) = said(capfd, "export", folder, "--output", output)
    assert line.startswith(f"{output}: ")
    with safe_open(output, framework="pt") as file:
        return output, file.metadata()


@pytest.mark.parametrize("margin", ["none", "cosface"])
def test_the_exported_tensors_are_the_model_s(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], margin: str
) -> None:
    config = load(experiment(tmp_path), [f"classifier.margin={margin}"])
    step, _ = trained(config, tmp_path)
    output, about = exported(tmp_path, capfd)
    with safe_open(output, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = step.model
    expected = {f"classifier.{name}": each for name, each in model.classifier.named_parameters()}
    expected |= model.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert about["backbone"] == "small_cnn"
    assert about["head"] == ""
    assert (about["classes"], about["class_names"]) == ("13", "[]")
    shown = {"none": ("linear", "1.0"), "cosface": ("cosine", "32.0")}
    assert (about["logits"], about["scale"]) == shown[margin]


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Config, Step]:
    root = tmp_path / "images"
    for part in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for each in range(2):
                color = (40 * number, 90 * each, 200 - 40 * number)
                Image.new("RGB", (32, 32), color).save(root / part / name / f"{each}.png")
    file = tmp_path / "pictures.yaml"
    file.write_text(FOLDER_EXPERIMENT.format(root=root))
    config = load(file)
    step = make_step(config, open_dataset(config.data), world_of_one())
    Training(step, tmp_path).run(Journal())
    return config, step


def test_the_page_s_lines_load_it(
    pictures: tuple[Config, Step],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They import nothing of this project, and give what its own model gives."""
    _, step = pictures
    output, about = exported(tmp_path, capfd)
    assert json.loads(about["class_names"]) == sorted(CLASSES)
    page = (ROOT / "harness/checkpoint/README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert "harness" not in lines
    monkeypatch.chdir(output.parent)
    made: dict[str, object] = {}
    exec(compile(lines, "README.md", "exec"), made)
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = logits(step, pixels)
    model, names = made["model"], made["names"]
    assert isinstance(model, torch.nn.Module)
    assert callable(names)
    found = model(HALF.of_floats(pixels.clone()))
    # After one window batch statistics are far off and logits are large; convolutions round
    # otherwise in another memory format.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    known = sorted(CLASSES)
    assert names(pixels) == [known[number] for number in expected.argmax(1).tolist()]


@torch.no_grad()
def logits(step: Step, pixels: Tensor) -> Tensor:
    model = step.model
    model.backbone.eval()
    features = model.backbone(HALF.of_floats(pixels.clone()))
    return functional.linear(features, model.classifier.weight, model.classifier.bias)

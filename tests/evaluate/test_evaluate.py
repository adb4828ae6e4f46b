"""`harness evaluate`: what a run found is found again; unseen characters are told apart."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from harness.cli import main
from harness.config import Config, load
from harness.data.fonts import find_fonts
from harness.data.glyphs import characters, render
from harness.data.open import open_dataset
from harness.evaluate.evaluate import evaluate_folder, evaluate_own
from harness.evaluate.pairs import drawn_pairs
from harness.evaluate.trained import load_trained
from harness.train.step import make_step
from harness.train.training import Training
from tests.alone import world_of_one
from tests.train.checkpoint_program import Journal
from tests.train.test_checkpoint import checkpoint_at

CLASSES, HELD_OUT, SIZE, STEPS = 100, 40, 16, 200
EXPERIMENT = f"""
name: characters
seed: 1
data: {{num_classes: {CLASSES}, image_size: {SIZE}, augment: 0.3, cache: {{folder}}/cache}}
backbone: {{feature_dim: 32}}
classifier: {{margin: cosface, margin_scale: 16, margin_size: 0.2}}
optimizer: {{lr: 0.1, warmup_windows: 10}}
train: {{batch_size: 64, steps: {STEPS}, save: true, matmul_seconds: 0}}
"""


def trained(file: Path, text: str) -> tuple[Config, Journal]:
    file.write_text(text)
    config, journal = load(file), Journal()
    step = make_step(config, open_dataset(config.data), world_of_one())
    Training(step, file.parent / "run").run(journal)
    return config, journal


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a margin, of the first characters."""
    folder = tmp_path_factory.mktemp("characters")
    trained(folder / "run.yaml", EXPERIMENT.replace("{folder}", str(folder)))
    return folder / "run"


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Later characters, each in all fonts."""
    folder = tmp_path_factory.mktemp("unseen")
    text = characters(CLASSES + HELD_OUT)[CLASSES:]
    sets = find_fonts()
    fonts = [*sets.train, *sets.unseen_weight]
    for number, font in enumerate(fonts):
        for character, pixels in zip(text, render(font.path, text, SIZE), strict=True):
            (folder / character).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / character / f"{number}.png")
    return folder


def said(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    assert main(["evaluate", *map(str, arguments)]) == code
    out, err = capfd.readouterr()
    assert (err == "") == (code == 0)
    return (out + err).splitlines()


def test_the_runs_own_validation(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    written = json.loads((checkpoint_at(run, STEPS) / "checkpoint.json").read_text())
    expected = written["progress"]["evaluations"][-1]["metrics"]
    lines = said(capfd, run)
    assert len(lines) == 2
    for line, name in zip(lines, ("unseen_design", "unseen_weight"), strict=True):
        top1, top5 = (expected[f"val/{name}/{key}"] for key in ("top1", "top5"))
        assert line.startswith(f"{name}: top-1 {top1:.2%}, top-5 {top5:.2%}, loss ")
        assert line.endswith(" images")
    assert expected["val/unseen_weight/top1"] > 0.5, "nothing was learned"


def test_unseen_characters_by_pairs(
    run: Path, unseen: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = said(capfd, run, "--folder", unseen)
    images = len(list(unseen.glob("*/*")))
    fonts = images // HELD_OUT
    assert lines[0] == f"{HELD_OUT} unseen classes, {images} images"
    same = HELD_OUT * fonts * (fonts - 1) // 2
    different = images * (images - 1) // 2 - same
    assert lines[1] == f"pairs              {same:,} of one class, {different:,} of two"
    (accuracy,) = re.findall(r"^accuracy +([\d.]+)% ± [\d.]+% ", lines[2])
    (rate,) = re.findall(r"^TAR at FAR 1e-03 +([\d.]+)%", lines[3])
    assert float(accuracy) > 90, "chance is 50 %"
    assert float(rate) > 60, "chance is 0.1 %"


def test_a_list_has_the_scores_of_its_folder(
    run: Path, unseen: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = sorted(unseen.glob("*/*"))
    labels = torch.tensor([sorted(unseen.iterdir()).index(file.parent) for file in files])
    pairs = drawn_pairs(labels, unseen)
    rows = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True)
    listed = tmp_path / "pairs.txt"
    listed.write_text("".join(f"{files[a]}\t{files[b]}\t{int(same)}\n" for a, b, same in rows))
    by_list = said(capfd, run, "--pairs", listed)
    assert by_list == said(capfd, run, "--folder", unseen)[1:]
    model = load_trained(run, [])
    images = torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in files[:3]])
    given = (images.view(3, 1, SIZE, SIZE) / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = functional.normalize(model.network.backbone(given))
    rgb = images.view(3, 1, SIZE, SIZE).to(torch.uint8).expand(3, 3, SIZE, SIZE)
    torch.testing.assert_close(model.features(rgb), expected, rtol=1e-4, atol=1e-5)


FOLDER_EXPERIMENT = """
name: colours
data: {{dataset: image_folder, root: {root}, num_classes: 3, image_size: 16, verify: none}}
backbone: {{feature_dim: 8}}
train: {{batch_size: 6, steps: 20, save: true, matmul_seconds: 0}}
"""
COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    for part in ("train", "val"):
        for name, colour in COLOURS.items():
            (folder / "images" / part / name).mkdir(parents=True)
            for each in range(4):
                shade = tuple(value + 9 * each for value in colour)
                Image.new("RGB", (20, 16), shade).save(
                    folder / "images" / part / name / f"{each}.png"
                )
    trained(folder / "run.yaml", FOLDER_EXPERIMENT.format(root=folder / "images"))
    return folder


def test_a_folder_of_known_classes(colours: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Found by their names, whatever their order; and with others among them, only the others."""
    (own,) = said(capfd, colours / "run")
    (line,) = said(capfd, colours / "run", "--folder", colours / "images/val")
    assert line.partition(": ")[2] == own.partition(": ")[2]
    assert "top-5 100.00%" in own
    assert " over 12 images" in own
    two = colours / "two"
    for name in ("red", "blue"):
        (two / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), COLOURS[name]).save(two / name / "x.png")
    (line,) = said(capfd, colours / "run", "--folder", two)
    assert line.startswith(f"{two}: top-1 100.00%, top-5 100.00%")
    for name in ("cyan", "pink"):
        (two / name).mkdir(exist_ok=True)
        for each in range(6):
            Image.new("RGB", (16, 16), (9 * each, 90, 90)).save(two / name / f"{each}.png")
    lines = said(capfd, colours / "run", "--folder", two)
    assert lines[:2] == [
        "the model knows 2 of 4 classes: left out",
        "2 unseen classes, 12 images",
    ]
    assert "trained without a margin" in lines[2]
    assert lines[3].endswith("30 of one class, 36 of two")
    assert lines[5].endswith("needs 1,000 pairs of two classes")


def test_images_that_moved(colours: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (own,) = said(capfd, colours / "run")
    (colours / "images").rename(colours / "moved")
    (line,) = said(capfd, colours / "run", code=2)
    assert "is not a folder; correct it" in line
    assert said(capfd, colours / "run", f"data.root={colours}/moved") == [own]
    (colours / "moved").rename(colours / "images")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_is_judged_in_its_own_precision(colours: Path, precision: str) -> None:
    loaded = load_trained(colours / "run", [])
    train = loaded.config.train.model_copy(update={"precision": precision})
    model = replace(loaded, config=loaded.config.model_copy(update={"train": train}))
    seen: list[bool] = []
    model.network.backbone.register_forward_hook(
        lambda *given: seen.append(torch.is_autocast_enabled("cpu"))
    )
    for lines in (evaluate_own(model), evaluate_folder(model, colours / "images/val")):
        for line in lines:
            assert "top-1" in line
            assert not torch.is_autocast_enabled("cpu")
    assert seen == [precision == "bf16"] * 2


def test_renamed_classes(colours: Path, capfd: pytest.CaptureFixture[str]) -> None:
    renamed = Path(shutil.copytree(colours / "images", colours / "renamed"))
    for part in ("train", "val"):
        (renamed / part / "green").rename(renamed / part / "olive")
    (line,) = said(capfd, colours / "run", f"data.root={renamed}", code=2)
    assert "label 1 is 'olive' in the images and 'green' in the checkpoint; use --folder" in line


@pytest.mark.parametrize(
    ("arguments", "said_"),
    [
        (["none"], "none is no checkpoint and holds none"),
        (["run", "train.steps=3"], "train.steps=3 is none of the settings data.KEY=VALUE"),
        (["run", "--pairs", "none.txt"], "cannot read the pairs in none.txt"),
        (["run", "--pairs", "bad.txt"], "bad.txt, line 2: 'a.png b.png' does not fit; write two"),
        (["run", "--pairs", "few.txt"], "has 1 pairs of one class and 1 of two, but 10 folds need"),
        (["run", "--pairs", "gone.txt"], "2 of 2 images in gone.txt do not exist, the first is"),
        (["run", "--folder", "none"], "none is not a folder; give one with a folder for each"),
        (["run", "--folder", "run", "--pairs", "few.txt"], "not allowed with argument"),
    ],
)
def test_mistakes(
    colours: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said_: str,
) -> None:
    monkeypatch.chdir(colours)
    (colours / "bad.txt").write_text("a.png b.png 1\na.png b.png\n")
    (colours / "few.txt").write_text("a.png b.png 1\na.png b.png 0\n")
    (colours / "gone.txt").write_text("a.png b.png 1\n" * 10 + "a.png b.png 0\n" * 10)
    (line,) = said(capfd, *arguments, code=2)
    assert said_ in line


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 20])
def test_another_number_of_classes_than_the_model_s(
    run: Path, capfd: pytest.CaptureFixture[str], classes: int
) -> None:
    """There are as many characters, so that nothing else would be said."""
    (line,) = said(capfd, run, f"data.num_classes={classes}", code=2)
    assert f"data.num_classes={classes} does not fit " in line
    assert line.endswith(f"whose classifier has {CLASSES} classes; leave it out")
    assert len(said(capfd, run, f"data.num_classes={CLASSES}")) == 2


def test_a_damaged_checkpoint(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = checkpoint_at(run, STEPS) / "backbone.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (line,) = said(capfd, run, code=2)
    file.write_bytes(content)
    assert "cannot be evaluated: backbone.safetensors has other content than was written" in line

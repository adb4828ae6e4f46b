"""Whether images keep up with the network: judged by figures, and read from real files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from harness.cli import main
from harness.config import load
from harness.doctor.compute import Speed
from harness.doctor.finding import Finding
from harness.doctor.reading import Reading, image_flops, judge_reading, measure_reading
from tests.doctor.seats import seats

TWO = seats(("h1", 1), ("h2", 1))
EXPERIMENT = """
name: pictures
data: {dataset: image_folder, root: images, num_classes: 3, image_size: 32, verify: none}
backbone: {feature_dim: 16}
train: {batch_size: 4, steps: 2}
tracking: {enabled: false}
"""


def judged(read: float, trained: float, card: bool, other: float = 1e9) -> Finding:
    """Of two ranks; the network takes so many images/s at half of its speed."""
    flops = 1e6
    speed = Speed(device="x", flop_per_second=2e6 * trained, cpu_share=None if card else 1.0)
    readings = [Reading(images_per_second=other), Reading(images_per_second=read)]
    return judge_reading(TWO, readings, [speed, speed], flops)


@pytest.mark.parametrize(
    ("read", "card", "share"),
    [
        (500, True, "50%"),
        (950, True, ""),  # 5 % of a step
        (2000, True, ""),
        (1000, False, "50%"),
        (4000, False, "20%"),
        (10_000, False, ""),  # 9 %
    ],
)
def test_on_cards_images_are_read_ahead_and_on_processors_they_take_cores(
    read: float, card: bool, share: str
) -> None:
    found = judged(read, 1000, card)
    assert found.level == ("warn" if share else "ok")
    figures = f"rank 1 on h2 reads {read:,.0f} images/s, and would train 1,000 at 50% of its speed"
    assert figures in found.found
    assert found.found.startswith(f"bound by data: images would take {share} of" if share else "")
    assert ("harness pack" in found.advice) == bool(share)


def test_images_that_cannot_be_read() -> None:
    speed = Speed(device="cpu", flop_per_second=1e9, cpu_share=1.0)
    readings = [Reading(images_per_second=5), Reading(problem="data.root=x is not a folder")]
    found = judge_reading(TWO, readings, [speed, speed], 1e6)
    assert found.level == "fail"
    assert found.found == "rank 1 on h2: data.root=x is not a folder"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for each in range(4):
                file = tmp_path / "images" / part / name / f"{each}.jpg"
                Image.new("RGB", (300, 200), (40 * each, 90, 9)).save(file)
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_are_really_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.doctor.reading.SECONDS", 0.05)
    config = load(here / "run.yaml")
    found = measure_reading(config, seats(("h1", 1))[0])
    assert found.problem == ""
    assert found.images_per_second > 0
    gone = load(here / "run.yaml", ["data.root=none"])
    assert "data.root=none is not a folder" in measure_reading(gone, seats(("h1", 1))[0]).problem


def test_operations_of_an_image_grow_with_the_slice_group(here: Path) -> None:
    whole = load(here / "run.yaml", ["data.num_classes=1000", "classifier.layout=node"])
    alone, four = (image_flops(whole, 2, ranks) for ranks in (1, 4))
    # Four times as many features, and a quarter of the classes.
    assert four == pytest.approx(alone)
    twice = image_flops(load(here / "run.yaml", ["data.num_classes=2000"]), 2, 1)
    assert twice - alone == 3 * 2 * 1000 * 16


def test_the_doctor_says_it(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        main(["doctor", "run.yaml"])
    finally:
        torch.set_num_threads(threads)
    (line,) = [each for each in capfd.readouterr().out.splitlines() if each[6:10] == "data"]
    assert "rank 0 on " in line
    assert " images/s, and would train " in line

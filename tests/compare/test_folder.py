"""A study read from its folder, shipped, and drawn from there."""

from pathlib import Path

import pytest

from analysis.draw import lateness
from analysis.shipping import NotFit, ship_study
from harness.compare.folder import variants_in
from harness.config import Config
from harness.errors import UserError
from harness.tracking.run_folder import CONFIG, RunFolder
from tests.recorded import summary

INT8 = {"exchange": {"route": "hierarchical", "compression": "int8"}}
RUNGS = {
    "data_parallel": {},
    "int8": INT8,
    "int8_k2": {"exchange": INT8["exchange"] | {"backward_passes_per_step": 2}},
}


def keep(study: Path, name: str, seed: int, speed: float = 1000.0, **values: object) -> None:
    folder = study / f"{name}-s{seed}"
    folder.mkdir(parents=True)
    tracking = {"uri": f"sqlite:///{study}/mlflow.db", "folder": str(study)}
    given = {"name": name, "seed": seed, "train": {"steps": 300}, "tracking": tracking}
    (folder / CONFIG).write_text(Config.model_validate(given | values).to_yaml())
    RunFolder(folder).write_summary(summary(name, seed=seed, images_per_second=speed))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    place = tmp_path / "made" / "study"
    for number, (name, values) in enumerate(RUNGS.items()):
        for seed in (2, 0, 1):
            keep(place, name, seed, 1000.0 * (number + 1) + seed, **values)
    (place / "comparison.md").write_text("# study\n")
    (place / "data_parallel-s0.log").write_text(str(place))
    return place


def test_runs_are_put_together_by_variant_and_seed(study: Path) -> None:
    found = variants_in(study)
    assert [each.name for each in found] == sorted(RUNGS)
    assert [run.seed for run in found[0].summaries] == [0, 1, 2]
    assert found[1].config.exchange.compression == "int8"


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no run"):
        variants_in(tmp_path)


def test_what_is_shipped_is_the_same_study_and_names_no_place(study: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    assert ship_study(study, shipped) == "shipped: 9 runs"
    assert [each.summaries for each in variants_in(shipped)] == [
        each.summaries for each in variants_in(study)
    ]
    assert (shipped / "comparison.md").exists()
    assert not list(shipped.glob("*.log"))
    text = str(study)
    assert not [each for each in shipped.rglob("*") if each.is_file() and text in each.read_text()]


def test_a_study_that_tells_of_its_machine_is_not_shipped(study: Path, tmp_path: Path) -> None:
    (study / "comparison.md").write_text(f"# made in {study}\n")
    with pytest.raises(NotFit, match=r"comparison\.md"):
        ship_study(study, tmp_path / "shipped")


def test_a_studys_target_is_that_of_its_own_baseline(study: Path) -> None:
    found = lateness.Study.read(study)
    assert found.target.top1 == pytest.approx(0.89), "the baseline ends at 0.9"
    assert [each.name for each in found.variants] == sorted(RUNGS)

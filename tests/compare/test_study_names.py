"""A study keeps its name: from the command line to the runs, into the store, and back."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cli import main
from harness.compare.run_all import Experiments, Ranks, make_plan
from harness.errors import UserError
from harness.launch import supervisor
from harness.paths import folder_name
from harness.tracking.connection import open_store
from harness.tracking.study import read_study
from tests.compare.test_run_all import experiment, fake_command
from tests.config.test_config import NASTY, PRINTABLE

NAMES = (
    "null",
    'a/../../b: "null" it\'s ${seed} $HOME `id` #1 [x; 統計 é',
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty store, in which trainings are stand-ins."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(supervisor, "train_command", fake_command)
    return place


def test_odd_names_reach_the_runs_and_come_back(here: Path) -> None:
    open_store(f"sqlite:///{here}/mlflow.db")
    before = set(here.parent.iterdir())
    path = str(experiment(here, "base", "tracking: {experiment: recorded}"))
    for name in NAMES:
        assert main(["compare", path, "--study", name]) == 0
        found = read_study(f"sqlite:///{here}/mlflow.db", name)
        assert found.name == name
        assert [run.config.tracking.study for run in found.runs] == [name]
        assert main(["compare", "--from-study", name, "--no-record"]) == 0
    assert set(here.parent.iterdir()) == before, "a folder was made outside of runs/"
    assert {each.name for each in (here / "runs").iterdir()} == set(map(folder_name, NAMES))


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(name=PRINTABLE | st.sampled_from(NASTY), variant=st.from_regex(r"\A[A-Za-z0-9_.-]{1,9}\Z"))
def test_every_printable_name_is_the_trials(name: str, variant: str, here: Path) -> None:
    path = here / "run.yaml"
    path.write_text(f'name: "{variant}"\ntrain: {{steps: 3}}\n')
    plan = make_plan(Experiments([path], [], 2), Ranks(1), name, None)
    assert plan.study == name
    assert {trial.config.tracking.study for trial in plan.trials} == {name}
    assert {trial.config.name for trial in plan.trials} == {variant}
    for trial in plan.trials:
        assert (here / "runs") in Path(trial.folder).resolve().parents
        assert len(trial.folder.relative_to(here / "runs").parts) == 3
        assert all(len(part.encode()) < 200 for part in trial.folder.parts)


@given(one=st.text(max_size=300), other=st.text(max_size=300))
def test_folders_of_names_stay_inside_and_apart(one: str, other: str) -> None:
    one, other = (each.encode(errors="ignore").decode() for each in (one, other))
    names = [folder_name(each) for each in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert 0 < len(name.encode()) <= 120
        assert "/" not in name
        assert name.strip(" .") == name
        assert name.isprintable()


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", " a", "a" * 201, "\udcff"])
def test_a_name_that_nobody_could_read_is_refused_before_anything_is_written(
    name: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(experiment(here, "base"))
    before = sorted(here.rglob("*"))
    assert main(["compare", path, "--study", name]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--study: " in line
    assert sorted(here.rglob("*")) == before


def test_a_seed_that_repetitions_take_out_of_range_is_found_first(here: Path) -> None:
    path = here / "run.yaml"
    path.write_text(f"seed: {2**63 - 1}\ntrain: {{steps: 3}}\n")
    make_plan(Experiments([path]), Ranks(1), None, None)
    with pytest.raises(UserError, match=f"seed={2**63} does not fit"):
        make_plan(Experiments([path], [], 2), Ranks(1), None, None)

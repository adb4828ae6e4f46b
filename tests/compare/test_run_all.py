"""Studies of stand-in trainings under real horovodruns, recorded in a real store."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from harness.compare import run_all as study
from harness.compare.run_all import Experiments, Ranks, compare, make_plan
from harness.errors import UserError
from harness.launch import supervisor
from harness.launch.launch import Outcome
from harness.launch.supervisor import Policy, Training, supervise
from harness.tracking.connection import connect
from harness.tracking.results import Terms

ROOT = Path(__file__).resolve().parents[2]
HOSTS = "localhost:1,127.0.0.1:1"


def fake_command(
    experiment: Path, overrides: Sequence[str], folder: Path, goes_on: bool
) -> list[str]:
    fake = [sys.executable, "-m", "tests.compare.fake_train"]
    return [*fake, str(experiment), *overrides, "--folder", str(folder)]


@pytest.fixture
def here(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a store, in which trainings are stand-ins."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(supervisor, "train_command", fake_command)
    return tmp_path


def experiment(folder: Path, name: str, more: str = "") -> Path:
    path = folder / f"{name}.yaml"
    layout = "replicated" if name == "base" else "node"
    path.write_text(
        f"name: {name}\nseed: 5\nclassifier: {{layout: {layout}}}\ntrain: {{steps: 300}}\n{more}"
    )
    return path


def client(folder: Path) -> MlflowClient:
    return connect(f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> dict[str, tuple[str, str | None]]:
    """Name -> (status, study) of every run in the store."""
    store = client(folder)
    one = store.get_experiment_by_name("harness")
    assert one is not None
    found = store.search_runs([one.experiment_id])
    return {run.info.run_name: (run.info.status, run.data.tags.get("study")) for run in found}


def test_seeds_are_the_outer_loop(here: Path) -> None:
    """Were the machine to slow down meanwhile, all variants would feel it."""
    paths = [experiment(here, "fast"), experiment(here, "base")]
    plan = make_plan(Experiments(paths, ["train.batch_size=16"], 2), Ranks(2, HOSTS), "which", None)
    order = [(trial.config.name, trial.config.seed) for trial in plan.trials]
    assert order == [("fast", 5), ("base", 5), ("base", 6), ("fast", 6)]
    assert {trial.config.train.batch_size for trial in plan.trials} == {16}
    assert {trial.config.tracking.study for trial in plan.trials} == {"which"}
    assert len({trial.folder for trial in plan.trials}) == 4


def test_a_study_from_start_to_end(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [experiment(here, "fast"), experiment(here, "base")]
    code = compare(
        Experiments(paths, ["train.batch_size=16"]), Ranks(2, HOSTS), "which", Terms(), None
    )
    out, err = capfd.readouterr()
    assert code == 0
    trained = [line for line in err.splitlines() if line.startswith("trained")]
    assert trained == ["trained fast with seed 5", "trained base with seed 5"]

    (folder,) = (here / "runs" / "which").iterdir()
    frame = pd.read_csv(folder / "comparison.csv", index_col="variant")
    assert frame.loc["fast", "speedup"] == 2.0
    assert frame.loc["base", "runs"] == 1
    assert frame.loc["fast", "speedup_to_target"] == 2.0
    resolved = (folder / "fast-s5" / "config.yaml").read_text()
    assert "study: which" in resolved
    assert "batch_size: 16" in resolved

    assert runs(here) == {"comparison which": ("FINISHED", "which")}
    store = client(here)
    one = store.get_experiment_by_name("harness")
    assert one is not None
    (own,) = store.search_runs([one.experiment_id], "tags.variant = 'comparison'")
    names = {file.path for file in store.list_artifacts(own.info.run_id)}
    tables = {"comparison.md", "comparison.csv", "comparison.png"}
    assert names == tables | {"verdict.csv", "report.html"}
    assert "First by time to 89.00%: fast (15.0 s), 2.00x faster than the runner-up base" in out
    assert "; one seed is too few for a test." in " ".join(out.split())

    lines = out.splitlines()
    assert any(line.startswith("fast ") and "2.00x" in line for line in lines)
    assert lines[-1].startswith("see it with: ")
    assert lines[-1].endswith("harness ui --study which")


def test_a_run_that_crashes_does_not_take_the_others_along(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [experiment(here, name) for name in ("crashes", "base")]
    code = compare(Experiments(paths), Ranks(2, HOSTS), "which", Terms(0.85), None)
    out, err = capfd.readouterr()
    assert code == 1
    assert "ValueError: the cause" in err
    assert "0, 1 failed" in out
    assert any(line.startswith("base ") and "1.00x" in line for line in out.splitlines())
    assert "85.00% as given" in out
    assert runs(here)["crashes-s5"] == ("FAILED", "which")
    (folder,) = (here / "runs" / "which").iterdir()
    assert "ValueError: the cause" in (folder / "crashes-s5.log").read_text()


def test_a_users_mistake_in_a_run_ends_the_study_with_its_one_line(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [experiment(here, name) for name in ("mistaken", "base")]
    assert compare(Experiments(paths), Ranks(2, HOSTS), "which", Terms(), here / "place") == 2
    err = capfd.readouterr().err
    assert err.count("harness: data.root is missing; give a folder") == 1
    assert "Traceback" not in err
    assert not list(here.glob("place/started-base*"))


def test_a_mistake_before_a_later_run_starts_still_lets_the_study_conclude(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As when a host's name does not resolve any more, or the log cannot be written."""
    paths = [experiment(here, name) for name in ("fast", "base")]

    def gone(training: Training, policy: Policy, log: Path) -> Outcome:
        if training.config.name == "base":
            raise UserError("the host name 'h2' of --hosts does not resolve; correct it")
        return supervise(training, policy, log)

    monkeypatch.setattr(study, "supervise", gone)
    assert compare(Experiments(paths), Ranks(2, HOSTS), "which", Terms(), here / "place") == 2
    out, err = capfd.readouterr()
    assert err.count("harness: the host name 'h2' of --hosts does not resolve; correct it") == 1
    assert "the study stops here" in err
    assert any(line.startswith("fast ") for line in out.splitlines())
    assert (here / "place" / "comparison.csv").exists()


COMPARE = """
import sys
from pathlib import Path
from harness.compare import run_all as study
from harness.launch import supervisor
from harness.launch.launch import Outcome
from harness.launch.supervisor import Policy, Training, supervise
from harness.tracking.results import Terms
from tests.compare.test_run_all import HOSTS, fake_command
supervisor.train_command = fake_command
paths = [Path(path) for path in sys.argv[1:]]
given = study.Experiments(paths), study.Ranks(2, HOSTS)
sys.exit(study.compare(*given, "which", Terms(), Path("place")))
"""


def test_ctrl_c_ends_the_study_and_the_run_is_called_killed(here: Path) -> None:
    paths = [experiment(here, name) for name in ("base", "hangs", "fast")]
    process = subprocess.Popen(
        [sys.executable, "-c", COMPARE, *map(str, paths)],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not (here / "place" / "hangs-s5" / "mlflow.json").exists():
            assert time.monotonic() < end, "it never started"
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by the user" in out
    assert "Traceback" not in out
    assert "base " in out  # what was done is shown
    assert runs(here)["hangs-s5"] == ("KILLED", "which")
    assert not list(here.glob("place/started-fast-*"))


@pytest.mark.parametrize(
    ("names", "more", "np", "hosts", "expected"),
    [
        (("base", "base"), "", 2, HOSTS, "two experiments are named base"),
        (
            ("base", "fast"),
            "data: {num_classes: 77}",
            2,
            HOSTS,
            "data.num_classes=1000, fast has 77",
        ),
        (("base", "fast"), "data: {dataset: synthetic}", 2, HOSTS, "data.dataset=glyphs, fast has"),
        (("base", "fast"), "speed: 3", 2, HOSTS, "unknown key speed"),
        (("fast",), "data: {num_classes: 2}", 4, "h:4", "needs at least 4 classes for 4 ranks"),
        (("base",), "", 3, "localhost:2,127.0.0.1:2", "the same number of ranks"),
        (("base",), "", 8, HOSTS, "needs 8 slots"),
        ((), "", 2, HOSTS, "no experiment was given; name one"),
    ],
)
def test_what_could_not_run_or_compare_is_told_before_the_first_start(
    names: tuple[str, ...], more: str, np: int, hosts: str, expected: str, tmp_path: Path
) -> None:
    hosts = hosts.replace("h:", "localhost:")
    last = len(names) - 1
    paths = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(experiment(folder, name, more if number == last else ""))
    with pytest.raises(UserError, match=expected):
        compare(Experiments(paths), Ranks(np, hosts), None, Terms(), tmp_path / "place")
    assert not (tmp_path / "place").exists()


def test_a_target_is_a_share() -> None:
    with pytest.raises(UserError, match="--target must be above 0 and at most 1, got 95"):
        Terms(95.0)


def test_a_difference_in_images_is_told_but_runs(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [
        experiment(here, "base"),
        experiment(here, "fast", "exchange: {backward_passes_per_step: 2}"),
    ]
    plan = make_plan(Experiments(paths), Ranks(2, HOSTS), "which", None)
    study._announce(plan)
    err = capfd.readouterr().err
    assert "do not see the same number of images: base 19,200 images, fast 38,400 images" in err

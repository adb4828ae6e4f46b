"""A leading ~ is the home folder in every path that is written anywhere."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from harness.arguments import is_override, path
from harness.cli import main
from harness.config import Config, load, load_resolved
from harness.data.pixel_cache import cached_pixels
from harness.errors import UserError
from harness.paths import expanded, expanded_uri, nearest_file
from harness.plan.command import _require_writable
from harness.tracking.connection import check_store, sqlite_file, store_uri
from harness.tracking.folders import check_free
from harness.tracking.node_gauges import monitor_node
from tests.plan.clusters import cluster
from tests.rights import without_rights

KEYS = ("data.root", "data.cache", "train.resume", "tracking.folder")
EXPERIMENT = """
name: t
data: {dataset: synthetic, num_classes: 12, image_size: 8, synthetic_images: 64}
train: {batch_size: 4, steps: 2, matmul_seconds: 0}
tracking: {enabled: false}
"""


@pytest.mark.parametrize(
    ("missing", "nearest"),
    [
        ("experiments/lab/data_paralel.yaml", "experiments/lab/data_parallel.yaml"),
        ("experiment/laab/data_parallel.yml", "experiments/lab/data_parallel.yaml"),
        ("experiments/lab/ceiling", "experiments/lab/ceiling.yaml"),
        ("experiments/lab/../lab/ceilings.yaml", "experiments/lab/../lab/ceiling.yaml"),
        ("experiments/lab/none.yaml", None),
        ("experiments/laab", None),
        ("none/lab/ceiling.yaml", None),
        ("experiments/lab/ceiling.yaml/x", None),
    ],
)
def test_the_nearest_file_is_found_name_by_name(
    missing: str, nearest: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "experiments" / "lab"
    folder.mkdir(parents=True)
    for name in ("data_parallel.yaml", "data_parallel.md", "ceiling.yaml"):
        (folder / name).touch()
    monkeypatch.chdir(tmp_path)
    assert nearest_file(Path(missing)) == (nearest and Path(nearest))
    assert nearest_file(tmp_path / missing) == (nearest and tmp_path / nearest)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; beside it the working directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_path_of_the_config_in_a_file_and_behind_an_equals_sign(home: Path) -> None:
    Path("run.yaml").write_text(
        "train: {steps: 3, resume: ~/resume}\n"
        "data: {root: ~/root, cache: ~/cache, train_fonts: [~/a, b~], validation_fonts: ['~']}\n"
        "tracking: {folder: ~/folder, uri: sqlite:///~/uri.db}\n"
    )
    flat = load("run.yaml").flattened()
    for key in KEYS:
        assert flat[key] == str(home / key.split(".")[1])
        assert load("run.yaml", [f"{key}=~/else"]).flattened()[key] == str(home / "else")
        assert load("run.yaml", [f"{key}=./~/else"]).flattened()[key] == "./~/else"
        with pytest.raises(UserError, match=f"{key}=~nobody-here does not fit: this machine"):
            load("run.yaml", [f"{key}=~nobody-here"])
    assert flat["data.train_fonts"] == [str(home / "a"), "b~"]
    assert flat["data.validation_fonts"] == [str(home)]
    assert flat["tracking.uri"] == f"sqlite:///{home}/uri.db"
    fonts = load("run.yaml", ["data.train_fonts=[~/x, y]"]).data.train_fonts
    assert fonts == (f"{home}/x", "y")


def test_the_record_holds_what_it_came_to(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host expands by itself what it reads; a record is not read anew by another home."""
    Path("run.yaml").write_text("train: {steps: 3}\ntracking: {folder: ~/runs}\n")
    config = load("run.yaml")
    Path("config.yaml").write_text(config.to_yaml())
    assert f"folder: {home}/runs" in Path("config.yaml").read_text()
    monkeypatch.setenv("HOME", "/somewhere/else")
    assert load_resolved(Path("config.yaml")) == config
    assert load("run.yaml").tracking.folder == "/somewhere/else/runs"


def test_bases_and_experiments(home: Path) -> None:
    (home / "base.yaml").write_text("train: {steps: 3}\n")
    Path("run.yaml").write_text("base: ~/base.yaml\n")
    assert load("run.yaml").train.steps == 3
    Path("run.yaml").write_text("base: ~nobody-here/base.yaml\n")
    with pytest.raises(
        UserError, match=r"run\.yaml, line 1: base=~nobody-here/base\.yaml does not"
    ):
        load("run.yaml")


def test_the_store_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/m.db")
    config = Config.model_validate({"train": {"steps": 1}})
    assert sqlite_file(store_uri(config.tracking)) == home / "m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~nobody-here/m.db")
    with pytest.raises(
        UserError, match=r"the store sqlite:///~nobody-here/m\.db does not fit: this machine"
    ):
        store_uri(config.tracking)


@pytest.mark.parametrize("uri", ["http://~/x", "sqlite:////~/x.db", "sqlite://", "mlruns", "~"])
def test_other_addresses_stay_as_they_are(uri: str, home: Path) -> None:
    assert expanded_uri(uri) == uri


def test_options(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert path("~/x") == home / "x"
    (home / "run.yaml").write_text(EXPERIMENT)
    cluster().write(home / "c.yaml")
    words = ["--cluster", "~/c.yaml", "--output", "~/p.json"]
    assert main(["plan", "~/run.yaml", *words]) == 0
    assert (home / "p.json").exists()
    capfd.readouterr()
    assert main(["compare", "~/run.yaml", "--predictions", "~/none.json"]) == 2
    assert f"cannot read the predictions {home}/none.json" in capfd.readouterr().err


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user may have none."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ValueError, match="has no home folder ~; write the path in full"):
        expanded("~/x")


def test_a_training_writes_into_the_home_folder(home: Path) -> None:
    Path("run.yaml").write_text(EXPERIMENT.replace("enabled: false", "enabled: false, folder: ~/r"))
    root = Path(__file__).resolve().parents[1]
    words = ["train", "run.yaml", "seed=9223372036854775807"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (home / "r").iterdir()
    assert (run / "summary.json").exists()
    assert not Path("~").exists()


TOUCHES: dict[str, Callable[[Path], object]] = {
    "a run's folder": check_free,
    "a store": lambda place: check_store(in_store(place).tracking),
    "a node's gauges": lambda place: gauges(in_store(place)),
    "rendered images": lambda place: cached_pixels(
        place / "file", (1,), lambda: [np.zeros(1, np.uint8)]
    ),
    "predictions": lambda place: _require_writable(place / "plan.json"),
    "an override": lambda place: is_override(f"tracking.study={place}.yaml"),
}


def gauges(config: Config) -> None:
    with monitor_node(config, "run", 0):
        pass


def in_store(place: Path) -> Config:
    tracking = {"uri": f"sqlite:///{place}/mlflow.db"}
    return Config.model_validate({"train": {"steps": 1}, "tracking": tracking})


@pytest.mark.parametrize("name", ["locked/inner", "n" * 300])
@pytest.mark.parametrize("touches", TOUCHES)
def test_what_nobody_may_look_at_is_a_mistake_in_a_line(
    touches: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o700)
    with without_rights(), suppress(UserError):
        TOUCHES[touches](tmp_path / name)

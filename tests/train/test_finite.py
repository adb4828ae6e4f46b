"""What is not finite ends a training, in the window in which it was seen, and spoils no model."""

import itertools
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.cli import main
from harness.config import Config
from harness.errors import Diverged, UserError
from harness.measure.clock import clock_for
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.pulse import CARD_WAIT, Pulse
from harness.tracking.run_folder import RunFolder
from harness.train import finite
from harness.train.finite import Look, lag_of
from harness.train.ledger import NullJournal
from harness.train.step import make_step
from harness.train.training import Training
from tests.alone import CPU, world_of_one
from tests.horovodrun import ROOT
from tests.laws.task import config, dataset
from tests.train.poison import KINDS, Poison, checkpoints

WINDOWS = 9


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Heard(NullJournal):
    """A journal that can be read."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self.warnings: list[str] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, value))

    def warn(self, name: str, line: str) -> None:
        self.warnings.append(line)


def small(kind: str = "synchronous", delay: int = 0, passes: int = 1, **changes: object) -> Config:
    """A checkpoint every two windows; batch norm, so that there are statistics."""
    settings = {
        "train__steps": WINDOWS,
        "train__checkpoint_every": 2,
        "train__log_every": 1,
        "train__save": True,
        "backbone__norm": "batch",
    }
    found = config("replicated", kind, passes, delay, **(settings | changes))
    # An estimate's own forward passes would be counted as the training's.
    quiet = found.staleness.model_copy(update={"curvature_after_warmup": False})
    return found.model_copy(update={"staleness": quiet})


def trained(setting: Config, poison: Poison | None, folder: Path) -> Heard:
    """Raises Diverged as a training does."""
    heard = Heard()
    step = make_step(setting, dataset(), world_of_one())
    if poison is not None:
        poison.into(step, setting.exchange.backward_passes_per_step)
    Training(step, folder).run(heard)
    return heard


SEEN = {
    "loss": "the loss of window {0} is not finite",
    "gradient": "the gradient norm in window {0} is not finite",
    "statistics": "the parameters or batch statistics after window {0} are not finite",
    "parameters": "the parameters or batch statistics after window {0} are not finite",
}


@pytest.mark.parametrize(
    ("kind", "bad"),
    [*((kind, math.nan) for kind in KINDS), ("loss", math.inf), ("gradient", -math.inf)],
)
def test_it_is_seen_in_its_window_and_never_saved(kind: str, bad: float, tmp_path: Path) -> None:
    """In a window before a checkpoint is due, so that nothing comes between."""
    with pytest.raises(Diverged) as ended:
        trained(small(), Poison(kind, 6, bad), tmp_path)
    assert ended.value.found.startswith(SEEN[kind].format(6))
    assert checkpoints(tmp_path) == [2, 4]
    assert f"the last good checkpoint is {tmp_path}/checkpoints/000000004" in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_window_is_seen_too(kind: str, tmp_path: Path) -> None:
    """After the last evaluation that a run makes on its way, and before the one at its end."""
    setting = small(train__evaluate_every=2, train__checkpoint_every=0)
    with pytest.raises(Diverged) as ended:
        trained(setting, Poison(kind, WINDOWS, math.nan), tmp_path)
    assert ended.value.found.startswith(SEEN[kind].format(WINDOWS))
    assert checkpoints(tmp_path) == []
    assert "no checkpoint was written" in str(ended.value)


@pytest.mark.parametrize(
    ("kind", "delay", "passes", "stepped"),
    [
        ("synchronous", 0, 2, 3),
        ("delayed", 0, 1, 3),
        ("delayed", 2, 2, 5),
        ("averaging", 1, 2, 3),
        ("isolated", 0, 2, 3),
        ("ddp_powersgd", 0, 1, 3),
        ("ddp_post_local_sgd", 0, 1, 3),
    ],
)
def test_a_gradient_is_seen_when_it_is_stepped_with(
    kind: str, delay: int, passes: int, stepped: int, tmp_path: Path
) -> None:
    setting = small(kind, delay, passes, train__checkpoint_every=0)
    # Where each micro-batch is stepped with, the next one of the window has a loss of NaN.
    found = "loss of" if passes > 1 and kind in ("averaging", "isolated") else "gradient norm in"
    with pytest.raises(Diverged, match=f"the {found} window {stepped} is not finite"):
        trained(setting, Poison("gradient", 3, math.nan), tmp_path)


def test_a_gradient_that_only_a_drain_steps_with_is_seen(tmp_path: Path) -> None:
    setting = small("delayed", 2, train__checkpoint_every=0)
    with pytest.raises(Diverged, match=f"the gradient norm in window {WINDOWS} is not finite"):
        trained(setting, Poison("gradient", WINDOWS - 1, math.inf), tmp_path)
    assert checkpoints(tmp_path) == []


def test_the_run_ends_a_fixed_number_of_windows_later(tmp_path: Path) -> None:
    """Nobody waits for what others do now; and nobody trains on for long."""
    for kind, delay in (("synchronous", 0), ("delayed", 2)):
        setting = small(kind, delay, train__checkpoint_every=0, train__steps=20)
        step = make_step(setting, dataset(), world_of_one())
        Poison("loss", 5, math.inf).into(step)
        ran = []
        step.optimizer.register_step_post_hook(lambda *_: ran.append(1))  # noqa: B023
        with pytest.raises(Diverged, match="the loss of window 5"):
            Training(step, tmp_path).run(NullJournal())
        assert len(ran) + delay == 5 + 1 + lag_of(setting) == 7 + delay


def test_a_training_that_stays_finite_tells_its_gradients_norm(tmp_path: Path) -> None:
    step = make_step(small(), dataset(), world_of_one())
    norms, heard = [], Heard()
    step.optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(step.model.shared.grads.norm()))
    )
    Training(step, tmp_path).run(heard)
    steps, told = zip(*heard.metrics["train/gradient_norm"], strict=True)
    assert steps == tuple(range(1, WINDOWS + 1))
    assert told == pytest.approx(norms, rel=1e-12)
    assert checkpoints(tmp_path) == [2, 4, 6, 8, 9]


def test_a_checkpoint_of_a_diverged_run_is_not_resumed(tmp_path: Path) -> None:
    """As older versions wrote them."""
    trained(small(), None, tmp_path)
    bad = shutil.copytree(tmp_path / "checkpoints" / "000000006", tmp_path / "bad")
    tensors = load_file(bad / "backbone.safetensors")
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = math.inf
    save_file(tensors, bad / "backbone.safetensors")
    with pytest.raises(UserError, match="contains values that are not finite"):
        make_step(small(train__resume=str(bad)), dataset(), world_of_one())
    good = tmp_path / "checkpoints" / "000000004"
    with pytest.raises(Diverged, match=f"the loss of window 6 .* before {good}, which may"):
        trained(
            small(train__resume=str(good), train__checkpoint_every=0),
            Poison("loss", 2, math.nan),
            tmp_path / "again",
        )


def test_an_evaluation_that_overflows_counts_misses_and_says_so(tmp_path: Path) -> None:
    """All numbers of the model are finite, and its logits of some images are not."""
    heard = Heard()
    step = make_step(small(), dataset(), world_of_one())

    def spoil(module: object, given: object, features: torch.Tensor) -> torch.Tensor | None:
        if step.model.backbone.training:
            return None
        spoilt = features.clone()
        spoilt[::3] = math.inf
        return spoilt

    step.model.backbone.register_forward_hook(spoil)
    summary = Training(step, tmp_path).run(heard)
    found = summary.final
    assert found["val/nonfinite_images"] == found["val/same/nonfinite_images"] == 32
    assert math.isnan(found["val/loss"])
    assert found["val/top5"] <= 64 / 96
    assert summary.diverged == f"the validation loss after window {WINDOWS} is not finite"
    assert heard.warnings == [
        f"after {WINDOWS} windows 32 images of same have a logit that is not finite; "
        f"they count as misses, and the loss of same is not finite"
    ]
    assert summary.seconds_to(0.0) is None


def test_a_checkpoint_with_logits_that_are_not_finite_is_not_called_good(tmp_path: Path) -> None:
    """Its parameters are, and the next window's loss is not."""
    step = make_step(small(train__evaluate_every=2), dataset(), world_of_one())
    ended = 0

    def spoil(module: object, given: object, features: torch.Tensor) -> torch.Tensor | None:
        nonlocal ended
        ended += step.model.backbone.training
        return features * math.inf if ended >= 4 and not step.model.backbone.training else None

    step.model.backbone.register_forward_hook(spoil)
    Poison("loss", 5, math.nan).into(step)
    with pytest.raises(Diverged, match=r"the loss of window 5 .* is .*/000000002"):
        Training(step, tmp_path).run(NullJournal())
    assert 4 in checkpoints(tmp_path)


EXPERIMENT = """
name: wild
data: {dataset: synthetic, num_classes: 10, synthetic_images: 64, image_size: 16}
optimizer: {lr: 1.0e+6}
train: {batch_size: 8, steps: 8, untimed_windows: 2, log_every: 2, matmul_seconds: 0.0, save: true}
tracking: {system_metrics_seconds: 0, uri: 'sqlite:///mlflow.db', study: wild}
"""


def test_a_run_that_diverges_ends_in_one_line_and_as_failed(tmp_path: Path) -> None:
    (tmp_path / "wild.yaml").write_text(EXPERIMENT)
    ended = subprocess.run(
        [sys.executable, "-m", "harness", "train", "wild.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 1, ended.stderr
    (line,) = [each for each in ended.stderr.splitlines() if each.startswith("harness:")]
    assert line.startswith("harness: training diverged: the ")
    assert "Traceback" not in ended.stderr
    assert "accuracy" not in ended.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "summary.json").exists()
    assert checkpoints(folder) == []
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]
        tags = dict(store.execute("select key, value from tags").fetchall())
    assert tags["diverged"] in line
    assert " of window " in tags["diverged"] or " in window " in tags["diverged"]


def test_a_run_whose_last_evaluation_is_not_finite_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One step that is too large: no loss of the training tells."""
    (tmp_path / "wild.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "wild.yaml", "train.steps=1"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]  # a bar of progress may be before it
    assert "harness: training diverged: the validation loss after window 1 is not" in last
    (folder,) = (tmp_path / "runs").iterdir()
    assert RunFolder(folder).read_summary().diverged
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]


def test_a_summary_of_older_runs_says_that_they_diverged() -> None:
    from tests.recorded import summary

    whole = summary()
    assert whole.diverged is None
    last = whole.evaluations[-1]
    for name in ("val/loss", "val/unseen_design/loss"):
        bad = last.model_copy(update={"metrics": last.metrics | {name: math.nan}})
        diverged = whole.model_copy(update={"evaluations": (*whole.evaluations[:-1], bad)})
        again = RunSummary.model_validate(json.loads(diverged.model_dump_json()))
        assert again.diverged == "the validation loss after window 300 is not finite"


def test_the_norm_of_drawn_rows_is_that_of_the_whole_gradient(tmp_path: Path) -> None:
    """In two micro-batches of a step, which draw some rows twice. A slice of all classes reads the
    rows that it drew; a replicated classifier reads all."""
    found = []
    for layout in ("world", "replicated"):
        settings = config(layout, "synchronous", 2, 0, classifier__sampling=0.7)
        heard = trained(settings, None, tmp_path / layout)
        found.append([norm for _, norm in heard.metrics["train/gradient_norm"]])
    assert found[0] == pytest.approx(found[1], rel=1e-12)


class Shown(Pulse):
    """Remembers the phases that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []

    def show(self, phase: str) -> None:
        self.phases.append(phase)


def test_while_the_host_waits_for_its_card_it_is_no_rank_that_stands_still(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A card that another rank holds up stops its host there."""
    pulse, waited = Shown(), list[str]()

    class Copied:
        def synchronize(self) -> None:
            waited.append(pulse.phases[-1])

    def on_card(window: int, steps: int, numbers: torch.Tensor, _: object) -> Look:
        return Look(window, steps, numbers, Copied())  # type: ignore[arg-type]

    monkeypatch.setattr(finite, "Look", on_card)
    world = world_of_one(Meters(clock_for(CPU, pulse.show), Traffic(), pulse))
    Training(make_step(small(), dataset(), world), tmp_path).run(Heard())
    assert len(waited) > WINDOWS
    assert set(waited) == {CARD_WAIT}
    after = {after for phase, after in itertools.pairwise(pulse.phases) if phase == CARD_WAIT}
    assert after == {Phase.OTHER}

"""Short real trainings from the command line to the record they leave, and what they are worth."""

import gc
import gzip
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import weakref
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from harness.config import Config, load
from harness.data.open import open_dataset
from harness.measure.phase import Phase
from harness.measure.summary import RunSummary
from harness.model.backbone import make_backbone
from harness.model.flops import micro_batch_flops
from harness.tracking.run_folder import RunFolder
from harness.train.step import make_step
from harness.train.training import Training
from tests.alone import world_of_one
from tests.horovodrun import ROOT, horovodrun

CLASSES = 13
EXPERIMENT = f"""
name: small
data: {{num_classes: {CLASSES}, image_size: 16, augment: 0.5, cache: ../cache}}
backbone: {{feature_dim: 16}}
optimizer: {{lr: 0.05, warmup_windows: 3, schedule: constant}}
train: {{batch_size: 12, steps: 30, log_every: 10, untimed_windows: 4, save: true, threads: 1}}
tracking:
  {{experiment: tests, study: the-tests, uri: 'sqlite:///mlflow.db', system_metrics_seconds: 0}}
"""
MANY_RANKS = """
base: run.yaml
seed: 3
classifier: {layout: node}
exchange: {kind: delayed, delay: 1, backward_passes_per_step: 2, synchronous_windows: 2}
data: {augment: 0.0}
train: {batch_size: 6, steps: 24, evaluate_every: 8, evaluate_images: 7, untimed_windows: 17}
trace: {windows: 2, first_window: 18}
staleness: {sample_every: 4, curvature_products: 4}
tracking: {system_metrics_seconds: 0.5}
"""
STEP_METRICS = (
    "train/loss",
    "train/top1",
    "throughput/images_per_second",
    "time/step_ms",
    "time/data_ms",
    "time/forward_ms",
    "time/backward_ms",
    "time/slice_wait_ms",
    "time/exchange_wait_ms",
    "time/optimizer_ms",
    "traffic/cross_node_mb_per_step",
    "traffic/in_node_mb_per_step",
)


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    config: Config
    folder: Path
    output: str
    store: Path

    @property
    def summary(self) -> RunSummary:
        return RunFolder(self.folder).read_summary()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.store)) as connection:
            return connection.execute(query).fetchall()

    def metric(self, key: str) -> list[tuple[int, float]]:
        """(step, value), from the store."""
        found = self.rows(f"select step, value from metrics where key = '{key}' order by step")
        return [(int(step), float(value)) for step, value in found]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    for name in ("one", "four"):
        (folder / name).mkdir()
        (folder / name / "run.yaml").write_text(EXPERIMENT)
    (folder / "four" / "many.yaml").write_text(MANY_RANKS)
    return folder


@pytest.fixture(scope="module")
def one(here: Path) -> Trained:
    """A single process without horovodrun."""
    folder = here / "one"
    ended = subprocess.run(
        [sys.executable, "-m", "harness", "train", "run.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    (run,) = (folder / "runs").iterdir()
    return Trained(load(folder / "run.yaml"), run, ended.stdout, folder / "mlflow.db")


@pytest.fixture(scope="module")
def four(here: Path) -> Trained:
    """Two nodes of two ranks."""
    folder = here / "four"
    ended = horovodrun(
        ["-m", "harness", "train", "many.yaml", "--folder", "the-run"],
        folder=folder,
        timeout=600,
        environment={"HOROVOD_CYCLE_TIME": "5"},
    )
    store = folder / "mlflow.db"
    return Trained(load(folder / "many.yaml"), folder / "the-run", ended.output, store)


@pytest.fixture(params=["one", "four"])
def trained(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def test_the_summary_says_what_was_run(trained: Trained) -> None:
    summary, config = trained.summary, trained.config
    ranks = 4 if config.seed else 1
    assert (summary.name, summary.seed) == ("small", config.seed)
    assert (summary.ranks, summary.nodes) == (ranks, 2 if ranks == 4 else 1)
    passes, batch = config.exchange.backward_passes_per_step, config.train.batch_size
    assert summary.windows == config.train.steps
    assert summary.images == config.train.steps * passes * batch * ranks
    assert summary.untimed_windows == config.train.untimed_windows
    # After the trace the next window uses what was sent before it.
    resuming = 1 if config.trace.windows else 0
    untimed = config.train.untimed_windows + config.trace.windows + resuming
    assert summary.timed_windows == config.train.steps - untimed
    assert summary.parameters_classifier == CLASSES * (16 + 1)
    backbone = make_backbone(config.backbone, 1, 16, seed=0)
    assert summary.parameters_backbone == sum(p.numel() for p in backbone.parameters())


def test_times_and_rates_fit_each_other(trained: Trained) -> None:
    summary = trained.summary
    assert set(summary.phases_ms) == {phase.value for phase in Phase}
    phases = sum(spread.mean for spread in summary.phases_ms.values())
    assert phases == pytest.approx(summary.step_ms.mean, rel=1e-9)
    images_per_window = summary.images / summary.windows
    fastest = images_per_window / summary.step_ms.mean * 1e3
    # The timed windows take at least the phases' time, and at most that of the whole training.
    slowest = summary.timed_windows * images_per_window / summary.train_seconds
    assert slowest <= summary.images_per_second <= 1.01 * fastest
    timed_seconds = summary.timed_windows * summary.step_ms.mean / 1e3
    assert timed_seconds <= summary.train_seconds
    for name in ("data", "forward", "backward", "optimizer"):
        assert summary.phases_ms[name].minimum > 0


def test_what_each_rank_did_with_its_time(trained: Trained) -> None:
    summary = trained.summary
    costs = summary.per_rank
    assert [cost.rank for cost in costs] == list(range(summary.ranks))
    assert [cost.node for cost in costs] == ([0] if summary.ranks == 1 else [0, 0, 1, 1])
    for cost in costs:
        assert sum(cost.percent(phase) for phase in Phase) == pytest.approx(100)
        times = cost.phases_ms
        computed = times["forward"] + times["backward"] + times["optimizer"]
        assert cost.computed_percent == pytest.approx(100 * computed / sum(times.values()))
        assert cost.matmul_percent is not None
        assert cost.matmul_percent > 0  # under load it has no upper bound
    counters = [cost.counter_percent for cost in costs]
    assert min(counters) > 0
    # Each is a share of the rank's own cores; together they are no more than the machine has.
    cores = len(os.sched_getaffinity(0))
    assert sum(counters) * min(1, cores / summary.ranks) <= 1.05 * 100 * cores
    steps = [cost.step_ms for cost in costs]
    assert sum(steps) / len(steps) == pytest.approx(summary.step_ms.mean)
    flop = micro_batch_flops(
        make_backbone(trained.config.backbone, 1, 16, seed=0),
        1,
        16,
        images=trained.config.train.batch_size,
        gathered=trained.config.train.batch_size * (1 if summary.ranks == 1 else 2),
        classes=CLASSES if summary.ranks == 1 else 6,
    ).total
    done = costs[-1].flop_per_second * costs[-1].step_ms / 1e3
    expected = flop * trained.config.exchange.backward_passes_per_step
    assert done == pytest.approx(expected, rel=0.02), "the last slice may have a class more"


def test_each_nodes_useful_share_stands_beside_its_counter(trained: Trained) -> None:
    costs, nodes = trained.summary.per_rank, range(trained.summary.nodes)
    for name in ("computed_percent", "counter_percent"):
        of_nodes = [dict(trained.metric(f"utilisation/node_{node}_{name}")) for node in nodes]
        whole = trained.metric(f"utilisation/{name}")
        assert whole
        for window, value in whole:
            # All nodes have as many ranks, so the mean over ranks is the mean over nodes.
            assert value == pytest.approx(sum(each[window] for each in of_nodes) / len(of_nodes))
    bars = dict(trained.rows("select key, value from metrics where key like 'summary/%'"))
    mean = sum(cost.computed_percent for cost in costs) / len(costs)
    assert bars["summary/computed_percent"] == pytest.approx(mean)
    assert "% of a step spent computing" in trained.output
    (keys,) = trained.rows("select count(distinct key) from metrics")
    assert keys[0] <= 110, "MLflow's page of a run stays readable"


def artifact(trained: Trained, name: str) -> dict[str, Any]:
    (path,) = trained.store.parent.glob(f"mlartifacts/*/artifacts/{name}")
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def test_the_traces_of_all_ranks_are_one_file_on_one_clock(four: Trained) -> None:
    whole = artifact(four, "traces/merged.json.gz")
    assert whole["metadata"]["windows"] == [18, 19]
    assert whole["metadata"]["clocks"].keys() == {"0", "1", "2", "3"}
    events = whole["traceEvents"]
    for rank in range(4):
        own = [event for event in events if event["pid"] == rank]
        (name,) = [e["args"]["name"] for e in own if e["name"] == "process_name"]
        assert name == f"rank {rank} on {socket.gethostname()}"
        phases = Counter(e["name"] for e in own if e.get("cat") == "user_annotation")
        assert phases["window"] == phases["optimizer"] == 2
        assert phases["forward"] == phases["backward"] == 4
        assert {"data", "slice_wait", "node_wait", "exchange_wait"} <= phases.keys()
        alone = artifact(four, f"traces/rank-{rank}.json.gz")
        assert alone["traceEvents"]


def test_a_gather_overlaps_on_the_ranks_that_meet_in_it(four: Trained) -> None:
    """It ends nowhere before it has begun everywhere."""
    events = artifact(four, "traces/merged.json.gz")["traceEvents"]
    for node in ((0, 1), (2, 3)):
        gathers = [
            sorted(
                (event["ts"], event["ts"] + event["dur"])
                for event in events
                if event["pid"] == rank and event["name"] == "gloo:all_gather"
            )
            for rank in node
        ]
        assert len(gathers[0]) == len(gathers[1]) >= 8
        for (start, end), (other_start, other_end) in zip(*gathers, strict=True):
            # Some microseconds are the profiler's.
            assert start <= other_end + 1000
            assert other_start <= end + 1000


def test_counted_bytes_are_the_formulas(trained: Trained) -> None:
    """In windows that all use a late result: the first has none to use."""
    summary = trained.summary
    assert summary.cross_node_mb_per_step == pytest.approx(summary.cross_node_mb_per_step_formula)
    assert summary.in_node_mb_per_step == pytest.approx(summary.in_node_mb_per_step_formula)
    assert (summary.in_node_mb_per_step > 0) == (summary.ranks > 1)


def test_it_learned(trained: Trained) -> None:
    losses = [value for _, value in trained.metric("train/loss")]
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] < 2 * math.log(CLASSES)


def dense_evaluation(trained: Trained) -> dict[str, float]:
    """All validation images and all classes in one place, from the files of the checkpoint."""
    config = trained.config
    data = config.data.model_copy(update={"cache": str(trained.store.parent.parent / "cache")})
    dataset = open_dataset(data)
    folder = trained.folder / "checkpoints" / f"{config.train.steps:09d}"
    backbone = make_backbone(config.backbone, 1, 16, seed=99)
    saved = load_file(folder / "backbone.safetensors")
    backbone.load_state_dict({name: saved[name] for name in backbone.state_dict()})
    slices = [load_file(path) for path in sorted(folder.glob("classifier-*"))]
    weight, bias = (torch.cat([each[name] for each in slices]) for name in ("weight", "bias"))
    backbone.eval()
    found = {}
    for name, source in dataset.validation.items():
        images, labels = source.read(torch.arange(len(source)))
        with torch.no_grad():
            logits = backbone((images.float() / 255 - 0.5) / 0.5) @ weight.T + bias
        best = logits.topk(5).indices
        hits = best == labels[:, None]
        found[f"val/{name}/top1"] = hits[:, 0].double().mean().item()
        found[f"val/{name}/top5"] = hits.any(1).double().mean().item()
        found[f"val/{name}/loss"] = functional.cross_entropy(logits, labels).item()
    return found


def test_the_last_evaluation_equals_a_dense_one(trained: Trained) -> None:
    """On four ranks: 13 images padded to equal shares, classes in slices of 6 and 7."""
    found, expected = trained.summary.final, dense_evaluation(trained)
    assert set(expected) == {
        f"val/{name}/{key}"
        for name in ("unseen_design", "unseen_weight")
        for key in ("top1", "top5", "loss")
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert found["val/top1"] == found["val/unseen_design/top1"]
    assert found["val/loss"] == found["val/unseen_design/loss"]


def test_evaluations_come_as_often_as_they_should(one: Trained, four: Trained) -> None:
    assert [each.window for each in one.summary.evaluations] == [30]
    evaluations = four.summary.evaluations
    assert [each.window for each in evaluations] == [8, 16, 24]
    assert [each.images for each in evaluations] == [8 * 48, 16 * 48, 24 * 48]
    assert evaluations[0].train_seconds < evaluations[1].train_seconds
    # Of 7 images each, as many sevenths.
    images = {"unseen_design": CLASSES, "unseen_weight": CLASSES}
    assert four.summary.validation_images == images
    sevenths = evaluations[0].metrics["val/unseen_weight/top5"] * 7
    assert sevenths == pytest.approx(round(sevenths), abs=1e-9)


def test_the_store_has_the_run(trained: Trained) -> None:
    (run,) = trained.rows("select run_uuid, status from runs")
    assert run == (trained.summary.mlflow_run_id, "FINISHED")
    tags = dict(trained.rows("select key, value from tags"))
    assert tags["study"] == "the-tests"
    assert tags["variant"] == "small"
    assert tags["seed"] == str(trained.config.seed)
    params = dict(trained.rows("select key, value from params"))
    flat = trained.config.flattened()
    assert params.keys() == flat.keys()
    assert params["optimizer.lr"] == "0.05"
    assert params["exchange.kind"] == flat["exchange.kind"]
    assert trained.rows("select name from experiments where name = 'tests'")


def test_the_store_has_the_names_that_stay(trained: Trained) -> None:
    log_every, last = trained.config.train.log_every, trained.config.train.steps
    logged = [*range(log_every, last, log_every), last]
    for name in STEP_METRICS:
        assert [step for step, _ in trained.metric(name)] == logged, name
    evaluated = [each.window for each in trained.summary.evaluations]
    for name in ("val/top1", "val/loss"):
        assert [step for step, _ in trained.metric(name)] == evaluated
    found = dict(trained.rows("select key, value from metrics where key like 'summary/%'"))
    steps = set(trained.rows("select step from metrics where key like 'summary/%'"))
    assert steps == {(0,)}
    assert found["summary/val_top1"] == trained.summary.final["val/top1"]
    assert found["summary/images_per_second"] == trained.summary.images_per_second


def test_every_node_has_its_gauges(four: Trained) -> None:
    names = {name for (name,) in four.rows("select distinct key from metrics")}
    for node in (0, 1):
        assert f"system/node_{node}/system_memory_usage_megabytes" in names


def test_the_folder_has_the_same_metrics_and_the_config(trained: Trained) -> None:
    assert load(trained.folder / "config.yaml") == trained.config
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").open()]
    losses = {
        line["step"]: line["metrics"]["train/loss"]
        for line in lines
        if "train/loss" in line["metrics"]
    }
    assert losses == dict(trained.metric("train/loss"))
    environment = json.loads((trained.folder / "environment.json").read_text())
    assert environment["horovod_build"]["gloo"] is True
    assert environment["versions"]["torch"] == torch.__version__


def test_what_landed_was_as_late_as_the_exchange_makes_it(one: Trained, four: Trained) -> None:
    """Windows 0 and 1 wait, 2 has nothing to step with, 3 to 9 step one window late."""
    assert {age for _, age in one.metric("staleness/applied_delay")} == {0.0}
    assert four.metric("staleness/applied_delay") == [(10, 7 / 9), (20, 1.0), (24, 1.0)]
    assert one.metric("staleness/cosine") == []
    cosines = four.metric("staleness/cosine")
    assert [step for step, _ in cosines] == [10, 20, 24]
    assert all(-1 <= value <= 1 for _, value in cosines)


def test_the_largest_curvature_is_estimated_when_the_warm_up_ends(
    one: Trained, four: Trained
) -> None:
    assert one.metric("staleness/curvature") == []
    ((step, curvature),) = four.metric("staleness/curvature")
    assert step == 3
    assert math.isfinite(curvature)


def test_the_last_words_are_said_once_by_rank_0(trained: Trained) -> None:
    said = [line for line in trained.output.splitlines() if "images/s over" in line]
    assert len(said) == 1
    assert f"{trained.summary.final['val/top1']:.2%}" in trained.output
    assert trained.output.count("<stdout>:") == trained.output.count("[0]<stdout>:")


class Record:
    """A journal that keeps everything."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[float]] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.by_name.setdefault(name, []).append(value)

    def advance(self, window: int, windows: int, note: str) -> None:
        return None

    def warn(self, name: str, line: str) -> None:
        return None


@pytest.mark.parametrize("kind", ["synchronous", "delayed", "averaging", "isolated"])
@pytest.mark.parametrize("layout", ["replicated", "node"])
def test_a_training_that_is_gone_holds_no_memory(
    here: Path, tmp_path: Path, layout: str, kind: str
) -> None:
    """Routes and pieces are picked by trainings before the run's own, which needs their memory."""
    values = ["data.dataset=synthetic", "data.synthetic_images=48", f"exchange.kind={kind}"]
    late = int(kind in ("delayed", "averaging"))
    values += [f"classifier.layout={layout}", f"exchange.delay={late}", "train.save=false"]
    values += ["train.steps=3", "train.untimed_windows=0"]
    config = load(here / "one" / "run.yaml", values)
    step = make_step(config, open_dataset(config.data), world_of_one())
    flats = step.model.flats
    alive = [weakref.ref(each) for flat in flats for each in (flat.values, flat.grads)]
    Training(step, tmp_path).run(Record())
    del step, flats
    gc.collect()
    assert [each() for each in alive] == [None] * 4


def in_process(folder: Path, *overrides: str) -> dict[str, list[float]]:
    """Trains without Horovod, on synthetic images; what went to the journal."""
    values = ["data.dataset=synthetic", "data.synthetic_images=48", "train.save=false"]
    config = load(folder / "one" / "run.yaml", [*values, "train.log_every=1", *overrides])
    record = Record()
    step = make_step(config, open_dataset(config.data), world_of_one())
    Training(step, folder / "none").run(record)
    return record.by_name


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["optimizer.schedule=constant"], [0.025, 0.05, 0.05, 0.05, 0.05, 0.05]),
        (
            ["optimizer.schedule=step", "optimizer.milestones=[0.5]"],
            [0.025, 0.05, 0.05, 0.05, 0.005, 0.005],
        ),
        (
            ["optimizer.schedule=cosine", "optimizer.name=adamw"],
            [0.025] + [0.025 * (1 + math.cos(math.pi * part / 4)) for part in (0, 0, 1, 2, 3)],
        ),
    ],
)
def test_the_schedule_is_what_the_optimizer_sees(
    here: Path, overrides: list[str], rates: list[float]
) -> None:
    found = in_process(here, "train.steps=6", "optimizer.warmup_windows=2", *overrides)
    assert found["optimizer/lr"] == pytest.approx(rates)
    assert all(math.isfinite(loss) for loss in found["train/loss"])


def test_bf16_follows_float32(here: Path) -> None:
    exact, rough = (
        in_process(here, "optimizer.lr=0.002", f"train.precision={precision}")["train/loss"][:8]
        for precision in ("fp32", "bf16")
    )
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


def test_epochs_are_passes_over_the_images(here: Path) -> None:
    """48 images, 12 at a time: 4 micro-batches an epoch, 2 windows of 2."""
    lengths = {
        epochs: len(
            in_process(
                here,
                "train.steps=null",
                f"train.epochs={epochs}",
                "exchange.backward_passes_per_step=2",
            )["train/loss"]
        )
        for epochs in (0.1, 1, 2.5)
    }
    assert lengths == {0.1: 1, 1: 2, 2.5: 5}


def test_the_summary_knows_where_exponentials_waited(here: Path, tmp_path: Path) -> None:
    values = ["data.dataset=synthetic", "data.synthetic_images=48", "train.save=false"]
    for passes, where in ((1, "gradient"), (2, "gradient, later scratch")):
        own = [f"exchange.backward_passes_per_step={passes}", "train.steps=2"]
        config = load(here / "one" / "run.yaml", [*values, *own, "train.untimed_windows=0"])
        step = make_step(config, open_dataset(config.data), world_of_one())
        assert Training(step, tmp_path).run(Record()).exponentials == where


@pytest.mark.parametrize(
    ("exchange", "saves", "timed"),
    [
        (["exchange.kind=synchronous"], 0, 26),
        (["exchange.kind=delayed", "exchange.delay=1"], 0, 26 - 2),
        (["exchange.kind=delayed", "exchange.delay=2"], 0, 26 - 2 * 2),
        (["exchange.kind=delayed", "exchange.delay=1"], 6, 26 - 2 - 4),
        (["exchange.kind=averaging", "exchange.delay=1", "classifier.layout=node"], 0, 26 - 2),
    ],
)
def test_windows_that_follow_a_pause_of_a_late_exchange_are_not_timed(
    here: Path, tmp_path: Path, exchange: list[str], saves: int, timed: int
) -> None:
    """Of 30 windows 4 warm up; evaluations after 10 and 20, checkpoints after 6, 12, 18 and 24."""
    values = ["data.dataset=synthetic", "data.synthetic_images=48", "train.save=false"]
    values += ["train.evaluate_every=10", f"train.checkpoint_every={saves}"]
    quiet = ["staleness.curvature_after_warmup=false", *exchange]
    config = load(here / "one" / "run.yaml", [*values, *quiet])
    step = make_step(config, open_dataset(config.data), world_of_one())
    summary = Training(step, tmp_path).run(Record())
    assert summary.timed_windows == timed
    images = summary.images_per_second * summary.train_seconds
    assert images > 12 * timed, "the timed windows alone take less than the whole training"
    seconds = [each.train_seconds for each in summary.evaluations]
    assert seconds == sorted(seconds)
    assert seconds[-1] == summary.train_seconds

"""A run whose numbers were not finite any more has no accuracy, no time and no rank: it failed."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.compare.conclude import Conclusion
from harness.compare.intervals import mean_interval
from harness.compare.sentences import sentences
from harness.compare.verdict import SECONDS, Reached
from harness.config import Config
from harness.errors import Diverged
from harness.measure.summary import DIVERGED_TAG, RunSummary
from harness.tracking.connection import open_store
from harness.tracking.failure import diverged_at, divergence
from harness.tracking.results import Results, Terms, Variant, baseline_of, target_of
from harness.tracking.run_folder import RunFolder
from harness.tracking.study import read_study
from harness.tracking.tracker import Tracker
from tests.recorded import summary, variant

LOSS = "the loss of window 12 is not finite"
SAID = f"harness: {Diverged(f'{LOSS} (lr 0.1)', 'lower optimizer.lr; no checkpoint')}"
"""As a rank prints it, and a launcher passes it on."""


def runs(name: str, seeds: Sequence[int], faster: float = 1.0) -> tuple[RunSummary, ...]:
    return tuple(
        summary(
            name,
            seed=seed,
            images_per_second=1000 * faster * (1 + 0.01 * seed),
            seconds=10 / faster / (1 + 0.01 * seed),
            accuracies=(0.5, 0.8, 0.9 + 0.001 * seed),
        )
        for seed in seeds
    )


BASE = variant("data_parallel", *runs("data_parallel", range(3)))
WILD = variant("wild", failures=(SAID,) * 3)
SOME = variant("some", *runs("some", (0, 2), 1.2), failures=(divergence(LOSS),))


def concluded(*variants: Variant, terms: Terms = Terms()) -> Conclusion:  # noqa: B008
    return Conclusion.of(Results("which", variants), terms)


def test_the_reason_says_where_it_diverged() -> None:
    assert diverged_at(SAID) == diverged_at(divergence(LOSS)) == LOSS
    assert diverged_at("rank 1 failed:\nTraceback ...") is None


def test_a_variant_that_always_diverges_is_named_and_not_ranked() -> None:
    for baseline_first in ((BASE, WILD, SOME), (SOME, BASE, WILD)):
        found = concluded(*baseline_first)
        assert f"wild: no result, all 3 runs diverged ({LOSS})." in _flat(found.text)
        assert f"wild in none (all 3 runs diverged ({LOSS}))" in sentences(found.verdict)[0]
        row = found.frame.loc["wild"]
        assert (row["runs"], row["failed"], row["diverged"], row["reached"]) == (0, 0, 3, 0)
        assert math.isnan(row["val/unseen_design/top1"])
        assert math.isnan(row["seconds_to_target"])
        assert not [each for each in found.verdict.findings if "wild" in (each.variant,)]
        assert "0, 3 diverged" in found.text


def test_a_seed_that_diverges_is_told_beside_the_others() -> None:
    text = _flat(concluded(BASE, SOME).text)
    assert f"; 1 of its runs diverged ({LOSS})." in text
    assert "2, 1 diverged" in text
    both = replace(SOME, failures=(*SOME.failures, "FAILED"))
    assert f"1 of its runs diverged ({LOSS}); 1 of its runs failed." in _flat(
        concluded(BASE, both).text
    )


def test_a_baseline_that_diverges_gives_no_target() -> None:
    base = variant("data_parallel", failures=(SAID, SAID))
    found = concluded(base, SOME)
    assert baseline_of(found.results.variants) is base
    assert found.target is None
    text = _flat(found.text)
    assert "No winner: data_parallel diverged, so there is no target accuracy; set one" in text
    assert "some: no comparison, because data_parallel diverged." in text
    whole = variant("whole", *runs("whole", range(2)))
    goal = concluded(base, whole, SOME, terms=Terms(target=0.85))
    text = _flat(goal.text)
    assert "Only whole reached 85.00% in all of its completed runs" in text
    assert f"some in 2 of 3 (1 run diverged ({LOSS}))" in text


def test_a_target_is_of_the_runs_that_did_not_diverge() -> None:
    """Also where one says that it has an accuracy which is no number."""
    last = BASE.summaries[0].evaluations[-1]
    nameless = last.model_copy(update={"metrics": {"val/top1": math.nan}})
    odd = BASE.summaries[0].model_copy(update={"evaluations": (nameless,)})
    target = target_of(replace(BASE, summaries=(odd, *BASE.summaries[1:])), None)
    assert target is not None
    assert target.top1 == pytest.approx((0.901 + 0.902) / 2 - 0.01)


def test_everything_that_a_study_leaves_can_be_written(tmp_path: Path) -> None:
    files = concluded(BASE, WILD, SOME).write(tmp_path)
    report = files.report.read_text()
    assert f"all 3 runs diverged ({LOSS})" in report
    only = tmp_path / "only"
    only.mkdir()
    concluded(variant("data_parallel", failures=(SAID,)), WILD, SOME).write(only)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_interval_falls_over_a_number_that_is_not_finite(bad: float) -> None:
    found = mean_interval([1.0, bad, 2.0])
    assert math.isnan(found.half)


def train(store: Path, seed: int, kept: str) -> None:
    """What a run leaves in the store: of a version that stops, or of older ones."""
    tracking = {"uri": f"sqlite:///{store}", "study": "which"}
    values = {"name": "wild", "seed": seed, "train": {"steps": 300}, "tracking": tracking}
    folder = store.parent / f"wild-s{seed}"
    folder.mkdir()
    tracker = Tracker.start(Config.model_validate(values), folder, {})
    whole = summary("wild", seed=seed)
    for step, loss in ((10, 2.0), (20, math.nan), (30, math.nan)):
        well = kept in ("summary", "recovered") and step == 30
        tracker.log(step, {"train/loss": 1.0 if well else loss})
    if kept == "tag":
        tracker.tag(DIVERGED_TAG, f"{LOSS} (lr 0.1)")
        tracker.finish("FAILED")
        return
    if kept == "summary":
        last = whole.evaluations[-1]
        bad = last.model_copy(update={"metrics": last.metrics | {"val/loss": math.nan}})
        whole = whole.model_copy(update={"evaluations": (*whole.evaluations[:-1], bad)})
    RunFolder(folder).write_summary(whole)
    tracker.artifact(folder / "summary.json")
    tracker.finish("FINISHED")


def test_recorded_runs_that_diverged_count_as_failed(tmp_path: Path) -> None:
    """By a tag; by the loss of the last evaluation; by the last loss, which was left out."""
    store = tmp_path / "mlflow.db"
    open_store(f"sqlite:///{store}")
    for seed, kept in enumerate(("tag", "summary", "metrics", "recovered")):
        train(store, seed, kept)
    (wild,) = read_study(f"sqlite:///{store}", "which").variants
    assert [run.seed for run in wild.summaries] == [3], "it was well when it ended"
    assert wild.diverged == (
        LOSS,
        "the validation loss after window 300 is not finite",
        "the loss of window 20 is not finite",
    )
    assert wild.fate == "diverged"
    assert wild.running == wild.failed == 0


def test_a_summary_without_a_number_comes_back_from_a_file(tmp_path: Path) -> None:
    """Null in older files, Infinity in newer ones."""
    whole = json.loads(summary().model_dump_json())
    for value in (None, math.inf):
        whole["evaluations"][-1]["metrics"]["val/loss"] = value
        (tmp_path / "summary.json").write_text(json.dumps(whole))
        found = RunFolder(tmp_path).read_summary()
        assert found.diverged == "the validation loss after window 300 is not finite"
        assert found.seconds_to(0.9) is None
        assert found.seconds_to(0.8) == 20.0


def _flat(text: str) -> str:
    return " ".join(text.split())


def test_a_seed_that_diverged_has_missed_the_target() -> None:
    """Else a variant would win by the seeds that it survives."""
    found = concluded(BASE, SOME)
    assert found.verdict.reached["some"] == Reached(2, 3)
    assert found.verdict.of("some", SECONDS) is None
    assert sentences(found.verdict)[0].startswith("Only data_parallel reached")
    assert math.isnan(found.frame.loc["some", "seconds_to_target"])
    assert "2 of 3" in found.text

"""What is said of studies whose truth is known: equals, a crippled variant, a miss, one seed."""

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.compare.sentences import as_paragraphs, meaning, sentences
from harness.compare.verdict import (
    ACCURACY,
    SECONDS,
    THROUGHPUT,
    WAIT,
    Judgement,
    Verdict,
    _share_between,
    judge,
)
from harness.config import Config
from harness.tracking.results import Target, Variant
from tests.compare.trained import ENDS, OTHER_ENDS, OTHER_SPEEDS, SPEEDS, TARGET, trained, trainings
from tests.recorded import PHASES_MS, summary, variant

BASE = trainings("data_parallel")


def verdict(*rivals: Variant, baseline: Variant = BASE, target: Target | None = TARGET) -> Verdict:
    return judge((baseline, *rivals), baseline, target)


def test_two_identical_variants_are_no_different() -> None:
    base = trainings("data_parallel", evaluations=400)
    found = verdict(trainings("other", OTHER_SPEEDS, OTHER_ENDS, evaluations=400), baseline=base)
    first, other = sentences(found)
    assert first.startswith("No difference among the best by time to 90.00%: ")
    assert other.startswith("other: no difference. It reaches 90.00% as fast as data_parallel")
    # The largest difference that the interval does not exclude.
    assert "(95% CI within 2.3% either way)" in other
    assert "is equally accurate (+0.01 points, 95% CI -0.12 to +0.15)" in other
    assert {each.judged for each in found.findings} == {Judgement.SAME}


def test_equal_means_of_noisy_seeds_are_not_called_no_difference() -> None:
    noisy = [1.25, 0.82, 1.1, 0.9, 0.97]
    found = verdict(trainings("other", noisy, [0.95, 0.98, 0.99, 0.94, 0.97]))
    first, other = sentences(found)
    assert first.startswith("No clear winner by time to 90.00%: ")
    assert other.startswith("other: inconclusive. ")
    assert "at a time not distinguishable from data_parallel's (95% CI 1." in other
    assert "x slower to 1." in other
    assert "no difference" not in other


def test_a_crippled_variant_is_worse_by_as_much_as_it_is() -> None:
    """Half as fast and two points lower; the intervals cover the truth."""
    crippled = trainings("crippled", OTHER_SPEEDS, OTHER_ENDS, faster=0.5, better=-0.02)
    found = verdict(crippled)
    first, said = sentences(found)
    assert first.startswith("Winner by time to 90.00%: data_parallel (21.6 s), 2.")
    assert "x faster than the runner-up crippled (95% CI " in first
    assert said.startswith("crippled: worse: slower and less accurate. It reaches 90.00% 2.")
    assert "x slower than data_parallel (95% CI 2." in said
    speed = found.of("crippled", THROUGHPUT)
    assert speed is not None
    assert speed.interval.low < 0.5 < speed.interval.high
    assert speed.p < 0.001
    points = found.of("crippled", ACCURACY)
    assert points is not None
    assert points.interval.low < -2.0 < points.interval.high
    assert "is less accurate (-1.99 points, 95% CI -2.12 to -1.85, p < 0.001)" in said


def test_intervals_cover_the_truth_as_often_as_they_promise() -> None:
    """The same from end to end, over many studies of one variant that is half as fast."""
    generator = np.random.default_rng(5)
    covered, studies = 0, 200
    for _ in range(studies):
        speeds, others = (np.exp(generator.normal(0, 0.02, 5)) for _ in range(2))
        rival = trainings("crippled", list(others), faster=0.5)
        found = verdict(rival, baseline=trainings("data_parallel", list(speeds)))
        finding = found.of("crippled", THROUGHPUT)
        assert finding is not None
        covered += finding.interval.low <= 0.5 <= finding.interval.high
    assert 0.92 <= covered / studies <= 0.98


def test_a_variant_that_waits_for_its_images_is_named() -> None:
    """Not one that waits for others even more, and none whose waits nobody can measure."""
    slow = PHASES_MS | {"data": 60.0}
    reading = variant("reading", summary("reading", phases_ms=slow))
    waiting = variant("waiting", summary("waiting", phases_ms=slow | {"exchange_wait": 90.0}))
    ddp = variant("torchs", summary("torchs", phases_ms=slow), kind="ddp")
    named = [line for line in meaning(verdict(reading, waiting, ddp)) if "bound by data" in line]
    (line,) = named
    share = 100 * 60 / sum(slow.values())
    assert line.startswith(f"reading is bound by data: images take {share:.0f} % of a step, and ")


def test_faster_but_less_accurate() -> None:
    found = verdict(trainings("hasty", OTHER_SPEEDS, OTHER_ENDS, faster=2, better=-0.01))
    first, said = sentences(found)
    assert said.startswith("hasty: faster but less accurate. It reaches 90.00% 1.")
    assert "points, 95% CI -1.1" in said
    assert "It is less accurate than data_parallel: -0.99 points." in first


def test_a_miss_in_one_seed_is_said_and_no_time_is_made_of_the_others() -> None:
    unsteady = trainings("unsteady", OTHER_SPEEDS, (*OTHER_ENDS[:4], 0.85), faster=3)
    found = verdict(unsteady, trainings("third", OTHER_SPEEDS, OTHER_ENDS, faster=1.5))
    first, said, _ = sentences(found)
    assert "misses the target; more images/s; accuracy inconclusive" in said
    assert "in 4 of 5 runs, data_parallel in 5 of 5, so times are not compared" in said
    assert found.of("unsteady", SECONDS) is None
    assert first.startswith("Winner by time to 90.00%: third ")
    assert "unsteady" not in first


def test_one_seed_cannot_tell_and_neither_can_two() -> None:
    for seeds, words in (
        (1, "one seed is too few for a test"),
        (2, "2 seeds are too few for a test"),
    ):
        base = trainings("data_parallel", SPEEDS[:seeds])
        rival = trainings("fast", OTHER_SPEEDS[:seeds], faster=2)
        first, said = sentences(verdict(rival, baseline=base))
        assert first.startswith("First by time to 90.00%: fast (")
        assert first.endswith(f"; {words}.")
        assert said.startswith(f"fast: {words}. It reaches 90.00% ")
        assert "p =" not in first + said


def test_runs_that_failed_are_told() -> None:
    lame = trainings("lame", OTHER_SPEEDS[:3], faster=2, failures=("rank 1", "rank 1"))
    gone = variant("gone", failures=("rank 0",) * 5)
    found = verdict(lame, gone)
    first, said, nothing = sentences(found)
    assert "lame (10.8 s, 2 more runs failed)" in first
    assert "2 of its runs failed" in said
    assert nothing == "gone: no result, all 5 runs failed."
    finding = found.of("lame", THROUGHPUT)
    assert finding is not None
    assert finding.difference.pairs == 3


def test_without_a_baseline_nothing_is_compared() -> None:
    broken = variant("data_parallel", failures=("rank 0",))
    first, said = sentences(verdict(trainings("fast"), baseline=broken))
    assert first == (
        "Only fast reached 90.00% in all of its completed runs (21.6 s); data_parallel in none "
        "(its only run failed)."
    )
    assert said == "fast: no comparison, because data_parallel failed."


@pytest.mark.parametrize(
    ("failures", "expected"),
    [(1, "its only run failed"), (2, "both runs failed"), (3, "all 3 runs failed")],
)
def test_a_single_run_is_not_in_the_plural(failures: int, expected: str) -> None:
    found = verdict(variant("gone", failures=("rank 0",) * failures))
    assert sentences(found)[1] == f"gone: no result, {expected}."


def test_without_a_target_nobody_wins_and_throughput_is_compared() -> None:
    first, said = sentences(verdict(trainings("fast", OTHER_SPEEDS, faster=2), target=None))
    assert first.startswith("No winner: data_parallel learned nothing")
    assert said.startswith("fast: more images/s and equally accurate. It is equally accurate")


def test_runs_are_paired_by_seed_whatever_their_order() -> None:
    """A seed that is slow for both says nothing of either."""
    shared = (1.3, 0.7, 1.1, 0.9, 1.0)
    base = trainings("data_parallel", shared)
    speeds = [each * own for each, own in zip(shared, OTHER_SPEEDS, strict=True)]
    rival = trainings("fast", speeds, faster=1.2)
    turned = Variant(rival.config, tuple(reversed(rival.summaries)))
    for each in (rival, turned):
        finding = verdict(each, baseline=base).of("fast", THROUGHPUT)
        assert finding is not None
        assert finding.judged is Judgement.BETTER
        assert finding.interval.estimate == pytest.approx(1.2, rel=0.01)


def test_the_winner_is_compared_with_the_next_best_not_only_the_baseline() -> None:
    near = trainings("near", OTHER_SPEEDS, OTHER_ENDS, faster=2.0)
    nearer = trainings("nearer", SPEEDS, ENDS, faster=2.01)
    found = verdict(near, nearer)
    first = sentences(found)[0]
    assert "the best" in first
    assert "near (95% CI within" in first or "nearer (95% CI within" in first
    assert "data_parallel" not in first.partition("No difference")[2]
    against = [(each.variant, each.against) for each in found.contest]
    assert ("nearer", "near") in against or ("near", "nearer") in against


def test_several_rivals_have_their_p_corrected() -> None:
    rivals = [trainings(name, OTHER_SPEEDS, faster=1.1) for name in ("a", "b", "c")]
    found = verdict(*rivals)
    for each in rivals:
        finding = found.of(each.name, THROUGHPUT)
        assert finding is not None
        assert finding.p == pytest.approx(min(1.0, 3 * finding.difference.p), rel=1e-6)
        assert finding.family == 3
    (note,) = (line for line in meaning(found) if "corrected for all rivals that" in line)
    assert "Its interval is not" in note
    assert not any("Holm" in line for line in meaning(verdict(rivals[0])))


def test_an_interval_beside_a_corrected_p_that_does_not_follow_from_it_is_explained() -> None:
    speeds = [1.3, 1.0, 1.2, 1.05, 1.25]
    rivals = [trainings(name, speeds, OTHER_ENDS) for name in ("a", "b", "c")]
    found = verdict(*rivals)
    finding = found.of("a", THROUGHPUT)
    assert finding is not None
    assert finding.difference.p < 0.05 < finding.p
    assert finding.interval.low > 1
    line = next(each for each in sentences(found) if each.startswith("a: "))
    assert (
        f"not significant: p = {finding.p:.2g} corrected for 3 rivals" in line.split("images/s")[-1]
    )


def test_runs_that_chose_differently_are_named() -> None:
    mixed = replace(trainings("rival"), mixed=("exchange.route (flat, hierarchical)",))
    (note,) = (line for line in meaning(verdict(mixed)) if "chose different" in line)
    assert "the runs of rival chose different values of exchange.route (flat, hierarchical)" in note


def test_a_time_is_no_finer_than_evaluations_are_apart() -> None:
    """With two evaluations in a run, agreeing seeds do not make a time to accuracy exact."""
    base, rival = (
        variant(
            name,
            *(
                trained(name, seed, 1.0, 0.97).model_copy(
                    update={
                        "evaluations": tuple(trained(name, seed, speed, 0.97).evaluations[19::20])
                    }
                )
                for seed in range(5)
            ),
        )
        for name, speed in (("data_parallel", 1.0), ("rival", 1.1))
    )
    finding = verdict(rival, baseline=base).of("rival", SECONDS)
    assert finding is not None
    assert finding.judged is Judgement.OPEN


def test_waiting_less_is_better() -> None:
    runs = [
        run.model_copy(
            update={"phases_ms": {k: v for k, v in run.phases_ms.items() if k != "exchange_wait"}}
        )
        for run in trainings("patient", OTHER_SPEEDS).summaries
    ]
    finding = verdict(variant("patient", *runs)).of("patient", WAIT)
    assert finding is not None
    assert finding.judged is Judgement.BETTER
    assert finding.interval.estimate == pytest.approx(-30)


def test_the_frame_holds_every_test() -> None:
    found = verdict(trainings("other", OTHER_SPEEDS, OTHER_ENDS))
    frame = found.frame
    assert list(frame["compared_with"].unique()) == ["baseline", "first at the target"]
    assert set(frame["question"]) == {
        "seconds_to_target",
        "images_per_second",
        "final_top1",
        "wait_percent",
    }
    row = frame[frame["question"] == "images_per_second"].iloc[0]
    logs = [math.log(o / s) for o, s in zip(OTHER_SPEEDS, SPEEDS, strict=True)]
    assert row["estimate"] == pytest.approx(math.exp(sum(logs) / 5))


def test_paragraphs_fit_a_terminal() -> None:
    found = verdict(*(trainings(f"hybrid_averaging_{n}", OTHER_SPEEDS) for n in range(4)))
    text = as_paragraphs([*sentences(found), *meaning(found)])
    assert max(map(len, text.splitlines())) <= 118


def test_equals_are_not_told_to_be_equal_where_evaluations_are_as_far_apart_as_matters() -> None:
    """Of a time that is seen every 4.5 %, no number of seeds says that it is within 5 %."""
    found = verdict(trainings("other", OTHER_SPEEDS, OTHER_ENDS)).of("other", SECONDS)
    assert found is not None
    assert found.judged is Judgement.OPEN
    assert found.interval.high / found.interval.low > 1.045


def test_the_only_one_to_reach_the_target_is_no_winner() -> None:
    """The baseline missed it in one seed only, and is faster in all others."""
    base = trainings("data_parallel", ends=(*ENDS[:4], 0.85), failures=("rank 0",))
    slow = trainings("slow", OTHER_SPEEDS, OTHER_ENDS, faster=0.5, failures=("rank 1",))
    none = trainings("none", OTHER_SPEEDS, (0.8,) * 5)
    assert sentences(verdict(slow, none, baseline=base))[0] == (
        "Only slow reached 90.00% in all of its completed runs (42.8 s, 1 more run failed); "
        "data_parallel in 4 of 5 (1 more run failed), none in 0 of 5."
    )


def test_the_only_one_of_one_seed_may_be_chance() -> None:
    base = trainings("data_parallel", SPEEDS[:1], (0.85,))
    first = sentences(verdict(trainings("lucky", SPEEDS[:1]), baseline=base))[0]
    assert first.endswith("data_parallel in 0 of 1. One seed is too few for a test.")


@pytest.mark.parametrize(
    ("faster", "better", "expected"),
    [
        (2.0, 0.0, "more images/s and equally accurate"),
        (2.0, -0.02, "more images/s but less accurate"),
        (1.0, 0.02, "equal images/s and more accurate"),
        (0.5, 0.0, "fewer images/s and equally accurate"),
        (0.5, 0.02, "fewer images/s but more accurate"),
        (0.5, -0.02, "fewer images/s and less accurate"),
    ],
)
def test_images_per_second_alone_are_not_called_faster_or_better(
    faster: float, better: float, expected: str
) -> None:
    rival = trainings("rival", OTHER_SPEEDS, OTHER_ENDS, faster=faster, better=better)
    said = sentences(verdict(rival, target=None))[1]
    assert said.startswith(f"rival: {expected}. It is ")


def only_seeds(found: Variant, *seeds: int) -> Variant:
    return replace(found, summaries=tuple(r for r in found.summaries if r.seed in seeds))


def test_the_first_is_so_on_the_seeds_that_all_have() -> None:
    """An easy seed that only one of them ran does not make it the first."""
    base = trainings("data_parallel", (1.0, 1.0, 1.0, 1.0, 9.0), evaluations=400)
    fast = trainings("fast", (1.2,) * 5, evaluations=400)
    found = verdict(only_seeds(fast, 0, 1, 2, 3), baseline=base)
    assert found.contest[0].variant == "fast"
    assert sentences(found)[0].startswith("Winner by time to 90.00%: fast")


def test_one_that_is_sooner_on_more_seeds_than_all_share_is_told_as_sooner() -> None:
    first = trainings("first", (1.3, 1.0, 1.0, 1.0, 1.0, 1.0), (0.97,) * 6, evaluations=400)
    second = trainings("second", (1.2, 1.4, 1.4, 1.4, 1.4, 1.4), (0.97,) * 6, evaluations=400)
    third = trainings("third", (0.9,), (0.97,), evaluations=400)
    said = sentences(verdict(second, third, baseline=first))[0]
    assert said.startswith("No clear winner by time to 90.00%: first (")
    assert ") was first, but second is 1.3" in said
    assert "x faster over their 6 common seeds (95% CI 1." in said
    assert said.endswith("and one seed is too few for a test against third.")
    assert "nan" not in said


def test_one_without_a_common_seed_does_not_drop_out_unsaid() -> None:
    base = only_seeds(trainings("data_parallel", evaluations=400), 0, 1, 2)
    fast = only_seeds(trainings("fast", OTHER_SPEEDS, faster=2, evaluations=400), 0, 1, 2)
    apart = only_seeds(trainings("apart", faster=0.5, evaluations=400), 3, 4)
    found = verdict(fast, apart, baseline=base)
    said = sentences(found)[0]
    assert said.startswith("No clear winner by time to 90.00%: fast (10.5 s) was first, but apart ")
    assert said.endswith("apart has no common seed with it.")
    assert [(each.against, each.difference.pairs) for each in found.contest][1] == ("apart", 0)


def test_a_run_that_has_not_ended_is_not_called_failed() -> None:
    found = verdict(replace(variant("late"), running=2), replace(trainings("some"), running=1))
    _, late, some = sentences(found)
    assert late == "late: no result, 2 runs are still running."
    assert some.endswith("; 1 of its runs is still running.")
    assert "failed" not in late + some


def test_waits_that_no_clock_tells_apart_are_not_judged() -> None:
    found = trainings("ddp_powersgd", OTHER_SPEEDS)
    values = found.config.model_dump() | {"exchange": {"kind": "ddp_powersgd"}}
    rival = replace(found, config=Config.model_validate(values))
    assert verdict(rival).of("ddp_powersgd", WAIT) is None


def test_runs_of_no_timed_window_have_no_speed_but_seeds_in_common() -> None:
    def untimed(found: Variant) -> Variant:
        cut = {"images_per_second": 0.0}
        return replace(found, summaries=tuple(r.model_copy(update=cut) for r in found.summaries))

    rival = untimed(trainings("rival", OTHER_SPEEDS, OTHER_ENDS))
    said = sentences(verdict(rival, baseline=untimed(BASE), target=None))[1]
    assert said.startswith("rival: no speed was measured. It is equally accurate")


@pytest.mark.parametrize("drain", [0.0, 1e-6, 0.5])
def test_no_time_is_known_better_than_from_one_evaluation_to_the_next(drain: float) -> None:
    """Every real run records a drain, if only of a microsecond."""
    run = summary(seconds=10.0).model_copy(update={"drain_seconds": drain})
    seconds = run.seconds_to(0.8)
    assert seconds == pytest.approx(20.0 + drain)
    assert _share_between(run, Target(0.8, "80 %")) == pytest.approx(10.0 / seconds)

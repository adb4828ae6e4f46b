"""The numbers of a comparison against arithmetic by hand, and the text they become."""

import math
import re
from dataclasses import replace

import pytest

from harness.compare.table import LEGEND, SPREAD, as_markdown, as_text, cell_blocks, comparison
from harness.tracking.results import Target, baseline_of, target_of
from tests.recorded import PHASES_MS, summary, untimed, variant

LATE = PHASES_MS | {"slice_wait": 6.0, "node_wait": 2.0, "exchange_wait": 2.0}
"""A step of 80 ms, 10 of them waiting."""

BASE = variant("data_parallel", summary())
HYBRID = variant(
    "hybrid_async",
    summary(
        "hybrid_async",
        images_per_second=1600.0,
        phases_ms=LATE,
        seconds=8.0,
        accuracies=(0.6, 0.89, 0.88),
    ),
    layout="node",
    kind="delayed",
)
FAILED = variant("world_sync", layout="world", failures=("rank 1 failed",))


def test_numbers_are_those_of_the_runs() -> None:
    variants = (HYBRID, BASE, FAILED)
    target = target_of(BASE, None)
    assert target is not None
    frame = comparison(variants, BASE, target)
    hybrid = frame.loc["hybrid_async"]
    assert hybrid["images_per_second"] == 1600
    assert hybrid["speedup"] == 1600 / 1280
    assert hybrid["step_ms"] == 80
    assert hybrid["backward_ms"] == 40
    assert hybrid["wait_ms"] == 6 + 2 + 2
    assert hybrid["wait_percent"] == 12.5
    assert hybrid["images_per_step"] == 128
    assert hybrid["cross_node_mb_per_step"] == 12.5
    assert hybrid["val/unseen_design/top1"] == 0.88
    assert hybrid["val/unseen_weight/top1"] == 0.93
    assert frame.loc["data_parallel", "wait_percent"] == 30
    assert frame.loc["data_parallel", "speedup"] == 1


def test_the_target_is_the_baselines_end_less_a_point() -> None:
    target = target_of(BASE, None)
    assert target is not None
    assert target.top1 == pytest.approx(0.89)
    frame = comparison((BASE, HYBRID), BASE, target)
    assert frame.loc["data_parallel", "seconds_to_target"] == 30
    assert frame.loc["hybrid_async", "seconds_to_target"] == 16  # though it ended below
    assert frame.loc["hybrid_async", "speedup_to_target"] == 30 / 16
    assert "less 1 point" in as_text(frame, BASE, target)


def test_a_target_that_is_not_reached_has_no_time() -> None:
    target = target_of(BASE, 0.895)
    frame = comparison((BASE, HYBRID), BASE, target)
    assert frame.loc["data_parallel", "seconds_to_target"] == 30
    assert math.isnan(frame.loc["hybrid_async", "seconds_to_target"])
    assert math.isnan(frame.loc["hybrid_async", "speedup_to_target"])
    assert "89.50% as given" in as_text(frame, BASE, target)


def test_seeds_are_averaged_and_one_that_missed_the_target_is_not_left_out() -> None:
    both = variant(
        "data_parallel",
        summary(images_per_second=1000.0, accuracies=(0.7, 0.9)),
        summary(images_per_second=1200.0, seed=1, accuracies=(0.9, 0.92), seconds=12.0),
    )
    one_missed = variant(
        "hybrid_async",
        summary("hybrid_async", accuracies=(0.95,)),
        summary("hybrid_async", seed=1, accuracies=(0.5,)),
        layout="node",
    )
    target = target_of(both, None)
    assert target is not None
    assert target.top1 == pytest.approx(0.90)
    target = target_of(both, 0.9)
    frame = comparison((both, one_missed), both, target)
    row = frame.loc["data_parallel"]
    assert row["images_per_second"] == 1100
    assert row["images_per_second_sd"] == pytest.approx(math.sqrt(2) * 100)  # of two values
    assert row["val/unseen_design/top1"] == pytest.approx(0.91)
    assert row["seconds_to_target"] == (20 + 12) / 2
    assert row["runs"] == 2
    assert math.isnan(frame.loc["hybrid_async", "seconds_to_target"])
    text = as_text(frame, both, target)
    quantile = 12.7062  # Student's t for 95 %, of two values; divided by the root of 2
    assert row["images_per_second_ci"] == pytest.approx(quantile * 100, rel=1e-5)
    assert "1100\N{PLUS-MINUS SIGN}1271" in text
    assert f"\n{SPREAD}" in text
    assert "91.00\N{PLUS-MINUS SIGN}12.71" in text
    missed = next(line for line in text.split("\n\n")[2].splitlines() if "hybrid_async" in line)
    assert " 1 of 2 " in missed


def test_the_legend_explains_the_columns_and_fits_a_terminal() -> None:
    target = target_of(BASE, None)
    frame = comparison((BASE, HYBRID), BASE, target)
    plain = {"variant", "images/s", "ratio", "step ms", "wait ms", "wait %", "images", "runs"}
    sets = {"unseen_design %", "unseen_weight %"}
    explained = " ".join(LEGEND)
    for block in cell_blocks(frame):
        for column in set(block[0]) - plain - sets:
            assert re.search(rf"\b{re.escape(column)}[,:]", explained), column
    text = as_text(frame, BASE, target)
    assert " ".join(text.split()).count(explained) == 1
    assert max(map(len, text.splitlines())) <= 118
    assert SPREAD not in text, "one seed has no interval"


def test_a_failed_variant_is_shown_as_failed() -> None:
    target = target_of(BASE, None)
    text = as_text(comparison((BASE, FAILED), BASE, target), BASE, target)
    assert len([line for line in text.splitlines() if line.startswith("world_sync")]) == 3
    assert "0, 1 failed" in text


def test_without_the_baseline_the_others_still_have_their_numbers() -> None:
    broken = variant("data_parallel", failures=("rank 0 failed",))
    assert target_of(broken, None) is None
    assert target_of(variant("guesses", summary(accuracies=(0.004,))), None) is None
    frame = comparison((broken, HYBRID), broken, None)
    assert frame.loc["hybrid_async", "images_per_second"] == 1600
    assert math.isnan(frame.loc["hybrid_async", "speedup"])
    assert "no target accuracy" in as_text(frame, broken, None)


def test_the_baseline_is_purely_data_parallel_and_waits() -> None:
    late = variant("late", summary(), kind="delayed")
    assert baseline_of((HYBRID, late, BASE)) is BASE
    assert baseline_of((HYBRID, late)) is HYBRID


def test_the_text_fits_a_terminal_even_with_large_numbers() -> None:
    large = {phase: 100 * value for phase, value in PHASES_MS.items()}
    names = ("data_parallel", "hybrid_sync", "hybrid_async", "hybrid_averaging", "world_async")
    variants = tuple(
        variant(name, *(summary(name, seed=seed, phases_ms=large, passes=8) for seed in (0, 1)))
        for name in names
    )
    target = target_of(variants[0], None)
    text = as_text(comparison(variants, variants[0], target), variants[0], target)
    assert max(map(len, text.splitlines())) <= 120


def test_markdown_has_the_same_cells() -> None:
    target = target_of(BASE, None)
    frame = comparison((BASE, HYBRID), BASE, target)
    lines = as_markdown(frame, BASE, target).splitlines()
    assert lines[0].startswith("| variant | images/s | ratio |")
    assert lines[3].startswith("| hybrid_async | 1600 | 1.25x | 80.0 | 5.0 | 20.0 |")
    assert len({line.count("|") for line in lines[:4]}) == 1


def lines_of(text: str, name: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_waits_and_bytes_have_their_intervals() -> None:
    waiting = PHASES_MS | {"exchange_wait": 32.0}
    both = variant("data_parallel", summary(), summary(seed=1, phases_ms=waiting))
    target = target_of(both, None)
    text = as_text(comparison((both,), both, target), both, target)
    half = 12.7062  # Student's t for 95 %, of two values that differ by 2
    assert lines_of(text, "data_parallel")[1][1] == f"31.0\N{PLUS-MINUS SIGN}{half:.1f}"
    assert "12.50" in text
    assert "12.50\N{PLUS-MINUS SIGN}" not in text, "bytes are the same in every seed"


def test_bytes_of_steps_of_different_size_are_told_per_image_too() -> None:
    four = variant("k4", summary("k4", passes=4))
    target = target_of(BASE, None)
    frame = comparison((BASE, four), BASE, target)
    assert frame.loc["data_parallel", "cross_node_mb_per_1000_images"] == 12.5 * 1000 / 128
    text = as_text(frame, BASE, target)
    assert lines_of(text, "k4")[1][-1] == f"{12.5 * 1000 / 512:.2f}"
    assert "MB/1,000 images" in text
    assert "MB/1,000" not in as_text(comparison((BASE,), BASE, target), BASE, target)


def test_a_run_that_goes_on_from_other_ranks_has_steps_of_its_own_size() -> None:
    """The mean over all windows would be of no step that it took."""
    half = summary("half").model_copy(update={"images_per_window": 64})
    frame = comparison((BASE, variant("half", half)), BASE, None)
    assert frame.loc["half", "images_per_step"] == 64
    assert frame.loc["half", "cross_node_mb_per_1000_images"] == 12.5 * 1000 / 64


def test_ddp_has_no_wait_where_no_clock_tells_it_from_computing() -> None:
    none = PHASES_MS | {"exchange_wait": 0.0}
    power = variant("power", summary("power", phases_ms=none), kind="ddp_powersgd")
    local = variant("local", summary("local"), kind="ddp_post_local_sgd")
    target = target_of(BASE, None)
    frame = comparison((BASE, power, local), BASE, target)
    assert frame.loc[["power", "local"], ["wait_ms", "wait_percent"]].isna().all(axis=None)
    assert math.isnan(frame.loc["power", "exchange_wait_ms"])
    assert frame.loc["local", "exchange_wait_ms"] == 30  # what its averager was timed at
    text = as_text(frame, BASE, target)
    assert lines_of(text, "power")[1][1:3] == ["-", "-"]
    assert "wait '-': torch's DDP waits inside its backward pass" in text
    assert "(power, local)" in text


def test_a_run_of_no_timed_window_has_no_share_of_waiting() -> None:
    short = variant("data_parallel", summary(phases_ms=dict.fromkeys(PHASES_MS, 0.0)))
    frame = comparison((short,), short, None)
    assert math.isnan(frame.loc["data_parallel", "wait_percent"])
    assert lines_of(as_text(frame, short, None), "data_parallel")[1][2] == "-"


def test_a_run_of_no_timed_window_has_no_speed_and_no_ratio() -> None:
    short = variant("data_parallel", untimed(summary()))
    other = variant("other", summary("other"))
    for baseline in (short, other):
        frame = comparison((short, other), baseline, None)
        assert not frame["speedup"].isin([0.0, math.inf]).any()
        said = as_text(frame, baseline, None)
        assert "no window of data_parallel was timed, so no speed is known" in said
        assert "waits inside its backward pass" not in said
        assert "infx" not in said
        speed, waits, accuracy = lines_of(said, "data_parallel")
        assert set(speed[1:] + waits[1:]) == {"-"}
        assert accuracy[-2:] == ["128", "1"]


def test_means_leave_out_runs_whose_speed_is_not_known() -> None:
    """They are stored as 0; a run that goes on from its last checkpoint is one."""
    base = variant("data_parallel", *(summary(seed=seed) for seed in range(3)))
    runs = [summary("other", seed=seed) for seed in range(3)]
    other = variant("other", *runs[:2], untimed(runs[2]))
    target = Target(0.8, "given")
    frame = comparison((base, other), base, target)
    row = frame.loc["other"]
    assert row["images_per_second"] == 1280
    assert row["step_ms"] == 100
    assert row["forward_ms"] == 20
    assert (row["wait_ms"], row["wait_percent"]) == (30, 30)
    assert row["cross_node_mb_per_step"] == 12.5
    assert math.isnan(row["speedup"]), "it is of other seeds"
    assert row["speedup_to_target"] == 1.0, "all three have a time to the target"
    said = " ".join(as_text(frame, base, target).split())
    assert "no window was timed in 1 of 3 runs of other: its speed, phases, waits" in said


def test_a_difference_in_images_is_told_beyond_a_step() -> None:
    target = target_of(BASE, None)

    def text(windows: int) -> str:
        run = summary("other")
        other = variant(
            "other", run.model_copy(update={"images": 128 * windows, "windows": windows})
        )
        return as_text(comparison((BASE, other), BASE, target), BASE, target)

    assert "same number of images: data_parallel 38,400, other 51,200" in text(400)
    assert "same number of images" not in text(301)


def test_a_run_that_goes_on_is_not_counted_as_failed() -> None:
    late = replace(variant("late", summary("late"), failures=("FAILED",)), running=2)
    text = as_text(comparison((BASE, late), BASE, None), BASE, None)
    assert text.count("1, 1 failed, 2 running") == 1


def test_means_over_different_seeds_have_no_ratio() -> None:
    """The baseline's slow first seed is missing beside it."""
    base = variant("data_parallel", *(summary(seed=seed) for seed in range(3)))
    other = variant(
        "other", *(summary("other", seed=seed) for seed in (1, 2)), failures=("FAILED",)
    )
    frame = comparison([base, other], base, Target(0.8, "given"))
    assert frame.loc["data_parallel", "speedup"] == 1.0
    assert math.isnan(frame.loc["other", "speedup"])
    assert math.isnan(frame.loc["other", "speedup_to_target"])

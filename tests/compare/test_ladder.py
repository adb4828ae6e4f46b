"""The ladder: rungs found by configs alone, what levers are worth by hand, and its picture."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from harness.compare import ladder_chart as picture_of
from harness.compare.colours import styles_of
from harness.compare.conclude import Conclusion, conclude
from harness.compare.ladder import Ladder, climb
from harness.compare.ladder_text import as_markdown, as_text, closing, ladder_cells, ladder_notes
from harness.compare.levers import Lever, Levers, levers_of
from harness.config import Config, ExchangeConfig
from harness.tracking.failure import divergence
from harness.tracking.results import Results, Target, Terms, Variant
from tests.pictures import assert_readable, assert_units
from tests.recorded import summary, untimed

TARGET = Target(0.9, "90.00% as given")
E = math.e
ROUTED: dict[str, Any] = {"route": "hierarchical"}
SENT: dict[str, Any] = ROUTED | {"compression": "int8"}
RARE: dict[str, Any] = SENT | {"backward_passes_per_step": 2}
LOCAL: dict[str, Any] = {
    "kind": "averaging",
    "compression": "int8",
    "backward_passes_per_step": 2,
    "pieces": 2,
}
LATE: dict[str, Any] = LOCAL | {"delay": 1}


def config(name: str, layout: str = "replicated", lr: float = 0.1, **exchange: Any) -> Config:
    return Config.model_validate(
        {
            "name": name,
            "classifier": {"layout": layout},
            "exchange": exchange,
            "optimizer": {"lr": lr},
            "train": {"steps": 300},
        }
    )


def rung(
    name: str,
    *speeds: float,
    layout: str = "replicated",
    accuracies: tuple[float, ...] = (0.5, 0.8, 0.9),
    lr: float = 0.1,
    **exchange: Any,
) -> Variant:
    """A run for each speed, 1 by default: 1,000 images/s and 30 s to the target at 1."""
    runs = [
        summary(
            name,
            seed=seed,
            images_per_second=1000 * speed,
            seconds=10 / speed,
            accuracies=accuracies,
        )
        for seed, speed in enumerate(speeds or (1.0,))
    ]
    return Variant(config(name, layout, lr, **exchange), tuple(runs))


WHOLE = (
    rung("tom", route="flat"),
    rung("ann", **ROUTED),
    rung("eve", **SENT),
    rung("bob", **RARE),
    rung("sue", layout="node", **RARE),
    rung("joe", layout="node", **LOCAL),
    rung("kim", layout="node", **LATE),
)
"""Every rung, by names that say nothing."""
LEVERS = tuple(Lever)


def names(variants: Sequence[Variant], baseline: Variant | None = None) -> list[str]:
    return [each.variant.name for each in climb(variants, baseline or variants[0])]


def found(
    variants: Sequence[Variant], target: Target | None = TARGET, baseline: Variant | None = None
) -> Ladder:
    ladder = Ladder.of(variants, baseline or variants[0], target)
    assert ladder is not None
    return ladder


@pytest.mark.parametrize("seed", range(5))
def test_all_rungs_are_found_in_whatever_order_they_ran(seed: int) -> None:
    shuffled = random.Random(seed).sample(WHOLE, len(WHOLE))
    ladder = found(shuffled)
    assert [each.variant.name for each in ladder.rungs] == [each.name for each in WHOLE]
    assert [each.pulled for each in ladder.rungs] == [(), *((lever,) for lever in LEVERS)]
    assert all(each.pushed == () for each in ladder.rungs)


@pytest.mark.parametrize("missing", range(1, len(WHOLE) - 1))
def test_a_step_over_a_missing_rung_pulls_both_levers_and_says_so(missing: int) -> None:
    ladder = found([*WHOLE[:missing], *WHOLE[missing + 1 :]])
    assert len(ladder.rungs) == len(WHOLE) - 1
    double = ladder.rungs[missing]
    assert double.pulled == LEVERS[missing - 1 : missing + 1]
    name = ladder_cells(ladder)[missing + 1][0]
    assert name == f"{LEVERS[missing - 1]} + {LEVERS[missing]}"
    assert any("changes all of these at once" in note for note in ladder_notes(ladder))
    assert not any("changes all of these at once" in note for note in ladder_notes(found(WHOLE)))


@pytest.mark.parametrize(
    ("layout", "exchange", "hierarchical"),
    [
        ("replicated", {}, False),
        ("replicated", {"backward_passes_per_step": 4}, False),
        ("replicated", {"compression": "fp16"}, True),
        ("node", {}, True),
        ("node", {"route": "flat"}, False),
        ("replicated", {"compression": "int8", "route": "flat"}, False),
        ("replicated", {"route": "hierarchical"}, True),
        ("replicated", {"kind": "averaging"}, True),
    ],
)
def test_the_route_is_the_recorded_one_and_auto_what_it_was_in_old_records(
    layout: str, exchange: dict[str, Any], hierarchical: bool
) -> None:
    levers = levers_of(config("any", layout, **exchange))
    assert levers is not None
    assert (Lever.HIERARCHICAL in levers.pulled) == hierarchical


def test_a_study_from_before_routes_were_recorded() -> None:
    old = [
        rung("plain"),
        rung("halves", compression="fp16", backward_passes_per_step=2),
        rung("late", layout="node", **LATE),
    ]
    ladder = found(old)
    assert [each.pulled for each in ladder.rungs[1:]] == [LEVERS[:3], LEVERS[3:]]
    # int8 is fewer bytes than fp16: the lever is kept, and pulled further.
    assert ladder.rungs[2].pushed == ("int8 instead of fp16",)
    assert ladder_cells(ladder)[3][0] == "sliced + local steps + late, int8 instead of fp16"


@pytest.mark.parametrize(
    "decoy",
    [
        rung("decoy", layout="node", kind="delayed", delay=1),
        rung("decoy", layout="node", kind="isolated"),
        rung("decoy", kind="ddp_powersgd"),
        rung("decoy", kind="ddp_post_local_sgd", backward_passes_per_step=8),
        rung("decoy", layout="world", **SENT),
        rung("decoy", layout="node", **LATE, outer_lr=0.7, outer_momentum=0.9),
        Variant(config("decoy", "node", **RARE), (), ("rank 1 failed",)),
    ],
    ids=lambda each: f"{each.config.exchange.kind}-{each.config.classifier.layout}",
)
def test_what_is_no_rung_never_stands_for_one(decoy: Variant) -> None:
    without_sliced = [*WHOLE[:4], *WHOLE[5:]]
    expected = [each.name for each in without_sliced]
    for place in (0, 3, 6):
        variants = [*without_sliced[:place], decoy, *without_sliced[place:]]
        assert names(variants) == expected


def test_of_several_that_could_be_a_rung_the_one_like_the_top_is_taken() -> None:
    decoys = [
        rung("k1", layout="node", **SENT),
        rung("k4", **RARE | {"backward_passes_per_step": 4}),
        rung("k3", layout="node", **RARE | {"backward_passes_per_step": 3}),
        rung("halves", **ROUTED, compression="fp16"),
        rung("whole", layout="node", **LOCAL | {"pieces": 1}),
        rung("paced", layout="node", **LOCAL | {"slice_pieces": 4}),
    ]
    expected = [each.name for each in WHOLE]
    assert names([*decoys, *WHOLE]) == expected
    assert names([*WHOLE, *decoys]) == expected


def test_of_two_late_ones_that_is_taken_which_the_same_library_carries() -> None:
    direct = rung("direct", layout="node", **LATE | {"carrier": "torch"})
    for variants in ([*WHOLE, direct], [direct, *WHOLE]):
        assert names(variants) == [*(each.name for each in WHOLE[:-1]), "direct"]
        assert not any("carrier" in note for note in ladder_notes(found(variants)))


def test_a_lever_that_is_let_go_is_not_kept() -> None:
    """K = 4 lies on no way to K = 2."""
    k4 = rung("k4", **RARE | {"backward_passes_per_step": 4})
    variants = [WHOLE[0], k4, WHOLE[-1]]
    assert len(climb(variants, variants[0])) == 2
    assert Ladder.of(variants, variants[0], TARGET) is None


def test_a_lever_that_is_pushed_further_is_told() -> None:
    variants = [
        WHOLE[0],
        rung("k2", backward_passes_per_step=2, route="flat"),
        rung("k4", layout="node", **RARE | {"backward_passes_per_step": 4}),
    ]
    ladder = found(variants)
    name = "hierarchical + fewer bytes + sliced, K = 4 instead of K = 2"
    assert ladder_cells(ladder)[3][0] == name


@pytest.mark.parametrize("count", [1, 2])
def test_two_rungs_are_no_ladder(count: int) -> None:
    assert Ladder.of(WHOLE[:count], WHOLE[0], TARGET) is None
    assert Ladder.of(WHOLE[:3], WHOLE[0], TARGET) is not None


def test_without_a_baseline_there_is_none() -> None:
    assert climb(WHOLE[2:], WHOLE[2]) == ()


def test_where_the_flat_route_lost_the_baseline_is_hierarchical() -> None:
    ladder = found(WHOLE[1:])
    assert [each.variant.name for each in ladder.rungs] == [each.name for each in WHOLE[1:]]
    assert ladder_cells(ladder)[1][0] == "baseline (hierarchical)"


@pytest.mark.parametrize("place", [0, 1])
def test_of_two_baselines_the_study_s_own_is_taken(place: int) -> None:
    both = [rung("slow", lr=0.1, route="flat"), rung("quick", lr=0.2, route="flat")]
    assert names([*both, *WHOLE[1:]], both[place])[0] == both[place].name


def test_levers_alone_are_pulled_in_their_order() -> None:
    """Both ways up are as long."""
    int8_flat = rung("int8_flat", compression="int8", route="flat")
    assert names([WHOLE[0], int8_flat, *WHOLE[1:3]])[1] == "ann"
    assert names([int8_flat, WHOLE[2], WHOLE[1], WHOLE[0]], WHOLE[0])[1] == "ann"


SETTINGS = st.builds(
    Levers,
    st.frozensets(st.sampled_from([*Lever][:4])),
    st.sampled_from(["fp16", "int8"]),
    st.sampled_from([2, 4]),
    st.just(1),
    st.just(0),
)


def of_levers(number: int, levers: Levers) -> Variant:
    pulled = levers.pulled
    return rung(
        f"v{number}",
        layout="node" if Lever.SLICED in pulled else "replicated",
        route="hierarchical" if Lever.HIERARCHICAL in pulled else "flat",
        compression=levers.compression if Lever.FEWER_BYTES in pulled else "none",
        backward_passes_per_step=levers.passes if Lever.RARER in pulled else 1,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(SETTINGS, max_size=7))
def test_the_chain_is_the_longest_there_is(drawn: list[Levers]) -> None:
    variants = [of_levers(number, each) for number, each in enumerate(drawn)]
    chain = climb(variants, variants[0]) if variants else ()
    assert all(upper.levers.above(lower.levers) for lower, upper in pairwise(chain))
    known = [(each, levers_of(each.config)) for each in variants]
    longest = 0
    for size in range(1, len(known) + 1):
        for some in combinations(known, size):
            climbed = sorted((found for _, found in some if found), key=lambda f: len(f.pulled))
            begins = climbed[0].pulled <= {Lever.HIERARCHICAL}
            if begins and all(upper.above(lower) for lower, upper in pairwise(climbed)):
                longest = size
    assert len(chain) == longest


STEADY = (1.0, 1.0, 1.0)
SPREAD = (2 / E**0.1, 2.0, 2 * E**0.1)
"""Twice as fast, with a standard deviation of 0.1 in the logs."""
QUANTILE = 4.302653
"""Of Student's t for three seeds."""
HALF = QUANTILE * 0.1 / math.sqrt(3)


def three(*last: float, **more: Any) -> list[Variant]:
    return [
        rung("base", *STEADY, route="flat"),
        rung("routed", *SPREAD, **ROUTED),
        rung("int8", *(last or [2.5 * speed for speed in SPREAD]), **SENT, **more),
    ]


def test_ratios_and_their_intervals_by_hand() -> None:
    ladder = found(three())
    _, routed, int8 = ladder.rungs
    assert routed.over_below is not None
    assert routed.over_below.speed is not None
    interval = routed.over_below.speed.interval
    assert interval.estimate == pytest.approx(2)
    assert interval.low == pytest.approx(2 / math.exp(HALF), rel=1e-5)
    assert interval.high == pytest.approx(2 * math.exp(HALF), rel=1e-5)
    assert routed.over_baseline == routed.over_below

    # The third of three evaluations sees the target: a third of the time is rounding.
    assert routed.over_below.time is not None
    interval = routed.over_below.time.interval
    half = math.hypot(HALF, 1.96 * (1 / 3) / math.sqrt(6))
    assert interval.estimate == pytest.approx(2)
    assert interval.low == pytest.approx(2 / math.exp(half), rel=1e-5)
    assert interval.high == pytest.approx(2 * math.exp(half), rel=1e-5)

    # In pairs: what varies with the seed alike drops out of the step, not of the whole.
    assert int8.over_below is not None
    assert int8.over_below.speed is not None
    step = int8.over_below.speed.interval
    assert (step.estimate, step.high) == pytest.approx((2.5, 2.5), rel=3e-3)
    assert int8.over_baseline is not None
    assert int8.over_baseline.speed is not None
    whole = int8.over_baseline.speed.interval
    assert whole.estimate == pytest.approx(5)
    assert whole.high == pytest.approx(5 * math.exp(HALF), rel=1e-5)
    assert int8.seconds.estimate == pytest.approx(sum(30 / 2.5 / speed for speed in SPREAD) / 3)


def test_steps_multiply_to_the_whole() -> None:
    speeds = [(1.0, 1.1, 0.9), (1.3, 1.2, 1.4), (1.2, 1.1, 1.3), (3.0, 3.3, 2.5)]
    variants = [
        rung(each.name, *own, layout=each.config.classifier.layout, **each.config.exchange.__dict__)
        for each, own in zip(WHOLE, speeds, strict=False)
    ]
    ladder = found(variants)
    product = 1.0
    for each in ladder.rungs[1:]:
        assert each.over_below is not None
        assert each.over_below.speed is not None
        product *= each.over_below.speed.interval.estimate
    last = ladder.rungs[-1].over_baseline
    assert last is not None
    assert last.speed is not None
    assert product == pytest.approx(last.speed.interval.estimate)


def test_the_table_and_the_closing_sentence_by_hand() -> None:
    ladder = found(three())
    head, base, routed, int8 = ladder_cells(ladder)
    assert len(head) == 8
    assert base == ["baseline", "base", "1,000\N{PLUS-MINUS SIGN}0", "-", "-", *base[5:]]
    assert base[5:] == ["30.0\N{PLUS-MINUS SIGN}0.0", "-", "-"]
    assert routed[:2] == ["hierarchical", "routed"]
    assert routed[3:5] == ["2.00x (1.56-2.56)", "2.00x (1.56-2.56)"]
    assert routed[6:] == ["2.00x (1.39-2.88)", "2.00x (1.39-2.88)"]
    assert int8[4] == "5.00x (3.90-6.41)"
    assert closing(ladder) == (
        "The top rung reaches 90.00% 5.00x faster than the baseline (95% CI 3.47-7.20): the "
        "hierarchical route contributes 2.00x (1.39-2.88) and fewer bytes 2.50x (1.91-3.26)."
    )
    assert "95% CI: paired seeds (3 or more), Student's t of logarithms." in ladder_notes(ladder)
    meant = "\N{PLUS-MINUS SIGN}: half of the 95% confidence interval of the mean"
    assert any(note.startswith(meant) for note in ladder_notes(ladder))
    assert not any(note.startswith(meant) for note in ladder_notes(found(WHOLE)))


def test_what_an_interval_leaves_open_is_said() -> None:
    none = found(three(*SPREAD[::-1]))
    assert "fewer bytes 1.00x (0." in closing(none)
    assert closing(none).endswith(", not distinguishable from 1).")


def test_a_whole_that_is_slower_is_called_so() -> None:
    slower = found(three(0.5, 0.5, 0.5))
    assert closing(slower).startswith(
        "The top rung reaches 90.00% 2.00x slower than the baseline (95% CI 1.53-2.61): the "
        "hierarchical route contributes 2.00x (1.39-2.88) and fewer bytes 0.25x ("
    )


def test_one_seed_has_ratios_without_intervals_and_says_so() -> None:
    variants = [
        rung("base", 1.0, route="flat"),
        rung("routed", 2.0, **ROUTED),
        rung("int8", 5.0, **SENT),
    ]
    ladder = found(variants)
    assert [row[3] for row in ladder_cells(ladder)[1:]] == ["-", "2.00x", "2.50x"]
    assert closing(ladder) == (
        "The top rung reaches 90.00% 5.00x faster than the baseline: the hierarchical route "
        "contributes 2.00x and fewer bytes 2.50x."
    )
    text = as_text(ladder)
    assert "One seed is too few for a test" in text
    assert "nan" not in text


def test_a_rung_that_missed_the_target_has_no_time_and_images_are_compared() -> None:
    variants = three(accuracies=(0.5, 0.6, 0.7))
    ladder = found(variants)
    last = ladder_cells(ladder)[-1]
    assert last[5:] == ["0 of 3", "-", "-"]
    assert closing(ladder).startswith(
        "The top rung has 5.00x the images/s of the baseline (95% CI 3.90-6.41): the hierarchical"
    )
    notes = ladder_notes(ladder)
    assert any(note.startswith("'1 of 3' means that 1 of 3 runs reached") for note in notes)


def test_a_rung_of_which_a_run_diverged_has_no_time() -> None:
    """As in the table, which counts that run as one that missed the target."""
    base, routed, int8 = three()
    lost = replace(int8, failures=(divergence("loss, window 3"),))
    ladder = found([base, routed, lost])
    assert math.isnan(ladder.rungs[-1].seconds.estimate)
    assert ladder_cells(ladder)[-1][5:] == ["3 of 4", "-", "-"]
    texts = [text.get_text() for text in picture_of.draw(ladder).axes[1].texts]
    assert "reached in 3 of 4" in texts
    assert closing(ladder).startswith("The top rung has 5.00x the images/s of the baseline")


def test_a_speed_is_of_the_runs_of_which_it_is_known() -> None:
    """A run of no timed window has a speed of 0 in its record."""
    base, routed, int8 = three()
    first, *others = routed.summaries
    ladder = found([base, replace(routed, summaries=(untimed(first), *others)), int8])
    assert ladder.rungs[1].images_per_second.estimate == pytest.approx(500 * sum(SPREAD[1:]))
    none = replace(routed, summaries=tuple(map(untimed, routed.summaries)))
    ladder = found([base, none, int8])
    assert ladder_cells(ladder)[2][2] == "-"
    texts = [text.get_text() for text in picture_of.draw(ladder).axes[0].texts]
    assert "no speed was measured" in texts


def test_without_a_target_only_images_are_told() -> None:
    ladder = found(three(), target=None)
    images = "The top rung has 5.00x the images/s of the baseline (95% CI 3.90-6.41)"
    assert closing(ladder).startswith(images)
    assert "seconds to target" not in as_text(ladder)
    texts = [text.get_text() for text in picture_of.draw(ladder).axes[1].texts]
    assert texts == ["no target accuracy"]


def test_rungs_without_a_timed_seed_in_common_are_not_compared() -> None:
    apart = [
        Variant(each.config, each.summaries[place : place + 1])
        for place, each in enumerate(three())
    ]
    ladder = found(apart)
    assert closing(ladder) == "The rungs have no common seed with a measured speed."
    assert "0 seeds are too few for a test" in as_markdown(ladder).lower()
    assert "nan" not in as_text(ladder)


def test_other_settings_that_differ_are_named() -> None:
    variants = three(lr=0.3)
    notes = [note for note in ladder_notes(found(variants)) if "differ in" in note]
    assert notes == [
        "Apart from levers, the rungs differ in optimizer.lr: the ratios include the effect of "
        "that."
    ]
    assert not any("differ in" in note for note in ladder_notes(found(three())))


def test_a_comparison_shows_the_ladder_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results("which", tuple(three()))
    conclude(results, Terms(0.9), tmp_path, None)
    page = capsys.readouterr().out
    sentence = closing(found(three()))
    assert sentence in " ".join(page.split())
    assert f"ladder {tmp_path / 'ladder.png'}" in page
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    written = (tmp_path / "comparison.md").read_text()
    row = "| hierarchical | routed | 2,007\N{PLUS-MINUS SIGN}498 | 2.00x (1.56-2.56) |"
    assert row in written
    assert sentence in written
    report = (tmp_path / "report.html").read_text()
    assert sentence in report
    assert report.count("data:image/svg+xml") == 4


def test_a_comparison_of_no_rungs_shows_none(tmp_path: Path) -> None:
    whole = Conclusion.of(Results("which", tuple(three()[:2])), Terms(0.9))
    assert whole.ladder is None
    files = whole.write(tmp_path)
    assert "adder" not in whole.text + whole.markdown
    assert files.ladder is None
    assert not any(file.stem == "ladder" for file in tmp_path.iterdir())


def bars(axes: Any) -> list[tuple[float, float]]:
    """Where each step begins and ends."""
    patches = [each for each in axes.patches if isinstance(each, Rectangle)]
    return [(each.get_x(), each.get_x() + each.get_width()) for each in patches]


def test_each_step_begins_where_the_one_below_ended() -> None:
    ladder = found(three())
    speed, time = picture_of.draw(ladder).axes
    rates = [each.images_per_second.estimate for each in ladder.rungs]
    seconds = [each.seconds.estimate for each in ladder.rungs]
    for axes, values in ((speed, rates), (time, seconds)):
        assert bars(axes) == [pytest.approx(step) for step in pairwise(values)]
        assert axes.get_xscale() == "log"


def test_a_whisker_is_the_interval_of_its_step() -> None:
    speed, time = picture_of.draw(found(three())).axes
    for axes, half in ((speed, HALF), (time, math.hypot(HALF, 1.96 / 3 / math.sqrt(6)))):
        (whisker,) = [
            np.asarray(each.get_xdata(), dtype=float)
            for each in axes.lines
            if each.get_color() == "black" and np.array_equal(each.get_ydata(), [1, 1])
        ]
        assert whisker.max() / whisker.min() == pytest.approx(math.exp(2 * half), rel=1e-4)


def test_a_missed_target_is_told_in_the_picture_and_the_next_step_stands_alone() -> None:
    variants = [*three(accuracies=(0.5, 0.6, 0.7)), rung("k2", 6.0, 6.0, 6.0, **RARE)]
    speed, time = picture_of.draw(found(variants)).axes
    assert "reached in 0 of 3" in [text.get_text() for text in time.texts]
    assert len(bars(speed)) == 3
    # From the second rung to the fourth two levers lie.
    assert len(bars(time)) == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_picture_is_readable_and_has_units(seeds: int) -> None:
    variants = [
        rung(
            f"{each.name}_hybrid_averaging_int8",
            *(1.3**number * each_seed for each_seed in (1.0, 1.05, 0.97)[:seeds]),
            layout=each.config.classifier.layout,
            **each.config.exchange.__dict__,
        )
        for number, each in enumerate(WHOLE)
    ]
    figure = picture_of.draw(found([*variants, rung("ceiling", kind="isolated", layout="node")]))
    assert_readable(figure)
    assert_units(figure)


def test_a_variant_has_the_colour_that_it_has_in_the_study() -> None:
    """Also where others of the study are no rungs."""
    variants = [rung("aaa", kind="ddp_powersgd"), *three()]
    speed, _ = picture_of.draw(found(variants, baseline=variants[1])).axes
    expected = styles_of(each.name for each in variants)
    colours = [to_hex(each.get_facecolor()).upper() for each in speed.patches]
    assert colours == [expected[name].colour.upper() for name in ("routed", "int8")]


def test_every_wire_that_a_config_can_name_has_its_place_on_a_ladder() -> None:
    """Each narrower one is pulled further than those before it."""
    wires = get_args(ExchangeConfig.model_fields["compression"].annotation)
    found = [levers_of(config(wire, compression=wire)) for wire in wires]
    assert all(levers is not None for levers in found)
    places = [levers.how_far(Lever.FEWER_BYTES) for levers in found if levers is not None]
    assert places == [(place,) for place in range(len(wires))]

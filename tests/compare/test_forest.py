"""What the picture of a verdict says where there is nothing to draw."""

from dataclasses import replace

from matplotlib.axes import Axes

from harness.compare.forest import forest_figure
from harness.compare.verdict import judge
from harness.tracking.results import Variant

from .recorded import variant
from .trained import ENDS, SPEEDS, TARGET, trainings

BASE = trainings("data_parallel")
GONE = variant("data_parallel", failures=("rank 0",))


def words(baseline: Variant, rival: Variant) -> tuple[list[str], list[str]]:
    """Of the speeds, and of the accuracies."""
    figure = forest_figure(judge((baseline, rival), baseline, TARGET))

    def said(axes: Axes) -> list[str]:
        return [text.get_text() for text in axes.texts]

    speed, accuracy = figure.axes
    return said(speed), said(accuracy)


def test_without_a_baseline_it_says_so_under_speed_and_accuracy() -> None:
    assert words(GONE, trainings("fast")) == (["data_parallel failed"],) * 2


def test_without_the_rival_it_says_what_became_of_it() -> None:
    assert words(BASE, variant("gone", failures=("rank 1",))) == (["failed"],) * 2
    assert words(BASE, replace(variant("late"), running=1)) == (["has not ended"],) * 2


def test_a_miss_is_told_under_speed_alone() -> None:
    rivals = [trainings("fast"), trainings("unsteady", SPEEDS, (*ENDS[:4], 0.85))]
    figure = forest_figure(judge((BASE, *rivals), BASE, TARGET))
    speed, accuracy = figure.axes
    assert [text.get_text() for text in speed.texts] == ["reached in 4 of 5"]
    assert not accuracy.texts

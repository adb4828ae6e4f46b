"""The cost model against published tables: what is not fitted to them comes out near them."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from analysis.draw import predictions
from analysis.published import Check
from tests.pictures import assert_readable, assert_units

ROOT = Path(__file__).resolve().parents[2] / "analysis"


@cache
def checks() -> dict[str, Check]:
    return predictions.checks(ROOT / "predictions/predictions-table.json", ROOT / "published")


def test_rows_that_were_fitted_to_are_met_and_said() -> None:
    for name, count in (("lab", 0), ("insightface", 3), ("horovod", 1)):
        frame = checks()[name].frame
        assert frame["fitted"].sum() == count
        assert frame.loc[frame["fitted"], "error"].abs().max() < 1e-3 if count else True


def test_insightface() -> None:
    """Ten of thirteen rows are predicted.

    Data parallelism is predicted up to 23 % faster than published: here its all-reduces run beside
    the backward pass, and the table looks as if those of its classifier did not.
    """
    frame = checks()["insightface"].frame
    assert len(frame) == 13
    sliced = frame["layout"] == "node"
    assert frame.loc[sliced, "error"].abs().max() < 0.03
    assert frame.loc[~sliced, "error"].max() < 0.24
    assert frame.loc[~sliced, "error"].min() > -0.01
    million = frame[frame["identities"] == 1e6].set_index("layout")["published"]
    assert dict(million) == {"node": 3449, "replicated": 2090}


def test_horovod() -> None:
    """VGG-16's share is too high by ten points: the table leaves its link's real rate out."""
    frame = checks()["horovod"].frame.set_index("what")
    assert frame.loc["VGG-16", "published"] == 0.68
    assert frame.loc["VGG-16", "predicted"] == pytest.approx(0.78, abs=0.02)


def test_the_lab_is_as_near_as_the_page_says() -> None:
    """At least twelve configurations; the aim is a median of 10 % and a worst of 25 %."""
    lab = checks()["lab"]
    assert len(lab.frame) >= 12
    assert lab.median < 0.10
    assert lab.worst < 0.25


def test_the_figure_is_readable_and_has_units() -> None:
    figure = predictions.draw(checks())
    assert_readable(figure)
    assert_units(figure)


def test_errors_are_of_rows_that_nothing_was_fitted_to() -> None:
    frame = pd.DataFrame({"error": [0.5, -0.1, 0.02, 0.04], "fitted": [True, False, False, False]})
    check = Check(frame, {})
    assert (check.worst, check.median) == (0.1, 0.04)

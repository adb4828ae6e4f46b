"""Predictions for each variant beside what its runs measured, with the error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness.compare.waits import WAITS
from harness.tracking.prediction import Prediction
from harness.tracking.results import Variant

QUANTITIES = ("step_ms", "images_per_second", "wait_ms", "cross_node_mb_per_step")
HEADS = ("step ms", "images/s", "wait ms", "MB/step")


def scores_meaning(before_runs: bool) -> str:
    """Explains the columns; `before_runs`: the predictions are known to precede the runs."""
    when = "before the runs" if before_runs else "(possibly after the runs)"
    return (
        f"predicted {when}, measured, and the error of the prediction in % of the measurement; "
        f"the error of the wait is in % of the measured step"
    )


def scores(
    variants: Sequence[Variant], frame: pd.DataFrame, predictions: Sequence[Prediction]
) -> pd.DataFrame:
    """A table with a row per variant and, for each quantity, three columns.

    The columns are `<quantity>_predicted`, `_measured` and `_error_percent`; they are NaN if there
    is no prediction for this variant on its number of ranks and nodes. `frame` is the comparison's
    table.
    """
    rows = [
        _row(measured, _find(variant, predictions))
        for variant, (_, measured) in zip(variants, frame.iterrows(), strict=True)
    ]
    return pd.DataFrame(rows, index=frame.index)


def _find(variant: Variant, predictions: Sequence[Prediction]) -> Prediction | None:
    places = {(run.nodes, run.ranks // run.nodes) for run in variant.summaries}
    for each in predictions:
        if each.variant == variant.name and places <= {(each.nodes, each.ranks_per_node)}:
            return each
    return None


def _row(measured: "pd.Series[float]", prediction: Prediction | None) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in QUANTITIES:
        found = math.nan if prediction is None else _predicted(prediction, name)
        # A wait may be near zero, so its error is taken relative to the whole step.
        whole = measured["step_ms" if name == "wait_ms" else name]
        row[f"{name}_predicted"] = found
        row[f"{name}_measured"] = measured[name]
        error = 100 * (found - measured[name]) / whole if whole else math.nan
        row[f"{name}_error_percent"] = error
    return row


def _predicted(prediction: Prediction, name: str) -> float:
    if name == "wait_ms":
        return sum(prediction.phases_ms.get(phase, 0.0) for phase in WAITS)
    return float(getattr(prediction, name))


@dataclass(frozen=True)
class _Form:
    digits: int
    sign: str = ""

    def __call__(self, value: float) -> str:
        return "-" if math.isnan(value) else f"{value:{self.sign}.{self.digits}f}"


def score_cells(scored: pd.DataFrame) -> list[list[str]]:
    """The table's cells: a header row, then three cells per quantity for each variant."""
    forms = dict(zip(QUANTITIES, (_Form(1), _Form(0), _Form(1), _Form(2)), strict=True))
    head = [cell for name in HEADS for cell in (name, "measured", "error %")]
    rows = [["predicted", *head]]
    for variant, row in scored.iterrows():
        cells = [str(variant)]
        for name, form in forms.items():
            cells += [form(row[f"{name}_predicted"]), form(row[f"{name}_measured"])]
            cells.append(_Form(1, "+")(row[f"{name}_error_percent"]))
        rows.append(cells)
    return rows

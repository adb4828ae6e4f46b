"""Predictions of runs before they ran: the file that a comparison shows next to measurements."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.config.yaml_files import MOST_JSON_BYTES, read_text
from harness.errors import UserError
from harness.measure.summary import Record

PREDICTIONS_FILE = "predictions.json"
TAG = "prediction"
"""Value of the tag `variant` of a run in MLflow that holds such a file."""


class Prediction(Record):
    """Prediction for one variant on one cluster; the names are those of a run's summary."""

    variant: str
    nodes: int
    ranks_per_node: int
    step_ms: float
    """Time of a window."""
    phases_ms: dict[str, float]
    """Phase -> its time; the sum is `step_ms`."""
    images_per_second: float
    """Images per second of all ranks together."""
    cross_node_mb_per_step: float
    """MB (1e6 bytes) sent through one node's link per window."""
    in_node_mb_per_step: float
    """MB sent by one rank inside its node per window."""
    memory_mb: float
    """MB of memory of the rank that needs most, without its libraries."""


_MANY = TypeAdapter(tuple[Prediction, ...])


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Writes them as JSON."""
    path.write_bytes(_MANY.dump_json(tuple(predictions), indent=2))


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Reads them. Raises UserError for a file that is missing or holds something else."""
    text = read_text(path, "predictions", MOST_JSON_BYTES)
    try:
        return _MANY.validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{path} holds no predictions; make them with harness plan --output"
        ) from error

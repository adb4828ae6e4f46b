"""What was predicted of a run before it ran: the file that a comparison sets beside what came."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.config.yaml_files import MOST_JSON_BYTES, read_text
from harness.errors import UserError
from harness.measure.summary import Record

PREDICTIONS_FILE = "predictions.json"
TAG = "prediction"
"""What MLflow calls the variant of a run that holds such a file."""


class Prediction(Record):
    """One variant on one cluster, in the words of a run's summary."""

    variant: str
    nodes: int
    ranks_per_node: int
    step_ms: float
    """Of a window."""
    phases_ms: dict[str, float]
    """Their sum is `step_ms`."""
    images_per_second: float
    """All ranks."""
    cross_node_mb_per_step: float
    """Sent through one node's link per window, MB (1e6 bytes)."""
    in_node_mb_per_step: float
    """Sent by one rank inside its node per window, MB."""
    memory_mb: float
    """Of the most loaded rank, beside its libraries."""


_MANY = TypeAdapter(tuple[Prediction, ...])


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    path.write_bytes(_MANY.dump_json(tuple(predictions), indent=2))


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Raises UserError for a file that is missing or holds something else."""
    text = read_text(path, "predictions", MOST_JSON_BYTES)
    try:
        return _MANY.validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{path} holds no predictions; make them with harness plan --output"
        ) from error

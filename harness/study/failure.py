"""Runs that failed: what a comparison leaves for those that MLflow never knew of."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.config import Config
from harness.errors import UserError
from harness.measure.redaction import masked
from harness.measure.summary import Record

FILE_NAME = "failures.json"
TAG = "failures"
"""Of a comparison's run in MLflow that holds such a file: how many."""


class Failure(Record):
    """One run."""

    config: Config
    """With its seed."""
    reason: str

    @property
    def key(self) -> tuple[str, str]:
        """Variant and seed, as a run's tags have them."""
        return self.config.name, str(self.config.seed)


_MANY = TypeAdapter(tuple[Failure, ...])


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    path.write_text(masked(_MANY.dump_json(tuple(failures), indent=2).decode()), encoding="utf-8")


def read_failures(path: Path) -> tuple[Failure, ...]:
    """Raises UserError for a file of another version, in which a key or a value is unknown here."""
    try:
        return _MANY.validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} is of another version of the harness; read the study with that"
        ) from error

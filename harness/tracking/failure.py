"""Failed runs: their reasons, and the file in which a comparison keeps those MLflow never saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, field_validator

from harness.config import Config
from harness.config.former import bring_up_to_date
from harness.errors import DIVERGED, UserError
from harness.measure.redaction import masked
from harness.measure.summary import Record

FAILURES_FILE = "failures.json"
TAG = "failures"
"""Tag of a comparison's run in MLflow that holds such a file: the number of failures."""


def divergence(found: str) -> str:
    """The reason of a run that diverged; `found`: what was not finite, and when."""
    return f"{DIVERGED}: {found}"


def diverged_at(reason: str) -> str | None:
    """What was not finite, and when, read from the reason of a run; None if it did not diverge."""
    _, marker, rest = reason.partition(f"{DIVERGED}: ")
    return rest.partition(";")[0].partition(" (")[0] if marker else None


class Failure(Record):
    """A run that failed."""

    config: Config
    """The run's config, with its seed."""
    reason: str

    @field_validator("config", mode="before")
    @classmethod
    def _up_to_date(cls, value: Any) -> Any:
        if isinstance(value, dict):
            bring_up_to_date(value)
        return value

    @property
    def key(self) -> tuple[str, str]:
        """Variant and seed, as in a run's tags."""
        return self.config.name, str(self.config.seed)


_MANY = TypeAdapter(tuple[Failure, ...])


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """Writes them as JSON, with secrets masked."""
    path.write_text(masked(_MANY.dump_json(tuple(failures), indent=2).decode()), encoding="utf-8")


def read_failures(path: Path) -> tuple[Failure, ...]:
    """Reads them. Raises UserError for a file with unknown keys or values, of another version."""
    try:
        return _MANY.validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} was written by another harness version; open the study with that one"
        ) from error

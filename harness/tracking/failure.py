"""Runs that failed: what is said of them, and what a comparison leaves for those that MLflow never
knew of."""

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
"""Of a comparison's run in MLflow that holds such a file: how many."""


def divergence(found: str) -> str:
    """The reason of a run of which no more is known than what was not finite, and when."""
    return f"{DIVERGED}: {found}"


def diverged_at(reason: str) -> str | None:
    """What was not finite, and when: out of the reason of a run that diverged; None of others."""
    _, said, rest = reason.partition(f"{DIVERGED}: ")
    return rest.partition(";")[0].partition(" (")[0] if said else None


class Failure(Record):
    """One run."""

    config: Config
    """With its seed."""
    reason: str

    @field_validator("config", mode="before")
    @classmethod
    def _up_to_date(cls, value: Any) -> Any:
        if isinstance(value, dict):
            bring_up_to_date(value)
        return value

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
            f"{path} was written by another harness version; open the study with that one"
        ) from error

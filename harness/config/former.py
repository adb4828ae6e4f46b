"""Keys of earlier versions: read in recorded configs, refused in what a user writes."""

from typing import Any

from harness.config.yaml_files import Given
from harness.errors import UserError

REMOVED = {
    "staleness.curvature_at_start": "staleness.curvature_after_warmup",
}
"""Dotted key -> the key to use instead."""


def present_key(key: str) -> str | None:
    """The present name of a key in a recorded config; None if the key was removed."""
    return None if key in REMOVED else key


def bring_up_to_date(recorded: dict[str, Any]) -> None:
    """Drops the removed keys of a recorded config, in place."""
    for former in REMOVED:
        section, _, name = former.partition(".")
        values = recorded.get(section)
        if isinstance(values, dict):
            values.pop(name, None)


def refuse_former(given: Given) -> None:
    """Raises UserError if a user's file or command line gives a key of an earlier version."""
    for former, instead in REMOVED.items():
        if place := _place(given, former):
            raise UserError(f"{place}: {former} was removed; use {instead} instead")


def _place(given: Given, key: str) -> str | None:
    """Where a dotted key is given, in its section or in full; None if it is not."""
    section, _, name = key.partition(".")
    for values, last in ((given, key), (given.get(section), name)):
        if isinstance(values, Given) and last in values:
            return values.places[last]
    return None

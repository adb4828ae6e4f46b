"""Keys of earlier versions: read in recorded configs, refused in what a user writes."""

from typing import Any

from harness.config.yaml_files import Given
from harness.errors import UserError

REMOVED = {
    "staleness.curvature_at_start": "staleness.curvature_after_warmup",
}
"""Removed key -> the key to use instead."""

RENAMED = {
    "exchange.matrix_rank": "exchange.powersgd_rank",
    "exchange.most_pieces": "exchange.max_pieces",
    "optimizer.step_at": "optimizer.milestones",
    "optimizer.step_factor": "optimizer.gamma",
    "train.peak_seconds": "train.matmul_seconds",
}
"""Former key -> its present name, in the same section."""


def present_key(key: str) -> str | None:
    """The present name of a key in a recorded config; None if the key was removed."""
    return None if key in REMOVED else RENAMED.get(key, key)


def bring_up_to_date(recorded: dict[str, Any]) -> None:
    """Drops the removed keys of a recorded config and renames the renamed ones, in place."""
    for former in (*REMOVED, *RENAMED):
        section, _, name = former.partition(".")
        values = recorded.get(section)
        if not isinstance(values, dict) or name not in values:
            continue
        value, present = values.pop(name), present_key(former)
        if present is None:
            continue
        new = present.partition(".")[2]
        if isinstance(values, Given):
            values.put(new, value, values.places[name])
        else:
            values[new] = value


def refuse_former(given: Given) -> None:
    """Raises UserError if a user's file or command line gives a key of an earlier version."""
    for former, instead in REMOVED.items():
        if place := _place(given, former):
            raise UserError(f"{place}: {former} was removed; use {instead} instead")
    for former, present in RENAMED.items():
        if place := _place(given, former):
            raise UserError(f"{place}: {former} is now called {present}; use that")


def _place(given: Given, key: str) -> str | None:
    """Where a dotted key is given, in its section or in full; None if it is not."""
    section, _, name = key.partition(".")
    for values, last in ((given, key), (given.get(section), name)):
        if isinstance(values, Given) and last in values:
            return values.places[last]
    return None

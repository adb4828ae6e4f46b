"""Reads configs: a file with its base and overrides from the command line, or a recorded one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.config import Config
from harness.config.former import bring_up_to_date, refuse_former
from harness.config.layers import COMMAND_LINE, filled, giving_way, merged, parse_override
from harness.config.mistakes import validated
from harness.config.sections.tracking import TrackingConfig
from harness.config.yaml_files import Given, Plain, is_null, read_yaml
from harness.errors import UserError
from harness.paths import expanded

ALTERNATIVES = (("train", "steps", "epochs"), ("exchange", "pieces", "max_pieces"))
"""A section and two of its keys; either one replaces the other if that comes from a lower layer."""
OF_CLUSTERS = "product_flop_per_second"
"""A key that the file of every cluster has."""
DATE = re.compile(r"\d{4}-\d\d?-\d\d?")
"""Start of a text that other YAML readers take for a date, and write in another way."""


@dataclass(frozen=True)
class Loaded:
    """A config, and what might surprise the user who gave it."""

    config: Config
    notes: tuple[str, ...]
    """One line for each key that an override of another key replaced, and for each text that looks
    like a date."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of the YAML file at `path` with dotted `key=value` overrides.

    A key `base` in the file names another file, relative to it, whose values it starts from.

    Raises UserError for a missing or malformed file, an unknown key or a wrong value.
    """
    return load_with_notes(path, overrides).config


def load_with_notes(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """The same with notes for the user."""
    given, typed = _read(Path(path), ()), Given()
    for override in overrides:
        typed = merged(typed, parse_override(override, Config))
    for layer in (given, typed):
        refuse_former(layer)
    given, replaced = giving_way(given, typed, ALTERNATIVES)
    whole = filled(merged(given, typed))
    config = validated(Config, whole, str(path))
    return Loaded(config, (*replaced, *_dates(whole)))


def load_resolved(path: Path) -> Config:
    """The config of a file that `to_yaml` wrote, in this version of the harness or an earlier one.

    Raises UserError if it has keys or values that are unknown here.
    """
    given = read_yaml(path, "config")
    bring_up_to_date(given)
    return validated(Config, filled(given), str(path))


def _read(path: Path, seen: tuple[Path, ...]) -> Given:
    given = read_yaml(path, "experiment")
    if OF_CLUSTERS in given:
        raise UserError(
            f"{path} describes a cluster, not an experiment; give it as --cluster of harness plan, "
            f"and name an experiment, such as experiments/lab/data_parallel.yaml"
        )
    base, place = given.pop("base", None), given.places.get("base")
    if base is None or is_null(base):
        return given
    if not isinstance(base, str):
        raise UserError(f"{place}: base names one file; give its path")
    here = path.resolve()
    if here in seen:
        raise UserError(f"{path} is its own base; remove the key base there")
    try:
        below = path.parent / expanded(base)
    except ValueError as error:
        raise UserError(f"{place}: base={base} does not fit: {error}") from error
    lower, _ = giving_way(_read(below, (*seen, here)), given, ALTERNATIVES)
    return merged(lower, given)


def study_name(text: str) -> str:
    """The text if it is valid as `tracking.study`. Raises UserError if it is not."""
    given = Given()
    given.put("study", text, "--study")
    return str(validated(TrackingConfig, given, "--study").study)


def tracking_in(uri: str | None, experiment: str | None = None) -> TrackingConfig:
    """The section `tracking` with the store given on the command line. Raises UserError."""
    given = {"uri": uri} | ({"experiment": experiment} if experiment else {})
    return validated(TrackingConfig, given, "command line")


def _dates(given: Given, prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        if isinstance(value, Given):
            yield from _dates(value, f"{prefix}{key}.")
        elif isinstance(value, Plain) and DATE.match(value) and given.places[key] != COMMAND_LINE:
            yield f"{prefix}{key}={value} is taken as a text, not as a date ({given.places[key]})"

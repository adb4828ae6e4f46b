"""Explains invalid values of a file or command line in the terms of the user who wrote them."""

import difflib
import json
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.config.section import Slot, is_section, keys_of, kinds_of, slot_at
from harness.config.yaml_files import Given
from harness.errors import UserError
from harness.measure.redaction import masked

LONGEST_SHOWN = 60
"""Most characters of a value in a message."""
MOST_PROBLEMS = 6
"""Most problems in one message."""
WORDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
PASSES = "exchange.backward_passes_per_step"
OTHER_NAMES = {
    "k": PASSES,
    "passes": PASSES,
    "micro_batch": PASSES,
    "micro_batches": PASSES,
    "accumulation": PASSES,
    "bits": "exchange.compression",
    "wire": "exchange.compression",
    "d": "exchange.delay",
    "rank": "exchange.powersgd_rank",
    "learning_rate": "optimizer.lr",
    "model": "backbone.name",
}
"""Letters and words that people use for a setting, and that are not similar to its key."""

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], given: Mapping[str, Any], source: str) -> _Model:
    """The model of these values, which come from `source`. Raises UserError, in one line."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # An unknown key is often the misspelled name of one that is missing.
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        lines = [_explain(model, given, source, each) for each in problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
        raise UserError(" | ".join(lines)) from error


def _explain(model: type[BaseModel], given: Any, source: str, problem: Any) -> str:
    path = problem["loc"]
    raw = ".".join(str(part) for part in path)
    key = ".".join(_on_one_line(str(part)) for part in path)
    found, value = _given_at(given, path, problem["input"])
    place = found or source
    if problem["type"] == "extra_forbidden":
        nearest = _nearest(model, raw)
        if len(path) < len(nearest.split(".")) and nearest == raw:
            section, _, name = key.partition(".")
            return (
                f"{place}: {key} is not a key; write it in its section, {section}: {{{name}: ...}}"
            )
        return (
            f"{place}: unknown key {key}; the nearest known key is {nearest}; use that, or leave "
            f"it out"
        )
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping | BaseModel):
        return f"{place}: {problem['ctx']['error']}"
    if problem["type"] == "missing":
        return f"{place}: {_missing(model, key)}"
    if problem["type"] == "value_error":
        advice = str(problem["ctx"]["error"])
    else:
        field = slot_at(model, path)
        about = f" ({field.description})" if field.description else ""
        advice = f"give {_wanted(model, key, field, value)}{about}"
    return f"{place}: {key}{shown_value(value)} does not fit: {advice}"


def _given_at(given: Any, path: tuple[Any, ...], read: Any) -> tuple[str | None, Any]:
    """Where the value at this path, or its section, was given; and the value as it was written,
    or `read` if there is none."""
    place = None
    for part in path:
        if isinstance(given, Given) and part in given:
            place, given = given.places[part], given[part]
        elif isinstance(given, list) and isinstance(part, int) and part < len(given):
            given = given[part]
        else:
            return place, read
    return place, given


def _missing(model: type[BaseModel], key: str) -> str:
    (kind, *_) = kinds_of(slot_at(model, tuple(key.split("."))).annotation)
    if is_section(kind):
        first = next(iter(kind.model_fields))
        return f"{key} is missing; give its keys, such as {key}.{first}"
    return f"{key} is missing; give it in the file or as {key}=value"


def shown_value(value: Any) -> str:
    """`=value` as it was written, without passwords; for several values only their kind."""
    if isinstance(value, str):
        text = _on_one_line(masked(value))
    elif isinstance(value, Mapping):
        return " with keys and values"
    elif isinstance(value, list | tuple):
        return " as a list"
    else:
        text = "null" if value is None else repr(value)
    return f"={text}" if len(text) <= LONGEST_SHOWN else f"={text[:LONGEST_SHOWN]}..."


def _on_one_line(text: str) -> str:
    """The text, in quotes if some of it would be invisible."""
    return text if text.isprintable() and text == text.strip() else json.dumps(text)


def _wanted(model: type[BaseModel], key: str, field: Slot, value: Any) -> str:
    """A description of the values that the field takes."""
    kinds = kinds_of(field.annotation)
    kind, null = kinds[0], " or null" if NoneType in kinds else ""
    if get_origin(kind) is Literal:
        near = difflib.get_close_matches(str(value), get_args(kind), n=1)
        return f"{_listed(get_args(kind))}" + (f"; the nearest is {near[0]}" if near else "")
    if get_origin(kind) is tuple:
        inner = _wanted(model, key, Slot(get_args(kind)[0]), None)
        return f"a list in brackets, [ ], of which each is {inner}"
    if is_section(kind):
        name = next((each for each in ("name", "kind") if each in kind.model_fields), None)
        first = name or next(iter(kind.model_fields))
        return f"values to the keys of this section, such as {key}.{first}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    whole = [each for part in (field.constraints, *_inner(field.annotation)) for each in part]
    return names.get(kind, "another value") + _bounds(whole) + null


def _inner(annotation: Any) -> Iterator[tuple[Any, ...]]:
    """The constraints within an annotation such as `Text | None`."""
    if get_origin(annotation) is Annotated:
        first, *metadata = get_args(annotation)
        yield tuple(metadata)
        yield from _inner(first)
    elif isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        for member in get_args(annotation):
            yield from _inner(member)


def _bounds(constraints: list[Any]) -> str:
    flat = [each for one in constraints for each in getattr(one, "metadata", (one,))]
    found = {
        name: getattr(each, name)
        for each in flat
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        if getattr(each, name, None) is not None
    }
    low, high = found.get("ge"), found.get("le")
    if low is not None and high is not None:
        words = [f"from {low:,} to {high:,}"]
    else:
        words = [f"{WORDS[name]} {bound:,}" for name, bound in found.items() if name in WORDS]
    words += ["of letters, digits and the signs _ . -"] if "pattern" in found else []
    if "max_length" in found:
        words.append(f"of 1 to {found['max_length']:,} characters")
    elif "min_length" in found:
        words.append("that is not empty")
    return f" {' and '.join(words)}" if words else ""


def _listed(choices: tuple[Any, ...]) -> str:
    texts = [str(each) for each in choices]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _nearest(model: type[BaseModel], key: str) -> str:
    """The most similar key; the same last word in another section makes keys very similar."""
    wanted, keys = key.lower(), list(keys_of(model))
    other = OTHER_NAMES.get(wanted.rpartition(".")[2])
    if other in keys:
        return other

    def likeness(known: str) -> float:
        last = difflib.SequenceMatcher(None, wanted.split(".")[-1], known.split(".")[-1]).ratio()
        whole = difflib.SequenceMatcher(None, wanted, known).ratio()
        return max(whole, 0.95 * last)

    return max(keys, key=likeness)

"""Layers of values (base, file, command line): later ones win, and ${key} names another key."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any, Literal, get_origin

from pydantic import BaseModel

from harness.config.mistakes import shown_value
from harness.config.section import kind_at
from harness.config.yaml_files import Given, Plain, is_null, parse_yaml
from harness.errors import UserError

COMMAND_LINE = "command line"
REFERENCE = re.compile(r"(\$\$+\{)|\$\{([^{}]*)(\}?)")
"""Either an escaped ${, which is kept as text, or a reference."""
ENVIRONMENT = "oc.env:"
"""${oc.env:NAME} and ${oc.env:NAME,default}: a variable of the machine that reads the file."""
LONGEST_TEXT = 10_000
"""Characters of a text with references: nested references could grow without bound."""


def merged(lower: Given, upper: Given) -> Given:
    """`upper` over `lower`, section by section."""
    whole = Given()
    for layer in (lower, upper):
        for key, value in layer.items():
            below = whole.get(key)
            if isinstance(below, Given) and isinstance(value, Given):
                value = merged(below, value)
            elif isinstance(below, Given) and isinstance(value, Plain) and not value:
                continue  # a section whose keys are all commented out changes nothing
            whole.put(key, value, layer.places[key])
    return whole


def giving_way(
    lower: Given, upper: Given, alternatives: Sequence[tuple[str, str, str]]
) -> tuple[Given, tuple[str, ...]]:
    """`lower` without keys to which `upper` gives an alternative, and a line for each of them.

    `alternatives`: a section and two of its keys, of which a run uses one.
    """
    left, replaced = merged(Given(), lower), []
    for section, *pair in alternatives:
        above, below = upper.get(section), left.get(section)
        if not isinstance(above, Given) or not isinstance(below, Given):
            continue
        chosen = [key for key in pair if key in above and _is_choice(above[key])]
        if len(chosen) != 1:
            continue
        (own,) = chosen
        (other,) = (key for key in pair if key != own)
        if other in below and other not in above and _is_choice(below[other]):
            replaced.append(
                f"{section}.{own}{shown_value(above[own])} replaces {section}.{other}"
                f"{shown_value(below[other])} ({below.places[other]})"
            )
            kept = merged(Given(), below)
            del kept[other]
            left.put(section, kept, left.places[section])
    return left, tuple(replaced)


def _is_choice(value: Any) -> bool:
    """Whether the value asks for something: exchange.max_pieces=0, like null, leaves it to the
    other key."""
    return not is_null(value) and str(value) != "0"


def parse_override(text: str, model: type[BaseModel]) -> Given:
    """`key=value` with a dotted key of the model.

    The value of a list or section is read as YAML. That of a text, number or choice is everything
    after the first `=`, whatever it looks like. Exceptions: `null` is no value if the key allows
    that, and quotes around the whole value are removed, so that "null" is a text.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(
            f"override {shown_value(text)[1:]!r} is not key=value; write e.g. train.steps=100"
        )
    if not value:
        raise UserError(f"{COMMAND_LINE}: {key}= gives nothing; write a value behind it")
    whole = Given()
    inner, (*sections, last) = whole, key.split(".")
    for section in sections:
        outer, inner = inner, Given()
        outer.put(section, inner, COMMAND_LINE)
    inner.put(last, _value(key, value, kind_at(model, key)), COMMAND_LINE)
    return whole


def _value(key: str, text: str, kind: Any) -> Any:
    if kind in (str, int, float, bool) or get_origin(kind) is Literal:
        return _unquoted(text) if text[0] in "\"'" and text[0] == text[-1] else _plain(text)
    if kind is Any:  # no such key: there will be a message
        return text
    return parse_yaml(text, f"{COMMAND_LINE}: {key}{shown_value(text)}", lines=False)


def _plain(text: str) -> str:
    return text if text == "~" else Plain(text)  # after a `=`, it is the home folder


def _unquoted(text: str) -> str:
    try:
        found = parse_yaml(text, COMMAND_LINE, lines=False)
    except UserError:
        return text  # two quoted words, such as "a" or "b"
    return found if isinstance(found, str) and not isinstance(found, Plain) else text


def override_of(key: str, text: str) -> str:
    """The `key=value` for exactly this text, even if it looks like YAML or a reference."""
    return f"{key}={json.dumps(escaped(text), ensure_ascii=False)}"


def escaped(text: str) -> str:
    """The text with every ${ escaped, so that it contains no reference."""
    return text.replace("${", "$${")


def filled(given: Given) -> Given:
    """The values with every ${key} and ${oc.env:NAME} replaced; $${ means ${ itself.

    Raises UserError for a name that does not exist.
    """
    whole = _References(given).filled(given, "", "", ())
    assert isinstance(whole, Given)
    return whole


class _References:
    def __init__(self, root: Given) -> None:
        self._root = root

    def filled(self, value: Any, prefix: str, place: str, under_way: tuple[str, ...]) -> Any:
        """`place`, `prefix`: where the value was given, and its key there followed by a dot.
        `under_way`: the chain of references that leads to it."""
        if isinstance(value, Given):
            new = Given()
            for key, inner in value.items():
                where = value.places[key]
                new.put(key, self.filled(inner, f"{prefix}{key}.", where, under_way), where)
            return new
        if isinstance(value, list):
            return [self.filled(each, prefix, place, under_way) for each in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        return self._filled_text(value, f"{place}: {prefix.rstrip('.')}", under_way)

    def _filled_text(self, value: str, place: str, under_way: tuple[str, ...]) -> Any:
        alone = REFERENCE.fullmatch(value)
        if alone and not alone[1]:
            return self._named(alone, place, under_way)
        texts, end = [], 0
        for found in REFERENCE.finditer(value):
            texts += [value[end : found.start()], self._text(found, place, under_way)]
            end = found.end()
        text = "".join([*texts, value[end:]])
        if len(text) > LONGEST_TEXT:
            raise UserError(f"{place}: its references make a text too long; name less")
        return Plain(text) if isinstance(value, Plain) else text

    def _text(self, found: "re.Match[str]", place: str, under_way: tuple[str, ...]) -> str:
        if found[1]:
            return found[0][1:]
        value = self._named(found, place, under_way)
        if not isinstance(value, str):
            raise UserError(f"{place}: {found[0]} is not a text; make it the whole value")
        return value

    def _named(self, found: "re.Match[str]", place: str, under_way: tuple[str, ...]) -> Any:
        name = found[2].strip()
        if not found[3]:
            raise UserError(f"{place}: {found[0]!r} does not end; add }}, or write $${{ for ${{")
        if name.startswith(ENVIRONMENT):
            return self._variable(name.removeprefix(ENVIRONMENT), place)
        if name in under_way:
            raise UserError(f"{place}: ${{{name}}} leads back to itself; give a value")
        value: Any = self._root
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Given) else None
        if value is None:
            raise UserError(
                f"{place}: ${{{name}}} names a key that is not given; correct it, or write $${{ "
                f"for ${{"
            )
        return self.filled(value, f"{name}.", place, (*under_way, name))

    def _variable(self, name: str, place: str) -> str:
        name, comma, default = name.partition(",")
        value = os.environ.get(name.strip(), default.strip() if comma else None)
        if value is None:
            raise UserError(
                f"{place}: the variable {name} is not set here; set it, or add ,default (to its "
                f"ranks harness launch passes on names that begin with HARNESS_)"
            )
        return Plain(value)

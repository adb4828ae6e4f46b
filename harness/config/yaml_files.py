"""Reads YAML that users write into texts with their places; the model decides their types."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from harness.errors import UserError
from harness.paths import nearest_file

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_BYTES = 1 << 20
"""Largest file that a person writes."""
MOST_JSON_BYTES = 1 << 26
"""Largest file that a program writes for another."""
DEEPEST = 40
"""Most levels of nesting; more would exhaust the interpreter's stack."""
MOST_VALUES = 50_000
"""Most values in one file: aliases of aliases could grow without bound."""
NULLS = ("", "~", "null", "Null", "NULL")
"""Plain scalars that mean no value."""
MERGE = "<<"
ONE = "keep one of them"


class Plain(str):
    """A scalar without quotes: a text, a number or null, depending on the field's type."""

    __slots__ = ()


class Given(dict[str, Any]):
    """Values by key (texts, lists, or further Given), and the place of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}
        """File and line of each key, for messages."""

    def put(self, key: str, value: Any, place: str) -> None:
        self[key] = value
        self.places[key] = place


def is_null(value: Any) -> bool:
    """Whether this is a plain scalar that means no value."""
    return isinstance(value, Plain) and value in NULLS


def read_yaml(path: Path, what: str) -> Given:
    """The keys and values of a file, which messages call `what`.

    Raises UserError if the file cannot be read, is not YAML, or has no keys.
    """
    found = parse_yaml(read_text(path, what), str(path))
    if isinstance(found, Given):
        return found
    if found is None or is_null(found):
        raise UserError(f"{path} is empty: it holds no keys and values; give some as `key: value`")
    kind = "a list" if isinstance(found, list) else "a single text"
    raise UserError(f"{path} holds {kind}, not keys and values; give some as `key: value`")


def read_text(path: Path, what: str, most_bytes: int = MOST_BYTES) -> str:
    """The text of a regular file. Raises UserError for anything else; never waits for a pipe."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
            raise UserError(f"cannot read the {what} {path}: it is {kind}; give a regular file")
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
        if len(raw) > most_bytes:
            raise UserError(
                f"cannot read the {what} {path}: it has more than {most_bytes:,} bytes; give "
                f"another file"
            )
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the {what} {path}: byte {error.start + 1} is not UTF-8; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        near = nearest_file(path) if isinstance(error, FileNotFoundError) else None
        advice = f"the nearest file is {near}; use that, or correct the path"
        raise UserError(
            f"cannot read the {what} {path}: {reason}; {advice if near else 'correct the path'}"
        ) from error


def parse_yaml(text: str, source: str, lines: bool = True) -> Any:
    """The only document in `text`: Given, list, Plain or str; None if there is none.

    Messages name `source`, with the line unless `lines` is false. Raises UserError.
    """
    try:
        return _Builder(yaml.parse(text, Loader=LOADER), source, lines).document()
    except UnicodeEncodeError as error:
        raise UserError(f"{source} holds half a character; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if lines and mark else ""
        tab = mark and text[mark.index : mark.index + 1] == "\t"
        problem = "a tab, where YAML takes blanks" if tab else error.problem
        raise UserError(f"{source} is not YAML{line}: {problem}; correct it") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


class _Builder:
    """Builds the values of one document from YAML events. PyYAML's own composer recurses without
    bound, loses lines and quotes, and silently keeps the last of equal keys."""

    def __init__(self, events: Iterator[Any], source: str, lines: bool) -> None:
        self._events = events
        self._source = source
        self._lines = lines
        self._anchors: dict[str, tuple[Any, int]] = {}
        """The value of each complete anchor, and the number of values in it."""
        self._count = 0

    def document(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._refuse(after, "a second document begins", "keep one, without `---` between")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._count
        self._add(event, 1)
        if depth > DEEPEST:
            self._refuse(event, f"more than {DEEPEST} levels are nested", "nest less")
        if event.tag and event.tag not in ("!", "tag:yaml.org,2002:str"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(event, f"the tag {tag} is not known here", "remove it")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style in (None, "") and event.tag is None
            value: Any = Plain(event.value) if plain else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = [self._value(each, depth + 1) for each in self._until(yaml.SequenceEndEvent)]
        else:
            value = self._mapping(depth)
        if event.anchor:
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            self._refuse(
                event, f"*{event.anchor} names no value that is complete before it", "write it out"
            )
        value, count = self._anchors[event.anchor]
        self._add(event, count)
        return value

    def _mapping(self, depth: int) -> Given:
        own, merged = Given(), Given()
        seen: dict[str, str] = {}
        for event in self._until(yaml.MappingEndEvent):
            key, place = self._key(event, depth), self._place(event)
            if key in seen:
                self._refuse(event, f"the key {key} is given twice, before in {seen[key]}", ONE)
            seen[key] = place
            value = self._value(next(self._events), depth + 1)
            if key == MERGE:
                self._merge(event, value, merged)
            else:
                own.put(key, value, place)
        for key, value in merged.items():
            if key not in own:
                own.put(key, value, merged.places[key])
        return own

    def _key(self, event: Any, depth: int) -> str:
        key = self._value(event, depth + 1)
        if not isinstance(key, str) or is_null(key):
            found = (key or "nothing") if isinstance(key, str) else "not a text"
            self._refuse(event, f"a key is {found}", "write a name before the colon")
        return key

    def _merge(self, event: Any, value: Any, merged: Given) -> None:
        """Merges `<<: *anchor`, or a list of anchors of which the first has priority."""
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, Given):
                self._refuse(event, "<< names no keys and values", "give it an anchor of some")
            for key, inner in each.items():
                if key not in merged:
                    merged.put(key, inner, each.places[key])

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event

    def _add(self, event: Any, count: int) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            self._refuse(event, f"more than {MOST_VALUES:,} values are named", "name fewer")

    def _place(self, event: Any) -> str:
        return f"{self._source}, line {event.start_mark.line + 1}" if self._lines else self._source

    def _refuse(self, event: Any, found: str, advice: str) -> NoReturn:
        raise UserError(f"{self._place(event)}: {found}; {advice}")

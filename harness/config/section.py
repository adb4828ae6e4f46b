"""Parts of a config, or of another file: what is written becomes what its field is."""

import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from harness.config.yaml_files import Plain, is_null
from harness.paths import expanded

LEADING_ZERO = re.compile(r"[+-]?0[0-9]")
EXACT = 2**53
"""Above this, not every whole number is a floating-point number."""


class Section(BaseModel):
    """An immutable model that refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _by_type(cls, value: Any, info: ValidationInfo) -> Any:
        return typed(cls.model_fields[str(info.field_name)].annotation, value)


def _printable(text: str) -> str:
    odd = next((character for character in text if not character.isprintable()), None)
    if odd is not None:
        raise ValueError(f"{odd!r} cannot be printed; leave it out")
    if text != text.strip():
        raise ValueError("blanks at its ends cannot be seen; leave them out")
    return text


Text = Annotated[str, Field(min_length=1)]
Label = Annotated[Text, Field(max_length=200), AfterValidator(_printable)]
"""A name that is printed and used in addresses and columns."""
PathText = Annotated[Text, Field(max_length=4096), AfterValidator(expanded)]
"""A path; a leading ~ is the home folder of the machine that reads it."""


def typed(kind: Any, value: Any) -> Any:
    """The value that a text of a file or command line has for a field with this annotation.

    Text fields keep their text even if it looks like another YAML type. Raises ValueError for an
    ambiguous text; a text that does not fit the field is returned unchanged.
    """
    kinds = kinds_of(kind)
    wanted = kinds[0]
    if is_null(value) and NoneType in kinds:
        return None
    if wanted is Any or get_origin(wanted) is dict:
        return _as_yaml_says(value)
    if isinstance(value, list | tuple) and get_origin(wanted) is tuple:
        return [typed(get_args(wanted)[0], each) for each in value]
    if not isinstance(value, str):
        return value
    if wanted is int:
        return _whole(value.strip())
    if wanted is float:
        return _number(value.strip())
    if is_section(wanted) and isinstance(value, Plain) and not value:
        return {}  # all of its keys are commented out
    if wanted is str and not _encodable(value):
        raise ValueError("it is not UTF-8; write it in another way")
    return str(value)


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The members of a union, without their constraints."""
    if get_origin(kind) is Annotated:
        return kinds_of(get_args(kind)[0])
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return tuple(each for member in get_args(kind) for each in kinds_of(member))
    return (kind,)


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _as_yaml_says(value: Any) -> Any:
    """The value that YAML gives to a text, for a field of any type."""
    if isinstance(value, Mapping):
        return {str(key): _as_yaml_says(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_yaml_says(each) for each in value]
    if not isinstance(value, Plain):
        return value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return str(value)


def _whole(text: str) -> int | str:
    """A whole number; also 1_000, 0x10, and 1e3 if that is exact as a floating-point number."""
    _refuse_leading_zero(text)
    try:
        return int(text, 0)
    except ValueError:
        number = _float(text)
    exact = isinstance(number, float) and abs(number) <= EXACT and number.is_integer()
    return int(number) if exact else text


def _number(text: str) -> float | str:
    _refuse_leading_zero(text)
    try:
        return int(text, 0)
    except ValueError:
        return _float(text)


def _float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _refuse_leading_zero(text: str) -> None:
    if LEADING_ZERO.match(text):
        raise ValueError("some read a number that begins with 0 as octal; leave the 0 out")


class Slot(NamedTuple):
    """The annotation, constraints and description of a key."""

    annotation: Any
    constraints: tuple[Any, ...] = ()
    description: str = ""


def slot_at(model: type[BaseModel], path: tuple[Any, ...]) -> Slot:
    """The field at a path of keys and of positions in lists."""
    found = Slot(model)
    for part in path:
        (kind, *_) = kinds_of(found.annotation)
        if isinstance(part, int):
            inner = get_args(kind)[0]
            found = Slot(inner, getattr(inner, "__metadata__", ()), found.description)
        elif is_section(kind) and part in kind.model_fields:
            own = kind.model_fields[part]
            found = Slot(own.annotation, tuple(own.metadata), _first_sentence(own.description))
        else:
            return Slot(Any)
    return found


def kind_at(model: type[BaseModel], key: str) -> Any:
    """The type of a dotted key, without null and constraints; Any if there is no such key."""
    return kinds_of(slot_at(model, tuple(key.split("."))).annotation)[0]


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        (kind, *_) = kinds_of(field.annotation)
        if is_section(kind):
            yield from keys_of(kind, f"{prefix}{name}.")


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".")

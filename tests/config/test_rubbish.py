"""Whatever is fed to the config loader: a config, or one line; never another error, nor a wait."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config import Config, load, load_resolved
from harness.config.section import keys_of
from harness.errors import UserError
from tests.config.test_config import NASTY, configs

KEYS = st.sampled_from([*keys_of(Config), "base", "nothing", "train.nothing", "a.b.c", "", "."])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(NASTY)
    | st.sampled_from(
        ["1e400", "1e18", "9" * 400, "-1", "0", "0.0", "1e-320", "[", "{", "\t", "\ufeff"]
    )
    | st.dates()
    | st.binary(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(
    [
        *("train", "steps", "data", "optimizer", "lr", "name", "base", ":", ": ", "\n", "\n  "),
        *("- ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: ", "!!set ", "!x ", "'", '"', "|", ">"),
        *(
            "# ",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "? ",
            "${",
            "}",
            "~",
            "null",
            "\t",
            "\0",
            "\x85",
            "5",
        ),
    ]
)
EXAMPLES = settings(
    max_examples=120, suppress_health_check=list(HealthCheck), deadline=4000, derandomize=True
)


def taken(path: Path, overrides: tuple[str, ...] = ()) -> Config | None:
    """None where it is refused, in a line that can be shown."""
    try:
        config = load(path, overrides)
    except UserError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert len(line) < 4000
        return None
    survives(config, path.parent)
    return config


def survives(config: Config, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_resolved(path) == load(path) == config
    assert Config.from_flattened(config.flattened(), "here") == config


@EXAMPLES
@given(words=st.lists(WORDS, max_size=25))
def test_text_of_yamls_own_signs(words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("".join(words), encoding="utf-8")
    taken(path)
    path.write_text("train: {steps: 5}\n" + "".join(words), encoding="utf-8")
    taken(path)


@EXAMPLES
@given(raw=st.binary(max_size=60), after=st.booleans())
def test_bytes(raw: bytes, after: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"train: {steps: 5}\n" * after + raw)
    taken(path)


def nested(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {"train": {"steps": 5}}
    for key, value in pairs:
        inner = whole
        *sections, last = key.split(".")
        for section in sections:
            below = inner.setdefault(section, {})
            inner = below if isinstance(below, dict) else inner
        inner[last] = value
    return whole


@EXAMPLES
@given(pairs=st.lists(st.tuples(KEYS, VALUES), max_size=4), base=st.booleans())
def test_any_values_under_known_keys(
    pairs: list[tuple[str, Any]], base: bool, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.dump(nested(pairs), allow_unicode=True), encoding="utf-8")
    taken(path)
    child = tmp_path / "child.yaml"
    child.write_text("base: run.yaml\ntrain: {epochs: 2}\n")
    taken(child if base else path, ("seed=3",))


@EXAMPLES
@given(
    pairs=st.lists(
        st.tuples(KEYS, SCALARS.map(str) | st.text(max_size=12) | st.sampled_from(NASTY)),
        max_size=4,
    ),
    bare=st.lists(st.text(max_size=6), max_size=1),
)
def test_any_overrides(pairs: list[tuple[str, str]], bare: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {steps: 5}\n")
    taken(path, (*(f"{key}={value}" for key, value in pairs), *bare))


@settings(EXAMPLES, max_examples=60)
@given(config=configs(), number=st.integers(0, 10**6))
def test_one_odd_value_in_a_config_that_is_right(
    config: Config, number: int, tmp_path: Path
) -> None:
    """Each key in turn, so that every kind of field has met every kind of value."""
    keys = list(config.flattened())
    key, odd = keys[number % len(keys)], NASTY[number % len(NASTY)]
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    taken(path, (f"{key}={odd}",))


@pytest.mark.parametrize("key", ["\n0", "a\tb", "steps ", "\x1b[31m", ""])
def test_a_key_that_cannot_be_seen_is_shown_on_one_line(key: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.dump({"train": {"steps": 5, key: 3}}))
    with pytest.raises(UserError, match=r"unknown key train\.") as caught:
        load(path)
    assert str(caught.value).isprintable()

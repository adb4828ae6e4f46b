"""One style per variant: equal in every study, distinguishable with fewer colours as well."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from harness.compare.colours import COLOURS, KNOWN, WAIT_COLOUR, style_at, styles_of

# How full protanopia and deuteranopia see, in linear RGB (Machado, Oliveira, Fernandes 2009).
SEEN = {
    "all colours": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])
JUST_DISTINGUISHABLE = 2.3
"""Of CIELAB; six times as much is asked for here."""


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_colours_are_told_apart(eyes: str) -> None:
    """All of one round, and the colour of waiting."""
    for one, other in combinations((*COLOURS, WAIT_COLOUR), 2):
        distance = np.linalg.norm(lab(one, SEEN[eyes]) - lab(other, SEEN[eyes]))
        assert distance > 6 * JUST_DISTINGUISHABLE, (one, other)


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_show_on_white(colour: str) -> None:
    white = lab("#ffffff", np.eye(3))[0]
    assert white - lab(colour, np.eye(3))[0] > 25


def test_the_first_twelve_differ_without_any_colour() -> None:
    assert len({style_at(place).marker for place in range(12)}) == 12
    pairs = {(style_at(place).colour, style_at(place).dash) for place in range(12)}
    bars = {(style_at(place).colour, style_at(place).hatch) for place in range(12)}
    assert len(pairs) == len(bars) == 12


def test_a_variant_of_experiments_looks_the_same_in_every_study() -> None:
    whole = styles_of(KNOWN)
    assert whole["data_parallel"].colour == COLOURS[0]
    assert len(set(whole.values())) == len(KNOWN)
    for name in KNOWN:
        assert styles_of([name])[name] == whole[name]
        assert styles_of(["another", name, "zero"])[name] == whole[name]


def test_others_take_what_is_left_whatever_their_order() -> None:
    names = ["zero", "data_parallel", "another", "hybrid_async"]
    found = styles_of(names)
    assert found == styles_of(reversed(names))
    assert found["another"] == style_at(1)
    assert found["zero"] == style_at(3)
    assert len(set(styles_of(f"run_{number}" for number in range(12)).values())) == 12

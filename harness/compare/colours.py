"""The style of a variant: colour, dash, marker and hatch, equal in every figure and report."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

# The palette of Okabe and Ito, which most colour-blind readers can distinguish. Vermillion is
# reserved for waiting, and wine replaces their yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#882255")
DASHES = ("-", "--", ":")
"""Dashes of the first, second and third round of COLOURS."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
HATCHES = ("", "////", "....", "xxxx")
KNOWN = (
    "data_parallel",
    "hybrid_averaging",
    "hybrid_async",
    "world_sync",
    "ddp_powersgd",
    "ceiling",
    "data_parallel_k4_fp16",
    "ddp_post_local_sgd",
    "hybrid_sync",
    "world_async",
    "hybrid_async_delay_2",
    "world_sync_int8",
    "world_late_int8",
)
"""Variants of experiments/. Each has a fixed index, so its style is the same in every study."""
WAIT_COLOUR = "#D55E00"
PHASE_STYLES: dict[str, dict[str, Any]] = {
    "data": {"facecolor": "#f2f2f2"},
    "forward": {"facecolor": "#c9c9c9"},
    "backward": {"facecolor": "#979797"},
    "optimizer": {"facecolor": "#686868"},
    "other": {"facecolor": "#404040"},
    "slice_wait": {"facecolor": "#fdeadf", "hatch": "...."},
    "node_wait": {"facecolor": "#f6b48a", "hatch": "////"},
    "exchange_wait": {"facecolor": WAIT_COLOUR},
}
"""Patch keywords by phase: computing is grey, waiting is coloured."""


@dataclass(frozen=True)
class VariantStyle:
    """How one variant is drawn, as values that matplotlib understands."""

    colour: str
    dash: str
    marker: str
    hatch: str


def style_at(place: int) -> VariantStyle:
    """The style with index `place`.

    Markers have a period of 12 and colours one of 7, so the first 12 differ even in grey.
    """
    turn, colour = divmod(place, len(COLOURS))
    return VariantStyle(
        COLOURS[colour],
        DASHES[turn % len(DASHES)],
        MARKERS[place % len(MARKERS)],
        HATCHES[turn % len(HATCHES)],
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: variants of experiments/ first in the order of KNOWN, then others sorted."""
    wanted = set(names)
    return [*(name for name in KNOWN if name in wanted), *sorted(wanted - set(KNOWN))]


def styles_of(names: Iterable[str]) -> dict[str, VariantStyle]:
    """A style for every name of a study, independent of the order of `names`.

    Names of experiments/ have fixed indices; other names, sorted, take the free ones. Pass all
    names of the study even if some are not shown, so that the shown ones keep their styles.
    """
    wanted = in_order(names)
    places = {name: place for place, name in enumerate(KNOWN) if name in wanted}
    left = (place for place in count() if place not in places.values())
    for name in wanted:
        if name not in places:
            places[name] = next(left)
    return {name: style_at(place) for name, place in places.items()}

"""How a variant looks: its colour, dash, marker and hatch, the same in every figure and report."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

# Okabe and Ito's colours, told apart by most colour-blind readers; vermillion is kept for waiting,
# and wine stands for their yellow, which does not show on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#882255")
DASHES = ("-", "--", ":")
"""A second and third round of the colours."""
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
"""Variants of experiments/, each in a place of its own in every study."""
WAIT_COLOUR = "#D55E00"
PHASE_LOOKS: dict[str, dict[str, str]] = {
    "data": {"facecolor": "#f2f2f2"},
    "forward": {"facecolor": "#c9c9c9"},
    "backward": {"facecolor": "#979797"},
    "optimizer": {"facecolor": "#686868"},
    "other": {"facecolor": "#404040"},
    "slice_wait": {"facecolor": "#fdeadf", "hatch": "...."},
    "node_wait": {"facecolor": "#f6b48a", "hatch": "////"},
    "exchange_wait": {"facecolor": WAIT_COLOUR},
}
"""Computing in greys, standing still in colour."""


@dataclass(frozen=True)
class Look:
    """Of one variant, in matplotlib's words."""

    colour: str
    dash: str
    marker: str
    hatch: str


def look_at(place: int) -> Look:
    turn, colour = divmod(place, len(COLOURS))
    return Look(
        COLOURS[colour],
        DASHES[turn % len(DASHES)],
        MARKERS[place % len(MARKERS)],
        HATCHES[turn % len(HATCHES)],
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: those of experiments/ first, in their places."""
    wanted = set(names)
    return [*(name for name in KNOWN if name in wanted), *sorted(wanted - set(KNOWN))]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for every name of a study, whatever their order.

    Names of experiments/ have fixed places, others those that are left, sorted. Give all names of
    the study also where some are not shown: those that are keep their looks then.
    """
    wanted = in_order(names)
    places = {name: place for place, name in enumerate(KNOWN) if name in wanted}
    left = (place for place in count() if place not in places.values())
    for name in wanted:
        if name not in places:
            places[name] = next(left)
    return {name: look_at(place) for name, place in places.items()}

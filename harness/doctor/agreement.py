"""Do all ranks train the same? Compares config and data before the training."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.config import Config
from harness.data.images import Dataset, ImageSource, Part
from harness.errors import UserError
from harness.parallel.launcher import launched
from harness.parallel.ranks import Ranks

VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""Environment variables that change matrix products and that no library compares over ranks."""
SHOWN_LETTERS = 80
"""Longest value that a message quotes in full."""

Items = TypeVar("Items", dict[str, str], list[str])


@dataclass(frozen=True)
class Difference:
    """A key with different values on two ranks."""

    key: str
    usual: int
    """Lowest rank with the most frequent value; in a tie, with rank 0's value."""
    odd: int
    """Lowest rank with another value."""


@dataclass(frozen=True)
class Contents:
    """Summary of one set of images."""

    count: int
    digest: str
    """Hash of all its parts, in order."""


def agree_on_settings(config: Config, ranks: Ranks) -> None:
    """Raises UserError, on the first rank, for the first key whose values differ between ranks.

    Collective over the world.
    """
    own = settings_of(config)
    settings = ranks.gather_objects(own, "settings")
    hosts = ranks.gather_objects(launched().host, "launcher's hosts")
    found = first_difference(settings)
    with ranks.together():
        if found and ranks.is_first:
            usual, odd = (
                f"{_shown(settings[rank].get(found.key))} on {_place(hosts, rank)}"
                for rank in (found.usual, found.odd)
            )
            raise UserError(
                f"ranks would train differently: {found.key} is {odd} and {usual}; "
                f"start all ranks with the same experiment, key=value arguments and variables"
            )


def agree_on_data(dataset: Dataset, ranks: Ranks) -> None:
    """Raises UserError, on the first rank, for a set of images that differs between ranks.

    Collective over the world; the number of collectives depends on what all ranks have gathered, so
    it is the same on all of them.
    """
    if ranks.topology.world_size == 1:
        return  # nothing to compare: do not look up the sizes of perhaps a million files
    sets = {"train": dataset.train, **dataset.validation}
    own: dict[str, Contents] = {}
    with ranks.together():
        try:
            own = {name: contents_of(source) for name, source in sets.items()}
        except OSError as error:
            raise UserError(
                f"cannot read the image {error.filename}: {error.strerror}; repair or remove it"
            ) from error
    contents = ranks.gather_objects(own, "contents")
    found = first_difference(contents)
    if found is None:
        return
    hosts = ranks.gather_objects(launched().host, "launcher's hosts")
    example = _example(found, sets[found.key], hosts, ranks)
    with ranks.together():
        if ranks.is_first:
            usual, odd = _place(hosts, found.usual), _place(hosts, found.odd)
            counts = [contents[rank][found.key].count for rank in (found.odd, found.usual)]
            raise UserError(
                f"ranks see different images in the {found.key} set: {odd} has {counts[0]}, "
                f"{usual} has {counts[1]}; {example}; give all hosts the same copy of the data"
            )


def settings_of(config: Config) -> dict[str, Any]:
    """Settings that must be the same on all ranks; compared before any rank looks at its data."""
    return config.alike() | {name: os.environ.get(name) for name in VARIABLES}


def contents_of(source: ImageSource) -> Contents:
    """Summary of a set, from its files' names and sizes. Raises OSError if a file is gone."""
    digest = hashlib.sha256()
    for part in source.parts():
        digest.update(f"{part.of}\0{part.item}\n".encode("utf-8", "surrogateescape"))
    return Contents(len(source), digest.hexdigest())


def first_difference(values: Sequence[Mapping[str, Any]]) -> Difference | None:
    """The first key, in the first rank's order, whose values differ; `values` has one per rank."""
    for key in dict.fromkeys(key for each in values for key in each):
        found = [repr(each.get(key)) for each in values]
        counts = Counter(found)
        if len(counts) > 1:
            usual = max(counts, key=lambda value: (counts[value], value == found[0]))
            odd = next(rank for rank, value in enumerate(found) if value != usual)
            return Difference(key, found.index(usual), odd)
    return None


def _example(found: Difference, source: ImageSource, hosts: Sequence[str], ranks: Ranks) -> str:
    """Names what only one of the two ranks has: a class, else a file of a class. Collective."""
    compared = ranks.topology.rank in (found.usual, found.odd)
    own = _by_owner(source.parts()) if compared else {}
    digests = {of: _digest(items) for of, items in own.items()}
    usual, odd = _of_both(digests, found, ranks)
    differing = next((of for of in usual if of in odd and usual[of] != odd[of]), "")
    items = _of_both(own.get(differing, []), found, ranks)
    lone = [_only(usual, odd), _only(odd, usual)]
    if not any(lone):
        lone = [
            f"{item} of {differing}" if item else ""
            for item in (_only(*items), _only(*items[::-1]))
        ]
    lone_items = [
        f"only {_place(hosts, rank)} has {_shown(what)}"
        for rank, what in zip((found.usual, found.odd), lone, strict=True)
        if what
    ]
    return ", ".join(lone_items) or "their order differs"


def _of_both(own: Items, found: Difference, ranks: Ranks) -> tuple[Items, Items]:
    """The values of the usual and of the odd rank; other ranks give an empty one. Collective."""
    gathered = ranks.gather_objects(own, "compared contents")
    return gathered[found.usual], gathered[found.odd]


def _by_owner(parts: Iterable[Part]) -> dict[str, list[str]]:
    items: dict[str, list[str]] = {}
    for part in parts:
        items.setdefault(part.of, []).append(part.item)
    return items


def _only(these: Iterable[str], those: Iterable[str]) -> str:
    """The smallest of these that is not among those; empty if there is none."""
    return min(set(these) - set(those), default="")


def _digest(items: Iterable[str]) -> str:
    text = "\n".join(items)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _place(hosts: Sequence[str], rank: int) -> str:
    return f"{hosts[rank]} (rank {rank})"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + "..."

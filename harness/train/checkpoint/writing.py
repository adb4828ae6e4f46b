"""Writes a checkpoint from copies, on all ranks together: it is complete everywhere or nowhere."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.errors import one_line
from harness.tracking.run_folder import META
from harness.train.checkpoint.files import put, remove, retire, write_tensors
from harness.train.checkpoint.manifest import StoredFile, stored
from harness.train.checkpoint.meta import Meta
from harness.whole_files import PARTIAL, write_text

Copies = Mapping[str, Mapping[str, Tensor] | str]
"""The content of each file that this rank writes, by the file's name: tensors in host memory, or a
text."""


@dataclass(frozen=True)
class Moved:
    """How far a rank's part has got; it changes with each step, and while a file grows."""

    steps: int
    written: tuple[int, int]
    """Size and blocks of the file that is being written."""
    waits: bool
    """Whether other ranks have to get on first."""


class Unwritten(Exception):
    """Some rank could not write its part; the message is its reason."""


class Writer:
    """Writes checkpoints, in whatever thread. Every method is collective over the ranks that
    `gather` gathers from.

    `gather` returns the value of every rank on all of them. In each folder, one or several of the
    same name on different hosts, one rank `leads`: it makes the folder. Files of the same name in
    several folders must be alike to the bit.
    """

    def __init__(self, gather: Callable[[Any], list[Any]], leads: bool) -> None:
        self._gather = gather
        self._leads = leads
        self._steps, self._waits = 0, False
        self._file: Path | None = None

    @property
    def moved(self) -> Moved:
        """Where it is, for another thread."""
        try:
            found = os.stat(self._file) if self._file else None
        except OSError:  # it is not there yet, or has been renamed
            found = None
        written = (found.st_size, found.st_blocks) if found else (0, 0)
        return Moved(self._steps, written, self._waits)

    def write(self, folder: Path, copies: Copies, meta: Meta) -> Meta:
        """Writes into a partial folder and renames it to `folder`: then it is complete and on the
        disk. Returns the metadata with the list of all files.

        Raises Unwritten, on all ranks, if that fails on one, and then leaves nothing behind.
        """
        partial = folder.with_name(folder.name + PARTIAL)
        try:
            self._begin(partial)
            listed = meta.model_copy(update={"files": self._write_files(partial, copies)})
            self._end(partial, folder, listed)
        except Unwritten:
            if self._leads:
                with suppress(OSError):  # if it cannot be removed, the next save reports it
                    remove(partial)
            raise
        return listed

    def rewrite(self, folder: Path, meta: Meta) -> None:
        """Replaces the metadata of a checkpoint. Raises Unwritten, on all ranks."""

        def rewrite() -> None:
            if self._leads:
                write_text(folder / META, meta.to_json())

        self._together(rewrite)

    def remove(self, folder: Path) -> None:
        """Removes a checkpoint; a host may not have it. Raises Unwritten, on all ranks."""

        def remove() -> None:
            if self._leads and os.path.exists(folder):
                retire(folder)

        self._together(remove)

    def _begin(self, partial: Path) -> None:
        def begin() -> None:
            if self._leads:
                remove(partial)  # an interrupted run may have left one, perhaps with other slices
                partial.mkdir(parents=True)

        self._together(begin)

    def _write_files(self, partial: Path, copies: Copies) -> dict[str, StoredFile]:
        """Writes this rank's files; returns all ranks'."""

        def write() -> dict[str, StoredFile]:
            found = {}
            for name, content in copies.items():
                self._file = partial / name
                if isinstance(content, str):
                    write_text(partial / name, content)
                else:
                    write_tensors(partial / name, content)
                self._steps += 1
                found[name] = stored(partial / name)
                self._steps += 1
            return found

        files: dict[str, StoredFile] = {}
        for found in self._together(write):
            for name, file in sorted(found.items()):
                if files.setdefault(name, file) != file:
                    raise Unwritten(f"hosts wrote different contents of {name}")
        return files

    def _end(self, partial: Path, folder: Path, meta: Meta) -> None:
        def end() -> None:
            if self._leads:
                write_text(partial / META, meta.to_json())
                put(partial, folder)

        self._together(end)

    def _together(self, step: Callable[[], Any]) -> list[Any]:
        """What `step` returns on every rank. Raises Unwritten on all of them if it fails on one.

        It also makes ranks wait for each other's files.
        """
        problem, made = "", None
        try:
            made = step()
        except Exception as error:  # whatever it is: the other ranks wait to hear of it
            problem = reason(error)
        self._steps, self._waits = self._steps + 1, True
        every = self._gather((problem, made))
        self._waits = False
        for problem, _ in every:
            if problem:
                raise Unwritten(problem)
        return [made for _, made in every]


def reason(error: Exception) -> str:
    return one_line(error, 200) or type(error).__name__

"""Makes a run's folder, so that exactly one run uses it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from harness.errors import UserError
from harness.tracking.run_folder import CONFIG, META, METRICS, SUMMARY


@dataclass(frozen=True)
class Claim:
    """A folder for this process, and the folders that were made for it."""

    folder: Path
    made: tuple[Path, ...] = ()
    """The outermost first."""

    def give_back(self) -> None:
        """Removes the folders that were made, unless they hold something."""
        with suppress(OSError):  # not empty: keep what somebody may want to see
            for folder in reversed(self.made):
                folder.rmdir()


def claim(given: Path | None, automatic: Path) -> Claim:
    """The given folder, which is made if it is missing; else a new one with the automatic name.

    A number is appended to the automatic name if it is taken. Raises UserError for a folder that
    holds a run, and for one that cannot be made.
    """
    folder = (given or automatic).absolute()
    try:
        made = _make_parents(folder)
        if given is None:
            return _new(folder, made)
        if os.path.isdir(folder):
            check_free(folder)
            return Claim(folder, made)
        folder.mkdir()
        return Claim(folder, (*made, folder))
    except OSError as error:
        raise UserError(
            f"cannot make the run's folder {given or folder}: {error.strerror}; "
            f"set tracking.folder or --folder to another"
        ) from error


@contextmanager
def claimed(given: Path | None, automatic: Path) -> Iterator[Path]:
    """The same for a block: if it raises, an empty folder is removed again."""
    own = claim(given, automatic)
    try:
        yield own.folder
    except BaseException:
        own.give_back()
        raise


def check_free(folder: Path) -> None:
    """Raises UserError for a folder that holds a run.

    This includes the run to be resumed: a resumed run is another run, with its own metrics.
    """
    # META: a checkpoint is part of a run.
    names = CONFIG, METRICS, SUMMARY, META
    if any(os.path.exists(folder / name) for name in names):
        raise holds_run(folder)


def holds_run(folder: Path) -> UserError:
    return UserError(
        f"--folder {folder} already contains a run; give another (a resumed run needs a new one, "
        f"too), or remove that one"
    )


def now() -> str:
    """The time (UTC) for the name of a folder."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def new_file(path: Path) -> Path:
    """A new empty file of that name, with a number appended if the name is taken.

    Raises UserError if it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for each in _numbered(path):
            with suppress(FileExistsError):
                each.touch(exist_ok=False)
                break
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; give another --folder") from error
    return each


def _new(folder: Path, made: tuple[Path, ...]) -> Claim:
    for each in _numbered(folder):
        with suppress(FileExistsError):
            each.mkdir()
            break
    return Claim(each, (*made, each))


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then the path with -2, -3 ... appended, or inserted before a suffix `.log`."""
    suffix = path.suffix if path.suffix == ".log" else ""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")


def _make_parents(folder: Path) -> tuple[Path, ...]:
    missing = [parent for parent in folder.parents if not os.path.exists(parent)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return tuple(reversed(missing))

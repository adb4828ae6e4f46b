"""The fonts: where they are, which of them training may use, and their characters."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError

from harness.errors import UserError

SUFFIXES = {".ttf", ".otf", ".ttc"}


@dataclass(frozen=True)
class PackagedFont:
    """A font file inside a package of the Python registry."""

    distribution: str
    module: str
    file: str


def _sans(weight: str) -> PackagedFont:
    return PackagedFont(
        distribution=f"cvttf-notosanscjk-{weight.lower()}",
        module=f"cvttf_NotoSansCJK_{weight}",
        file=f"NotoSansCJKtc-{weight}.otf",
    )


# mplfonts also carries SimHei, which is not free: only the file named here is ever opened.
NOTO_SERIF = PackagedFont("mplfonts", "mplfonts", "fonts/NotoSerifCJKsc-Regular.otf")

TRAIN = tuple(_sans(weight) for weight in ("Light", "DemiLight", "Medium", "Bold"))
UNSEEN_WEIGHT = (_sans("Regular"),)
UNSEEN_DESIGN = (NOTO_SERIF,)


@dataclass(frozen=True)
class FontFile:
    """A font identified by its content: copies of a file under several names are one font."""

    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "FontFile":
        try:
            with path.open("rb") as file:
                return cls(path, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(
                f"cannot read the font {path}: {error.strerror}; fix or remove it"
            ) from error


@dataclass(frozen=True)
class FontSets:
    """Fonts by their use; no font is used both for training and for validation."""

    train: tuple[FontFile, ...]
    unseen_design: tuple[FontFile, ...]
    unseen_weight: tuple[FontFile, ...]

    @property
    def validation(self) -> dict[str, tuple[FontFile, ...]]:
        """Fonts by the name of their validation set, the primary one first."""
        return {"unseen_design": self.unseen_design, "unseen_weight": self.unseen_weight}


def find_fonts(train: Sequence[str] = (), validation: Sequence[str] = ()) -> FontSets:
    """The packaged fonts, plus files or folders for training and for unseen designs.

    Raises UserError if a font is missing, or is used for training and for validation.
    """
    _require_packages((*TRAIN, *UNSEEN_DESIGN, *UNSEEN_WEIGHT))
    sets = FontSets(
        train=_distinct([*map(_file_of, TRAIN), *_expand(train, "data.train_fonts")]),
        unseen_design=_distinct(
            [*map(_file_of, UNSEEN_DESIGN), *_expand(validation, "data.validation_fonts")]
        ),
        unseen_weight=_distinct(map(_file_of, UNSEEN_WEIGHT)),
    )
    trained = {font.sha256: font.path for font in sets.train}
    for font in (*sets.unseen_design, *sets.unseen_weight):
        if font.sha256 in trained:
            raise UserError(
                f"the font {font.path} is used for validation, but also for training, as "
                f"{trained[font.sha256]}; take it out of data.train_fonts or data.validation_fonts"
            )
    return sets


def require_characters(path: Path, characters: str) -> None:
    """Raises UserError if the font lacks one of the characters (it would draw the same empty
    box)."""
    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            known = font.getBestCmap() or {}
    except (OSError, TTLibError, KeyError) as error:
        raise UserError(f"cannot read the font {path}: {error}; replace or remove it") from error
    missing = [character for character in characters if ord(character) not in known]
    if missing:
        raise UserError(
            f"the font {path} lacks {len(missing)} of {len(characters)} characters, among them "
            f"{''.join(missing[:8])}; take it out or lower data.num_classes"
        )


def _require_packages(fonts: Iterable[PackagedFont]) -> None:
    missing = sorted({font.distribution for font in fonts if not _is_installed(font)})
    if missing:
        raise UserError(
            f"data.dataset=glyphs needs fonts that were not found: {', '.join(missing)}; "
            f"run: pip install --force-reinstall {' '.join(missing)}"
        )


def _is_installed(font: PackagedFont) -> bool:
    return find_spec(font.module) is not None and os.path.isfile(_file_of(font))


def _file_of(font: PackagedFont) -> Path:
    spec = find_spec(font.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {font.distribution} is not installed; pip install it")
    return Path(spec.submodule_search_locations[0]) / font.file


def _expand(names: Sequence[str], key: str) -> list[Path]:
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if os.path.isdir(path):
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            found = [path] if os.path.isfile(path) else []
        if not found:
            raise UserError(
                f"{key} names {name}, which is neither a font file nor a folder of "
                f"{', '.join(sorted(SUFFIXES))} files; correct the path"
            )
        files += found
    return files


def _distinct(paths: Iterable[Path]) -> tuple[FontFile, ...]:
    fonts: dict[str, FontFile] = {}
    for font in map(FontFile.read, paths):
        fonts.setdefault(font.sha256, font)
    return tuple(fonts.values())

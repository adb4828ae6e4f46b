"""Fonts are found, are what they should be, and none is both trained on and judged on."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.data import fonts
from harness.data.glyphs import characters
from harness.errors import UserError


def mplfonts_file(name: str) -> Path:
    return Path(find_spec("mplfonts").submodule_search_locations[0]) / "fonts" / name


def latin_font() -> Path:
    folder = Path(find_spec("matplotlib").submodule_search_locations[0])
    return folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def test_the_packaged_sets_share_no_file_content():
    sets = fonts.find_fonts()
    every = [font.sha256 for font in (*sets.train, *sets.unseen_design, *sets.unseen_weight)]
    assert len(set(every)) == len(every)
    assert list(sets.validation) == ["unseen_design", "unseen_weight"]


def test_the_font_that_is_not_free_is_never_used():
    not_free = fonts.FontFile.read(mplfonts_file("SimHei.ttf")).sha256
    sets = fonts.find_fonts()
    assert not_free not in {
        font.sha256 for font in (*sets.train, *sets.unseen_design, *sets.unseen_weight)
    }


def test_missing_packages_are_all_named_with_the_command(monkeypatch):
    absent = tuple(fonts.PackagedFont(f"no-such-{n}", f"no_such_{n}", "a.otf") for n in (1, 2))
    monkeypatch.setattr(fonts, "TRAIN", absent)
    with pytest.raises(UserError, match=r"pip install \S+ no-such-1 no-such-2$"):
        fonts.find_fonts()


def test_a_package_without_its_file_is_named(monkeypatch):
    broken = fonts.PackagedFont("mplfonts", "mplfonts", "fonts/NoSuchFont.otf")
    monkeypatch.setattr(fonts, "UNSEEN_DESIGN", (broken,))
    with pytest.raises(UserError, match=r"pip install .*mplfonts"):
        fonts.find_fonts()


@pytest.mark.parametrize("key", ["train", "validation"])
def test_a_missing_file_and_an_empty_folder_are_named(tmp_path, key):
    for name in (str(tmp_path / "absent.otf"), str(tmp_path)):
        with pytest.raises(UserError, match=f"data.{key}_fonts names {name}"):
            fonts.find_fonts(**{key: [name]})


def test_folders_and_files_are_added_once(tmp_path):
    shutil.copy(latin_font(), tmp_path / "b.ttf")
    shutil.copy(latin_font(), tmp_path / "copy.ttf")
    plain = fonts.find_fonts()
    more = fonts.find_fonts(train=[str(tmp_path), str(tmp_path / "b.ttf")])
    assert [font.path for font in more.train[len(plain.train) :]] == [tmp_path / "b.ttf"]
    assert more.validation == plain.validation


def test_a_validation_font_under_another_name_cannot_be_trained_on(tmp_path):
    serif = fonts.find_fonts().unseen_design[0].path
    shutil.copy(serif, tmp_path / "renamed.otf")
    with pytest.raises(
        UserError, match=r"is used for validation, but also for training, as .*renamed"
    ):
        fonts.find_fonts(train=[str(tmp_path)])


def test_missing_characters_are_counted_and_shown():
    with pytest.raises(UserError, match=r"DejaVuSans.ttf lacks 3 of 4 characters, .*啊一丁"):
        fonts.require_characters(latin_font(), "A啊一丁")


def test_every_packaged_font_has_every_character():
    sets = fonts.find_fonts()
    for font in (*sets.train, *sets.unseen_design, *sets.unseen_weight):
        fonts.require_characters(font.path, characters(20902))


def test_a_file_that_is_no_font(tmp_path):
    path = tmp_path / "text.ttf"
    path.write_text("not a font")
    with pytest.raises(UserError, match=f"cannot read the font {path}"):
        fonts.require_characters(path, "啊")

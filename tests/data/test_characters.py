"""The order of classes against GB2312's own facts."""

import pytest

from harness.data.glyphs import characters
from harness.errors import UserError

LEVEL_1, BOTH_LEVELS, ALL = 3755, 6763, 20902


def test_level_1_runs_from_its_first_to_its_last_character():
    text = characters(LEVEL_1)
    assert (text[0], text[-1]) == ("啊", "座")
    assert all(character.encode("gb2312")[0] < 0xD8 for character in text)


def test_level_2_follows():
    level_2 = characters(BOTH_LEVELS)[LEVEL_1:]
    assert (level_2[0], level_2[-1]) == ("亍", "齄")
    assert all(character.encode("gb2312")[0] >= 0xD8 for character in level_2)


def test_all_unified_ideographs_once_and_no_gb2312_among_the_rest():
    text = characters(ALL)
    assert sorted(map(ord, text)) == list(range(0x4E00, 0x9FA5 + 1))
    for character in text[BOTH_LEVELS:]:
        with pytest.raises(UnicodeEncodeError):
            character.encode("gb2312")


def test_fewer_classes_are_the_first_of_more():
    assert characters(ALL).startswith(characters(1000))


def test_more_than_there_are():
    with pytest.raises(UserError, match=r"20902 characters, but data\.num_classes is 20903"):
        characters(ALL + 1)

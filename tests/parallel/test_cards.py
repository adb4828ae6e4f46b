"""Each rank has a card of its own, however ranks see the cards, or all of them have none."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import RunFailed, UserError
from harness.parallel.cards import Placement, View, place, place_again, view_of

FOUR = ("a", "b", "c", "d")


def views(*cards: Sequence[str], hosts: Sequence[str] = ()) -> list[View]:
    names = hosts or [f"h{number}" for number in range(len(cards))]
    return [View(host, tuple(seen)) for host, seen in zip(names, cards, strict=True)]


def numbers(*cards: Sequence[str]) -> tuple[int | None, ...]:
    return place("auto", views(*cards)).cards


def test_ranks_of_a_machine_take_its_cards_in_turn() -> None:
    assert numbers(FOUR, FOUR, FOUR, FOUR) == (0, 1, 2, 3)


def test_emulated_nodes_of_one_machine_take_other_cards() -> None:
    """Two host names of one machine: the third rank is the first of its host."""
    found = place("cuda", views(*[FOUR] * 4, hosts=["localhost"] * 2 + ["127.0.0.1"] * 2))
    assert found == Placement((0, 1, 2, 3))


def test_machines_have_cards_of_their_own() -> None:
    assert numbers(("a", "b"), ("a", "b"), ("c", "d"), ("c", "d")) == (0, 1, 0, 1)


def test_ranks_that_see_one_card_each_take_it() -> None:
    """By CUDA_VISIBLE_DEVICES each: all of them call it number 0."""
    assert numbers(("c",), ("a",), ("b",)) == (0, 0, 0)


def test_who_sees_few_cards_chooses_first() -> None:
    assert numbers(("a", "b"), ("a",)) == (1, 0)


def test_too_few_cards_put_all_ranks_on_the_processor_with_a_word() -> None:
    found = place("auto", views(*[("a", "b")] * 4, hosts=["big"] * 4))
    assert found.cards == (None,) * 4
    assert "because big has 2 cards for its 4 ranks: ranks 2, 3 would have none" in found.warning
    assert "\n" not in found.warning


def test_a_host_without_cards_puts_all_on_the_processor() -> None:
    found = place("auto", views(("a",), ()))
    assert found.cards == (None, None)
    assert "h1 has 0 cards for its 1 rank: rank 1 would have none" in found.warning


def test_demanded_cards_that_are_not_there_are_told() -> None:
    with pytest.raises(UserError, match=r"h1 has 1 card for its 1 rank.*set train.device=cpu"):
        place("cuda", views(("a",), ("a",)))
    with pytest.raises(UserError, match=r"which rank 0 also see: rank 1 would have none"):
        place("cuda", views(("a",), ("a",)))
    with pytest.raises(UserError, match="h0 has 0 cards"):
        place("cuda", views((), ()))


def test_a_run_goes_on_on_the_kind_that_it_began_on() -> None:
    two, one = views(("a", "b"), ("a", "b"), hosts=["h", "h"]), views(("a",), ("a",))
    assert place_again("cuda", two) == Placement((0, 1))
    with pytest.raises(RunFailed, match=r"began on cards, but now h1 has 1 card for its 1 rank"):
        place_again("cuda", one)
    with pytest.raises(RunFailed, match="h0 has 0 cards"):
        place_again("cuda", views((), ()))
    assert place_again("cpu", two) == Placement((None, None))


def test_the_processor_needs_no_card_and_no_word() -> None:
    assert place("cpu", views(FOUR, FOUR)) == Placement((None, None))
    assert place("auto", views((), ())) == Placement((None, None))


@given(st.lists(st.lists(st.sampled_from(FOUR), unique=True), min_size=1, max_size=6))
def test_no_card_has_two_ranks_and_none_or_all_have_one(seen: list[list[str]]) -> None:
    found = place("auto", views(*seen))
    if None in found.cards:
        assert set(found.cards) == {None}
    else:
        cards = [view[number] for view, number in zip(seen, found.cards, strict=True)]  # type: ignore[index]
        assert len(set(cards)) == len(cards)


def test_a_rank_sees_its_cards_by_their_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{number}")
    )
    assert view_of("auto", "h") == View("h", ("GPU-0", "GPU-1"))
    assert view_of("cpu", "h") == View("h", ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert view_of("cuda", "h") == View("h", ())


def test_the_device_is_the_ranks_own() -> None:
    assert Placement((1, None)).device(0) == torch.device("cuda", 1)
    assert Placement((1, None)).device(1) == torch.device("cpu")

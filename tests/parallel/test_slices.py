"""Slices cut a sequence into neighbours of nearly equal size, with nothing lost or owned twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.parallel.slices import Slice, padded, slice_of

ITEMS, OWNERS = st.integers(0, 3000), st.integers(1, 70)


@given(ITEMS, OWNERS)
def test_slices_partition_the_items_in_order(items: int, owners: int) -> None:
    slices = [slice_of(items, owners, owner) for owner in range(owners)]
    owned = [item for each in slices for item in range(each.start, each.stop)]
    assert owned == list(range(items))


@given(ITEMS, OWNERS)
def test_sizes_differ_by_one_at_most(items: int, owners: int) -> None:
    sizes = [slice_of(items, owners, owner).size for owner in range(owners)]
    assert max(sizes) - min(sizes) <= 1


@given(ITEMS, OWNERS)
def test_nobody_goes_without_where_there_are_enough(items: int, owners: int) -> None:
    sizes = [slice_of(items, owners, owner).size for owner in range(owners)]
    assert (min(sizes) >= 1) == (items >= owners)


@given(ITEMS, OWNERS)
def test_padded_is_the_least_multiple_that_holds_all(items: int, owners: int) -> None:
    assert padded(items, owners) % owners == 0
    assert items <= padded(items, owners) < items + owners


@pytest.mark.parametrize("owner", [-1, 3])
def test_an_owner_is_one_of_them(owner: int) -> None:
    with pytest.raises(ValueError, match=f"owner {owner} is not one of 3"):
        slice_of(10, 3, owner)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_a_slice_runs_forward(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        Slice(start, stop)

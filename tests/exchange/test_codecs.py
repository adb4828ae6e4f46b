"""Narrow numbers: how near they come to wide ones, and how they tell what is not finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.exchange.codecs import (
    BLOCK,
    CODECS,
    SCALE_BYTES,
    Codec,
    blocks_of,
    decode,
    encode,
    marks,
    row_bytes,
    written,
)

INTEGERS = {"int8": 127, "int4": 7}
"""The largest multiple of a scale."""
SIZES = st.floats(-30, 30).map(lambda exponent: 10.0**exponent)
DTYPES = (torch.float32, torch.float64)


def values(
    seed: int, sizes: Sequence[float], dtype: torch.dtype = torch.float64, rows: int = 2
) -> Tensor:
    """[rows, blocks, BLOCK], a block of each size."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, len(sizes), BLOCK, generator=generator, dtype=torch.float64)
    return (drawn * torch.tensor(sizes, dtype=torch.float64)[:, None]).to(dtype)


@dataclass(frozen=True)
class Written:
    rows: Tensor
    read: Tensor
    """By the others."""
    own: Tensor
    """By whoever wrote it."""
    marks: Tensor


def write(codec: Codec, given: Tensor, marked: Tensor | None = None) -> Written:
    rows = torch.zeros(len(given), row_bytes(codec, given.shape[1]), dtype=torch.uint8)
    encode(codec, given.clone(), torch.empty_like(given), rows, marked)
    read, own = (reader(codec, rows, torch.full_like(given, 1e9)) for reader in (decode, written))
    return Written(rows, read, own, marks(rows, given.shape[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INTEGERS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.lists(SIZES, min_size=1, max_size=3))
def test_integers_are_the_nearest_multiples_of_their_own_blocks_scale(
    name: str, dtype: torch.dtype, seed: int, sizes: list[float]
) -> None:
    """To the last float32 of it."""
    reach, given = INTEGERS[name], values(seed, sizes, dtype)
    found = write(CODECS[name], given)
    step = given.abs().amax(dim=-1, keepdim=True).double() / reach
    assert ((found.read.double() - given.double()).abs() <= step * (0.5 + 1e-4)).all()
    multiples = found.read.double() / step
    assert (multiples - multiples.round()).abs().max() < 1e-4
    assert multiples.round().abs().amax(dim=-1).eq(reach).all(), "a block's largest is not hit"


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.lists(SIZES, min_size=1, max_size=3))
def test_halves_keep_eleven_bits_of_each_value(
    dtype: torch.dtype, seed: int, sizes: list[float]
) -> None:
    """Of all that is less than 2^28 times smaller than its block's largest."""
    given = values(seed, sizes, dtype)
    given[..., 1] = given.abs().amax(dim=-1) * 2.0**-20
    found = write(CODECS["fp16"], given).read
    largest = given.abs().amax(dim=-1, keepdim=True)
    assert ((found - given).abs() <= given.abs() * 2.0**-11 + largest * 2.0**-39).all()
    assert found[..., 1].ne(0).all()
    again = write(CODECS["fp16"], found).read
    assert torch.equal(again, found), "a scale has rounded"


@given(SIZES, st.integers(-100, 100))
def test_scales_of_halves_are_powers_of_two_that_let_nothing_overflow(
    size: float, exponent: int
) -> None:
    largest = torch.tensor([size, 2.0**exponent, 0.0, 3.4e38, 1e-45])
    scales = CODECS["fp16"].scales(largest[:, None]).squeeze(-1)
    assert all(math.frexp(float(scale))[0] == 0.5 for scale in scales)
    assert (largest / scales <= 2**15).all()
    normal = largest > 2.0**-110
    assert (largest[normal] / scales[normal] >= 2**14).all()


@pytest.mark.parametrize("name", CODECS)
def test_zeros_are_zeros_and_the_least_there_is_does_not_grow(name: str) -> None:
    given = torch.zeros(1, 2, BLOCK)
    given[0, 1] = 1e-45
    found = write(CODECS[name], given)
    assert not found.read[0, 0].any()
    assert ((found.read >= 0) & (found.read <= given)).all()
    assert not found.marks.any()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_marks_its_block_and_reads_as_nothing_by_its_writer(
    name: str, bad: float
) -> None:
    given = values(3, [1.0, 100.0])
    without = given.clone()
    without[0, 1, 7] = 0.0
    given[0, 1, 7] = bad
    found, expected = write(CODECS[name], given), write(CODECS[name], without)
    assert found.marks.tolist() == [[False, True], [False, False]]
    assert found.read[0, 1].isnan().all()
    assert torch.equal(found.own, expected.own)
    if name != "sign":  # which has no zero
        assert found.own[0, 1, 7] == 0
    found.read[0, 1] = expected.read[0, 1]
    assert torch.equal(found.read, expected.read)


@pytest.mark.parametrize("name", CODECS)
def test_a_block_of_nothing_that_is_finite_is_marked_too(name: str) -> None:
    """Its scale is -0."""
    found = write(CODECS[name], torch.full((1, 1, BLOCK), math.nan))
    assert found.read.isnan().all()
    assert not found.own.any()


@pytest.mark.parametrize("name", CODECS)
def test_others_marks_are_passed_on(name: str) -> None:
    given = values(4, [1.0, 2.0])
    marked = torch.tensor([[True, False], [False, False]])
    found = write(CODECS[name], given, marked)
    assert torch.equal(found.marks, marked)
    assert found.read.isnan().all(dim=-1).tolist() == marked.tolist()
    assert torch.equal(found.own, write(CODECS[name], given).read)


@pytest.mark.parametrize(("name", "bits"), [("fp16", 16), ("int8", 8), ("int4", 4)])
def test_bytes_of_a_block(name: str, bits: int) -> None:
    assert row_bytes(CODECS[name], 3) == 3 * (SCALE_BYTES + BLOCK * bits // 8)
    assert [blocks_of(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]


def test_signs_are_worth_the_mean_of_the_values_that_there_are() -> None:
    """A block filled up with zeros sends the few values that it holds as large as they are."""
    given = torch.zeros(1, 2, BLOCK, dtype=torch.float64)
    given[0, 0, :3] = torch.tensor([2.0, -4.0, 6.0])
    given[0, 1] = torch.tensor([3.0, -1.0]).repeat(BLOCK // 2)
    found = write(CODECS["sign"], given)
    assert found.read[0, 0, :3].tolist() == [4.0, -4.0, 4.0]
    assert found.read[0, 1].tolist() == [2.0, -2.0] * (BLOCK // 2)
    assert torch.equal(found.read, found.own)


def test_with_feedback_signs_lose_nothing_in_the_end() -> None:
    """What is not sent of one part is added to the next: the sum of what is read follows, last
    where a value is many times as large as its block's mean."""
    given = values(3, [1.0], rows=1)
    owed, landed = torch.zeros_like(given), torch.zeros_like(given)
    for _ in range(200):
        owed += given
        own = write(CODECS["sign"], owed).own
        landed += own
        owed -= own
    assert (landed / 200 - given).norm() < 0.1 * given.norm()
    assert (landed / 200 - given).abs().median() < 0.01

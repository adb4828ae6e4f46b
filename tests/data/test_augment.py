"""What augmentation must and must not do to images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.augment import CropAndFlip, GlyphAugmentation
from harness.seeding import seeded_generator

KINDS = [GlyphAugmentation, CropAndFlip]
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STILL = dict.fromkeys(
    ["shift", "scale", "rotation", "shear", "bend", "blur", "thickness", "fade", "noise"], 0.0
)


def images(batch=6, channels=1, height=16, width=16):
    shape = (batch, channels, height, width)
    return torch.rand(shape, generator=seeded_generator(0, "images"))


def augmented(augment, batch, seed=1):
    return augment(batch.clone(), seeded_generator(seed, "augment"))


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_is_the_identity(kind):
    assert torch.equal(augmented(kind(0.0), images()), images())


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides_everything(kind):
    first, again, other = (augmented(kind(1.0), images(), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_do_not_mix(kind):
    changed = images()
    changed[2] = 0
    before, after = augmented(kind(1.0), images()), augmented(kind(1.0), changed)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    strength=st.floats(0.01, 10),
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 20),
    width=st.integers(8, 20),
)
def test_shape_and_range_stay(kind, strength, batch, channels, height, width):
    before = images(batch, channels, height, width)
    after = augmented(kind(strength), before)
    assert after.shape == before.shape
    assert 0 <= after.min() <= after.max() <= 1


def test_glyphs_change_more_with_strength():
    changes = [
        (augmented(GlyphAugmentation(strength), images()) - images()).abs().mean()
        for strength in (0.01, 0.1, 1.0)
    ]
    assert changes[0] < changes[1] < changes[2]
    assert changes[0] < 0.05


def test_glyphs_with_empty_ranges_stay():
    still = augmented(GlyphAugmentation(1.0, **STILL), images(height=20))
    torch.testing.assert_close(still, images(height=20))


def test_paper_stays_black_without_noise():
    paper = torch.zeros(6, 1, 16, 16)
    assert augmented(GlyphAugmentation(1.0, noise=0), paper).max() < 1e-6


@pytest.mark.parametrize(
    "change", ["shift", "scale", "rotation", "shear", "bend", "blur", "thickness", "fade", "noise"]
)
def test_each_alteration_of_glyphs_takes_part(change):
    ranges = STILL | {change: 0.2}
    changed = augmented(GlyphAugmentation(1.0, **ranges), images())
    assert ((changed - images()).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_strokes_grow_and_wear_but_ink_and_paper_stay():
    grey = torch.full((64, 1, 8, 8), 0.5)
    grey[:, :, :2], grey[:, :, 2:4] = 0.0, 1.0
    after = augmented(GlyphAugmentation(1.0, **STILL | {"thickness": 0.2}), grey)
    torch.testing.assert_close(after[:, :, :4], grey[:, :, :4])
    assert after[:, :, 5].min() < 0.4
    assert after[:, :, 5].max() > 0.6


def test_a_shift_moves_by_whole_images_the_same_way_in_all_channels():
    one = images(channels=1)
    after = augmented(GlyphAugmentation(1.0, noise=0), one.expand(-1, 3, -1, -1).contiguous())
    assert torch.equal(after[:, 0], after[:, 2])


@needs_card
@pytest.mark.parametrize("augment", [GlyphAugmentation(1.0, noise=0), CropAndFlip(1.0)])
def test_a_card_alters_images_as_a_cpu_does(augment):
    on_card = augment(images().cuda(), seeded_generator(1, "augment"))
    torch.testing.assert_close(on_card.cpu(), augmented(augment, images()), rtol=0, atol=1e-4)


@needs_card
def test_the_grain_of_a_card_is_its_own_and_the_same_each_time():
    noisy = GlyphAugmentation(1.0, **STILL | {"noise": 0.2})
    one, again, other = (
        noisy(images().cuda(), seeded_generator(seed, "augment")) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_each_result_is_a_crop_of_the_image_or_its_mirror():
    size, pad = 16, 2
    before = images(batch=32, channels=3)
    after = augmented(CropAndFlip(1.0), before)
    padded = torch.nn.functional.pad(before, (pad, pad, pad, pad))
    found = []
    for number in range(32):
        for mirror in (False, True):
            for top in range(2 * pad + 1):
                for left in range(2 * pad + 1):
                    crop = padded[number, :, top : top + size, left : left + size]
                    crop = crop.flip(2) if mirror else crop
                    if torch.equal(crop, after[number]):
                        found.append((number, mirror, top, left))
    assert [number for number, *_ in found] == list(range(32))
    assert {mirror for _, mirror, _, _ in found} == {False, True}
    assert len({(top, left) for _, _, top, left in found}) > 5

"""The recipe of torchvision's models: its numbers are torchvision's, its chance is ours."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from harness.config import BackboneConfig
from harness.data.cut import cut, middle_square
from harness.data.image_folder import open_image_folder
from harness.data.images import Dataset
from harness.data.levels import HALF
from harness.data.loader import Augmentation, evaluation_batches, train_batches
from harness.data.recipe import (
    AREAS,
    LEVELS,
    SHAPES,
    RandomErasing,
    RandomPart,
    centre,
    random_cuts,
)
from harness.data.shares import BatchSplit
from harness.data.trivial_augment import OPERATIONS, SIGNED, draws, trivial_augment, v2
from harness.errors import UserError
from harness.model.backbone import Backbone, check_size
from harness.model.torchvision import torchvision
from harness.seeding import seeded_generator
from tests.data.test_folder import config, write_tree

CPU = torch.device("cpu")
BOTH = ("trivial_augment", "random_erasing")


def smooth(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def planar(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


# cutting ----------------------------------------------------------------------------------------


@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 2**32))
def test_a_random_part_lies_in_the_picture_and_has_an_allowed_size(width, height, seed):
    (drawn,) = random_cuts(1, torch.Generator().manual_seed(seed))
    left, top, right, bottom = drawn.frame(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 100 and SHAPES[0] <= width / height <= SHAPES[1]:
        wide, tall = right - left, bottom - top
        assert 0.95 * AREAS[0] <= wide * tall / (width * height) <= AREAS[1]
        assert 0.95 * SHAPES[0] <= wide / tall <= 1.05 * SHAPES[1]


def test_where_no_part_fits_it_is_the_largest_in_the_middle():
    never = RandomPart([[1.0, 1.0, 0.0, 0.0]])
    assert never(1000, 30) == (480, 0, 520, 30)
    assert never(30, 1000) == (0, 480, 30, 520)
    assert never(30, 30) == (0, 0, 30, 30)


def test_parts_are_spread_as_torchvision_spreads_them():
    """Means of place, area and shape over many draws; torchvision's from its own generator."""
    width, height, count = 400, 300, 4000
    boxes = [
        each.frame(width, height) for each in random_cuts(count, torch.Generator().manual_seed(1))
    ]
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    ratios = list(SHAPES)
    theirs = [
        torchvision.transforms.RandomResizedCrop.get_params(image, list(AREAS), ratios)
        for _ in range(count)
    ]
    ours = [(top, left, bottom - top, right - left) for left, top, right, bottom in boxes]
    assert np.abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0)).max() < 5
    assert np.abs(np.std(ours, axis=0) - np.std(theirs, axis=0)).max() < 5


def test_half_of_the_pictures_are_mirrored():
    mirrored = [each.mirrored for each in random_cuts(4000, torch.Generator().manual_seed(1))]
    assert 1850 < sum(mirrored) < 2150


def test_a_part_is_scaled_as_torchvision_scales_it():
    pixels = smooth(300, 400)
    found = cut(pixels, lambda width, height: (50, 20, 290, 200), 64)
    expected = v2.functional.resized_crop(planar(pixels), 20, 50, 180, 240, [64, 64])
    assert (planar(found).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256)])
def test_validation_sees_what_torchvision_shows(size):
    pixels = smooth(*size)
    expected = v2.functional.center_crop(v2.functional.resize(planar(pixels), [256]), [224])
    found = planar(cut(pixels, centre, 224))
    assert (found.float() - expected.float()).abs().mean() < 1.5
    if size == (256, 256):
        assert torch.equal(found, expected)


# alterations -------------------------------------------------------------------------------------

NAMES = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "auto_contrast": "AutoContrast",
}


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=dict(OPERATIONS))
def test_each_operation_is_torchvisions_at_every_strength(number):
    name, operation = OPERATIONS[number]
    wide = v2.TrivialAugmentWide()
    theirs = NAMES.get(name, name.capitalize())
    strengths, signed = wide._AUGMENTATION_SPACE[theirs]
    assert signed == (name in SIGNED)
    image = planar(smooth(24, 20))[None]
    # Odd steps but 15: elsewhere a threshold or a shift is whole, but for the last digit.
    for step in (0, 1, 7, 13, 21, 30):
        for sign in (1, -1) if signed else (1,):
            values = strengths(31, 24, 20)
            magnitude = 0.0 if values is None else sign * float(values[step])
            expected = wide._apply_image_or_video_transform(
                image, theirs, magnitude, v2.InterpolationMode.BILINEAR, wide._fill
            )
            found = operation(image.clone(), sign * step / 30)
            assert (found.int() - expected.int()).abs().max() <= 1, (step, sign)


def test_every_image_has_a_draw_of_its_own():
    images = torch.stack([planar(smooth(24, 24)).roll(number, 2) for number in range(40)])
    together = trivial_augment(images.clone(), torch.Generator().manual_seed(3))
    drawn = draws(40, torch.Generator().manual_seed(3))
    assert len(set(drawn)) > 20
    for image, altered, (operation, strength) in zip(images, together, drawn, strict=True):
        assert torch.equal(OPERATIONS[operation][1](image[None].clone(), strength)[0], altered)


def test_the_groups_of_a_batch_go_to_a_card_in_one_copy(monkeypatch):
    copied = []

    def moved(numbers, device):
        copied.append(sorted(numbers.tolist()))
        return numbers.to(device)

    monkeypatch.setattr("harness.data.trivial_augment.up", moved)
    images = torch.stack([planar(smooth(24, 24)) for _ in range(40)])
    trivial_augment(images, torch.Generator().manual_seed(3))
    assert copied == [list(range(40))]


def test_erasing_paints_a_rectangle_in_the_mean_colour():
    images = torch.randint(130, 256, (200, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    erased = RandomErasing(chance=1.0)(images.clone(), torch.Generator().manual_seed(1))
    changed = (erased != images).any(1)
    for image, where in zip(LEVELS.of_bytes(erased), changed, strict=True):
        rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
        assert where[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert image[:, where].abs().max() < 0.01
        assert 0.01 < where.float().mean() < 0.36
    some = RandomErasing()(images.clone(), torch.Generator().manual_seed(1))
    assert 8 < (some != images).flatten(1).any(1).sum() < 35


def test_levels_are_those_of_the_usual_models():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    floats = images.float() / 255
    expected = v2.functional.normalize(floats, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(LEVELS.of_bytes(images), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(LEVELS.of_floats(floats.clone()), expected)
    assert torch.equal(HALF.of_bytes(images), HALF.of_floats(floats.clone()))
    assert HALF.of_floats(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]


# the whole ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("photos"))
    for number, path in enumerate(sorted(root.rglob("*.*"))):
        Image.fromarray(np.roll(smooth(40, 50), number, 1)).save(path)
    return root


def opened(folder: Path, **changes: object) -> Dataset:
    values = {"recipe": "imagenet", "image_size": 16} | changes
    return open_image_folder(config(folder, **values))


def batches(dataset: Dataset, start: int, count: int, rank: int = 0, seed: int = 0, **options):
    shares = BatchSplit(len(dataset.train), 3, rank, 2, seed=0)
    augmentation = Augmentation(seed, rank) if options.pop("augment", True) else None
    found = train_batches(
        dataset, shares, augmentation=augmentation, device=CPU, start=start, **options
    )
    taken = list(islice(found, count))
    found.close()
    return taken


@pytest.mark.parametrize("extras", [(), BOTH])
def test_a_batch_is_a_function_of_seed_micro_batch_and_rank(folder, extras):
    dataset = opened(folder, extras=extras)
    whole = batches(dataset, 0, 6)
    for again in (batches(dataset, 2, 4), batches(opened(folder, extras=extras), 2, 4, prefetch=3)):
        for one, other in zip(whole[2:], again, strict=True):
            assert all(map(torch.equal, one, other))
    indices = torch.arange(3)
    seen = set()
    for seed in (0, 1):
        for rank in (0, 1):
            for t in (0, 1):
                generator = Augmentation(seed, rank).generator("cut", t)
                seen.add(dataset.read_random(indices, generator)[0].numpy().tobytes())
    assert len(seen) == 8


def test_without_augmentation_training_sees_the_middle(folder):
    dataset = opened(folder)
    (images, labels), *_ = batches(dataset, 0, 1, augment=False)
    shares = BatchSplit(len(dataset.train), 3, 0, 2, seed=0)
    expected, expected_labels = dataset.train.read(shares.indices(0))
    torch.testing.assert_close(images, LEVELS.of_bytes(expected))
    assert torch.equal(labels, expected_labels)


def test_extras_change_only_what_they_name(folder):
    plain, erased = opened(folder), opened(folder, extras=("random_erasing",))
    erased = replace(erased, alter=RandomErasing(chance=1.0))
    (one, _), (other, _) = batches(plain, 0, 1)[0], batches(erased, 0, 1)[0]
    apart = one != other
    assert 0 < apart.float().mean() < 0.5
    assert other[apart].abs().max() < 0.01


def test_validation_may_have_another_size(folder):
    dataset = opened(folder, validation_size=24)
    assert (dataset.image_size, dataset.validation_size) == (16, 24)
    source = dataset.validation["validation"]
    share = {"rank": 0, "world_size": 1, "batch_size": 4, "device": CPU}
    images, _, _ = next(iter(evaluation_batches(source, **share, levels=dataset.levels)))
    assert images.shape == (4, 3, 24, 24)
    pictures = source.pictures
    expected = torch.stack([planar(pictures.cut(number, centre, 24)) for number in range(4)])
    torch.testing.assert_close(images, LEVELS.of_bytes(expected))


class Rigid(nn.Module):
    """Takes images of 16 pixels only."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-1] == 16
        return images.flatten(1)


@pytest.mark.parametrize("body", [Rigid(), nn.Flatten()])
def test_a_backbone_that_takes_one_size_only(body):
    settings = BackboneConfig(feature_dim=0)
    backbone = Backbone(body, 3 * 16 * 16, settings)
    check_size(backbone, settings, 3, 16)
    with pytest.raises(UserError, match=r"cannot take data\.validation_size=24; leave"):
        check_size(backbone, settings, 3, 24)


def test_the_own_recipe_of_an_image_folder_is_as_before(folder):
    dataset = opened(folder, recipe="own")
    assert (dataset.read_random, dataset.alter, dataset.levels) == (None, None, HALF)
    first = dataset.train.read(torch.tensor([0]))[0][0]
    assert torch.equal(first, planar(dataset.train.pictures.cut(0, middle_square, 16)))


def test_seeds_of_other_purposes_differ():
    of = Augmentation(0, 0).generator
    assert of("cut", 0).initial_seed() != of("alter", 0).initial_seed()
    assert of("cut", 1).initial_seed() == seeded_generator(0, "cut", 1, 0).initial_seed()

"""Rendered characters: one image per font and class, unseen fonts unseen in their pixels too."""

import numpy as np
import pytest
import torch

from harness.config import DataConfig
from harness.data import fonts, glyphs
from harness.errors import UserError
from tests.data.test_fonts import latin_font, mplfonts_file

CLASSES = 120


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return DataConfig(num_classes=CLASSES, cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def dataset(config):
    return glyphs.open_glyphs(config)


def all_of(source):
    return source.read(torch.arange(len(source)))


def test_each_font_gives_each_class_once(dataset):
    images, labels = all_of(dataset.train)
    assert images.dtype == torch.uint8
    assert images.shape == (len(fonts.TRAIN) * CLASSES, 1, 32, 32)
    assert torch.equal(labels.bincount(), torch.full((CLASSES,), len(fonts.TRAIN)))
    for source in dataset.validation.values():
        assert torch.equal(all_of(source)[1], torch.arange(CLASSES))


def test_an_image_shows_the_character_of_its_label_in_its_font(dataset):
    text = glyphs.characters(CLASSES)
    for number, font in enumerate(fonts.find_fonts().train):
        expected = glyphs.render(font.path, text[7], 32)[0]
        image, label = dataset.train.read(torch.tensor([number * CLASSES + 7]))
        assert label.item() == 7
        assert np.array_equal(image[0, 0].numpy(), expected)


def test_no_validation_image_is_trained_on(dataset):
    trained = {image.numpy().tobytes() for image in all_of(dataset.train)[0]}
    for name, source in dataset.validation.items():
        repeated = sum(image.numpy().tobytes() in trained for image in all_of(source)[0])
        assert repeated <= 0.02 * CLASSES, name  # 一 looks alike in neighbouring weights


def test_the_ink_is_centred_and_whole(dataset):
    images, _ = all_of(dataset.train)
    for axis in (2, 3):
        inked = images.amax(dim=(1, 5 - axis)) > 0
        first = inked.int().argmax(dim=1)
        last = 31 - inked.flip(1).int().argmax(dim=1)
        assert ((first - (31 - last)).abs() <= 1).all()
        assert (first >= 1).all()


def test_ink_larger_than_the_image_loses_its_border():
    image = np.zeros((3, 6), np.uint8)
    glyphs._paste_centred(image, np.arange(1, 21, dtype=np.uint8).reshape(5, 4))
    expected = np.zeros((3, 6), np.uint8)
    expected[:, 1:5] = np.arange(5, 17).reshape(3, 4)
    assert np.array_equal(image, expected)


def test_opening_again_renders_nothing(config, dataset, monkeypatch):
    monkeypatch.setattr(glyphs, "render", lambda *_: pytest.fail("rendered again"))
    again = glyphs.open_glyphs(config)
    assert torch.equal(all_of(again.train)[0], all_of(dataset.train)[0])


@pytest.mark.parametrize("change", [{"num_classes": 20}, {"image_size": 24}])
def test_other_classes_or_sizes_have_their_own_file(config, dataset, change):
    other = glyphs.open_glyphs(config.model_copy(update=change))
    size = change.get("image_size", 32)
    assert all_of(other.train)[0].shape[2:] == (size, size)
    assert len(all_of(glyphs.open_glyphs(config).train)[0]) == len(dataset.train)


def test_a_design_under_another_name_cannot_be_both_trained_on_and_judged_on(config):
    # The same serif by its other name: another file that draws the same.
    twin = str(mplfonts_file("SourceHanSerifSC-Regular.otf"))
    with pytest.raises(UserError, match=r"NotoSerifCJKsc-Regular.otf draws \d+% .*SourceHanSerif"):
        glyphs.open_glyphs(config.model_copy(update={"train_fonts": (twin,)}))


def test_more_fonts_make_more_images(config, dataset):
    more = str(mplfonts_file("NotoSansMonoCJKsc-Regular.otf"))
    larger = glyphs.open_glyphs(config.model_copy(update={"validation_fonts": (more,)}))
    assert len(larger.validation["unseen_design"]) == 2 * CLASSES
    assert len(larger.train) == len(dataset.train)


def test_a_font_without_the_characters_is_refused_and_nothing_is_written(config):
    before = set(glyphs.Path(config.cache).iterdir())
    with pytest.raises(UserError, match=f"lacks {CLASSES} of {CLASSES} characters"):
        glyphs.open_glyphs(config.model_copy(update={"train_fonts": (str(latin_font()),)}))
    assert set(glyphs.Path(config.cache).iterdir()) == before

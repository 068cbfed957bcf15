"""Augmentations against the same thing done image by image, and their names."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from _sets import pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.data import AUGMENTATIONS
from secateur.data.augment import crop, crop_boxes, cutout, flip, resized_crop, shift
from secateur.data.each import augmentations
from secateur.data.order import uniform
from secateur.errors import ConfigError


def batch(count=7, channels=3, height=9, width=11):
    return torch.from_numpy(pixels(count, channels, height, width))


def numbers(count, columns, seed=0):
    return torch.from_numpy(uniform((count, columns), seed=seed, purpose="test"))


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40)
def test_crop_moves_each_image_by_its_own_numbers(seed, padding, height, width):
    images, drawn = batch(5, 2, height, width), numbers(5, 2, seed)
    made = crop(images, drawn, padding)
    for image, (down, right), result in zip(images.numpy(), drawn.tolist(), made.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        top, left = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        assert (result == padded[:, top : top + height, left : left + width]).all()


def test_crop_reaches_every_offset():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 4] = 1
    drawn = torch.cartesian_prod(torch.arange(9), torch.arange(9)) / 9 + 0.001
    found = crop(image.expand(81, -1, -1, -1), drawn).flatten(1).argmax(1)
    assert sorted(found.tolist()) == list(range(81))


def test_shift_is_a_crop_by_one_pixel():
    images, drawn = batch(), numbers(7, 2)
    assert torch.equal(shift(images, drawn), crop(images, drawn, padding=1))


def test_flip_mirrors_where_the_number_is_below_a_half():
    images = batch()
    made = flip(images, torch.tensor([[0.1], [0.5], [0.9], [0.49], [0.0], [0.7], [0.2]]))
    for k, mirrored in enumerate([True, False, False, True, True, False, True]):
        assert torch.equal(made[k], images[k].flip(-1) if mirrored else images[k])


@given(st.integers(0, 1000), st.integers(2, 13), st.integers(2, 13))
@settings(max_examples=40)
def test_cutout_clears_one_square(seed, height, width):
    images, drawn = torch.ones(5, 2, height, width), numbers(5, 2, seed)
    side = min(height, width) // 2
    for (down, right), result in zip(drawn.tolist(), cutout(images, drawn), strict=True):
        expected = torch.ones(2, height, width)
        top, left = int(down * height) - side // 2, int(right * width) - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert torch.equal(result, expected)


@given(st.integers(0, 1000), st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=60)
def test_boxes_lie_in_the_image(seed, height, width):
    top, left, tall, wide = crop_boxes(numbers(50, 4, seed), height, width).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= height + 1e-9).all()
    assert (left + wide <= width + 1e-9).all()
    assert (tall >= 1).all()
    assert (wide >= 1).all()


def test_boxes_have_the_areas_and_ratios_they_should():
    _, _, tall, wide = crop_boxes(numbers(20_000, 4), 1000, 1000).unbind(1)
    share, ratio = tall * wide / 1e6, wide / tall
    assert 0.079 < share.min() < 0.09
    assert share.max() < 1 + 1e-9
    whole = (tall < 999) & (wide < 999)  # not cut by the border
    assert 3 / 4 - 1e-6 < ratio[whole].min() < 0.76
    assert 1.32 < ratio[whole].max() < 4 / 3 + 1e-6
    assert abs((ratio < 1).float().mean() - 0.5) < 0.02


def test_resized_crop_of_a_ramp_is_a_stretched_ramp():
    ramp = (torch.arange(64.0) * 2)[None, None, None, :].expand(6, 1, 64, -1)
    drawn = numbers(6, 4)
    boxes = crop_boxes(drawn, 64, 64)
    made = resized_crop(ramp, drawn)
    for (_, left, _, wide), result in zip(boxes.tolist(), made, strict=True):
        places = left + (np.arange(64) + 0.5) * wide / 64 - 0.5
        assert result[0, 5].numpy() == pytest.approx(np.clip(places, 0, 63) * 2, abs=1e-3)


def test_resized_crop_of_everything_is_the_image():
    images = batch(4, 3, 8, 8)
    everything = torch.tensor([[1.0, 0.5, 0.3, 0.8]]).expand(4, -1)
    assert torch.equal(resized_crop(images, everything), images)


@pytest.mark.parametrize("row", AUGMENTATIONS.values(), ids=lambda row: row.name)
def test_each_is_pure_and_keeps_shape_and_kind(row):
    images = batch(6, 3, 12, 12)
    if row.when == "normalised":
        images = images.float()
    before, drawn = images.clone(), numbers(6, row.numbers)
    made = row.function(images, drawn)
    assert torch.equal(images, before)
    assert (made.shape, made.dtype) == (images.shape, images.dtype)
    assert torch.equal(made, row.function(images, drawn))
    assert not torch.equal(made, images)
    assert torch.equal(row.function(images[2:5], drawn[2:5]), made[2:5])  # each image by its own numbers
    assert len(row.function(images[:0], drawn[:0])) == 0


def test_names_are_looked_up_in_order():
    assert [row.name for row in augmentations(["flip", "crop"])] == ["flip", "crop"]
    assert augmentations([]) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["corp"], "Unknown augmentation 'corp': did you mean 'crop'?"),
        (["mixup"], "Choose one of crop, shift, flip, cutout, resized_crop"),
        (["flip", "flip"], "twice"),
        ("flip", "is a word, not a list"),
        ([3], "Unknown augmentation 3"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(names, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        augmentations(names)

"""Batches: what number b of epoch e holds depends on (seed, e, b) and on nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from _sets import pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.data import AUGMENTATIONS, Split
from secateur.data.images import MemoryImages
from secateur.errors import DataError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGES = MemoryImages(pixels(40, 3, 10, 12), np.arange(40))  # the label of an image is its number
KINDS = [(), ("crop", "flip"), ("resized_crop", "shift", "cutout")]


def split(count=40, augment=("crop", "flip")):
    rows = tuple(AUGMENTATIONS[name] for name in augment)
    return Split(IMAGES, np.arange(40)[:count], MEAN, STD, rows)


def same(one, two):
    one, two = list(one), list(two)
    return len(one) == len(two) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(one, two, strict=True)
    )


ANY = {
    "count": st.integers(0, 40),
    "batch_size": st.integers(1, 50),
    "epoch": st.integers(0, 1000),
    "seed": st.integers(0, 2**40),
    "shuffle": st.booleans(),
    "augment": st.sampled_from(KINDS),
}


@given(world=st.integers(1, 5), **ANY)
@settings(max_examples=80)
def test_the_parts_of_all_processes_are_the_batch_of_one(count, batch_size, epoch, seed, shuffle, augment, world):
    batch_size = max(batch_size, world)
    options = {"epoch": epoch, "seed": seed, "shuffle": shuffle, "augment": True}
    part = split(count, augment)
    whole = list(part.batches(batch_size, **options))
    ranks = [list(part.batches(batch_size, rank=rank, world=world, **options)) for rank in range(world)]
    assert all(len(rank) == len(whole) for rank in ranks)
    joined = [tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True)) for parts in zip(*ranks, strict=True)]
    assert same(joined, whole)
    sizes = [[len(labels) for _, labels in parts] for parts in zip(*ranks, strict=True)]
    assert all(max(row) - min(row) <= 1 for row in sizes)


@given(start=st.integers(0, 8), **ANY)
@settings(max_examples=80)
def test_a_later_start_is_the_rest_of_the_epoch(count, batch_size, epoch, seed, shuffle, augment, start):
    options = {"epoch": epoch, "seed": seed, "shuffle": shuffle, "augment": True}
    part = split(count, augment)
    rest = itertools.islice(part.batches(batch_size, **options), start, None)
    assert same(part.batches(batch_size, start=start, **options), rest)


@given(drop_last=st.booleans(), **ANY)
@settings(max_examples=80)
def test_an_epoch_holds_each_image_once(count, batch_size, epoch, seed, shuffle, augment, drop_last):
    part = split(count, augment)
    if drop_last and 0 < count < batch_size:
        with pytest.raises(DataError, match="no full batch"):
            part.batches(batch_size, drop_last=True)
        return
    options = {"epoch": epoch, "seed": seed, "shuffle": shuffle, "augment": True}
    labels = [y for _, y in part.batches(batch_size, drop_last=drop_last, **options)]
    assert len(labels) == part.batch_count(batch_size, drop_last)
    seen = torch.cat(labels).tolist() if labels else []
    assert len(set(seen)) == len(seen) == (count // batch_size * batch_size if drop_last else count)
    assert all(len(y) == batch_size for y in labels[: None if drop_last else -1])
    if not shuffle:
        assert seen == list(range(len(seen)))


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}], ids=["seed", "epoch"])
@pytest.mark.parametrize("augment", KINDS[1:], ids=["crop", "resized_crop"])
def test_another_seed_or_epoch_gives_other_batches(change, augment):
    part = split(augment=augment)
    one, two = (next(part.batches(40, shuffle=True, augment=True, **c)) for c in ({}, change))
    assert one[1].tolist() != two[1].tolist()
    one, two = (next(part.batches(40, augment=True, **c)) for c in ({}, change))
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], two[0])


def test_batches_of_one_epoch_are_augmented_differently():
    images = MemoryImages(np.repeat(pixels(1, 3, 10, 12), 8, axis=0), np.zeros(8, np.int64))
    part = Split(images, np.arange(8), MEAN, STD, (AUGMENTATIONS["crop"],))
    first, second = (x for x, _ in part.batches(4, augment=True))
    assert not torch.equal(first, second)


def test_a_batch_does_not_depend_on_what_was_asked_before():
    part = split()
    list(part.batches(7, epoch=2, shuffle=True, augment=True))
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state()
    again = list(part.batches(7, epoch=1, shuffle=True, augment=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(again, split().batches(7, epoch=1, shuffle=True, augment=True))


def test_without_augmentation_pixels_are_normalised_and_otherwise_as_they_are():
    (images, labels), *_ = split().batches(5)
    expected = (IMAGES.pixels[:5].double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.allclose(images.double(), expected, atol=1e-5)
    assert images.is_contiguous()


def test_cutout_clears_to_the_mean_colour():
    images = next(split(augment=("cutout",)).batches(8, augment=True))[0]
    assert (images == 0).flatten(1).any(1).all()


def test_a_batch_may_be_changed_without_harm():
    part = split(augment=())
    first = next(part.batches(4))
    kept = first[0].clone()
    first[0].zero_()
    first[1].zero_()
    assert torch.equal(next(part.batches(4))[0], kept)
    assert next(part.batches(4))[1].tolist() == [0, 1, 2, 3]


def test_an_empty_split_has_no_batches():
    part = split(0)
    assert (len(part), part.batch_count(8), list(part.batches(8))) == (0, 0, [])


def test_the_labels_of_a_split_come_in_its_order():
    part = Split(IMAGES, np.array([5, 3, 9]), MEAN, STD)
    assert part.labels.tolist() == [5, 3, 9]
    assert next(part.batches(3))[1].tolist() == [5, 3, 9]


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (0, {}, "The batch size is 0"),
        (4, {"rank": 2, "world": 2}, "Process 2 of 2"),
        (4, {"rank": -1}, "Process -1 of 1"),
        (4, {"world": 0}, "Process 0 of 0"),
        (2, {"world": 3}, "cannot be divided among 3 processes"),
        (4, {"epoch": -1}, "must not be negative"),
        (4, {"start": -1}, "must not be negative"),
        (4, {"seed": -1}, "must not be negative"),
        (41, {"drop_last": True}, "40 images make no full batch of 41"),
    ],
)
def test_impossible_arguments_are_refused_at_once(batch_size, options, message):
    with pytest.raises(DataError, match=message):
        split().batches(batch_size, **options)  # not only when the first batch is taken

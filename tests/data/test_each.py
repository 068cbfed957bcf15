"""Augmentations of torchvision and of one's own: by image, seed, epoch and place; boxes and masks with their image."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _sets import Config, folder
from torch.utils.data import Dataset

from secateur._settings import validated
from secateur.data import open_data
from secateur.data.each import augmentations
from secateur.errors import ConfigError, SecateurError
from secateur.recipe import DataConfig
from secateur.recipe.steps import Chosen
from secateur.tasks import create

v2 = pytest.importorskip("torchvision.transforms.v2")

OWN = """
import torch
def darker(image):
    return (image * torch.rand(())).to(image.dtype)
class Shift:
    def __init__(self, by=1):
        self.by = by
    def __call__(self, image):
        return image.roll(self.by * int(torch.randint(2, ())), -1)
"""


def chosen(name: str, **arguments: Any) -> Chosen:
    return Chosen(name=name, **arguments)


MANY = [
    "flip",
    chosen("RandAugment", magnitude=7),
    chosen("RandomApply", transforms=[{"name": "ColorJitter", "brightness": 0.5}], p=0.7),
    chosen("RandomErasing", p=0.9),
]


def _batches(config: Config, **options: Any) -> list[torch.Tensor]:
    split = open_data(config, 0).train
    return [images for images, _ in split.batches(10, shuffle=True, augment=True, seed=5, **options)]


def test_a_batch_depends_on_seed_epoch_and_number_alone() -> None:
    config = Config("digits", train_images=60, augment=MANY)
    whole = _batches(config, epoch=2)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    again = _batches(config, epoch=2, start=4)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], again, strict=True))
    parts = [_batches(config, epoch=2, rank=rank, world=3) for rank in range(3)]
    assert all(torch.equal(a, torch.cat(b)) for a, *b in zip(whole, *parts, strict=True))
    assert not torch.equal(whole[0], _batches(config, epoch=3)[0])
    plain = _batches(Config("digits", train_images=60, augment=["flip"]), epoch=2)
    assert not torch.equal(whole[0], plain[0])


def test_generators_go_on_as_if_nothing_had_drawn() -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = torch.rand(()), random.random(), np.random.random()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    _batches(Config("digits", train_images=20, augment=[chosen("RandAugment")]))
    assert (torch.rand(()), random.random(), np.random.random()) == expected


def test_images_are_what_torchvision_makes_of_them() -> None:
    images = torch.randint(0, 256, (5, 3, 12, 10), dtype=torch.uint8)
    (row,) = augmentations([chosen("RandomAffine", degrees=30, interpolation="bilinear")])
    numbers = torch.rand(5, 1, dtype=torch.float64)
    made = row.function(images, numbers)
    own = v2.RandomAffine(30, interpolation=v2.InterpolationMode.BILINEAR)
    for image, number, one in zip(images, numbers[:, 0].tolist(), made, strict=True):
        torch.manual_seed(int(number * 2**53) >> 1)
        assert torch.equal(one, own(image))
    assert torch.equal(row.function(images[2:4], numbers[2:4]), made[2:4])
    assert len(row.function(images[:0], numbers[:0])) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_cropped_from_their_own_pixels(tmp_path: Path, workers: int) -> None:
    folder(tmp_path)
    crop = chosen("RandomResizedCrop", scale=[0.5, 0.6], ratio=[1.0, 1.0])
    config = Config(
        "folder", str(tmp_path), augment=[crop, "flip"], workers=workers, options={"size": 12, "resize": 12}
    )
    (images,) = open_data(config, 0).train.batches(12, augment=True, seed=4)
    assert images[0].shape == (12, 3, 12, 12)
    config = Config("folder", str(tmp_path), augment=[crop, "flip"], options={"size": 12, "resize": 12})
    (alone,) = open_data(config, 0).train.batches(12, augment=True, seed=4)
    assert torch.equal(images[0], alone[0])  # whichever process draws
    assert open_data(config, 0).describe()["augmentation"] == [
        "RandomResizedCrop(scale=(0.5, 0.6), ratio=(1.0, 1.0))",
        "flip",
    ]


class Boxes(Dataset[Any]):
    """White rectangles, each with its box and its mask."""

    classes = ("none", "some")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> Any:
        image, (x, y, w, h) = torch.zeros(3, 16, 16), (2 + number % 3, 1 + number % 5, 6, 8)
        image[:, y : y + h, x : x + w] = 1
        boxes = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
        return image, {"boxes": boxes, "labels": torch.tensor([1]), "masks": image[:1].bool()}


class Masks(Boxes):
    """The same with the mask alone."""

    def __getitem__(self, number: int) -> Any:
        image, target = super().__getitem__(number)
        return image, target["masks"][0].long()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return f"{__name__}:"


FLIPS = [chosen("RandomHorizontalFlip", p=0.5), chosen("RandomVerticalFlip", p=0.5)]


def test_boxes_and_masks_move_with_their_image(own: str) -> None:
    data = open_data(Config(own + "Boxes", augment=FLIPS, validation=0.25), 0, create("detection"))
    moved = 0
    for epoch in range(4):
        for (images,), targets in data.train.batches(4, augment=True, epoch=epoch, seed=1):
            for image, target in zip(images, targets, strict=True):
                assert type(target["boxes"]) is type(image) is torch.Tensor
                x0, y0, x1, y1 = target["boxes"][0].long().tolist()
                assert image[:, y0:y1, x0:x1].min() == 1
                assert image.sum() == 3 * (x1 - x0) * (y1 - y0) == 3 * 48
                assert torch.equal(target["masks"][0], image[0].bool())
                moved += x0 > 4 or y0 > 5
    assert moved
    for _, targets in data.train.batches(4):  # without augmentation they stay
        assert all(float(t["boxes"][0, 0]) <= 4 for t in targets)


def test_masks_of_segmentation_too(own: str) -> None:
    data = open_data(Config(own + "Masks", augment=FLIPS, validation=0.25), 0, create("segmentation"))
    whole = list(data.train.batches(4, shuffle=True, augment=True, seed=1))
    for images, masks in whole:
        assert torch.equal(images[:, 0].long(), masks)
    plain = list(data.train.batches(4, shuffle=True, seed=1))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(whole, plain, strict=True))
    with_workers = open_data(
        Config(own + "Masks", augment=FLIPS, validation=0.25, workers=2), 0, create("segmentation")
    )
    again = list(with_workers.train.batches(4, shuffle=True, augment=True, seed=1, start=1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[1:], again, strict=True))


def test_functions_and_classes_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    names = [f"{tmp_path}/mine.py:darker", chosen(f"{tmp_path}/mine.py:Shift", by=2)]
    whole = _batches(Config("digits", train_images=60, augment=names))
    again = _batches(Config("digits", train_images=60, augment=names), start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], again, strict=True))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["RandAugmnt"], "Unknown augmentation 'RandAugmnt': did you mean 'RandAugment'?"),
        (["MixUp"], "They mix two images: set mixup or cutmix of the stage."),
        ([chosen("RandAugment", magnitud=3)], "takes no argument 'magnitud': did you mean 'magnitude'?"),
        ([chosen("RandomErasing", p=2)], "augmentation RandomErasing cannot be made so (`p` should be"),
        ([chosen("flip", p=0.5)], "flip takes no arguments"),
        ([chosen("CenterCrop", size=4)], "CenterCrop makes 1x4x4 uint8 of 1x8x8 uint8: images keep their size"),
        (["RandAugment", "RandAugment"], "names 'RandAugment' twice"),
        ([chosen("LinearTransformation")], "missing 2 required positional arguments"),
    ],
)
def test_refused_in_a_sentence(names: list[Any], said: str) -> None:
    with pytest.raises(SecateurError) as refusal:
        open_data(Config("digits", augment=names), 0)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_torchvision_the_own_ones_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    monkeypatch.setitem(sys.modules, "torchvision.tv_tensors", None)
    assert [row.name for row in augmentations(["crop", "flip"])] == ["crop", "flip"]
    with pytest.raises(ConfigError, match=re.escape("those of torchvision need it")):
        augmentations(["TrivialAugmentWide"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"magnitude": 3}], "has one without a name"),
        (3, "is no list of names"),
    ],
)
def test_recipes_that_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validated(DataConfig, {"name": "digits", "augment": given}, "data")
    names = ["flip", {"name": "RandAugment", "magnitude": 3}]
    read = validated(DataConfig, {"name": "digits", "augment": names}, "data")
    assert read.augment == ("flip", chosen("RandAugment", magnitude=3))
    assert validated(DataConfig, {"name": "digits", "augment": "flip"}, "data").augment == ("flip",)
    assert validated(DataConfig, {"name": "digits", "augment": []}, "data").augment == ()


def test_own_data_refuse_what_knows_images_alone(own: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flip is of images alone"):
        open_data(Config(own + "Masks", augment=["flip"]), 0, create("segmentation"))

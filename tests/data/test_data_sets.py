"""Every form in memory: read from official files made here, split, described."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from _sets import Config, arrays, cifar, npz, pixels

from secateur.data import DATASETS, open_data
from secateur.data.readers.cifar import CIFAR10, COARSE, FINE


def everything(split):
    batches = list(split.batches(1000))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_digits_are_embedded_and_divided_alike_in_every_run():
    one, two = (open_data(Config("digits", validation=0.1, batch_size=32), seed=seed) for seed in (0, 1))
    assert (len(one.train), len(one.validation), len(one.test)) == (1167, 130, 500)
    assert (one.classes, one.input_size) == (10, (1, 8, 8))
    assert np.bincount(one.test.labels).tolist() == [50] * 10
    assert torch.equal(everything(one.test)[0], everything(two.test)[0])
    assert one.train.indices.tolist() != two.train.indices.tolist()
    images, _ = everything(one.train)
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02


def test_the_section_of_a_recipe_opens_what_it_names():
    from secateur.recipe import DATA, DataConfig

    data = open_data(DataConfig(name="digits", train_images=100, batch_size=50, augment=("flip",)), seed=0)
    assert (len(data.train), len(data.validation)) == (90, 10)
    assert [row.name for row in data.train.augment] == ["flip"]
    assert sorted(DATA) == sorted(DATASETS)


def test_digits_keep_their_17_grey_values_apart():
    data = open_data(Config("digits"), seed=0)
    assert len(data.train.images.pixels.unique()) == 17


def test_train_and_validation_share_no_image_and_keep_the_proportions():
    data = open_data(Config("digits", train_images=600, validation=0.25), seed=3)
    train, held = set(data.train.indices), set(data.validation.indices)
    assert (len(train), len(held), len(train & held)) == (450, 150, 0)
    assert np.bincount(data.train.labels).tolist() == [45] * 10
    assert np.bincount(data.validation.labels).tolist() == [15] * 10
    again = open_data(Config("digits", train_images=600, validation=0.25), seed=3)
    assert (again.train.indices == data.train.indices).all()


def test_no_validation_is_a_split_without_images():
    data = open_data(Config("digits", validation=0.0), seed=0)
    assert (len(data.train), len(data.validation)) == (1297, 0)
    assert list(data.validation.batches(10)) == []


def test_cifar10_binary_files_are_read_in_order(tmp_path):
    data = open_data(Config("cifar10", str(cifar(tmp_path))), seed=0)
    assert (len(data.train), len(data.test), data.input_size, data.class_names) == (20, 4, (3, 32, 32), CIFAR10)
    assert data.train.labels.tolist() == [k % 10 for k in range(20)]
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    raw = (tmp_path / "data_batch_2.bin").read_bytes()
    assert data.train.images.pixels[4].numpy().tobytes() == raw[1:3073]  # red, green, blue planes


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin", "data_batch_1.bin"])
def test_cifar10_may_be_named_by_its_folder_the_one_above_or_a_file(tmp_path, place):
    cifar(tmp_path / "cifar-10-batches-bin")
    path = tmp_path if not place else tmp_path / "cifar-10-batches-bin"
    path = path / place if place.endswith(".bin") else path
    assert len(open_data(Config("cifar10", str(path)), seed=0).train) == 20


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_cifar10_from_npz_is_the_same(tmp_path, layout):
    binary = open_data(Config("cifar10", str(cifar(tmp_path / "binary"))), seed=0)
    held = {}
    for part, split in (("train", binary.train), ("test", binary.test)):
        values = split.images.pixels.numpy()
        held[f"x_{part}"] = values.transpose(0, 2, 3, 1) if layout == "nhwc" else values
        held[f"y_{part}"] = split.labels[:, None]  # Keras keeps them in a column
    stored = open_data(Config("cifar10", str(npz(tmp_path / "c.npz", held))), seed=0)
    for name in ("train", "test"):
        for one, two in zip(everything(getattr(stored, name)), everything(getattr(binary, name)), strict=True):
            assert torch.equal(one, two)


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    folder = cifar(tmp_path, "cifar100", images=30)
    fine = open_data(Config("cifar100", str(folder)), seed=0)
    coarse = open_data(Config("cifar100", str(folder), options={"labels": "coarse"}), seed=0)
    assert (fine.classes, fine.class_names, coarse.classes, coarse.class_names) == (100, FINE, 20, COARSE)
    assert fine.test.labels.tolist() == list(range(30, 60))
    assert coarse.test.labels.tolist() == [k // 5 for k in range(30, 60)]
    assert torch.equal(fine.test.images.pixels, coarse.test.images.pixels)


def test_the_class_names_are_complete_and_sorted_as_in_the_official_files():
    assert (len(FINE), len(set(FINE)), len(COARSE)) == (100, 100, 20)
    assert list(FINE) == sorted(FINE)
    assert list(COARSE) == sorted(COARSE)


@pytest.mark.parametrize(
    ("shape", "options", "size"),
    [
        ((6, 7), {}, (1, 6, 7)),
        ((6, 7, 1), {}, (1, 6, 7)),
        ((6, 7, 3), {}, (3, 6, 7)),
        ((3, 6, 7), {}, (3, 6, 7)),
        ((1, 6, 7), {}, (1, 6, 7)),
        ((3, 5, 3), {"layout": "nchw"}, (3, 5, 3)),
        ((3, 5, 3), {"layout": "nhwc"}, (3, 3, 5)),
    ],
)
def test_npz_images_may_have_their_colours_first_last_or_none(tmp_path, shape, options, size):
    data = open_data(Config("npz", str(npz(tmp_path / "a.npz", arrays(shape))), options=options), seed=0)
    assert data.input_size == size
    expected = pixels(20, *shape)
    if len(shape) == 2:
        expected = expected[:, None]
    elif size[0] == shape[-1] and options.get("layout") != "nchw":
        expected = expected.transpose(0, 3, 1, 2)
    assert (data.train.images.pixels.numpy() == expected).all()


def test_npz_is_normalised_by_its_own_training_images(tmp_path):
    data = open_data(Config("npz", str(npz(tmp_path / "a.npz")), validation=0.2), seed=0)
    used = data.train.images.pixels[data.train.indices].double() / 255
    assert data.mean == pytest.approx(used.mean((0, 2, 3)).tolist(), rel=1e-9)
    assert data.std == pytest.approx(used.std((0, 2, 3), correction=0).tolist(), rel=1e-9)
    images, _ = everything(data.train)
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)


def test_npz_with_other_usual_names_is_read_and_the_rest_is_mentioned(tmp_path):
    made = arrays()
    names = {"x_train": "train_images", "y_train": "train_labels", "x_test": "test_images", "y_test": "test_labels"}
    path = npz(tmp_path / "m.npz", {**{names[k]: v for k, v in made.items()}, "val_images": made["x_test"]})
    data = open_data(Config("npz", str(path)), seed=0)
    assert len(data.train) == 20
    assert data.notes == ("m.npz also holds val_images, which were not read.",)


def test_classes_without_training_images_are_allowed_when_their_number_is_given(tmp_path):
    path = npz(tmp_path / "a.npz", arrays(y_train=np.arange(20) % 2 + 1))
    assert open_data(Config("npz", str(path), options={"classes": 5}), seed=0).classes == 5


def test_mean_and_std_can_be_given():
    data = open_data(Config("digits", options={"mean": [0.5], "std": [0.25]}), seed=0)
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    assert everything(data.test)[0].max() == 2
    one = open_data(Config("digits", options={"mean": 0.5, "std": 0.25}), seed=0)  # a number for all colours
    assert (one.mean, one.std) == (data.mean, data.std)


def test_a_set_without_a_path_is_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    cifar(tmp_path / "data" / "cifar-10-batches-bin")
    cifar(tmp_path / ".data" / "cifar-100-binary", "cifar100")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    assert len(open_data(Config("cifar100"), seed=0).train) == 4
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path / "data"))
    assert len(open_data(Config("cifar10"), seed=0).train) == 20


def test_a_description_is_json_and_says_what_was_read(tmp_path):
    folder = cifar(tmp_path / "c")
    data = open_data(Config("cifar10", str(folder), validation=0.2, augment=["flip"], workers=2), seed=7)
    told = json.loads(json.dumps(data.describe(), allow_nan=False))
    assert told["split"].startswith("all 20 training images; of these 4 for validation")
    assert "seed 7" in told["split"]
    assert {key: told[key] for key in ("name", "classes", "train", "validation", "test")} == {
        "name": "cifar10", "classes": 10, "train": 16, "validation": 4, "test": 4,
    }  # fmt: skip
    assert told["augmentation"] == ["flip"]
    assert told["normalisation"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert [row["name"] for row in told["files"]][-1] == "test_batch.bin"
    assert all(len(row["sha256"]) == 64 and row["bytes"] == 4 * 3073 for row in told["files"])
    assert len(told["notes"]) == 2  # fewer images than the official set; workers that are not needed
    content = bytearray((folder / "test_batch.bin").read_bytes())
    content[-1] ^= 1
    (folder / "test_batch.bin").write_bytes(content)
    assert data.describe()["files"][-1]["sha256"] != told["files"][-1]["sha256"]


def test_files_that_have_gone_are_an_error_in_a_description_too(tmp_path):
    from secateur.errors import DataError

    data = open_data(Config("cifar10", str(cifar(tmp_path / "c"))), seed=0)
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(DataError, match="cannot be read"):
        data.describe()


def test_an_image_of_one_colour_can_be_normalised(tmp_path):
    flat = {"x_train": np.full((20, 4, 4), 9, np.uint8), "x_test": np.full((10, 4, 4), 9, np.uint8)}
    data = open_data(Config("npz", str(npz(tmp_path / "a.npz", arrays((4, 4), **flat)))), seed=0)
    assert torch.isfinite(everything(data.train)[0]).all()

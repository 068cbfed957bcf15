"""Bad data and impossible configurations, as data: each gets one sentence, and nothing is written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from _sets import (
    ClassLabel,
    Config,
    Hub,
    HubSplit,
    Image,
    Value,
    arrays,
    cifar,
    encoded,
    folder,
    npz,
    pixels,
    samples,
    shards,
    tar,
    truncate,
)

from secateur.data import open_data
from secateur.errors import ConfigError, DataError

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
SMALL = {"size": 8}
CASES: list[Case] = []


@dataclass(frozen=True)
class Case:
    name: str
    message: str
    make: Callable[[Path], Config]
    error: type[Exception] = DataError


def case(message: str, error: type[Exception] = DataError) -> Callable[[Callable[[Path], Config]], None]:
    return lambda make: CASES.append(Case(make.__name__, message, make, error))


def add(name: str, message: str, make: Callable[[Path], Config], error: type[Exception] = DataError) -> None:
    CASES.append(Case(name, message, make, error))


# --------------------------------------------------------------------------------------------------- configurations

for name, message, change in (
    ("unknown set", "Unknown data set 'cifar': did you mean 'cifar10'", {"name": "cifar"}),
    ("unknown augmentation", "Unknown augmentation 'flop': did you mean 'flip'", {"augment": ["flop"]}),
    ("unknown option", "digits takes no option 'main': did you mean 'mean'", {"options": {"main": [0.5]}}),
    ("mean for three colours", "mean has 3 numbers for 1 colours", {"options": {"mean": [0.5] * 3}}),
    ("mean of 0 to 255", "data.options.mean is [128.0], which cannot be", {"options": {"mean": [128.0]}}),
    ("std of zero", "data.options.std is [0.0], which cannot be", {"options": {"std": [0.0]}}),
    (
        "std of nothing",
        "cannot be: Input should be greater than 0",
        {"options": {"std": 0}},
    ),
    ("option as text", "data.options.mean is 'x', which cannot be", {"options": {"mean": "x"}}),
    ("validation of 1", "data.validation is 1.0", {"validation": 1.0}),
    ("negative validation", "data.validation is -0.1", {"validation": -0.1}),
    ("validation is NaN", "data.validation is nan", {"validation": float("nan")}),
    ("no training images", "data.train_images is 0", {"train_images": 0}),
    ("batch of none", "data.batch_size is 0", {"batch_size": 0}),
    ("negative workers", "data.workers is -1", {"workers": -1}),
):
    add(name, message, lambda _, change=change: Config(**{"name": "digits", **change}), ConfigError)

for name, message, change in (
    ("path for digits", "inside scikit-learn and has no path: leave data.path 'x' out", {"path": "x"}),
    ("more images than there are", "data.train_images is 1,298, and digits has 1,297", {"train_images": 1298}),
    ("fewer images than classes", "data.train_images is 9, and digits has 10 classes", {"train_images": 9}),
    ("validation of nothing", "leaves 0 for validation", {"train_images": 20, "validation": 0.01}),
    ("validation of everything", "and 0 for training", {"train_images": 20, "validation": 0.99}),
    ("batch larger than the set", "data.batch_size is 2000, and 1297 images are there", {"batch_size": 2000}),
    (
        "batch larger than what is left",
        "is 20, and 10 images",
        {"batch_size": 20, "train_images": 20, "validation": 0.5},
    ),
):
    add(name, message, lambda _, change=change: Config(**{"name": "digits", **change}))

for name, get in (
    ("cifar10", "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it"),
    ("cifar100", "get cifar-100-binary.tar.gz"),
    ("npz", "with numpy.savez"),
    ("folder", "train/CLASS/IMAGE"),
    ("webdataset", "train*.tar"),
):
    add(f"missing {name}", get, lambda tmp, name=name: Config(name, str(tmp / "nowhere")))

for name, message in (
    ("cifar10", "cifar10 is not in '.data' (no cifar10.npz, no cifar-10-batches-bin"),
    ("cifar100", "or give data.path"),
    ("npz", "The data set npz needs data.path"),
    ("folder", "The data set folder needs data.path"),
    ("hf", "The data set hf needs data.path"),
    ("webdataset", "The data set webdataset needs data.path"),
):
    add(f"no path for {name}", message, lambda _, name=name: Config(name))

# ------------------------------------------------------------------------------------------------------------ CIFAR


def cifar_case(name: str, message: str, harm: Callable[[Path], object], which: str = "cifar10") -> None:
    def make(tmp: Path) -> Config:
        harm(cifar(tmp / "c", which))
        return Config(which, str(tmp / "c"))

    add(f"{which}: {name}", message, make)


def relabel(path: Path, label: int, byte: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] = label
    path.write_bytes(content)


cifar_case("truncated", "has 6,145 bytes", lambda c: truncate(c / "data_batch_3.bin", 2 * 3073 - 1))
cifar_case("empty", "has 0 bytes", lambda c: truncate(c / "test_batch.bin", 0))
cifar_case("a batch missing", "data_batch_5.bin is missing", lambda c: (c / "data_batch_5.bin").unlink())
cifar_case("no first batch", "does not hold data_batch_1.bin", lambda c: (c / "data_batch_1.bin").unlink())
cifar_case("label", "is 10, and cifar10 has the classes 0 to 9", lambda c: relabel(c / "test_batch.bin", 10))
cifar_case("fine label", "is 100, and cifar100", lambda c: relabel(c / "train.bin", 100, 1), "cifar100")


@case("holds the Python version, a pickle, which can run code when read")
def cifar10_python_version(tmp: Path) -> Config:
    (tmp / "cifar-10-batches-py").mkdir()
    (tmp / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x02}q\x01.")
    return Config("cifar10", str(tmp))


@case("unpack it and give the folder")
def cifar10_packed(tmp: Path) -> Config:
    (tmp / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b")
    return Config("cifar10", str(tmp / "cifar-10-binary.tar.gz"))


@case("are 3x6x6 and cifar10 has 3x32x32")
def cifar10_npz_of_other_size(tmp: Path) -> Config:
    return Config("cifar10", str(npz(tmp / "a.npz")))


# -------------------------------------------------------------------------------------------------------------- npz


def npz_case(name: str, message: str, options: dict | None = None, shape: tuple = (6, 6, 3), **changes) -> None:
    def make(tmp: Path) -> Config:
        return Config("npz", str(npz(tmp / "a.npz", arrays(shape, **changes))), options=options or {})

    add(f"npz: {name}", message, make)


npz_case("array missing", "has no array 'y_test': it holds x_train, y_train, x_test", y_test=None)
npz_case("floats", "is float32: save the images as uint8", x_train=np.zeros((20, 6, 6, 3), np.float32))
npz_case("flat images", "has the shape 20x108", x_train=pixels(20, 108))
npz_case("volumes", "has the shape 20x2x6x6x3", x_train=pixels(20, 2, 6, 6, 3))
npz_case("two colours", "has no axis of 1 or 3 colours", shape=(6, 6, 2))
npz_case("colours first or last", "could have its colours first or last", shape=(3, 6, 3))
npz_case("wrong layout", "images have 1 or 3 colours, not 6", {"layout": "nchw"})
npz_case("no pixels", "its images have no pixels", shape=(0, 6, 3))
npz_case("sizes differ", "are 3x6x6 and its test images 3x7x7", x_test=pixels(10, 7, 7, 3))
npz_case("no test images", "has no test images", x_test=pixels(0, 6, 6, 3), y_test=np.zeros(0, int))
npz_case(
    "no training images", "has no training images", {"classes": 2}, x_train=pixels(0, 6, 6, 3), y_train=np.zeros(0, int)
)
npz_case("labels too few", "has 19 labels for 20 images", y_train=np.zeros(19, int))
npz_case("labels as floats", "is float64: save the labels as whole numbers", y_train=np.zeros(20))
npz_case("labels one-hot", "has the shape 20x2: save one number", y_train=np.eye(2, dtype=int)[np.arange(20) % 2])
npz_case("labels from 1", "has the label 0, though labels reach 2", y_train=np.arange(20) % 2 + 1)
npz_case("label negative", "number 3 is -1, and npz has the classes 0 to 1", y_test=np.array([0, 1, 0, -1] + [0] * 6))
npz_case("label too large", "number 9 is 2, and npz has", y_test=np.array([0, 1] * 4 + [0, 2]))
npz_case("labels huge", "labels beyond 2^63", y_train=np.full(20, 2**64 - 1, np.uint64))
npz_case("labels objects", "holds Python objects, a pickle", y_train=np.array([None] * 20, dtype=object))
npz_case("one class", "has only one class", classes=1)


@case("cannot be read as .npz")
def npz_truncated(tmp: Path) -> Config:
    return Config("npz", str(truncate(npz(tmp / "a.npz"), 0.7)))


@case("cannot be read as .npz")
def npz_empty(tmp: Path) -> Config:
    return Config("npz", str(truncate(npz(tmp / "a.npz"), 0)))


@case("cannot be read as .npz")
def npz_is_text(tmp: Path) -> Config:
    (tmp / "a.npz").write_text("x_train")
    return Config("npz", str(tmp / "a.npz"))


@case("is a single array")
def npz_is_npy(tmp: Path) -> Config:
    np.save(tmp / "a.npy", pixels(3, 3))
    return Config("npz", str(tmp / "a.npy"))


@case("is a folder: give the .npz file")
def npz_is_folder(tmp: Path) -> Config:
    return Config("npz", str(tmp))


# ---------------------------------------------------------------------------------------------------- Fashion-MNIST


# ---------------------------------------------------------------------------------------------------------- folders


def folder_case(name: str, message: str, harm: Callable[[Path], object], error=DataError, **options) -> None:
    def make(tmp: Path) -> Config:
        harm(folder(tmp / "pets"))
        return Config("folder", str(tmp / "pets"), options={**SMALL, **options})

    add(f"folder: {name}", message, make, error)


def nothing(_: Path) -> None:
    """No harm: the options are wrong."""


def emptied(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def alone(root: Path) -> None:
    for part in ("train", "test"):
        emptied(root / part / "dog")
        (root / part / "dog").rmdir()


CAT = Path("train") / "cat"
folder_case("no train", "has no folder 'train'", lambda f: (f / "train").rename(f / "training"))
folder_case("no test", "has no folder 'test' or 'val'", lambda f: (f / "test").rename(f / "held"))
folder_case("named test missing", "has no folder 'held'", nothing, test="held")
folder_case("test is train", "the training images themselves", nothing, test="train")
folder_case("class empty", "cat' holds no image", lambda f: emptied(f / CAT))
folder_case(
    "class unknown",
    "(did you mean 'dog'?) that no training image has",
    lambda f: (f / "test/dog").rename(f / "test/dogs"),
)
folder_case("one class", "has only one class", alone)
folder_case("image truncated", "002.png' cannot be read", lambda f: truncate(f / CAT / "002.png", 0.6))
folder_case("image empty", "002.png' cannot be read", lambda f: truncate(f / CAT / "002.png", 0))
folder_case("image is text", "002.png' cannot be read", lambda f: (f / CAT / "002.png").write_text("<html>"))
folder_case("test image broken", "cat/001.png' cannot be read", lambda f: truncate(f / "test/cat/001.png", 0.5))
folder_case("resize below size", "data.options.resize 4 is less than size 8", nothing, ConfigError, resize=4)
folder_case("size of zero", "data.options.size is 0, which cannot be", nothing, ConfigError, size=0)
folder_case("check as a word", "data.options.check is 'some', which cannot be", nothing, ConfigError, check="some")


@case("has no folder for a class")
def folder_without_classes(tmp: Path) -> Config:
    for part in ("train", "test"):
        (tmp / part).mkdir()
    (tmp / "train" / "a.png").write_bytes(encoded(0))
    return Config("folder", str(tmp), options=SMALL)


@case("is a file, not a folder of images")
def folder_is_a_file(tmp: Path) -> Config:
    (tmp / "a.png").write_bytes(encoded(0))
    return Config("folder", str(tmp / "a.png"), options=SMALL)


# ----------------------------------------------------------------------------------------------------------- shards


def shard_case(name: str, message: str, harm: Callable[[Path], object], **options) -> None:
    def make(tmp: Path) -> Config:
        harm(shards(tmp / "s"))
        return Config("webdataset", str(tmp / "s"), options={**SMALL, **options})

    add(f"shards: {name}", message, make)


def damaged(path: Path) -> None:
    """The second header no longer has its checksum."""
    content = bytearray(path.read_bytes())
    place = content.index(b"00001.png")
    content[place + 3] ^= 1
    path.write_bytes(content)


def torn(path: Path) -> None:
    """Cut exactly where a member begins: a tar without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"00002.png")])


S1 = "train-001.tar"
CAPTION = [*samples(0, 1), ("00009.png", encoded(9)), ("00009.cls", b"a cat")]
shard_case("none to train", "has no shard train*.tar", lambda s: [f.unlink() for f in s.glob("train*")])
shard_case("none to test", "has no shard test*.tar or val*.tar", lambda s: (s / "test-000.tar").unlink())
shard_case("range has a gap", "has no shard train-002.tar", nothing, train="train-{000..002}.tar")
shard_case("range backwards", "runs backwards or is too long", nothing, train="train-{3..1}.tar")
shard_case("range endless", "runs backwards or is too long", nothing, train="train-{0..99999999}.tar")
shard_case("outside", "leaves the folder", nothing, train="../*.tar")
shard_case("both at once", "is in the training and in the test shards", nothing, test="*.tar")
shard_case("truncated", "is cut off or damaged", lambda s: truncate(s / S1, 2000))
shard_case("torn", "is cut off or damaged", lambda s: torn(s / "train-000.tar"))
shard_case("damaged", "is cut off or damaged", lambda s: damaged(s / "train-000.tar"))
shard_case("empty file", "cannot be read", lambda s: truncate(s / S1, 0))
shard_case("no image", "holds no image", lambda s: tar(s / S1, []))
shard_case("not a tar", "cannot be read", lambda s: (s / S1).write_bytes(b"x" * 4096))
shard_case("compressed", "is compressed", lambda s: (s / S1).rename(s / "train-001.tar.gz"), train="train*")
shard_case("no label", "has no member 00000.target", nothing, label="target")
shard_case("label is text", "'00009.cls' in", lambda s: tar(s / S1, CAPTION))
shard_case("label too large", "'00003.png' in", lambda s: tar(s / S1, samples(0, 4, classes=4)), classes=3)
shard_case(
    "label negative", "is -1, and webdataset has", lambda s: tar(s / S1, [("a.png", encoded(0)), ("a.cls", b"-1")])
)
shard_case(
    "members apart",
    "has no member 00000.cls beside it",
    lambda s: tar(s / S1, sorted(samples(0, 2), key=lambda member: member[0][-3:], reverse=True)),
)
shard_case("two images", "has two images", lambda s: tar(s / S1, [*samples(0, 1), ("00000.left.jpg", encoded(0))]))
shard_case("image broken", "'a.png' in", lambda s: tar(s / S1, [("a.png", encoded(0)[:80]), ("a.cls", b"1")]))


@case("is a file: give the folder of the shards")
def shards_as_a_file(tmp: Path) -> Config:
    return Config("webdataset", str(shards(tmp) / "train-000.tar"))


@case("'https://example.org/train.tar' is an address: set data.options.stream")
def shards_named_by_an_address(tmp: Path) -> Config:
    return Config("webdataset", str(shards(tmp)), options={"train": "https://example.org/train.tar"})


@case("is an address: set data.options.stream: true, or copy")
def shards_at_an_address(tmp: Path) -> Config:
    return Config("webdataset", "https://example.org/train.tar")


# ----------------------------------------------------------------------------------------------------- Hugging Face


def hub_case(name: str, message: str, hub: Hub, **options) -> None:
    def make(tmp: Path) -> Config:
        sys.modules["datasets"] = hub  # the test puts things back
        return Config("hf", "pets", options={**SMALL, **options})

    add(f"hf: {name}", message, make)


PETS = Hub.FEATURES
OK = HubSplit([0, 1] * 4, PETS)
NO_IMAGE = {"label": ClassLabel(["cat", "dog"]), "id": Value()}
hub_case(
    "no network", "'pets' could not be loaded (Connection refused)", Hub(error=ConnectionError("Connection\nrefused."))
)
hub_case("no split to test", "has no split 'test or validation': It has train", Hub({"train": OK}))
hub_case("split unknown", "no split 'trian': did you mean 'train'", Hub(), train="trian")
hub_case("same split twice", "has only the split 'train'", Hub(), test="train")
hub_case("not divided", "is not divided into splits", Hub([1, 2, 3]))
hub_case("no image", "column of images of 'pets' cannot be told", Hub({"train": HubSplit([0], NO_IMAGE), "test": OK}))
hub_case("column unknown", "no column 'imgs': did you mean 'img'", Hub(), image="imgs")
hub_case("labels are text", "does not hold class numbers", Hub({"train": HubSplit(["cat"] * 8, PETS), "test": OK}))
hub_case("no label known", "is -1, and hf has the classes 0 to 1", Hub({"train": OK, "test": HubSplit([-1] * 4, PETS)}))
hub_case("empty", "has no test images", Hub({"train": OK, "test": HubSplit([], PETS)}))
hub_case(
    "image broken", "in row 3 of pets/train cannot be read", Hub({"train": HubSplit([0, 1] * 4, PETS, 3), "test": OK})
)
hub_case("not an image", "is a int, not an image", Hub({"train": OK, "test": OK, "x": Image}), image="id", test="test")


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_bad_data_get_one_sentence_and_leave_nothing_behind(bad, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    config = bad.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(bad.error) as caught:
        open_data(config, seed=0)
    text = str(caught.value)
    assert bad.message in text
    assert re.fullmatch(r"[^\n]+[.:] ?[^\n]*\.", text), text  # a cause, a remedy, on one line
    assert sorted(tmp_path.rglob("*")) == before


def test_there_are_cases_of_every_kind():
    assert len(CASES) >= 30
    assert len({bad.name for bad in CASES}) == len(CASES)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_has_64_bits(seed):
    with pytest.raises(ConfigError, match="The seed is"):
        open_data(Config("digits"), seed=seed)

"""`on_broken: skip`: broken images are found, counted and left out; the others come as they would without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _sets import Config, encoded, folder, samples, tar
from torch.utils.data import Dataset

from secateur._settings import validated
from secateur.data import digest_of, open_data
from secateur.errors import ConfigError, DataError
from secateur.recipe import DataConfig

OPTIONS = {"size": 16, "resize": 16}


def _broken(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(encoded(1)[:60])


def _config(root: Path, **more: Any) -> Config:
    return Config("folder", str(root), augment=[], on_broken="skip", options=OPTIONS, **more)


def test_what_is_left_is_what_would_be_there_without_the_broken(tmp_path: Path) -> None:
    folder(tmp_path / "broken")
    folder(tmp_path / "without")
    names = ("train/cat/001.png", "train/dog/003.png", "train/dog/005.png", "test/dog/002.png")
    _broken(tmp_path / "broken", *names)
    for name in names:
        (tmp_path / "without" / name).unlink()
    found, wanted = (open_data(_config(tmp_path / name, validation=0.2), 0) for name in ("broken", "without"))
    assert wanted.notes == ()
    for part in ("train", "validation", "test"):
        for (a, b), (c, d) in zip(getattr(found, part).batches(4), getattr(wanted, part).batches(4), strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    assert [note.partition(":")[0] for note in found.notes] == [
        "3 of 12 training images cannot be read and are left out",
        "1 of 6 test images cannot be read and is left out",
    ]
    assert "001.png' cannot be read" in found.notes[0]
    assert digest_of(found)["sha256"] != digest_of(wanted)["sha256"]  # the folder is another


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(tmp_path: Path, workers: int) -> None:
    folder(tmp_path)
    _broken(tmp_path, "train/cat/000.png")
    data = open_data(_config(tmp_path, workers=workers), 0)
    (images, labels), *_ = data.train.batches(11, shuffle=True, seed=3)
    assert labels.bincount().tolist() == [5, 6]
    assert images.shape == (11, 3, 16, 16)


def test_shards_too(tmp_path: Path) -> None:
    rows = samples(0, 6)
    tar(tmp_path / "train-0.tar", [*rows[:4], ("00002.png", b"no image"), *rows[5:]])
    tar(tmp_path / "test-0.tar", samples(6, 4))
    config = Config("webdataset", str(tmp_path), on_broken="skip", options=OPTIONS)
    data = open_data(config, 0)
    assert (len(data.train), len(data.test)) == (5, 4)
    assert data.notes[0].startswith("1 of 6 training images cannot be read and is left out: The image")


class Own(Dataset[Any]):
    """Every third sample raises."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 9

    def __getitem__(self, number: int) -> Any:
        if number % 3 == 2:
            raise OSError("the disk is full of holes")
        return torch.full((3, 4, 4), float(number)), number % 2


def test_samples_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "made", lambda: {"train": Own(), "test": Own()})
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    name = f"{__name__}:made"
    data = open_data(Config(name, on_broken="skip"), 0)
    assert (len(data.train), len(data.test), data.class_names) == (6, 6, ("a", "b"))
    assert sorted(float(x[0, 0, 0]) for images, _ in data.train.batches(4) for x in images) == [0, 1, 3, 4, 6, 7]
    assert data.notes[0].startswith("3 of 9 train samples cannot be read and are left out: Sample 2 of")
    with pytest.raises(DataError, match=r"full of holes\): repair it, leave it out, or set data.on_broken: skip"):
        list(open_data(Config(name), 0).train.batches(9))


def test_the_default_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    folder(tmp_path)
    _broken(tmp_path, "train/cat/001.png")
    with pytest.raises(DataError, match=r"001\.png' cannot be read .*or set data\.on_broken: skip\."):
        open_data(Config("folder", str(tmp_path), options=OPTIONS), 0)


def test_what_cannot_be_skipped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no effect on digits, which is in memory"):
        open_data(Config("digits", on_broken="skip"), 0)
    folder(tmp_path)
    _broken(tmp_path, *(f"train/cat/{n:03}.png" for n in range(6)))
    with pytest.raises(DataError, match="No training image of the class 'cat' can be read: The image"):
        open_data(_config(tmp_path), 0)
    options = OPTIONS | {"stream": True, "images": 6, "test_images": 4, "classes": 2}
    tar(tmp_path / "s" / "train-0.tar", samples(0, 6))
    tar(tmp_path / "s" / "test-0.tar", samples(6, 4))
    with pytest.raises(ConfigError, match="a stream is not looked through before"):
        open_data(Config("webdataset", str(tmp_path / "s"), on_broken="skip", options=options), 0)
    with pytest.raises(ConfigError, match="on_broken is 'ignore', but must be one of error, skip"):
        validated(DataConfig, {"name": "digits", "on_broken": "ignore"}, "data")

"""Small data sets in the official forms, and configurations to open them with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"train": 20, "test": 10}


@dataclass(frozen=True)
class Config:
    """What `open_data` reads of a recipe."""

    name: str
    path: str | None = None
    train_images: int | None = None
    validation: float = 0.0
    batch_size: int = 4
    augment: Sequence[str] | None = None
    workers: int = 0
    on_broken: str = "error"
    options: Mapping[str, Any] = field(default_factory=dict)


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def cifar(folder: Path, name: str = "cifar10", images: int = 4) -> Path:
    """Binary files with `images` images each, labels 0, 1, 2, ... from file to file."""
    classes = 10 if name == "cifar10" else 100
    files = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files if name == "cifar10" else ["train.bin", "test.bin"]):
        fine = (np.arange(images) + number * images) % classes
        columns = [fine[:, None]] if name == "cifar10" else [(fine // 5)[:, None], fine[:, None]]
        rows = np.concatenate([*columns, pixels(images, 3072, seed=number)], axis=1).astype(np.uint8)
        (folder / file).write_bytes(rows.tobytes())
    return folder


def arrays(shape: Sequence[int] = (6, 6, 3), classes: int = 2, **changes: Any) -> dict[str, np.ndarray]:
    """The four arrays of an .npz; a change to None leaves one out."""
    made = {
        "x_train": pixels(SIZES["train"], *shape),
        "y_train": np.arange(SIZES["train"]) % classes,
        "x_test": pixels(SIZES["test"], *shape, seed=1),
        "y_test": np.arange(SIZES["test"]) % classes,
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def npz(path: Path, held: Mapping[str, np.ndarray] | None = None) -> Path:
    np.savez(path, **(arrays() if held is None else held))
    return path


def encoded(seed: int, size: tuple[int, int] = (20, 16), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An image file; `size` is width and height, as Pillow has it."""
    from PIL import Image

    small = Image.fromarray(pixels(6, 5, 3, seed=seed))  # smooth, so that resizing differently shows little noise
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BILINEAR).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def folder(root: Path, *, test: str = "test", classes: Sequence[str] = ("cat", "dog"), per_class: int = 6) -> Path:
    for part, count in (("train", per_class), (test, 3)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                content = encoded(seed=100 * number + k, size=(18 + 2 * k, 24 - k))
                (root / part / name / f"{k:03}.png").write_bytes(content)
    return root


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))
    return path


def samples(first: int, count: int, classes: int = 2) -> list[tuple[str, bytes]]:
    rows = []
    for k in range(first, first + count):
        rows += [(f"{k:05}.png", encoded(seed=k)), (f"{k:05}.cls", f"{k % classes}\n".encode())]
    return rows


def shards(root: Path) -> Path:
    """Two training shards of six images and one test shard of four."""
    tar(root / "train-000.tar", samples(0, 6))
    tar(root / "train-001.tar", samples(6, 6))
    tar(root / "test-000.tar", samples(50, 4))
    return root


def truncate(path: Path, keep: float | int) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    return path


Maker = Callable[[Path], Config]


# ---------------------------------------------------------------------------------------- Hugging Face, without it


class Image:
    """Named as the class of the library, by which the column of images is found."""


class ClassLabel:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)


class Value:
    """A column of plain numbers."""


class HubSplit:
    """What secateur uses of a `datasets.Dataset`."""

    def __init__(self, labels: Sequence[Any], features: Mapping[str, Any], broken: int | None = None) -> None:
        self.features, self.labels, self.broken = features, list(labels), broken
        self._fingerprint = "0123abcd"

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.labels
        if key == self.broken:
            raise OSError("image file is truncated")
        from PIL import Image as Pillow

        return {"img": Pillow.open(io.BytesIO(encoded(seed=key))), "label": self.labels[key], "id": key}


class Hub:
    """What secateur uses of the module `datasets`; notes what it was asked for."""

    FEATURES: Mapping[str, Any] = {"id": Value(), "img": Image(), "label": ClassLabel(["cat", "dog"])}

    def __init__(self, splits: Any = None, error: Exception | None = None) -> None:
        self.error, self.asked = error, []
        self.splits = splits or {
            "train": HubSplit([k % 2 for k in range(12)], self.FEATURES),
            "test": HubSplit([k % 2 for k in range(4)], self.FEATURES),
        }

    def load_dataset(self, path: str, **keywords: Any) -> Any:
        self.asked.append((path, keywords))
        if self.error is not None:
            raise self.error
        return self.splits

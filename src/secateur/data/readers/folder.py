"""Image folders: train/CLASS/*.png and test/CLASS/* or val/CLASS/*, any format that Pillow reads.

Where classes lie in the folder itself, one image in five of each is kept for testing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secateur._hints import nearest
from secateur.data._files import check_regular, checksum_of_lines, entries, extra, said
from secateur.data.images import EncodedImages, Shape
from secateur.data.options import FolderOptions
from secateur.data.readers import Contents, locate, shape_of
from secateur.errors import DataError

_PARTS = ("train", "test", "val")
_HELD_OUT = 5  # of a folder that is not divided: one image in so many of each class is for testing
EXTENSIONS = frozenset(".png .jpg .jpeg .webp .bmp .ppm .pgm .tif .tiff .gif".split())


class FolderImages(EncodedImages):
    """Files below one folder; label i is the i-th class."""

    def __init__(self, root: Path, files: list[str], labels: list[int], shape: Shape, check: int | None) -> None:
        super().__init__(np.array(labels, dtype=np.int64), shape, check)
        self.root, self.files = root, files

    def load(self, number: int) -> Path:
        return self.root / self.files[number]

    def where(self, number: int) -> str:
        return repr(str(self.root / self.files[number]))


def read(path: str | None, options: FolderOptions, get: str) -> Contents:
    extra("PIL.Image", "pillow")
    root = locate("folder", path, (), get)
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is a file, not a folder of images: {get}.")
    shape, check = shape_of(options)
    if options.test is None and _undivided(root):
        return _divided(root, shape, check)
    train_folder = root / "train"
    if not train_folder.is_dir():
        raise DataError(f"{str(root)!r} has no folder 'train': {get}.")
    test_folder, notes = _test_folder(root, options.test, get)
    names = [entry.name for entry in entries(train_folder) if entry.is_dir()]
    if not names:
        raise DataError(f"{str(train_folder)!r} has no folder for a class: {get}.")
    sets, left_out = [], []
    for folder in (train_folder, test_folder):
        files, labels, others = _scan(folder, {name: number for number, name in enumerate(names)})
        sets.append(FolderImages(folder, files, labels, shape, check))
        left_out += others
    return _contents(root, names, sets, [*notes, *_said(left_out)])


def _undivided(root: Path) -> bool:
    """Whether folders of classes lie in the folder itself: two or more, none of which is divided in its turn."""
    folders = [entry for entry in entries(root) if entry.is_dir()]
    divided = any((place / name).is_dir() for place in (root, *folders) for name in _PARTS)
    return len(folders) > 1 and not divided


def _divided(root: Path, shape: Shape, check: int | None) -> Contents:
    """Every fifth image of each class, in the order of their names, is for testing."""
    names = [entry.name for entry in entries(root) if entry.is_dir()]
    files, labels, left_out = _scan(root, {name: number for number, name in enumerate(names)})
    seen = [0] * len(names)
    parts: tuple[tuple[list[str], list[int]], ...] = (([], []), ([], []))
    for file, label in zip(files, labels, strict=True):
        seen[label] += 1
        chosen, of = parts[seen[label] % _HELD_OUT == 0]
        chosen.append(file)
        of.append(label)
    if not parts[1][0]:
        raise DataError(
            f"{str(root)!r} has no folders 'train' and 'test', and fewer than {_HELD_OUT} images of each class, so "
            "that none can be kept for testing: add images, or divide them into train/CLASS and test/CLASS."
        )
    note = (
        f"{str(root)!r} has no folders 'train' and 'test': every fifth image of each class, {len(parts[1][0]):,} of "
        f"{len(files):,}, is kept for testing, and nothing is trained on it."
    )
    return _contents(root, names, [FolderImages(root, *part, shape, check) for part in parts], [note, *_said(left_out)])


def _said(left_out: list[str]) -> list[str]:
    """What was no image."""
    if not left_out:
        return []
    return [f"{len(left_out):,} files are no images in a class's folder and were left out: {left_out[0]!r}, ..."]


def _contents(root: Path, names: list[str], sets: list[FolderImages], notes: list[str]) -> Contents:
    shown = tuple(os.fsencode(name).decode(errors="backslashreplace") for name in names)  # a name may be no UTF-8
    return Contents(sets[0], sets[1], len(names), shown, partial(_checksums, root, sets), tuple(notes))


def _test_folder(root: Path, wanted: str | None, get: str) -> tuple[Path, list[str]]:
    names = (wanted,) if wanted is not None else ("test", "val")
    there = [name for name in names if (root / name).is_dir()]
    if not there:
        raise DataError(f"{str(root)!r} has no folder {' or '.join(map(repr, names))} of test images: {get}.")
    if (root / there[0]).resolve() == (root / "train").resolve():
        raise DataError(f"data.options.test is {wanted!r}, the training images themselves: name another folder.")
    unread = [f"{str(root / name)!r} was not read: 'test' holds the test images." for name in there[1:]]
    return root / there[0], unread


def _scan(folder: Path, numbers: Mapping[str, int]) -> tuple[list[str], list[int], list[str]]:
    """Files relative to `folder`, their labels, and what else lies there; always in the same order."""
    files: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    for entry in entries(folder):
        if not entry.is_dir():
            others.append(str(entry))
            continue
        if entry.name not in numbers:
            close = nearest(entry.name, numbers)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(
                f"{str(entry)!r} is a class{hint} that no training image has: rename it, or add it to 'train'."
            )
        found = _files(entry, others)
        files += (os.path.relpath(path, folder) for path in found)
        labels += [numbers[entry.name]] * len(found)
    return files, labels, others


@contextlib.contextmanager
def _entries(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise DataError(f"{folder!r} cannot be read: {said(error)}.") from error


def _files(folder: Path, others: list[str]) -> list[str]:
    found: list[str] = []
    places = [str(folder)]
    while places:
        with _entries(places.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    places.append(entry.path)
                elif entry.is_dir() or os.path.splitext(entry.name)[1].casefold() not in EXTENSIONS:  # noqa: PTH122
                    others.append(entry.path)
                elif (
                    entry.is_file()
                ):  # known from the folder; a Path each, as above too, would take seconds for a million files
                    found.append(entry.path)
                else:
                    check_regular(entry.path)
    if not found:
        raise DataError(f"The class folder {str(folder)!r} holds no image: add some, or remove it.")
    return sorted(found)


def _checksums(root: Path, sets: list[FolderImages]) -> list[dict[str, Any]]:
    lines, total = [], 0
    for images in sets:
        for name, label in zip(images.files, images.labels.tolist(), strict=True):
            try:
                size = (images.root / name).stat().st_size
            except OSError as error:
                raise DataError(f"{str(images.root / name)!r} cannot be read: {said(error)}.") from error
            lines.append(f"{images.root.name}/{name}\t{size}\t{label}")
            total += size
    return checksum_of_lines(f"{root.name}: names and sizes of {len(lines)} files", lines, total)

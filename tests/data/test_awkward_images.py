"""Folders of images as people have them: each gives the right pixels, or one sentence."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _sets import Config, encoded, folder, pixels

from secateur.data import Data, open_data
from secateur.errors import DataError

Pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
SIDE = 8  # of the images here and of what the network sees, so that nothing is resized and pixels can be told exactly
OPTIONS = {"size": SIDE, "resize": SIDE}
PLACE = "train/cat/000"  # of the awkward image, the first of all
DEEP = (np.arange(SIDE * SIDE * 3).reshape(SIDE, SIDE, 3) * 341 + 7).astype(np.uint16)  # to 65,138
COLOURS = pixels(SIDE, SIDE, 3, seed=5)
GREY = COLOURS[:, :, 0]


@dataclass(frozen=True)
class Case:
    """A file's name and content, and what is seen of it: [H, W] or [H, W, 3]."""

    suffix: str
    content: bytes
    seen: np.ndarray
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def saved(image: Any, kind: str, mode: str | None = None, **more: Any) -> bytes:
    made = Pillow.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    (made.convert(mode) if mode else made).save(buffer, kind, **more)
    return buffer.getvalue()


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a colour, which Pillow writes in grey only: [H, W, C]."""
    height, width, colours = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[colours], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff16(values: np.ndarray) -> bytes:
    """A TIFF of three colours of 16 bits, not compressed."""
    height, width, colours = values.shape
    bits_at = 8 + 2 + 10 * 12 + 4
    data_at = bits_at + 2 * colours
    short, long = 3, 4
    rows = [
        (256, short, 1, width), (257, short, 1, height), (258, short, colours, bits_at), (259, short, 1, 1),
        (262, short, 1, 2), (273, long, 1, data_at), (277, short, 1, colours), (278, short, 1, height),
        (279, long, 1, values.nbytes), (284, short, 1, 1),
    ]  # fmt: skip
    packed = b"".join(struct.pack("<HHII", *row) for row in rows)
    return (
        b"II*\0" + struct.pack("<IH", 8, len(rows)) + packed + struct.pack("<I", 0)
        + struct.pack(f"<{colours}H", *[16] * colours) + values.astype("<u2").tobytes()
    )  # fmt: skip


def palette(**more: Any) -> bytes:
    image = Pillow.fromarray(GREY % 4, "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    return saved(image, more.pop("kind", "PNG"), **more)


def turned(number: int) -> bytes:
    """The colours as a camera held otherwise would store them, with its note."""
    stored = {
        1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
        5: COLOURS.swapaxes(0, 1), 6: np.rot90(COLOURS),
        7: COLOURS[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(COLOURS, -1),
    }  # fmt: skip
    note = Pillow.Exif()
    note[0x0112] = number
    return saved(np.ascontiguousarray(stored[number]), "PNG", exif=note)


ENTRIES = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)[GREY % 4]
OPAQUE = np.dstack([COLOURS, GREY])
CMYK = np.zeros((SIDE, SIDE, 4), np.uint8)
CMYK[..., 0], CMYK[::2, :, 3] = 255, 255  # cyan, every other line black
BRIGHT = f"the brightest reach {DEEP[..., 0].max():,}:"
RIGHT = {
    "grey PNG of 16 bits": Case("png", saved(DEEP[..., 0], "PNG"), DEEP[..., 0] >> 8, (BRIGHT,)),
    "grey TIFF of 16 bits": Case("tiff", saved(DEEP[..., 0], "TIFF"), DEEP[..., 0] >> 8, (BRIGHT,)),
    "grey TIFF of 16 bits, higher byte first": Case(
        "tif", saved(DEEP[..., 0].astype(">u2"), "TIFF"), DEEP[..., 0] >> 8, (BRIGHT,)
    ),
    "PGM of 16 bits": Case(
        "pgm", b"P5 8 8 65535\n" + DEEP[..., 0].astype(">u2").tobytes(), DEEP[..., 0] >> 8, (BRIGHT,)
    ),
    "colour PNG of 16 bits": Case("png", png16(DEEP), DEEP >> 8),
    "colour TIFF of 16 bits": Case("tif", tiff16(DEEP), DEEP >> 8),
    "RGBA PNG of 16 bits": Case("png", png16(np.dstack([DEEP, DEEP[..., :1]])), DEEP >> 8),
    "grey of 16 bits with 12 used": Case(
        "png", saved(DEEP[..., 0] >> 4, "PNG"), DEEP[..., 0] >> 12, (f"reach {DEEP[..., 0].max() >> 4:,}:",)
    ),
    "RGBA": Case("png", saved(OPAQUE, "PNG"), COLOURS),
    "grey with transparency": Case("png", saved(np.dstack([GREY, GREY.T]), "PNG"), GREY),
    "palette": Case("png", palette(), ENTRIES),
    "palette with a transparent colour": Case("gif", palette(kind="GIF", transparency=2), ENTRIES),
    "palette with colours opaque to a degree": Case("png", palette(transparency=bytes([0, 90, 200])), ENTRIES),
    "CMYK": Case("tif", saved(Pillow.fromarray(CMYK, "CMYK"), "TIFF"), (CMYK[..., 3:] == 0) * np.uint8([0, 255, 255])),
    "grey": Case("png", saved(GREY, "PNG"), GREY),
    "grey for a network of one colour": Case("png", saved(GREY, "PNG"), GREY, options={"channels": 1}),
    "grey of 16 bits for a network of one colour": Case(
        "png", saved(DEEP[..., 0], "PNG"), DEEP[..., 0] >> 8, (BRIGHT,), {"channels": 1}
    ),
    "1 bit": Case("png", saved(Pillow.fromarray(GREY > 99), "PNG"), (GREY > 99) * np.uint8(255)),
    "WebP without loss": Case("webp", saved(COLOURS, "WEBP", lossless=True), COLOURS),
    "a GIF that moves": Case(
        "gif",
        palette(kind="GIF", save_all=True, append_images=[Pillow.new("P", (SIDE, SIDE))]),
        ENTRIES,
    ),
    "a PNG called JPEG, in capitals": Case("JPG", saved(COLOURS, "PNG"), COLOURS),
    **{f"held as EXIF {number} says": Case("png", turned(number), COLOURS) for number in range(1, 9)},
}  # fmt: skip


def awkward(root: Path, suffix: str, content: bytes) -> Path:
    folder(root, per_class=2)
    (root / f"{PLACE}.png").unlink()
    (root / f"{PLACE}.{suffix}").write_bytes(content)
    return root


def opened(root: Path, **more: Any) -> Data:
    options = {**OPTIONS, **more.pop("options", {})}
    return open_data(Config("folder", str(root), augment=[], options=options, **more), seed=0)


def seen(data: Data, number: int = 0) -> np.ndarray:
    """What a network sees of a training image, as 0 to 255: [H, W, C]."""
    image, _ = next(itertools.islice(data.train.batches(1), number, None))
    back = image[0].double().movedim(0, -1).numpy() * np.array(data.std) + np.array(data.mean)
    assert np.abs(back * 255 - (back * 255).round()).max() < 1e-3
    return (back * 255).round()


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_seen_of_an_image(name: str, tmp_path: Path) -> None:
    case = RIGHT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = opened(awkward(tmp_path, case.suffix, case.content), options=case.options)
    wanted = case.seen if case.seen.ndim == 3 else case.seen[..., None]
    assert (seen(data) == wanted).all()
    assert len(data.notes) == len(case.notes)
    for note, part in zip(data.notes, case.notes, strict=True):
        assert note.startswith("1 of 4 images looked at have grey of 16 bits, black at 0 and white at 65,535")
        assert part in note


# ------------------------------------------------------------------------------------------------- folders and names

FORMS: dict[str, tuple[Callable[[Path], Any], Callable[[Data], None]]] = {}


def form(make: Callable[[Path], Any]) -> Callable[[Callable[[Data], None]], None]:
    return lambda check: FORMS.__setitem__(check.__name__, (make, check))


def write(root: Path, name: str, content: bytes | None = None) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(saved(COLOURS, "PNG") if content is None else content)


ODD = ("a b.png", "new\nline.png", "quote'\".png", "päß 日本.png", "#%?&.png", "-rf.png", "a.b.c.png", "ends.PNG")


@form(lambda root: [write(root, f"train/cat/{name}") for name in ODD])
def odd_names_of_images(data: Data) -> None:
    assert sorted(name.removeprefix("cat/") for name in data.train.images.files[:-2]) == sorted(
        (*ODD, "000.png", "001.png")
    )


@form(lambda root: [write(root, f"{part}/\U0001f408 <b>&\n/a.png") for part in ("train", "test")])
def odd_names_of_classes(data: Data) -> None:
    assert data.class_names == ("cat", "dog", "\U0001f408 <b>&\n")


@form(lambda root: [write(root, f"{part}/" + os.fsdecode(b"met\xe9") + "/a.png") for part in ("train", "test")])
def names_that_are_not_utf8(data: Data) -> None:
    assert data.class_names == ("cat", "dog", r"met\xe9")
    "".join(data.class_names).encode()


@form(lambda root: write(root, "train/cat/deep/deeper/x.png"))
def nested_folders(data: Data) -> None:
    assert len(data.train) == 5


@form(lambda root: [write(root, f"train/{name}") for name in (
    "cat/.hidden.png", "cat/.ipynb_checkpoints/000-checkpoint.png", ".git/a.png", ".DS_Store", "dog/._000.png",
)])  # fmt: skip
def hidden_files_and_folders(data: Data) -> None:
    assert (len(data.train), data.classes, data.notes) == (4, 2, ())


@form(lambda root: [write(root, f"train/{name}", b"x") for name in ("cat/notes.txt", "cat/Thumbs.db", "labels.csv")])
def other_files(data: Data) -> None:
    assert len(data.train) == 4
    assert data.notes[0].startswith("3 files are no images in a class's folder and were left out")


@form(lambda root: (write(root, "elsewhere/a.png"), (root / "train/cat/link").symlink_to(root / "elsewhere")))
def a_folder_that_is_a_link_inside_a_class(data: Data) -> None:
    assert len(data.train) == 4
    assert "train/cat/link" in data.notes[0]


@form(lambda root: (write(root, "elsewhere/a.png"), (root / "train/cat/a.png").symlink_to(root / "elsewhere/a.png")))
def an_image_that_is_a_link(data: Data) -> None:
    assert len(data.train) == 5


@form(lambda root: [write(root, f"train/cat/{w}x{h}.png", encoded(1, (w, h))) for w, h in (
    (1, 1), (1, 9), (9, 1), (7, 200), (1, 60_000), (60_000, 1), (300, 300),
)])  # fmt: skip
def images_of_all_sizes(data: Data) -> None:
    assert next(data.train.batches(11))[0].shape == (11, 3, SIDE, SIDE)


@form(lambda root: write(root, "train/mouse/a.png"))
def a_class_that_is_not_tested(data: Data) -> None:
    assert data.classes == 3
    assert sorted(set(data.test.labels.tolist())) == [0, 1]


@form(lambda root: [write(root, f"train/cat/{k:02}.png", saved(COLOURS, "PNG")[:70]) for k in range(3)])
def broken_images_are_left_out_where_asked_for(data: Data) -> None:
    assert len(data.train) == 4
    assert data.notes[0].startswith("3 of 7 training images cannot be read and are left out")


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_as_it_is(name: str, tmp_path: Path) -> None:
    make, check = FORMS[name]
    try:
        make(folder(tmp_path / "set", per_class=2))
    except OSError as error:  # file systems that refuse such names
        pytest.skip(str(error))
    data = opened(tmp_path / "set", on_broken="skip" if name.startswith("broken") else "error")
    check(data)
    json.dumps(data.describe(), allow_nan=False)


def test_a_long_image_shows_its_middle(tmp_path: Path) -> None:
    stripe = np.zeros((1, 6_001, 3), np.uint8)
    stripe[:, 2_998:3_003] = 200
    data = opened(awkward(tmp_path, "png", saved(stripe, "PNG")))
    assert (seen(data) == 200).all()


# --------------------------------------------------------------------------------------------------------- sentences


def without(root: Path, *names: str) -> None:
    for name in names:
        for path in sorted((root / name).iterdir()):
            path.unlink()


def alone(root: Path) -> None:
    without(root, "train/dog", "test/dog")
    (root / "train/dog").rmdir()
    (root / "test/dog").rmdir()


BOMB = png16(DEEP).replace(struct.pack(">II", SIDE, SIDE), struct.pack(">II", 60_000, 60_000), 1)
REFUSED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a class without images": ("train/dog' holds no image: add some, or remove it", lambda r: without(r, "train/dog")),
    "a tested class without images": ("test/dog' holds no image", lambda r: without(r, "test/dog")),
    "no images at all": ("holds no image", lambda r: without(r, "train/cat", "train/dog", "test/cat", "test/dog")),
    "a class only in test": ("is a class that no training image has", lambda r: write(r, "test/mouse/a.png")),
    "a single class": ("has only one class: there is nothing to tell apart", alone),
    "an empty file": ("000.png' cannot be read", lambda r: write(r, f"{PLACE}.png", b"")),
    "half an image": ("000.png' cannot be read", lambda r: write(r, f"{PLACE}.png", encoded(1)[:300])),
    "half a JPEG": ("000.jpg' cannot be read", lambda r: write(r, f"{PLACE}.jpg", encoded(1, kind="JPEG")[:400])),
    "a page called PNG": ("000.png' cannot be read", lambda r: write(r, f"{PLACE}.png", b"<html>not found</html>")),
    "whole numbers of 32 bits": (
        "has 32 bits a colour (mode I)",
        lambda r: write(r, f"{PLACE}.tif", saved(DEEP[..., 0].astype(np.int32), "TIFF")),
    ),
    "floating point": (
        "has 32 bits a colour (mode F)",
        lambda r: write(r, f"{PLACE}.tif", saved(DEEP[..., 0].astype(np.float32), "TIFF")),
    ),
    "an image that would fill the memory": (
        "000.png' cannot be read", lambda r: write(r, f"{PLACE}.png", BOMB)
    ),
    "a folder called like an image": (
        "000.png' holds no image", lambda r: ((r / "train/000.png").mkdir(), write(r, "train/000.png/a.txt", b"x"))
    ),
    "a link to nowhere": ("cannot be read", lambda r: (r / "train/cat/a.png").symlink_to(r / "nowhere")),
    "classes at the top": ("has no folder 'train'", lambda r: [p.rename(r / p.name) for p in [
        *(r / "train").iterdir()]] and (r / "train").rmdir()),
    "images without classes": (
        "train' has no folder for a class",
        lambda r: (write(r, "train/a.png"), without(r, "train/cat", "train/dog"),
                   (r / "train/cat").rmdir(), (r / "train/dog").rmdir()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    message, make = REFUSED[name]
    make(folder(tmp_path, per_class=2))
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert message in str(caught.value)
    assert re.fullmatch(r"[^\n]+[.:] ?[^\n]*\.", str(caught.value))

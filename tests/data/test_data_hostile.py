"""Sets made to fill the memory or to be waited for: refused early, before anything of their size is made."""

from __future__ import annotations

import io
import os
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _sets import Config, arrays
from PIL import Image

from secateur.data import digest_of, open_data
from secateur.errors import DataError

SMALL = {"size": 8, "resize": 8}


def refused(config: Config, said: str, most: int = 1 << 26) -> str:
    """The sentence; nothing larger than `most` bytes is made on the way, and no object's address is in it."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=said) as caught:
            open_data(config, seed=0)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "object at 0x" not in text
    assert "allow_pickle" not in text
    return text


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def folder_of_images(path: Path) -> Path:
    for part in ("train", "test"):
        for kind in ("a", "b"):
            (path / part / kind).mkdir(parents=True)
            for number in range(4):
                (path / part / kind / f"{number}.png").write_bytes(png())
    return path


def shards(path: Path, train: list[tuple[str, bytes]]) -> Path:
    path.mkdir()
    usual = [(f"{n}.{e}", d) for n in range(4) for e, d in (("png", png()), ("cls", str(n % 2).encode()))]
    for name, members in (("train", train or usual), ("test", usual)):
        with tarfile.open(path / f"{name}.tar", "w") as archive:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


# -------------------------------------------------------------------------------------------------------------- bombs


def huge_header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz_bomb(path: Path) -> Config:
    """Zeros, packed a thousandfold; written piece by piece."""
    with zipfile.ZipFile(path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, value in arrays().items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                if key == "x_train":
                    member.write(huge_header((300, 1 << 20)))
                    for _ in range(300):
                        member.write(bytes(1 << 20))
                else:
                    np.lib.format.write_array(member, value)
    return Config("npz", str(path / "a.npz"))


def npz_claim(path: Path) -> Config:
    """A header that promises a terabyte, over nothing."""
    with zipfile.ZipFile(path / "a.npz", "w") as archive:
        for key, value in arrays().items():
            file = io.BytesIO()
            np.save(file, value)
            archive.writestr(f"{key}.npy", huge_header((1 << 40,)) if key == "y_test" else file.getvalue())
    return Config("npz", str(path / "a.npz"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (npz_bomb, "would unpack to .* more than 100 times as many"),
        (npz_claim, r"y_test in .* promises 1,099,511,627,776 bytes and has"),
    ],
)
def test_what_unpacks_to_too_much_is_refused_unopened(
    make: Callable[[Path], Config], said: str, tmp_path: Path
) -> None:
    refused(make(tmp_path), said)


def test_blank_images_may_be_packed_well(tmp_path: Path) -> None:
    """A thousandfold, but of no size."""
    np.savez_compressed(tmp_path / "a.npz", **{k: v * 0 if k[0] == "x" else v for k, v in arrays((64, 64, 3)).items()})
    assert len(open_data(Config("npz", str(tmp_path / "a.npz")), seed=0).train) == 20


# -------------------------------------------------------------------------------------------------------------- pipes


def pipe_npz(path: Path) -> Config:
    os.mkfifo(path / "a.npz")
    return Config("npz", str(path / "a.npz"))


def pipe_image(path: Path) -> Config:
    os.mkfifo(folder_of_images(path / "d") / "train" / "a" / "x.png")
    return Config("folder", str(path / "d"), options=SMALL)


def linked_pipe(path: Path) -> Config:
    os.mkfifo(path / "pipe")
    (folder_of_images(path / "d") / "test" / "b" / "x.JPG").symlink_to(path / "pipe")
    return Config("folder", str(path / "d"), options=SMALL)


def pipe_shard(path: Path) -> Config:
    os.mkfifo(shards(path / "d", []) / "train-1.tar")
    return Config("webdataset", str(path / "d"), options=SMALL)


def pipe_stream(path: Path) -> Config:
    os.mkfifo(shards(path / "d", []) / "train-1.tar")
    return Config(
        "webdataset", str(path / "d"), options={**SMALL, "stream": True, "images": 4, "test_images": 4, "classes": 2}
    )


@pytest.mark.parametrize("make", [pipe_npz, pipe_image, linked_pipe, pipe_shard, pipe_stream])
def test_a_pipe_is_not_waited_for(make: Callable[[Path], Config], tmp_path: Path) -> None:
    refused(make(tmp_path), "is a pipe, not a file")


def test_a_pipe_put_in_the_place_of_an_image_later(tmp_path: Path) -> None:
    data = open_data(Config("folder", str(folder_of_images(tmp_path / "d")), options=SMALL), seed=0)
    (tmp_path / "d" / "train" / "a" / "1.png").unlink()
    os.mkfifo(tmp_path / "d" / "train" / "a" / "1.png")
    with pytest.raises(DataError, match="is a pipe"):
        list(data.train.batches(4))


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("label", [7, 10**8, 10**12, 2**63 - 1])
def test_a_label_beyond_all_others_in_an_npz(tmp_path: Path, label: int) -> None:
    changed = arrays()
    changed["y_train"] = changed["y_train"].astype(np.int64)
    changed["y_train"][3] = label
    np.savez(tmp_path / "a.npz", **changed)
    began = time.process_time()
    refused(Config("npz", str(tmp_path / "a.npz")), f"has the label 2, though labels reach {label}: number them")
    assert time.process_time() - began < 10


@pytest.mark.parametrize("label", ["5", "99999999", "999999999"])
def test_a_label_beyond_all_others_in_shards(tmp_path: Path, label: str) -> None:
    members = [(f"{n}.{e}", d) for n in range(4) for e, d in (("png", png()), ("cls", str(n % 2).encode()))]
    members[-1] = ("3.cls", label.encode())
    config = Config("webdataset", str(shards(tmp_path / "d", members)), options=SMALL)
    refused(config, f"has the label 2, though labels reach {int(label)}: .* or give data.options.classes")


@pytest.mark.parametrize("more", [{}, {"stream": True, "images": 4, "test_images": 4, "classes": 2}])
def test_a_sample_with_two_labels(tmp_path: Path, more: dict[str, Any]) -> None:
    members = [(f"{n}.{e}", d) for n in range(4) for e, d in (("cls", b"0"), ("png", png()), ("cls", b"1"))]
    config = Config("webdataset", str(shards(tmp_path / "d", members)), options={**SMALL, **more})
    refused(config, "has two labels: keep one of them")


# -------------------------------------------------------------------------------------------------------------- words


def test_messages_of_others_are_put_in_our_words(tmp_path: Path) -> None:
    members = [(f"{n}.{e}", d) for n in range(4) for e, d in (("png", b"no image"), ("cls", str(n % 2).encode()))]
    config = Config("webdataset", str(shards(tmp_path / "d", members)), options=SMALL)
    assert "cannot identify image file)" in refused(config, "cannot be read")
    (tmp_path / "text.npz").write_text("x_train")
    refused(Config("npz", str(tmp_path / "text.npz")), "is no zip file, or is cut off")
    objects = {**arrays(), "x_test": np.array([None] * 10, dtype=object)}
    np.savez(tmp_path / "objects.npz", **objects)
    refused(Config("npz", str(tmp_path / "objects.npz")), "x_test in .* holds Python objects, a pickle")


# ------------------------------------------------------------------------------------------------------------ digests


def test_a_digest_tells_sets_apart_and_not_their_places(tmp_path: Path) -> None:
    """Shifted labels, one pixel, swapped images; moved, it is the same set."""

    def digest(config: Config) -> str:
        return digest_of(open_data(config, seed=0))["sha256"]

    def npz(path: Path, **changes: Any) -> Config:
        np.savez(path, **{**arrays(), **changes})
        return Config("npz", str(path))

    whole = arrays()
    brighter = whole["x_test"].copy()
    brighter[0, 0, 0, 0] ^= 1
    configs = [npz(tmp_path / "a.npz"), npz(tmp_path / "b.npz"), npz(tmp_path / "c.npz", y_train=1 - whole["y_train"])]
    first, moved, shifted = map(digest, configs)
    assert first == moved != shifted
    assert digest(npz(tmp_path / "d.npz", x_test=brighter)) not in (first, shifted)

    folder = folder_of_images(tmp_path / "f")
    first = digest(Config("folder", str(folder), options=SMALL))
    folder = folder.rename(tmp_path / "g")
    assert digest(Config("folder", str(folder), options=SMALL)) == first
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 0, 1)).save(file, "PNG")
    (folder / "train" / "a" / "2.png").write_bytes(file.getvalue())
    assert digest(Config("folder", str(folder), options=SMALL)) != first


@pytest.mark.parametrize("more", [{}, {"stream": True, "images": 4, "test_images": 4, "classes": 2}])
def test_a_digest_of_shards_sees_other_labels(tmp_path: Path, more: dict[str, Any]) -> None:
    found = []
    for name, shift in (("a", 0), ("b", 0), ("c", 1)):
        members = [
            (f"{n}.{e}", d) for n in range(4) for e, d in (("png", png()), ("cls", b"01"[(n + shift) % 2 :][:1]))
        ]
        place = (tmp_path / name).resolve()
        place.mkdir()
        config = Config("webdataset", str(shards(place / "d", members)), options={**SMALL, **more})
        found.append(digest_of(open_data(config, seed=0)))
    assert found[0]["sha256"] == found[1]["sha256"] != found[2]["sha256"]
    assert "bytes" in found[0]["covers"]

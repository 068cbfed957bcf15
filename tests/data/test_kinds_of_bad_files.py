"""Files that would wait for ever, fill the memory or number classes without end: refused early, in one sentence.

Each set is opened in a child process with little memory and little time, both of which are the test.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from _sets import Config, arrays, cifar, encoded, folder, npz, samples, shards, tar

from secateur.data import open_data
from secateur.errors import SecateurError

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and named pipes")

SECONDS, MEGABYTES = 5, 700


def in_a_child(config: Config) -> str:
    """What comes of opening a set with 700 MB more than are in use, within five seconds."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
            try:
                data = open_data(config, seed=0)
                told = f"opened with {data.classes} classes"
            except SecateurError as refusal:
                told = f"{type(refusal).__name__}: {refusal}"
            except BaseException as failure:
                told = f"crash {type(failure).__name__}: {failure}"[:300]
            os.write(writing, told.encode()[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return told if status == 0 else f"killed by signal {-status}"


def assert_refused(config: Config) -> None:
    told = in_a_child(config)
    kind, _, sentence = told.partition(": ")
    assert kind in ("DataError", "ConfigError"), told
    assert sentence.endswith(".") or sentence.endswith(")"), told
    assert "\n" not in sentence
    assert "allow_pickle=" not in sentence
    assert "object at 0x" not in sentence
    assert "MemoryError" not in sentence
    assert "Unable to allocate" not in sentence


def deflated(start: bytes, zeros: int) -> bytes:
    """`start` and then so many zeros, as a raw deflate stream; made in the time of one block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    size = 1 << 20
    block = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (zeros // size) + packer.flush(zlib.Z_FINISH)


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def packed_npz(path: Path, members: dict[str, tuple[bytes, int]]) -> Path:
    """An .npz whose members are (packed bytes, unpacked size); the checksums are zero."""
    with path.open("wb") as file:
        rows = []
        for name, (content, size) in members.items():
            at, raw = file.tell(), f"{name}.npy".encode()
            sizes = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(content), size, len(raw), 0)
            file.write(b"PK\3\4" + sizes + raw + content)
            rows.append(b"PK\1\2\x14\0" + sizes + struct.pack("<HHHII", 0, 0, 0, 0, at) + raw)
        start = file.tell()
        file.write(b"".join(rows))
        end = file.tell() - start
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(rows), len(rows), end, start, 0))
    return path


def plain_member(array: np.ndarray) -> tuple[bytes, int]:
    buffer = io.BytesIO()
    np.save(buffer, array)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(buffer.getvalue()) + packer.flush(), len(buffer.getvalue())


BOMB = 3 << 30


def bomb(tmp: Path, key: str) -> Config:
    """An array of three gigabytes of zeros in three megabytes."""
    images = BOMB // 3072
    shape = (images, 32, 32, 3) if key.startswith("x") else (BOMB // 8,)
    header = npy_header(shape, "|u1" if key.startswith("x") else "<i8")
    members = {name: plain_member(array) for name, array in arrays((32, 32, 3)).items()}
    members[key] = (deflated(header, BOMB), len(header) + BOMB)
    return Config("npz", str(packed_npz(tmp / "bomb.npz", members)))


def pixels_bomb(tmp: Path) -> Config:
    return bomb(tmp, "x_train")


def labels_bomb(tmp: Path) -> Config:
    return bomb(tmp, "y_test")


def lying_header(tmp: Path) -> Config:
    members = {name: plain_member(array) for name, array in arrays().items()}
    content = npy_header((10**7, 256, 256, 3)) + bytes(100)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    members["x_train"] = (packer.compress(content) + packer.flush(), len(content))
    return Config("npz", str(packed_npz(tmp / "lying.npz", members)))


def huge_header(tmp: Path) -> Config:
    with zipfile.ZipFile(tmp / "huge.npz", "w") as file:
        for name in arrays():
            file.writestr(f"{name}.npy", npy_header((2**62, 2**62)) if name == "x_test" else npy_header((0,)))
    return Config("npz", str(tmp / "huge.npz"))


def gzipped(path: Path, start: bytes, zeros: int) -> None:
    content = deflated(start, zeros)
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + content + struct.pack("<II", 0, (len(start) + zeros) % 2**32))


def picture(side: int) -> bytes:
    """A PNG of one colour, `side` x `side` pixels, whatever that unpacks to."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = side * (side * 3 + 1) // (1 << 20) + 1
    raw = deflated(b"", rows << 20)
    head = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    body = b"\x78\xda" + raw + struct.pack(">I", 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def picture_bomb(tmp: Path) -> Config:
    folder(tmp / "d")
    (tmp / "d" / "train" / "cat" / "000.png").write_bytes(picture(20_000))
    return Config("folder", str(tmp / "d"), options={"size": 8})


def picture_bomb_in_a_shard(tmp: Path) -> Config:
    shards(tmp)
    tar(tmp / "train-000.tar", [("a.png", picture(20_000)), ("a.cls", b"0"), *samples(1, 5)])
    return Config("webdataset", str(tmp), options={"size": 8})


@pytest.mark.parametrize(
    "make",
    [pixels_bomb, labels_bomb, lying_header, huge_header, picture_bomb, picture_bomb_in_a_shard],
    ids=lambda m: m.__name__,
)  # fmt: skip
def test_what_unpacks_to_more_than_there_is_is_refused(make: Callable[[Path], Config], tmp_path: Path) -> None:
    assert_refused(make(tmp_path))


def pipe_in_place_of(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def npz_pipe(tmp: Path) -> Config:
    os.mkfifo(tmp / "x.npz")
    return Config("npz", str(tmp / "x.npz"))


def link_to_a_pipe(tmp: Path) -> Config:
    os.mkfifo(tmp / "pipe")
    (tmp / "x.npz").symlink_to(tmp / "pipe")
    return Config("npz", str(tmp / "x.npz"))


def picture_pipe(tmp: Path) -> Config:
    folder(tmp / "d")
    pipe_in_place_of(tmp / "d" / "train" / "dog" / "002.png")
    return Config("folder", str(tmp / "d"), options={"size": 8})


def link_to_a_picture_pipe(tmp: Path) -> Config:
    folder(tmp / "d")
    os.mkfifo(tmp / "pipe.png")
    (tmp / "d" / "test" / "cat" / "999.png").symlink_to(tmp / "pipe.png")
    return Config("folder", str(tmp / "d"), options={"size": 8})


def shard_pipe(tmp: Path) -> Config:
    shards(tmp)
    pipe_in_place_of(tmp / "test-000.tar")
    return Config("webdataset", str(tmp), options={"size": 8})


def cifar_pipe(tmp: Path) -> Config:
    cifar(tmp / "c", "cifar100")
    pipe_in_place_of(tmp / "c" / "test.bin")
    return Config("cifar100", str(tmp / "c"))


def endless_device(tmp: Path) -> Config:
    cifar(tmp / "c")
    (tmp / "c" / "data_batch_2.bin").unlink()
    (tmp / "c" / "data_batch_2.bin").symlink_to("/dev/zero")
    return Config("cifar10", str(tmp / "c"))


@pytest.mark.parametrize(
    "make",
    [npz_pipe, link_to_a_pipe, picture_pipe, link_to_a_picture_pipe, shard_pipe, cifar_pipe,
     endless_device],
    ids=lambda m: m.__name__,
)  # fmt: skip
def test_what_is_no_ordinary_file_is_not_waited_for(make: Callable[[Path], Config], tmp_path: Path) -> None:
    assert_refused(make(tmp_path))


LABELS = {
    "10^8": np.int64(10**8), "10^12": np.int64(10**12), "2^31": np.int64(2**31), "2^63-1": np.int64(2**63 - 1),
    "unsigned 2^64-1": np.uint64(2**64 - 1), "unsigned 2^32-1": np.uint32(2**32 - 1), "least": np.int64(-(2**63)),
}  # fmt: skip


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", LABELS)
def test_one_huge_label_in_arrays(name: str, part: str, tmp_path: Path) -> None:
    number = LABELS[name]
    labels = arrays()[f"y_{part}"].astype(number.dtype)
    labels[3] = number
    assert_refused(Config("npz", str(npz(tmp_path / "x.npz", arrays(**{f"y_{part}": labels})))))


@pytest.mark.parametrize("option", [10**9, 2**63 - 1])
def test_classes_without_end_in_an_option(option: int, tmp_path: Path) -> None:
    assert_refused(Config("npz", str(npz(tmp_path / "x.npz")), options={"classes": option}))


@pytest.mark.parametrize("label", [b"100000000", b"9223372036854775807", b"1" * 31])
@pytest.mark.parametrize("part", ["train-001", "test-000"])
def test_one_huge_label_in_a_shard(label: bytes, part: str, tmp_path: Path) -> None:
    shards(tmp_path)
    tar(tmp_path / f"{part}.tar", [*samples(6, 5), ("00099.png", encoded(99)), ("00099.cls", label)])
    assert_refused(Config("webdataset", str(tmp_path), options={"size": 8}))


def test_a_label_given_twice_in_a_shard(tmp_path: Path) -> None:
    shards(tmp_path)
    rows = [*samples(6, 5), ("00099.png", encoded(99)), ("00099.cls", b"0"), ("00099.cls", b"1")]
    tar(tmp_path / "train-001.tar", rows)
    assert_refused(Config("webdataset", str(tmp_path), options={"size": 8}))


def test_sound_sets_open_under_the_same_limits(tmp_path: Path) -> None:
    """The limits are no refusal: what is as it should be opens."""
    for config in (
        Config("npz", str(npz(tmp_path / "x.npz"))),
        Config("folder", str(folder(tmp_path / "d")), options={"size": 8}),
        Config("cifar10", str(cifar(tmp_path / "c"))),
    ):
        assert in_a_child(config).startswith("opened with"), config.name
    zeros = {"x_train": np.zeros((20, 64, 64, 3), np.uint8)}  # packs very well, and is sound
    np.savez_compressed(tmp_path / "zeros.npz", **arrays((64, 64, 3), **zeros))
    assert in_a_child(Config("npz", str(tmp_path / "zeros.npz"))) == "opened with 2 classes"

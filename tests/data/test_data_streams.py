"""Streams: the same batches for a seed, whoever reads them and wherever they begin; and what is said otherwise."""

from __future__ import annotations

import http.server
import importlib.util
import itertools
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _sets import Config, encoded, samples, tar

from secateur import runs
from secateur.data import open_data
from secateur.data.readers import shards as shards_of
from secateur.data.readers import tars
from secateur.data.streams import Sample, Shards, Stream
from secateur.errors import ConfigError, DataError
from secateur.recipe import Recipe

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
SMALL = {
    "size": 8,
    "resize": 10,
    "stream": True,
    "images": 24,
    "test_images": 5,
    "classes": 24,
    "buffer": 8,
    "lanes": 2,
}
DRAWN = {"shuffle": True, "seed": 5}


def shards(root: Path, classes: int = 24) -> Path:
    """Four training shards of six images, whose labels are their numbers, and two test shards of three and two."""
    for number in range(4):
        tar(root / f"train-{number:03}.tar", samples(6 * number, 6, classes))
    tar(root / "test-000.tar", samples(10, 3, classes))
    tar(root / "test-001.tar", samples(13, 2, classes))
    return root


def opened(path: Path | str, **changes: Any) -> Any:
    options = {**SMALL, **changes.pop("options", {})}
    return open_data(Config("webdataset", str(path), options=options, **{"augment": [], **changes}), seed=0)


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(one, two, strict=True))


def labels(batches: Any) -> list[int]:
    return torch.cat([found for _, found in batches]).tolist()


# ------------------------------------------------------------------------------------------------ what a batch holds


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
def test_an_epoch_holds_every_image_once_where_shards_are_dealt_evenly(lanes: int, tmp_path: Path) -> None:
    data = opened(shards(tmp_path), options={"lanes": lanes})
    for epoch in range(2):
        found = labels(data.train.batches(5, epoch=epoch, **DRAWN))
        assert len(found) == 24
        assert lanes == 3 or sorted(found) == list(range(24))  # three lanes: one has two shards, and one is read twice
    assert len(data.train) == 24
    assert data.train.batch_count(5) == 5
    assert data.train.batch_count(5, drop_last=True) == 4


def test_batches_depend_on_seed_epoch_and_number_only(tmp_path: Path) -> None:
    data = opened(shards(tmp_path), augment=["resized_crop", "flip"])
    options = {**DRAWN, "augment": True, "epoch": 3}
    whole = list(data.train.batches(5, **options))
    assert same(whole, data.train.batches(5, **options))
    assert same(whole[3:], data.train.batches(5, start=3, **options))
    assert labels(whole) != labels(data.train.batches(5, **{**options, "epoch": 4}))
    assert labels(whole) != labels(data.train.batches(5, **{**options, "seed": 6}))
    assert labels(whole) != sorted(labels(whole))
    for world in (2, 3, 5):
        parts = [data.train.batches(5, rank=rank, world=world, **options) for rank in range(world)]
        joined = [tuple(torch.cat(t) for t in zip(*p, strict=True)) for p in zip(*parts, strict=True)]
        assert same(whole, joined)
    helped = opened(tmp_path, augment=["resized_crop", "flip"], workers=2)
    assert same(whole, helped.train.batches(5, **options))


def test_without_shuffling_shards_and_images_keep_their_order(tmp_path: Path) -> None:
    data = opened(shards(tmp_path), options={"lanes": 1})
    assert labels(data.train.batches(7)) == list(range(24))
    assert labels(data.test.batches(2)) == [10, 11, 12, 13, 14]
    assert labels(data.test.batches(2, start=1)) == [12, 13, 14]
    parts = [labels(data.test.batches(2, rank=rank, world=2)) for rank in range(2)]
    assert sorted([*parts[0], *parts[1]]) == [10, 11, 12, 13, 14]


def test_processes_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(shards(tmp_path))
    read: list[int] = []
    true = tars.Tars.samples
    monkeypatch.setattr(tars.Tars, "samples", lambda self, shard: (read.append(shard), true(self, shard))[1])
    seen = []
    for rank in range(2):
        read.clear()
        labels(data.train.batches(4, rank=rank, world=2, **DRAWN))
        seen.append(set(read))
    assert [len(each) for each in seen] == [2, 2]
    assert not seen[0] & seen[1]


def test_more_images_than_there_are_begin_again_and_fewer_end_early(tmp_path: Path) -> None:
    data = opened(shards(tmp_path), options={"images": 48})
    found = labels(data.train.batches(8, **DRAWN))
    assert sorted(found) == sorted([*range(24), *range(24)])
    fewer = opened(tmp_path, options={"images": 12})
    epochs = [set(labels(fewer.train.batches(4, epoch=epoch, **DRAWN))) for epoch in range(8)]
    assert all(len(epoch) == 12 for epoch in epochs)
    assert set.union(*epochs) == set(range(24))  # each epoch begins with other shards


class Endless:
    """A shard without an end, which counts what was taken of it."""

    shards: Sequence[str] = ("endless",)

    def __init__(self) -> None:
        self.taken = 0

    def samples(self, shard: int) -> Iterator[Sample]:
        picture = encoded(0)
        for number in itertools.count():
            self.taken += 1
            yield Sample(picture, number % 3, f"number {number}")


def test_no_more_is_kept_than_the_buffer_holds() -> None:
    from secateur.data.images import Shape

    source = Endless()
    stream = Stream(Shards(source, (0,), 3), 10**9, Shape(3, 8, 10), (0.5,) * 3, (0.5,) * 3, lanes=1, buffer=50)
    batches = stream.batches(4, **DRAWN)
    for number in range(1, 6):
        next(batches)
        assert source.taken <= 50 + 4 * number + 1


# -------------------------------------------------------------------------------------------------------- validation


def test_whole_shards_are_held_out(tmp_path: Path) -> None:
    data = opened(shards(tmp_path), validation=0.5)
    held, trained = labels(data.validation.batches(4)), set(labels(data.train.batches(4, **DRAWN)))
    assert (len(data.train), len(data.validation)) == (12, 12)
    assert set(held) | trained == set(range(24))
    assert not set(held) & trained
    assert held == labels(opened(tmp_path, validation=0.5).validation.batches(3))
    assert "12 of the 24 stated, of 2 shards held out with seed 0" in data.describe()["split"]
    short = opened(tmp_path, validation=0.25, options={"images": 40})
    with pytest.raises(
        DataError, match=r"held out for validation hold 6 images, and 10 were stated: lower data\.valid"
    ):
        labels(short.validation.batches(4))


# -------------------------------------------------------------------------------------------------------- at addresses


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `broken` answers are cut off, and `lost` ones are not found for a while."""

    broken: dict[str, int] = {}  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        name = self.path.rpartition("/")[2]
        content = source.read()
        if self.broken.get(name, 0):
            self.broken[name] -= 1
            content = content[: len(content) // 2]
        outputfile.write(content)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    shards(tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    Server.broken.clear()


AT = {"train": "train-{000..003}.tar", "test": "test-{000..001}.tar"}


def test_shards_at_an_address_give_what_the_same_on_a_disk_give(served: str, tmp_path: Path) -> None:
    here, there = opened(tmp_path), opened(served, options=AT)
    whole = list(here.train.batches(5, **DRAWN))
    assert same(whole, there.train.batches(5, **DRAWN))
    assert same(whole[2:], there.train.batches(5, start=2, **DRAWN))
    assert same(here.test.batches(2), there.test.batches(2))
    apart = opened(tmp_path, options={"train": f"{served}/train-{{000..003}}.tar"})  # only these at an address
    assert same(whole, apart.train.batches(5, **DRAWN))
    assert there.describe()["files"][0]["name"].endswith("train-000.tar and on: names and sizes of 4 shards")


def test_a_connection_that_breaks_is_made_again(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars.time, "sleep", lambda _: None)
    here, there = opened(tmp_path), opened(served, options=AT)
    Server.broken.update({"train-001.tar": 2})
    assert same(here.train.batches(5, **DRAWN), there.train.batches(5, **DRAWN))
    Server.broken.update({"train-001.tar": 3})
    with pytest.raises(
        DataError, match=r"The shard 'http.*train-001\.tar' cannot be read \(.*\): check its address and"
    ):
        list(there.train.batches(5, **DRAWN))


def test_addresses_of_fsspec_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    shards(tmp_path)
    store = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    monkeypatch.setattr(shards_of, "CLOUDS", ("memory",))
    there = opened("memory://bucket", options=AT)
    assert same(opened(tmp_path).train.batches(5, **DRAWN), there.train.batches(5, **DRAWN))


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
    for name in ("train", "test"):
        with webdataset.ShardWriter(str(tmp_path / f"{name}-%03d.tar"), maxcount=3, verbose=0) as writer:
            for number in range(6):
                writer.write({"__key__": f"a/{number:04}", "png": encoded(number), "cls": number, "json": {"x": 1}})
    data = opened(tmp_path, batch_size=2, options={"images": 6, "test_images": 6})
    assert sorted(labels(data.train.batches(2, **DRAWN))) == list(range(6))
    assert labels(data.test.batches(4)) == list(range(6))


# -------------------------------------------------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in four training files and one for testing, made on the spot."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    root = tmp_path_factory.mktemp("hub")
    names = [f"c{number:02}" for number in range(24)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for part, first in [(f"train-{number:05}-of-00004", 6 * number) for number in range(4)] + [("test", 10)]:
        count = 5 if part == "test" else 6
        rows = {
            "image": [{"bytes": encoded(number), "path": None} for number in range(first, first + count)],
            "label": list(range(first, first + count)),
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{part}.parquet"))
    return root


def hub_opened(hub: Path, **changes: Any) -> Any:
    options = {key: value for key, value in SMALL.items() if key != "classes"} | changes.pop("options", {})
    return open_data(Config("hf", str(hub), options=options, **{"augment": [], **changes}), seed=0)


def test_a_hub_set_streams_what_shards_would(hub: Path, tmp_path: Path) -> None:
    data = hub_opened(hub)
    options = {**DRAWN, "epoch": 1}
    whole = list(data.train.batches(5, **options))
    assert same(whole, opened(shards(tmp_path)).train.batches(5, **options))  # the same images, in the same order
    assert same(whole[2:], data.train.batches(5, start=2, **options))
    parts = [data.train.batches(5, rank=rank, world=2, **options) for rank in range(2)]
    assert same(whole, [tuple(torch.cat(t) for t in zip(*p, strict=True)) for p in zip(*parts, strict=True)])
    assert data.class_names[23] == "c23"
    assert labels(data.test.batches(2)) == [10, 11, 12, 13, 14]
    held = hub_opened(hub, validation=0.25)
    assert not set(labels(held.validation.batches(4))) & set(labels(held.train.batches(4, **DRAWN)))


def test_a_folder_of_images_streams_as_a_hub_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    for part, name, number in itertools.product(("train", "test"), ("cat", "dog"), range(3)):
        place = tmp_path / part / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(encoded(number))
    data = hub_opened(tmp_path, batch_size=2, options={"images": 6, "test_images": 6, "lanes": None})
    assert sorted(labels(data.train.batches(2, **DRAWN))) == [0, 0, 0, 1, 1, 1]
    assert data.class_names == ("cat", "dog")


# -------------------------------------------------------------------------------------------------------------- a run


def test_a_run_reads_a_stream(tmp_path: Path) -> None:
    shards(tmp_path / "s", classes=3)
    recipe = Recipe.model_validate(
        {
            "name": "streamed",
            "model": "zoo:tiny",
            "data": {
                "name": "webdataset", "path": str(tmp_path / "s"), "batch_size": 6, "validation": 0.25,
                "calibration_images": 8, "options": {**SMALL, "classes": 3},
            },
            "method": "taylor",
            "budget": "flops=0.6",
            "train": {"epochs": 1, "lr": 0.01},
            "export": {"onnx": False, "pt2": False},
            "latency": None,
            "engine": {"device": "cpu"},
        }
    )  # fmt: skip
    results = runs.start(recipe, tmp_path / "run").results
    assert (results["data"]["train"], results["data"]["validation"], results["data"]["test"]) == (18, 6, 5)
    assert results["accuracy"]["images"] == 5


RECIPE = Path(__file__).parents[2] / "recipes" / "imagenet-resnet50-shards.yaml"
SMALLER = (
    "model.weights=null", "finetune.distill.weight=0", "data.batch_size=4", "data.workers=0", "data.validation=0.25",
    "data.options.train=train-{000..003}.tar", "data.options.test=test-{000..001}.tar", "data.options.images=24",
    "data.options.test_images=5", "data.options.lanes=3", "data.options.size=64", "engine.precision=fp32",
)  # fmt: skip


def test_the_recipe_for_imagenet_is_in_order(tmp_path: Path) -> None:
    whole = Recipe.read(RECIPE, [])
    lanes, batch = whole.data.options["lanes"], whole.data.batch_size
    assert batch % lanes == lanes % 8 == 0
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install torchvision")
    prepared = runs.prepare(Recipe.read(RECIPE, [*SMALLER, f"data.path={shards(tmp_path)}"]))
    assert prepared.data.classes == 1000
    assert prepared.dense.params == 25_557_032


# ---------------------------------------------------------------------------------------------------- what goes wrong


def broken(root: Path) -> None:
    tar(root / "train-000.tar", [("a.png", encoded(0)), ("b.png", encoded(1)), ("b.cls", b"1")])


def damaged(root: Path) -> None:
    tar(root / "train-000.tar", [("a.png", encoded(0)[:60]), ("a.cls", b"1")])


def cut(root: Path) -> None:
    path = root / "train-002.tar"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"00014.png")])


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no images stated": (None, {"options": {"images": None}}, "data.options.images is missing: a stream of webdataset"),
    "no test images stated": (None, {"options": {"test_images": None}}, "data.options.test_images is missing"),
    "no classes": (None, {"options": {"classes": None}}, "data.options.classes is missing"),
    "of a stream only": (None, {"options": {"stream": False}}, "data.options.buffer is of a stream"),
    "a subset": (None, {"train_images": 10}, "data.train_images is chosen from a list of all"),
    "too many lanes": (None, {"options": {"lanes": 5}}, "data.options.lanes is 5, and there are 4 shards"),
    "all held out": (None, {"validation": 0.9, "options": {"images": 240}}, "whole shards out, of which there are 4"),
    "a batch too large": (None, {"batch_size": 30}, "data.batch_size is 30, and 24 images are an epoch"),
    "a shard is missing": (None, {"options": {"train": "train-{000..004}.tar"}}, "has no shard train-004.tar"),
    "a command": (None, {"options": {"train": "pipe:cat train.tar"}}, "begins with pipe:, which is not read"),
    "a listing": (None, {"options": {"train": "http://127.0.0.1:9/*.tar"}}, "cannot be listed: name the shards"),
    "nobody there": (None, {"options": {"train": "http://127.0.0.1:9/{0..1}.tar"}}, "check its address and the"),
    "both at once": (None, {"options": {"test": "train-003.tar"}}, "is in the training and in the test shards"),
    "no label": (broken, {}, "The sample 'a' in"),
    "a broken image": (damaged, {}, "The image 'a.png' in"),
    "a label too large": (None, {"options": {"classes": 2}}, "there are the classes 0 to 1: correct the label"),
    "compressed": (lambda root: tar(root / "train.tar.gz", []), {"options": {"train": "*.tar.gz"}}, "is compressed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_streamed_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars.time, "sleep", lambda _: None)
    harm, changes, part = BAD[name]
    shards(tmp_path)
    if harm is not None:
        harm(tmp_path)
    with pytest.raises((ConfigError, DataError)) as caught:
        opened(tmp_path, **changes)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_shows_later_is_one_sentence_too(workers: int, tmp_path: Path) -> None:
    shards(tmp_path)
    cut(tmp_path)
    data = opened(tmp_path, workers=workers, options={"check": 0})
    with pytest.raises(DataError, match=r"train-002\.tar' is cut off or damaged"):
        list(data.train.batches(4, **DRAWN))
    for stated, said in ((4, "more than the 4 images"), (6, "The test shards hold 5 images, and 6 were stated")):
        with pytest.raises(DataError, match=said):
            list(opened(tmp_path, options={"test_images": stated, "check": 0}).test.batches(2))
    (tmp_path / "train-001.tar").write_bytes(tar(tmp_path / "empty.tar", []).read_bytes())
    with pytest.raises(DataError, match=r"train-001\.tar' holds no image"):
        list(data.train.batches(4, **DRAWN))


def test_a_hub_set_without_names_of_classes_cannot_be_streamed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for part in ("train", "test"):
        rows = {"image": [{"bytes": encoded(0), "path": None}], "label": [0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{part}.parquet"))
    with pytest.raises(DataError, match=r"'label' of .* does not say which classes there are"):
        hub_opened(tmp_path)


def test_the_order_is_this_under_any_version(tmp_path: Path) -> None:
    data = opened(shards(tmp_path))
    found = labels(itertools.islice(data.train.batches(6, epoch=2, **DRAWN), 2))
    assert found == [9, 7, 6, 19, 22, 21, 10, 11, 14, 23, 18, 1]

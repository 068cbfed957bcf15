"""Sets whose images are decoded when needed: folders, shards, Hugging Face; with and without workers."""

from __future__ import annotations

import io
import json
import os
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from _sets import ClassLabel, Config, Hub, HubSplit, Image, Value, encoded, folder, samples, shards, tar

from secateur.data import open_data
from secateur.errors import ConfigError, DataError

Pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
SMALL = {"size": 8, "resize": 10}


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setitem(sys.modules, "datasets", made)
    return made


def opened(kind, tmp_path, **changes):
    path = {"folder": lambda: folder(tmp_path), "webdataset": lambda: shards(tmp_path), "hf": lambda: "pets"}[kind]()
    options = {**SMALL, **changes.pop("options", {})}
    return open_data(Config(kind, str(path), options=options, **changes), seed=0)


def same(one, two):
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(one, two, strict=True))


@pytest.mark.parametrize("kind", ["folder", "webdataset", "hf"])
def test_all_three_give_the_same_kind_of_batches(kind, tmp_path, hub):
    data = opened(kind, tmp_path)
    assert (len(data.train), data.classes, data.input_size) == (12, 2, (3, 8, 8))
    (images, labels), *rest = data.train.batches(5)
    assert (images.shape, images.dtype, labels.dtype) == ((5, 3, 8, 8), torch.float32, torch.int64)
    assert [len(y) for _, y in rest] == [5, 2]
    json.dumps(data.describe(), allow_nan=False)


@pytest.mark.parametrize("kind", ["folder", "webdataset", "hf"])
@pytest.mark.parametrize("augment", [None, [], ["crop", "flip", "cutout"]], ids=["default", "none", "pixels"])
def test_batches_depend_on_seed_epoch_and_number_only(kind, augment, tmp_path, hub):
    data = opened(kind, tmp_path, augment=augment)
    options = {"shuffle": True, "augment": True, "epoch": 3, "seed": 5}
    whole = list(data.train.batches(5, **options))
    assert same(whole, data.train.batches(5, **options))
    assert same(whole[1:], data.train.batches(5, start=1, **options))
    parts = [data.train.batches(5, rank=rank, world=3, **options) for rank in range(3)]
    joined = [tuple(torch.cat(t) for t in zip(*p, strict=True)) for p in zip(*parts, strict=True)]
    assert same(whole, joined)
    if augment != []:
        assert not torch.equal(whole[0][0], next(data.train.batches(5, **options | {"augment": False}))[0])


def test_workers_change_nothing_and_draw_no_global_numbers(tmp_path):
    alone, helped = (opened("folder", tmp_path / str(n), workers=n) for n in (0, 2))
    options = {"shuffle": True, "augment": True, "epoch": 1}
    state = torch.get_rng_state()
    assert same(alone.train.batches(4, **options), helped.train.batches(4, **options))
    assert torch.equal(torch.get_rng_state(), state)
    half = helped.train.batches(4, **options)
    next(half)
    half.close()  # leaving early stops the workers


def test_folders_sort_classes_and_files_by_name(tmp_path):
    data = opened("folder", tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert [name.rsplit("/", 1)[-1] for name in data.train.images.files[:3]] == ["000.png", "001.png", "002.png"]


def test_val_is_read_where_there_is_no_test(tmp_path):
    data = open_data(Config("folder", str(folder(tmp_path, test="val")), options=SMALL), seed=0)
    assert len(data.test) == 6


def test_of_test_and_val_one_is_read_and_the_other_mentioned(tmp_path):
    folder(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
    (tmp_path / "val" / "cat" / "a.png").write_bytes(encoded(1))
    with pytest.raises(DataError, match=r"dog' holds no image"):
        open_data(Config("folder", str(tmp_path), options={**SMALL, "test": "val"}), seed=0)
    data = open_data(Config("folder", str(tmp_path), options=SMALL), seed=0)
    assert len(data.test) == 6
    assert "val' was not read" in data.notes[0]


def test_deeper_folders_count_and_other_files_are_mentioned(tmp_path):
    folder(tmp_path)
    (tmp_path / "train" / "cat" / "more").mkdir()
    (tmp_path / "train" / "cat" / "more" / "x.JPEG").write_bytes(encoded(3, kind="JPEG"))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("a cat")
    (tmp_path / "train" / ".DS_Store").write_text("")
    data = open_data(Config("folder", str(tmp_path), options=SMALL), seed=0)
    assert len(data.train) == 13
    assert len(data.notes) == 1
    assert "notes.txt" in data.notes[0]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 30), (10, 10), (200, 3)])
def test_images_are_resized_by_their_shorter_side_and_cut_in_the_middle(size, tmp_path):
    folder(tmp_path, per_class=1)
    (tmp_path / "train" / "cat" / "000.png").write_bytes(encoded(1, size))
    data = open_data(Config("folder", str(tmp_path), batch_size=1, options=SMALL), seed=0)
    image, _ = next(data.train.batches(1))
    original = Pillow.open(io.BytesIO(encoded(1, size)))
    width, height = (round(side * 10 / min(size)) for side in size)
    left, top = (width - 8) // 2, (height - 8) // 2
    expected = original.resize((width, height), Pillow.Resampling.BILINEAR).crop((left, top, left + 8, top + 8))
    back = image[0] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    assert (back * 255).movedim(0, -1).numpy() == pytest.approx(np.asarray(expected), abs=1e-3)


def test_a_random_crop_sees_different_parts(tmp_path):
    data = opened("folder", tmp_path, augment=["resized_crop"])
    crops = torch.cat([next(data.train.batches(1, augment=True, epoch=epoch))[0] for epoch in range(6)])
    assert len({image.numpy().tobytes() for image in crops}) == 6


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_8_bit_mode_becomes_grey_or_colour(mode, channels, tmp_path):
    folder(tmp_path, per_class=1)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    (tmp_path / "train" / "cat" / f"000.{kind.lower()}").write_bytes(encoded(1, mode=mode, kind=kind))
    data = open_data(Config("folder", str(tmp_path), batch_size=1, options={**SMALL, "channels": channels}), seed=0)
    assert data.input_size == (channels, 8, 8)
    assert len(data.mean) == channels
    assert next(data.train.batches(4))[0].shape[1] == channels


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_one_sentence_too(workers, tmp_path):
    data = opened("folder", tmp_path, workers=workers)
    path = tmp_path / "train" / "dog" / "003.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        list(data.train.batches(4))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_one_sentence_too(tmp_path, monkeypatch):
    data = opened("folder", tmp_path, workers=1)
    monkeypatch.setattr(type(data.train.images), "load", lambda images, number: os._exit(1))  # as if out of memory
    with pytest.raises(DataError, match=r"Reading images failed \([^\n]*\): lower data\.workers"):
        list(data.train.batches(4))


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_images_can_be_sent_to_workers_that_are_not_forked(kind, tmp_path):
    images = opened(kind, tmp_path).train.images
    sent = ForkingPickler.loads(ForkingPickler.dumps(images))
    assert torch.equal(sent.decode(3, None), images.decode(3, None))


def test_only_as_many_images_are_checked_as_asked_for(tmp_path):
    folder(tmp_path)
    (tmp_path / "train" / "cat" / "001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"001\.png"):
        open_data(Config("folder", str(tmp_path), options={**SMALL, "check": "all"}), seed=0)
    open_data(Config("folder", str(tmp_path), options={**SMALL, "check": 2}), seed=0)  # the first and the last
    open_data(Config("folder", str(tmp_path), options={**SMALL, "check": 0}), seed=0)


def test_a_description_changes_with_the_files(tmp_path):
    data = opened("folder", tmp_path)
    before = data.describe()["files"]
    path = tmp_path / "train" / "dog" / "003.png"
    path.write_bytes(path.read_bytes() + b" ")
    assert data.describe()["files"] != before
    assert "names and sizes of 18 files" in before[0]["name"]


# ------------------------------------------------------------------------------------------------------------- shards


def test_shards_are_read_in_their_order(tmp_path):
    data = opened("webdataset", tmp_path)
    assert data.train.labels.tolist() == [0, 1] * 6
    image, _ = next(data.train.batches(1, start=7))
    folder_of_one = tmp_path / "one"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder_of_one / part / name).mkdir(parents=True)
            (folder_of_one / part / name / "a.png").write_bytes(encoded(seed=7))
    other = open_data(Config("folder", str(folder_of_one), batch_size=1, options=SMALL), seed=0)
    assert torch.equal(next(other.train.batches(1))[0], image)


@pytest.mark.parametrize("pattern", ["train-{000..001}.tar", "train-*.tar", "*ain-00{0..1}.tar"])
def test_shards_are_named_by_pattern_or_range(pattern, tmp_path):
    assert len(opened("webdataset", tmp_path, options={"train": pattern}).train) == 12
    assert len(opened("webdataset", tmp_path / "b", options={"train": "train-001.tar"}).train) == 6


def test_validation_shards_are_the_test_where_there_are_no_others(tmp_path):
    shards(tmp_path)
    (tmp_path / "test-000.tar").rename(tmp_path / "val-000.tar")
    assert len(open_data(Config("webdataset", str(tmp_path), options=SMALL), seed=0).test) == 4


def test_members_may_lie_in_folders_and_have_long_extensions(tmp_path):
    pairs = [((f"a.b/{k}.left.png", encoded(k)), (f"a.b/{k}.cls", b"%d" % (k % 2))) for k in range(6)]
    rows = [member for pair in pairs for member in pair]
    tar(tmp_path / "train.tar", [*rows, ("a.b/5.json", b"{}")])
    tar(tmp_path / "test.tar", rows)
    data = open_data(Config("webdataset", str(tmp_path), options=SMALL), seed=0)
    assert data.train.labels.tolist() == [0, 1] * 3
    assert data.notes == ("Members with these extensions were not read: json.",)


def test_shards_work_with_workers(tmp_path):
    data = opened("webdataset", tmp_path, workers=2)
    alone = opened("webdataset", tmp_path / "again")
    assert same(data.train.batches(5, shuffle=True), alone.train.batches(5, shuffle=True))


def test_another_label_extension_can_be_named(tmp_path):
    for name in ("train", "test"):
        tar(tmp_path / f"{name}.tar", [(m.replace(".cls", ".target"), content) for m, content in samples(0, 4)])
    data = open_data(Config("webdataset", str(tmp_path), options={**SMALL, "label": "target", "classes": 3}), seed=0)
    assert data.classes == 3


# ------------------------------------------------------------------------------------------------------- Hugging Face


def test_columns_are_found_and_the_revision_is_handed_on(hub):
    options = {**SMALL, "config": "plain", "revision": "abc"}
    data = open_data(Config("hf", "pets", options=options), seed=0)
    assert hub.asked == [("pets", {"name": "plain", "revision": "abc"})]
    assert data.class_names == ("cat", "dog")
    assert data.describe()["files"] == [
        {"name": "pets/train", "fingerprint": "0123abcd"},
        {"name": "pets/test", "fingerprint": "0123abcd"},
    ]


def test_columns_and_splits_can_be_named(hub):
    features = {"left": Image(), "img": Image(), "label": ClassLabel("ab"), "coarse": ClassLabel("cd")}
    hub.splits = {"training": HubSplit([0, 1] * 4, features), "validation": HubSplit([0, 1], features)}
    options = {**SMALL, "train": "training"}
    assert len(open_data(Config("hf", "pets", options=options), seed=0).test) == 2  # img and label are usual names
    named = {**options, "image": "left", "label": "coarse"}
    assert open_data(Config("hf", "pets", options={**named, "check": 0}), seed=0).class_names == ("c", "d")


def test_plain_numbers_serve_as_labels(hub):
    features = {"img": Image(), "label": Value()}
    hub.splits = {"train": HubSplit([0, 1, 2] * 4, features), "test": HubSplit([0, 2], features)}
    data = open_data(Config("hf", "pets", options=SMALL), seed=0)
    assert (data.classes, data.class_names) == (3, None)


@pytest.mark.parametrize(("kind", "module"), [("hf", "datasets"), ("hf", "PIL.Image"), ("folder", "PIL.Image")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(kind, module, tmp_path, hub, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r'pip install "secateur\[data\]"'):
        open_data(Config(kind, str(tmp_path), options=SMALL), seed=0)

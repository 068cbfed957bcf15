"""Hugging Face `datasets`: the name of a set is its path; images are decoded when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur._hints import nearest
from secateur.data._files import extra, said
from secateur.data.images import EncodedImages, Shape
from secateur.data.options import HubOptions
from secateur.data.readers import Contents, Streams, count_classes, shape_of
from secateur.data.streams import Sample
from secateur.errors import DataError


class RowImages(EncodedImages):
    """Images that a library decodes: of each of its rows, what stands in one column."""

    def __init__(
        self, rows: Any, column: str | int, name: str, labels: NDArray[np.int64], shape: Shape, check: int | None
    ) -> None:
        super().__init__(labels, shape, check)
        self.rows, self.column, self.name = rows, column, name

    def load(self, number: int) -> Any:
        try:
            image = self.rows[number][self.column]
        except Exception as error:  # the library decodes while it reads, and hands on what the decoder raises
            raise DataError(f"cannot be read ({said(error)}): get it again, or set data.on_broken: skip.") from error
        if image is None or not hasattr(image, "convert"):
            raise DataError(
                f"is a {type(image).__name__}, not an image: name a column or a data set of images in data.options."
            )
        return image

    def where(self, number: int) -> str:
        return f"in row {number} of {self.name}"


def read(path: str | None, options: HubOptions, get: str) -> Contents:
    found, train_name, test_name = _loaded(path, options, get, streaming=False)
    features = found[train_name].features
    image, label = _columns(features, options, str(path))
    shape, check = shape_of(options)
    sets = []
    for name in (train_name, test_name):
        labels = _labels(found[name], label, f"{path}/{name}")
        sets.append(RowImages(found[name], image, f"{path}/{name}", labels, shape, check))
    names = getattr(features[label], "names", None)
    classes = len(names) if names else count_classes(sets[0].labels, str(path))
    return Contents(sets[0], sets[1], classes, tuple(names) if names else None, partial(_checksums, sets))


def stream(path: str | None, options: HubOptions, get: str) -> Streams:
    """The same set, read from beginning to end."""
    found, train_name, test_name = _loaded(path, options, get, streaming=True)
    datasets = extra("datasets", "datasets")
    features = found[train_name].features
    if features is None:
        raise DataError(f"The columns of {path!r} are not known before it is read: leave data.options.stream out.")
    image, label = _columns(features, options, str(path))
    names = getattr(features[label], "names", None)
    if not names:
        raise DataError(
            f"The column {label!r} of {path!r} does not say which classes there are, and a stream cannot be searched: "
            "name another one in data.options.label, or leave data.options.stream out."
        )
    train, test = (
        HubRows(found[name].cast_column(image, datasets.Image(decode=False)), image, label, f"{path}/{name}")
        for name in (train_name, test_name)
    )
    note = {"name": str(path), "revision": options.revision or "the newest"}
    return Streams(train, test, len(names), tuple(names), lambda: [note])


class HubRows:
    """A split of a streamed set; its shards are the files it comes in."""

    def __init__(self, rows: Any, image: str, label: str, name: str) -> None:
        self.rows, self.image, self.label, self.name = rows, image, label, name
        count = int(rows.num_shards if hasattr(rows, "num_shards") else rows.n_shards)
        self.shards = tuple(f"{name}, part {number + 1} of {count}" for number in range(count))

    def samples(self, shard: int) -> Iterator[Sample]:
        """See `Source`: the part that process number `shard` of so many would get."""
        node: Any = extra("datasets.distributed", "datasets")
        part = node.split_dataset_by_node(self.rows, rank=shard, world_size=len(self.shards))
        try:
            for number, row in enumerate(part):
                where = f"in row {number} of {self.shards[shard]}"
                yield Sample(_encoded(row[self.image], where), _class(row[self.label], where), where)
        except DataError:
            raise
        except Exception as error:  # network, decompression, files: each library underneath has its own
            raise DataError(f"{self.shards[shard]} cannot be read ({said(error)}): check the network.") from error


def _encoded(image: Any, where: str) -> bytes | Path:
    if isinstance(image, Mapping) and image.get("bytes"):
        return bytes(image["bytes"])
    if isinstance(image, Mapping) and image.get("path") and Path(image["path"]).is_file():
        return Path(image["path"])
    raise DataError(f"The image {where} has no bytes: leave data.options.stream out, or name another column.")


def _class(label: Any, where: str) -> int:
    if not isinstance(label, int):
        raise DataError(f"The image {where} has the label {label!r}, not a class number: correct it or take it out.")
    return label


def _loaded(path: str | None, options: HubOptions, get: str, *, streaming: bool) -> tuple[Mapping[str, Any], str, str]:
    """The splits, and the names of those to train and to test on."""
    if path is None:
        raise DataError(f"The data set hf needs data.path: {get}.")
    datasets = extra("datasets", "datasets")
    extra("PIL.Image", "pillow")
    more = {"streaming": True} if streaming else {}
    try:
        found = datasets.load_dataset(path, name=options.config, revision=options.revision, **more)
    except Exception as error:  # network, name, configuration, disk: each library underneath has its own
        raise DataError(
            f"The Hugging Face data set {path!r} could not be loaded ({said(error)}): check its name, "
            "data.options.config and the network."
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"The Hugging Face data set {path!r} is not divided into splits: {get}.")
    train_name = _pick(found, options.train, ("train",), path, "split")
    test_name = _pick(found, options.test, ("test", "validation"), path, "split")
    if train_name == test_name:
        raise DataError(
            f"{path!r} has only the split {train_name!r} to train and to test on: name two in data.options."
        )
    return found, train_name, test_name


def _columns(features: Mapping[str, Any], options: HubOptions, path: str) -> tuple[str, str]:
    image = _column(features, options.image, "Image", ("image", "img"), path, "image")
    return image, _column(features, options.label, "ClassLabel", ("label", "labels"), path, "label")


def _pick(known: Mapping[str, Any], wanted: str | None, usual: tuple[str, ...], path: str, what: str) -> str:
    """The name asked for, or the first of the usual ones that is there."""
    for name in (wanted,) if wanted is not None else usual:
        if name in known:
            return name
    close = nearest(wanted or usual[0], known)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise DataError(
        f"{path!r} has no {what} {wanted or ' or '.join(usual)!r}: {hint}It has {', '.join(known) or 'none'}."
    )


def _column(
    features: Mapping[str, Any], wanted: str | None, kind: str, usual: tuple[str, ...], path: str, option: str
) -> str:
    """The column asked for, the only one of that kind, or one with a usual name."""
    if wanted is not None:
        return _pick(features, wanted, (), path, "column")
    of_kind = [name for name, feature in features.items() if type(feature).__name__ == kind]
    for name in of_kind if len(of_kind) == 1 else usual:
        if name in features:
            return name
    raise DataError(
        f"The column of {option}s of {path!r} cannot be told: give data.options.{option}, one of {', '.join(features)}."
    )


def _labels(rows: Any, column: str, where: str) -> NDArray[np.int64]:
    try:
        values = np.asarray(list(rows[column]))
    except Exception as error:  # a split may lack the column, or hold something numpy cannot take
        raise DataError(f"The column {column!r} of {where} cannot be read: {said(error)}.") from error
    if values.size == 0:
        return np.zeros(0, np.int64)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"The column {column!r} of {where} does not hold class numbers: give data.options.label.")
    return values.astype(np.int64)


def _checksums(sets: list[RowImages]) -> list[dict[str, Any]]:
    """The library's own fingerprints: they change with the content and with how it was prepared."""
    return [
        {"name": images.name, "fingerprint": str(getattr(images.rows, "_fingerprint", "unknown"))} for images in sets
    ]

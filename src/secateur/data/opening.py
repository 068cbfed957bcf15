"""From a recipe's `data:` to a data set that has been looked through and split; nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from secateur.data.augment import Augmentation
from secateur.data.each import Each, augmentations
from secateur.data.images import Images, MemoryImages
from secateur.data.normalisation import Numbers, normalisation
from secateur.data.options import StreamOptions, parse
from secateur.data.order import Indices, balanced, permutation, stratified
from secateur.data.own import OwnSplit, input_size, open_own
from secateur.data.readers import Contents, Streams, shape_of
from secateur.data.registry import DataRow, dataset
from secateur.data.sound import without_broken
from secateur.data.split import Split
from secateur.data.streams import Row, Shards, Stream, StreamImages, look_into
from secateur.errors import ConfigError, DataError
from secateur.tasks import Task, create

_LANES = 8  # of a stream, unless told otherwise
_LOOKED_AT = 16  # images of a stream at most, before anything is written


class DataRequest(Protocol):
    """What is read of a recipe's `data:`; see docs/data.md for the meanings."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def train_images(self) -> int | None: ...
    @property
    def validation(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def augment(self) -> Sequence[Any] | None: ...
    @property
    def workers(self) -> int: ...
    @property
    def on_broken(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Data:
    """A data set in three splits; `division` says in words how they were made.

    `mean` and `std` are those of each colour, for pixels from 0 to 1; of data of one's own they are not known, nor
    need `classes` be, and `example` has inputs of one sample, as the network takes them.
    """

    name: str
    classes: int | None
    class_names: tuple[str, ...] | None
    input_size: tuple[int, ...]
    mean: Numbers
    std: Numbers
    train: Split | Stream | OwnSplit
    validation: Split | Row | OwnSplit
    test: Split | Row | OwnSplit
    notes: tuple[str, ...]
    division: str
    checksums: Callable[[], list[dict[str, Any]]] = field(repr=False)
    example: Any = field(default=None, repr=False)
    normalised: str = ""  # mean and std, and where they are from, in words

    def describe(self) -> dict[str, Any]:
        """All that a run should write down about its data, ready for JSON; computes the checksums of the files."""
        return {
            "name": self.name,
            "classes": self.classes,
            "class_names": list(self.class_names) if self.class_names else None,
            "input_size": list(self.input_size),
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "split": self.division,
            "augmentation": [row.name for row in self.train.augment],
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "files": self.checksums(),
            "notes": list(self.notes),
        }


def open_data(config: DataRequest, seed: int, task: Task | None = None) -> Data:
    """Read, check and split a data set. The same configuration and seed always give the same splits.

    Args:
        config: the `data` section of a recipe, or anything with its attributes. seed: of the subset and the division.
        task: which says what a batch of data of one's own means; None: classification.

    Raises:
        ConfigError: the configuration names something unknown or impossible. DataError: the data are missing, damaged,
            of the wrong shape or too few. Either is one sentence, and nothing has been written.
    """
    if is_own(config.name):
        return _open_own(config, seed, task or create("classification"))
    row = dataset(config.name)
    options = parse(row.options, config.options, row.name)
    names = row.augment if config.augment is None else config.augment
    augment = augmentations(names)
    _check_numbers(config, seed)
    streams = row.stream(config.path, options)
    if streams is not None and isinstance(options, StreamOptions):
        return _open_streams(row, streams, config, options, augment, seed)
    contents = row.read(config.path, options)
    if config.on_broken == "skip":
        contents = without_broken(row.name, contents, config.workers)
    _check_contents(row.name, contents)
    _try_out(augment, contents.train.size)
    train, validation, how = _divide(contents, config, seed)
    looked_at = (*contents.train.check(), *contents.test.check())
    look = normalisation(options.mean, options.std, row.usual, contents.train, train)
    notes = (*contents.notes, *dict.fromkeys(looked_at))
    if config.workers and isinstance(contents.train, MemoryImages):
        notes += (f"data.workers is {config.workers}, but {row.name} is in memory and needs none.",)

    def split(images: Images, indices: Indices) -> Split:
        return Split(images, indices, look.mean, look.std, augment, config.workers)

    return Data(
        name=row.name,
        classes=contents.classes,
        class_names=contents.class_names,
        input_size=contents.train.size,
        mean=look.mean,
        std=look.std,
        normalised=str(look),
        train=split(contents.train, train),
        validation=split(contents.train, validation),
        test=split(contents.test, np.arange(len(contents.test))),
        notes=notes,
        division=how,
        checksums=contents.checksums,
    )


def is_own(name: str) -> bool:
    """Whether this is an import path rather than a name of `DATASETS`."""
    return ":" in name


def _open_own(config: DataRequest, seed: int, task: Task) -> Data:
    """Data that an import path names."""
    _check_numbers(config, seed)
    if config.path is not None:
        raise ConfigError(f"data.path has no effect on {config.name}: put it into data.options, or its code.")
    augment = augmentations(config.augment or ())
    batchwise = next((row.name for row in augment if not isinstance(row.function, Each)), None)
    if batchwise is not None:
        raise ConfigError(
            f"data.augment: {batchwise} is of images alone, and samples of {config.name} may have boxes or masks: "
            "name a class of torchvision.transforms.v2, such as RandomHorizontalFlip."
        )
    parts = open_own(
        config.name, config.options, task,
        validation=config.validation, train_samples=config.train_images, workers=config.workers, seed=seed,
        skip_broken=config.on_broken == "skip", augment=augment,
    )  # fmt: skip
    if config.batch_size > len(parts.train):
        raise DataError(
            f"data.batch_size is {config.batch_size}, and {len(parts.train)} samples are there to train on: lower it."
        )
    example, _ = parts.train.first()
    return Data(
        name=config.name,
        classes=parts.classes,
        class_names=parts.class_names,
        input_size=input_size(example),
        mean=(),
        std=(),
        train=parts.train,
        validation=parts.validation,
        test=parts.test,
        notes=(*parts.notes, *task.notes),
        division=parts.division,
        checksums=list,
        example=example,
    )


def _open_streams(
    row: DataRow,
    streams: Streams,
    config: DataRequest,
    options: StreamOptions,
    augment: tuple[Augmentation, ...],
    seed: int,
) -> Data:
    """Splits that are read from beginning to end. Whole shards are held out for validation."""
    assert options.images is not None
    assert options.test_images is not None
    if config.on_broken == "skip":
        raise ConfigError("data.on_broken is skip, and a stream is not looked through before: leave it out.")
    if config.train_images is not None:
        raise ConfigError("data.train_images is chosen from a list of all, and a stream has none: leave it out.")
    if streams.classes < 2:
        raise DataError(f"The data set {row.name} has only one class: there is nothing to tell apart, so add another.")
    shape, check = shape_of(options)
    images = StreamImages(shape)
    _try_out(augment, images.size)
    look = normalisation(options.mean, options.std, row.usual, images, np.zeros(0, np.int64))
    count = round(options.images * config.validation)
    left = options.images - count
    if config.batch_size > left:
        raise DataError(f"data.batch_size is {config.batch_size}, and {left} images are an epoch: lower it.")
    train, held = _held_out(streams, config.validation, seed)
    lanes = options.lanes or min(_LANES, len(train.chosen))
    if lanes > len(train.chosen):
        raise DataError(
            f"data.options.lanes is {lanes}, and there are {len(train.chosen)} shards to train on: each lane reads its "
            "own, so lower it, or cut the data into more shards."
        )
    test = Shards(streams.test, tuple(range(len(streams.test.shards))), streams.classes)
    for each in (train, test):
        look_into(images, each, _LOOKED_AT if check is None else min(check, _LOOKED_AT))
    common = (shape, look.mean, look.std, augment, config.workers)
    cut = f"{count:,} of the {options.images:,} stated, of {len(held.chosen)} shards held out with seed {seed}"
    return Data(
        name=row.name,
        classes=streams.classes,
        class_names=streams.class_names,
        input_size=images.size,
        mean=look.mean,
        std=look.std,
        normalised=str(look),
        train=Stream(train, left, *common, lanes, options.buffer),
        validation=Row(held, count, *common, exact=False),
        test=Row(test, options.test_images, *common),
        notes=streams.notes,
        division=f"a stream of {len(train.chosen)} shards in {lanes} lanes, {left:,} images an epoch; for validation "
        f"{cut if count else 'none'}; test images as they come",
        checksums=streams.checksums,
    )


def _held_out(streams: Streams, share: float, seed: int) -> tuple[Shards, Shards]:
    """Shards to train on, and shards for validation: whole ones, so that neither is ever read for the other's sake."""
    shards = len(streams.train.shards)
    count = max(round(shards * share), 1) if share else 0
    if count >= shards:
        raise DataError(
            f"data.validation is {share:g}, and a stream holds whole shards out, of which there are {shards}: set it "
            "to 0, or cut the data into more shards."
        )
    drawn = permutation(shards, seed=seed, purpose="shards held out").tolist()
    train, held = (
        Shards(streams.train, tuple(sorted(part)), streams.classes) for part in (drawn[count:], drawn[:count])
    )
    return train, held


def _try_out(augment: Sequence[Augmentation], size: tuple[int, ...]) -> None:
    """ConfigError where torchvision's transforms make something else of an image of this size."""
    for row in augment:
        if isinstance(row.function, Each):
            row.function.check(size)


def _check_numbers(config: DataRequest, seed: int) -> None:
    if not 0 <= config.validation < 1:
        raise ConfigError(
            f"data.validation is {config.validation}: give the share of training images, from 0 to below 1."
        )
    if config.batch_size < 1:
        raise ConfigError(f"data.batch_size is {config.batch_size}: give at least 1.")
    if config.train_images is not None and config.train_images < 1:
        raise ConfigError(f"data.train_images is {config.train_images}: give at least 1, or leave it out for all.")
    if config.workers < 0:
        raise ConfigError(f"data.workers is {config.workers}: give 0 or more.")
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"The seed is {seed}: give a whole number from 0 to 2^64 - 1.")


def _check_contents(name: str, contents: Contents) -> None:
    """What every reader's result must satisfy."""
    last = contents.classes - 1
    if last < 1:
        raise DataError(
            f"The data set {name} has only one class: there is nothing to tell apart; add images of another."
        )
    for what, images in (("training", contents.train), ("test", contents.test)):
        if not len(images):
            raise DataError(f"The data set {name} has no {what} images: add some, or get it again.")
        wrong = np.flatnonzero((images.labels < 0) | (images.labels > last))
        if len(wrong):
            number = int(wrong[0])
            raise DataError(
                f"The label of the {what} image {images.where(number)} is {images.labels[number]}, and {name} has the "
                f"classes 0 to {last}: correct the label, or get the data again."
            )
    if contents.train.size != contents.test.size:
        sizes = ["x".join(map(str, images.size)) for images in (contents.train, contents.test)]
        raise DataError(
            f"The training images of {name} are {sizes[0]} and its test images {sizes[1]}: make them one size."
        )


def _divide(contents: Contents, config: DataRequest, seed: int) -> tuple[Indices, Indices, str]:
    """Training and validation images, and in words how they were chosen."""
    labels = contents.train.labels
    available, wanted = len(labels), config.train_images
    chosen = np.arange(available)
    how = f"all {available:,} training images"
    if wanted is not None:
        if wanted > available:
            raise DataError(f"data.train_images is {wanted:,}, and {config.name} has {available:,}: ask for fewer.")
        if wanted < contents.classes:
            raise DataError(
                f"data.train_images is {wanted:,}, and {config.name} has {contents.classes} classes: "
                "ask for at least one image of each."
            )
        chosen = balanced(labels, wanted, seed=seed)
        how = f"{wanted:,} of {available:,} training images, as many of each class, drawn with seed {seed}"
    count = round(len(chosen) * config.validation)
    if config.validation and not 0 < count < len(chosen):
        raise DataError(
            f"data.validation {config.validation:g} of {len(chosen)} training images leaves {count} for validation and "
            f"{len(chosen) - count} for training: take another share or more images."
        )
    held = np.zeros(len(chosen), dtype=bool)
    held[stratified(labels[chosen], count, seed=seed)] = True
    train, validation = chosen[~held], chosen[held]
    if config.batch_size > len(train):
        raise DataError(
            f"data.batch_size is {config.batch_size}, and {len(train)} images are there to train on: lower it."
        )
    cut = f"of these {count:,} for validation, in the proportions of the classes, drawn with seed {seed}"
    return train, validation, f"{how}; {cut if count else 'none of these for validation'}; test images as they come"

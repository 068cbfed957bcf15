"""Data of the user's own: a Dataset, DataLoaders or a DataModule that an import path names.

Samples and how they are put together are theirs; which of them a batch holds is a function of seed, epoch and batch
number here, and so is every random number that a sample draws, so that a run that was killed goes on with the same
bits and two processes see the batches that one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from secateur._files import said
from secateur._importing import imported
from secateur.batches import rows_of
from secateur.data.augment import Augmentation
from secateur.data.each import drawing, together
from secateur.data.loaders import given_by
from secateur.data.order import Indices, permutation, rank_slice, words
from secateur.data.sound import left_out, readable
from secateur.data.split import asked
from secateur.errors import ConfigError, DataError, SecateurError
from secateur.graph.modules import as_call, map_tensors
from secateur.tasks import Task

_KEYS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_SAMPLES = 64  # whose bytes tell one data set from another
_FORMS = (
    "a Dataset, a DataLoader, a dict of these under train, validation and test, a tuple of two or three, or an object "
    "with train_dataloader()"
)


@dataclass(frozen=True, eq=False)
class Source:
    """Samples that can be had in any order, and how several become a batch."""

    name: str
    samples: Any
    collate: Callable[[list[Any]], Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OwnSplit:
    """Some samples of a source; keeps the interface of `secateur.data.Split`, inputs and targets of any form."""

    source: Source
    indices: Indices
    task: Task
    workers: int = 0
    augment: tuple[Augmentation, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def draws_here(self) -> bool:
        """Whether samples draw from this process's generators, so that no thread may take batches meanwhile."""
        return self.workers == 0

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int:
        """How many batches make an epoch."""
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Any]]:
        """The batches of an epoch from number `start` on, (inputs, targets) as the task takes them; see `Split`.

        augment: image and target of every sample are changed alike, after what the sample does itself.

        Raises:
            DataError: an argument is impossible, or a sample cannot be had.
        """
        numbers = asked(self, batch_size, epoch, seed, start, rank, world, drop_last)
        order = permutation(len(self), seed=seed, purpose="order", epoch=epoch) if shuffle else np.arange(len(self))
        wanted = []
        for number in numbers:
            chosen = order[number * batch_size : (number + 1) * batch_size]
            part = rank_slice(len(chosen), rank, world)
            keys = words(len(chosen), seed=seed, purpose="samples", epoch=epoch, batch=number)
            wanted.append(list(zip(self.indices[chosen[part]].tolist(), keys[part].tolist(), strict=True)))
        loader = DataLoader(
            _Keyed(self.source, self.augment if augment else (), self.task.marks),
            batch_sampler=[batch for batch in wanted if batch],
            collate_fn=self.source.collate,
            num_workers=self.workers,
            generator=torch.Generator(),  # its own, as a loader draws from it when it starts
        )
        made = iter(loader)
        for batch in wanted:
            if batch:
                yield self.task.batch(next(made))
            else:  # a small last batch leaves nothing for this process
                yield rows_of(self.first(), 0, 0)

    def first(self) -> tuple[Any, Any]:
        """The first sample as a batch of one."""
        sample = _Keyed(self.source)[int(self.indices[0]), 0]
        return self.task.batch(self.source.collate([sample]))


class _Keyed(Dataset[Any]):
    """Samples by their number and a key, on which all depends that they draw."""

    def __init__(self, source: Source, augment: tuple[Augmentation, ...] = (), marks: str = "none") -> None:
        self.source, self.augment, self.marks = source, augment, marks

    def __getitem__(self, which: tuple[int, int]) -> Any:
        """The sample; DataError where its own code fails."""
        number, key = which
        with drawing(key):
            try:
                sample = self.source.samples[number]
            except SecateurError:
                raise
            except Exception as error:
                raise DataError(
                    f"Sample {number} of {self.source.name} cannot be had ({type(error).__name__}: {said(error)}): "
                    "repair it, leave it out, or set data.on_broken: skip."
                ) from error
            return together(self.augment, sample, self.marks)


@dataclass(frozen=True)
class OwnParts:
    """What an import path led to, divided."""

    train: OwnSplit
    validation: OwnSplit
    test: OwnSplit
    classes: int | None
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]
    division: str


def open_own(
    name: str, options: Mapping[str, Any], task: Task, *, validation: float, train_samples: int | None,
    workers: int, seed: int, skip_broken: bool = False, augment: tuple[Augmentation, ...] = (),
) -> OwnParts:  # fmt: skip
    """Import, call and divide what `name` names.

    Args:
        name: `mypkg.data:build`, `file.py:build`: an object, or what is called with `options` and returns one.
        validation: the share of training samples held out where there is no set for validation.
        train_samples: train on so many only. skip_broken: leave out samples that cannot be had, of which all are tried.

    Raises:
        ConfigError: it is nothing that data can be had from. DataError: it has too few samples.
    """
    sources = _sources(name, _made(name, options), task)
    classes, names = _classes(sources["train"].samples)
    notes = [note for source in sources.values() for note in source.notes]
    if skip_broken:
        for what, source in sources.items():
            numbers, faults = readable(len(source.samples), lambda n, source=source: _Keyed(source)[n, 0], 1)  # type: ignore[misc]
            notes += left_out(f"{what} samples", len(source.samples), faults)
            sources[what] = replace(source, samples=Subset(source.samples, numbers.tolist())) if faults else source
    train = sources["train"]
    chosen = permutation(len(train.samples), seed=seed, purpose="own subset")
    if train_samples is not None:
        if train_samples > len(chosen):
            raise DataError(f"data.train_images is {train_samples}, and {name} has {len(chosen)}: ask for fewer.")
        chosen = chosen[:train_samples]
    count = 0 if "validation" in sources else round(len(chosen) * validation)
    held, rest = np.sort(chosen[:count]), np.sort(chosen[count:])
    if not len(rest):
        raise DataError(f"{name} has no training samples{' left' if count else ''}: add some.")

    def split(source: Source, indices: Indices | None = None) -> OwnSplit:
        every = np.arange(len(source.samples)) if indices is None else indices
        return OwnSplit(source, every, task, workers, augment)

    watched = split(sources["validation"]) if "validation" in sources else split(train, held)
    if "test" not in sources:
        if not len(watched):
            raise DataError(
                f"{name} gives nothing to test on: return a test set too, such as a dict of train and test."
            )
        notes.append("There is no test set, so that networks are tested on the samples for validation.")
    test = split(sources["test"]) if "test" in sources else watched
    for what, source in sources.items():
        if not len(source.samples):
            raise DataError(f"The {what} set of {name} is empty: add samples, or leave it out.")
    how = "a set of its own" if "validation" in sources else f"{count:,} of these, drawn with seed {seed},"
    division = f"{len(rest):,} training samples; for validation {how if len(watched) else 'none'}; test as they come"
    return OwnParts(split(train, rest), watched, test, classes, names, tuple(notes), division)


def digest_of_own(splits: list[OwnSplit], found: Any) -> str:
    """Feed a hash with all that some samples of each split hold, and with all labels it tells; in words what of."""
    told = False
    for split in splits:
        found.update(str(len(split)).encode())
        labels = _labels(split.source.samples)
        if labels is not None:
            _feed(labels, found)
            told = True
        for at in np.linspace(0, len(split) - 1, min(_SAMPLES, len(split))).astype(np.int64).tolist():
            _feed(_Keyed(split.source)[int(split.indices[at]), 0], found)
    return f"the numbers of samples, {'all labels, ' if told else ''}and {_SAMPLES} samples of each set"


def _labels(samples: Any) -> Any:
    """The targets or labels of all samples, where a data set has them under one of these names, as torchvision's do."""
    if isinstance(samples, Subset):
        whole = _labels(samples.dataset)
        if isinstance(whole, list | tuple):
            return [whole[number] for number in samples.indices]
        return None if whole is None else whole[list(samples.indices)]
    for name in ("targets", "labels"):
        found = getattr(samples, name, None)
        if isinstance(found, list | tuple) and found and isinstance(found[0], int | float | str | np.generic):
            found = np.array(found)
        if isinstance(found, list | tuple | np.ndarray | torch.Tensor) and len(found) == len(samples):
            return found
    return None


def _feed(value: Any, found: Any) -> None:
    """Feed a hash with the tensors, arrays, images, numbers and texts in a sample, in their order."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.ravel().tolist()
    if isinstance(value, torch.Tensor):
        value = (value if value.layout == torch.strided else value.to_dense()).detach().cpu().contiguous()
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray | np.generic):
        found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            _feed([key, value[key]], found)
    elif isinstance(value, list | tuple):
        found.update(f"[{len(value)}]".encode())
        for each in value:
            _feed(each, found)
    elif isinstance(value, bool | int | float | complex | str | bytes | None):
        found.update(repr(value).encode())
    elif hasattr(value, "tobytes"):  # an image of Pillow's
        found.update(value.tobytes())
    else:
        map_tensors(value, lambda tensor: _feed(tensor, found))


def input_size(inputs: Any) -> tuple[int, ...]:
    """The shape of one sample's first tensor."""
    args, keywords = as_call(inputs)
    shapes: list[tuple[int, ...]] = []
    map_tensors((args, keywords), lambda tensor: shapes.append(tuple(tensor.shape)))
    listed = isinstance(next(iter(args), None), list)
    return shapes[0] if listed else shapes[0][1:]


def _made(name: str, options: Mapping[str, Any]) -> Any:
    found = imported(name, "data")
    if not callable(found) or isinstance(found, Dataset | DataLoader):
        if options:
            raise ConfigError(f"data.options has no effect on {name}, which is an object already: leave it out.")
        return found
    try:
        return found(**options)
    except SecateurError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name} failed with the options {sorted(options)} ({type(error).__name__}: {said(error)}): correct it, or "
            "data.options."
        ) from error


def _sources(name: str, made: Any, task: Task) -> dict[str, Source]:
    """The sets there are, under train, validation and test."""
    parts = _parts(name, made)
    return {what: _source(f"{name} ({what})", part, task) for what, part in parts.items() if part is not None}


def _parts(name: str, made: Any) -> dict[str, Any]:
    if isinstance(made, Mapping):
        if not set(made) <= _KEYS.keys() or "train" not in made:
            found = ", ".join(map(str, made)) or "nothing"
            raise ConfigError(f"{name} gives a dict of {found}: name its sets train, validation and test.")
        return {_KEYS[key]: part for key, part in made.items()}
    if isinstance(made, tuple | list) and len(made) in (2, 3):
        return dict(zip(("train", "test") if len(made) == 2 else ("train", "validation", "test"), made, strict=True))
    if hasattr(made, "train_dataloader"):
        return _of_module(made)
    return {"train": made}


def _of_module(module: Any) -> dict[str, Any]:
    """The loaders of a DataModule, prepared as Lightning would."""
    if hasattr(module, "prepare_data"):
        module.prepare_data()
    if hasattr(module, "setup"):
        for stage in ("fit", "test"):
            module.setup(stage)
    parts = {"train": module.train_dataloader()}
    for what, method in (("validation", "val_dataloader"), ("test", "test_dataloader")):
        if hasattr(module, method):
            parts[what] = getattr(module, method)()
    return {what: part for what, part in parts.items() if part is not None and not _empty_list(part)}


def _empty_list(part: Any) -> bool:
    return isinstance(part, list | tuple) and not part


def _source(name: str, part: Any, task: Task) -> Source:
    collate: Callable[[list[Any]], Any] = task.collate
    loader = part if isinstance(part, DataLoader) else None
    if loader is not None:
        usual = loader.collate_fn is torch.utils.data.default_collate
        part, collate = loader.dataset, collate if usual else loader.collate_fn
    if isinstance(part, IterableDataset) or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise ConfigError(
            f"{name} is a {type(part).__name__}, of which no sample can be had by its number, as a run that goes on "
            f"after an interruption needs: give {_FORMS}, with map-style data sets."
        )
    if loader is None:
        return Source(name, part, collate)
    given = given_by(loader)
    if given.size is None:
        raise ConfigError(
            f"{name} has no batch size, so that its data set gives whole batches, and a run makes batches itself: give "
            "a data set of samples."
        )
    if len(given.numbers) < len(part):
        part = Subset(part, given.numbers)
    return Source(name, part, collate, tuple(f"{name}: {note}" for note in given.notes))


def _classes(samples: Any) -> tuple[int | None, tuple[str, ...] | None]:
    """How many classes a data set says it has, and what it calls them."""
    while isinstance(samples, Subset):
        samples = samples.dataset
    names = getattr(samples, "classes", None)
    if isinstance(names, list | tuple) and names:
        return len(names), tuple(map(str, names))
    number = getattr(samples, "num_classes", None)
    return (number, None) if isinstance(number, int) else (None, None)

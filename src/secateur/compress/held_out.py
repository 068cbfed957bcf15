"""Training images in two parts, always the same: some are held out to compare networks on, the others are learnt from.

Test images are no business of this room; what users pass is training data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from secateur.batches import Batches, listed, parts_of
from secateur.data.each import drawing
from secateur.data.loaders import given_by
from secateur.data.order import permutation
from secateur.data.split import Split
from secateur.errors import ConfigError, DataError
from secateur.graph.modules import Inputs, as_call
from secateur.graph.nests import map_tensors, output_tensors
from secateur.training.randomness import derive

Pair = tuple[Any, Any]
_SHARE, _LEAST, _MOST = (
    0.1,
    500,
    5000,
)  # held out: a tenth, but some hundreds where there are as many, and no more than that
SHOWN = 1024  # images that methods and repairs learn from, at most
_WHOLE = 20  # batches of a list from which on whole ones are held out
_NOISE, _NOISE_BATCHES = 16, 4
_TRIES = 8  # draws that tell whether a sample changes: an image that is flipped every second time shows it in most
_CHANGING = (
    "The data set changes its samples at random, and those that are held out, too, {} for every network: pass "
    "held_out=(batches of others that it leaves as they are) for figures without that."
)


@dataclass(frozen=True)
class Source:
    """Images in two parts; each call of a part begins it anew, with (inputs, target or None) batch by batch.

    held: to compare on. shown: some of the others, for methods and repairs; None without data. round: the others, in
    an order that depends on its number alone; None where there is nothing to train on.
    """

    count: int
    held_count: int
    steps: int
    held: Callable[[], Iterable[Pair]]
    shown: Callable[[], Iterable[Pair]] | None
    round: Callable[[int], Iterable[Pair]] | None
    notes: tuple[str, ...] = ()

    def judging(self, images: int) -> Source:
        """The same images, of which networks are compared on evenly spaced batches with about so many."""
        if images >= self.held_count:
            return self
        held, sizes = self.held, [rows_of(inputs) for inputs, _ in self.held()]
        keep, whole = max(round(len(sizes) * images / self.held_count), 1), len(sizes)
        chosen = {k for k in range(whole) if (k + 1) * keep // whole > k * keep // whole}
        return replace(
            self,
            held=lambda: (pair for k, pair in enumerate(held()) if k in chosen),
            held_count=sum(sizes[k] for k in chosen),
        )

    def showing(self, images: int) -> Source:
        """The same images, of which methods and repairs see the first batches with about so many."""
        shown = self.shown
        return self if shown is None or images >= SHOWN else replace(self, shown=lambda: _first(shown(), images))


def _first(batches: Iterable[Pair], images: int) -> Iterator[Pair]:
    """Batches until there are so many images."""
    seen = 0
    for inputs, target in batches:
        yield inputs, target
        seen += rows_of(inputs)
        if seen >= images:
            return


def held_of(count: int) -> int:
    """How many of `count` training images are held out.

    Raises:
        DataError: there are too few for two parts.
    """
    if count < 2:
        raise DataError(f"There {'is one training image' if count else 'are no training images'}: give at least two.")
    return min(max(round(count * _SHARE), min(_LEAST, count // 3), 1), _MOST)


def source_of(data: Any, example_inputs: Any, seed: int, held_out: Any = None) -> Source:
    """The two parts of what a user has.

    Args:
        data: a DataLoader, batches in any form of `secateur.batches.Batches`, a `Split`, or None for noise.
        example_inputs: what the network is called with. seed: of the division and of all orders.
        held_out: batches to compare on; `data` is then not divided.

    Raises:
        SecateurError: the data cannot be divided; one sentence.
    """
    if data is None:
        return _noise(example_inputs, seed)
    if isinstance(data, Split):
        return _of_split(data, seed)
    if held_out is not None:
        return _given(data, held_out, example_inputs, seed)
    if isinstance(data, DataLoader):
        return _of_loader(data, example_inputs, seed)
    return _of_batches(list(Batches(data, example_inputs)), seed)


def rows_of(value: Any) -> int:
    """How many samples inputs or targets are: the length of the first tensor, or of a list of images or of dicts."""
    args, _ = as_call(value)
    if args and listed(args[0]):
        return len(args[0])
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return len(value)
    first = next(iter(output_tensors(value)), None)
    return len(first) if first is not None and first.ndim else 1


def _of_loader(loader: DataLoader[Any], example: Any, seed: int) -> Source:
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            "A DataLoader of a stream cannot be divided: pass held_out=(batches of other training images)."
        )
    dataset: Any = loader.dataset
    given = given_by(loader)
    indices, size = given.numbers, given.size
    order = permutation(len(indices), seed=seed, purpose="held out").tolist()
    count = held_of(len(indices))
    held, rest = [indices[k] for k in order[:count]], [indices[k] for k in order[count:]]

    def batches(part: Sequence[int], number: int | None = None, size: int | None = size) -> Iterator[Pair]:
        generator = torch.Generator().manual_seed(0 if number is None else derive(seed, "round", number))
        made = DataLoader(
            Subset(dataset, part),
            batch_size=size,
            shuffle=number is not None,
            generator=generator,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
        return (parts_of(batch, example) for batch in _drawn(made, seed, "held" if number is None else number))

    alone = None if size is None else 1
    return Source(
        count=len(rest),
        held_count=count,
        steps=-(-len(rest) // size) if size else len(rest),
        held=lambda: batches(held),
        shown=lambda: batches(rest[:SHOWN] if size else rest[: SHOWN // 32]),
        round=lambda number: batches(rest, number),
        notes=(*given.notes, *_changing(lambda: batches(held[:1] * _TRIES, size=alone))),
    )


def _drawn(batches: Iterable[Any], seed: int, part: str | int) -> Iterator[Any]:
    """These batches, whose samples draw what follows from the part and the number of the batch."""
    with drawing(derive(seed, "samples", part)):
        made = iter(batches)
    for number in itertools.count():
        try:
            with drawing(derive(seed, "samples", part, number)):
                batch = next(made)
        except StopIteration:
            return
        yield batch


def _changing(again: Callable[[], Iterable[Any]]) -> tuple[str, ...]:
    """What is to be said where a batch that is had again and again is not always the same."""
    first, second = ([output_tensors(batch) for batch in again()] for _ in range(2))
    if all(_same(first[0], other) for other in (*first[1:], *second)):
        return ()
    steady = all(_same(one, other) for one, other in zip(first, second, strict=True))
    return (_CHANGING.format("the same way" if steady else "by a generator of its own and another way"),)


def _same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())  # not a number is not itself
        for a, b in zip(one, other, strict=False)
    )


def _of_split(split: Split, seed: int) -> Source:
    order = permutation(len(split), seed=seed, purpose="held out")
    count = held_of(len(split))
    held = replace(split, indices=split.indices[order[:count]])
    rest = replace(split, indices=split.indices[order[count:]])
    size = min(64, max(len(rest) // 2, 1))

    def shown() -> Iterator[Pair]:
        return itertools.islice(rest.batches(size), -(-SHOWN // size))

    return Source(
        count=len(rest),
        held_count=count,
        steps=rest.batch_count(size),
        held=lambda: held.batches(min(256, count)),
        shown=shown,
        round=lambda number: rest.batches(size, epoch=number, shuffle=True, augment=True, seed=seed),
        notes=split.notes,
    )


def _given(data: Any, held_out: Any, example: Any, seed: int) -> Source:
    """Parts that the user has made."""
    learnt, held = Batches(data, example), Batches(held_out, example)
    sizes = [rows_of(inputs) for inputs in learnt.inputs()]
    first = max(sizes, default=1)
    others = [rows_of(inputs) for inputs in held.inputs()]
    for what, counts in (("no training images", sizes), ("no images in held_out", others)):
        if not counts:
            raise DataError(f"There are {what}: give at least one batch.")
    return Source(
        count=sum(sizes),
        held_count=sum(others),
        steps=len(sizes),
        held=lambda: _drawn(held, seed, "held"),
        shown=lambda: itertools.islice(_drawn(learnt, seed, "shown"), -(-SHOWN // first)),
        round=lambda number: _drawn(learnt, seed, number),
        notes=("held_out is compared on as it was given: see to it that none of its images is among the others.",),
    )


def _of_batches(batches: list[Pair], seed: int) -> Source:
    """Batches in memory: whole ones are held out where there are many, else some images of all."""
    sizes = [rows_of(inputs) for inputs, _ in batches]
    total = sum(sizes)
    count = held_of(total)
    if len(batches) >= _WHOLE:
        order = permutation(len(batches), seed=seed, purpose="held out").tolist()
        enough = next(k for k in range(1, len(order) + 1) if sum(sizes[i] for i in order[:k]) >= count)
        held, rest = ([batches[k] for k in part] for part in (order[:enough], order[enough:]))
    else:
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[torch.from_numpy(permutation(total, seed=seed, purpose="held out"))[:count]] = True
        parts = list(zip(batches, chosen.split(sizes), strict=True))
        held, rest = (
            [_rows(b, m if out else ~m) for b, m in parts if bool((m if out else ~m).any())] for out in (True, False)
        )
    heights = [rows_of(inputs) for inputs, _ in rest]
    few = next((k for k in range(1, len(rest) + 1) if sum(heights[:k]) >= SHOWN), len(rest))

    def shuffled(number: int) -> Iterable[Pair]:
        return [rest[k] for k in permutation(len(rest), seed=seed, purpose="round", epoch=number)]

    return Source(sum(heights), total - sum(heights), len(rest), lambda: held, lambda: rest[:few], shuffled)


def _rows(pair: Pair, mask: torch.Tensor) -> Pair:
    """Some images of a batch and their targets; lists as long as the batch are lists of images, or of their targets."""
    count = len(mask)

    def cut(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[mask.to(value.device)] if value.ndim and len(value) == count else value
        if isinstance(value, Inputs):
            return Inputs(*map(cut, value.args), **{k: cut(v) for k, v in value.kwargs.items()})
        if isinstance(value, dict):
            return {key: cut(each) for key, each in value.items()}
        if isinstance(value, list) and len(value) == count:
            return list(itertools.compress(value, mask.tolist()))
        return type(value)(cut(each) for each in value) if isinstance(value, list | tuple) else value

    return cut(pair[0]), cut(pair[1])


def _noise(example: Any, seed: int) -> Source:
    """Random inputs like the example, for want of data."""
    args, keywords = as_call(example)
    generator = torch.Generator().manual_seed(derive(seed, "noise"))

    def like(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or not tensor.ndim:
            return tensor
        shape = (_NOISE // _NOISE_BATCHES * len(tensor), *tensor.shape[1:])
        return torch.randn(shape, generator=generator, dtype=tensor.dtype).to(tensor.device)

    held = [(Inputs(*map_tensors(args, like), **map_tensors(keywords, like)), None) for _ in range(_NOISE_BATCHES)]
    return Source(0, 0, 0, lambda: held, None, None)

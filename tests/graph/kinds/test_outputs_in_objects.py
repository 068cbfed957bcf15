"""Outputs and inputs inside objects: found at every depth, or the network is refused; never cut unseen."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from _judge import TOLERANCE, error, image, leaves, relu_conv, right_or_refused, unique
from torch import nn

import secateur

Wrap = Callable[[torch.Tensor, torch.Tensor], Any]


class Fields:
    """Named fields in a private dict, read as attributes."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._fields[name]


class Slotted:
    __slots__ = ("name", "scores")

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores, self.name = scores, "scores"


class Derived(Slotted):
    __slots__ = ("more",)


@dataclasses.dataclass
class Detections:
    scores: torch.Tensor
    count: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    inner: Any


class Pair(NamedTuple):
    size: Any
    found: Any


class Own(collections.abc.Mapping):
    """A mapping that is no dict."""

    def __init__(self, **held: Any) -> None:
        self.held = held

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


class Stacked(list):
    """A list with a tensor beside its items."""

    def __init__(self, items: list[Any], extra: torch.Tensor) -> None:
        super().__init__(items)
        self.extra = extra


class Listed:
    """A sequence by its methods alone."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, at: int) -> Any:
        return self._items[at]


def derived(scores: torch.Tensor) -> Derived:
    made = Derived(torch.zeros(1))
    made.more = [scores]
    return made


def circular(scores: torch.Tensor) -> Fields:
    made = Fields(scores=scores)
    made._fields["self"] = made
    return made


SEEN: dict[str, Wrap] = {
    "fields in a dict": lambda y, n: {"size": n, "instances": Fields(scores=y)},
    "object in a tuple": lambda y, n: (n, Slotted(y)),
    "inherited slots": lambda y, n: [n, derived(y)],
    "dataclass in a list in a dict": lambda y, n: {"found": [Detections(y)], "size": n},
    "frozen dataclass around an object": lambda y, n: (Frozen(Fields(scores=y)), n),
    "named tuple": lambda y, n: Pair(n, Fields(scores=y)),
    "mapping that is no dict": lambda y, n: (n, Own(scores=y)),
    "user dict": lambda y, n: (n, collections.UserDict(scores=y)),
    "deque": lambda y, n: (n, collections.deque([Fields(scores=y)])),
    "list with attributes": lambda y, n: Stacked([n], y),
    "circular object": lambda y, n: (n, circular(y)),
    "object in an object in a dict": lambda y, n: {"a": {"b": Fields(c=Fields(d=(n, {"e": Fields(f=y)})))}},
    "distribution": lambda y, n: {"size": n, "policy": torch.distributions.Categorical(logits=y)},
    "sequence by its methods": lambda y, n: (n, Listed(y)),
    "lists of objects": lambda y, n: {"size": n, "per image": [Fields(scores=row) for row in y]},
}
HIDDEN: dict[str, Wrap] = {
    "generator": lambda y, n: (n, (row for row in y)),
    "function": lambda y, n: (n, lambda: y),
    "iterator": lambda y, n: {"size": n, "late": iter([y])},
}


class Net(nn.Module):
    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.a, self.b, self.scores, self.wrap = relu_conv(3, 16), relu_conv(16, 16), nn.Linear(16, 10), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.scores(self.b(self.a(x)).mean((2, 3))), x.sum((1, 2, 3)))


@pytest.mark.parametrize("name", SEEN)
def test_an_output_in_an_object_is_an_output(name: str) -> None:
    model = unique(Net(SEEN[name])).eval()
    prune = lambda: secateur.prune(model, image(), allocator="ratios", ratios={"*": 0.5})  # noqa: E731
    result = right_or_refused(prune, "output")
    if result is None:
        return
    assert result.model.scores.out_features == 10
    assert result.model.b[0].out_channels == 8
    assert leaves(result.model(image())), "the judge sees nothing"
    assert error(model, result.model, image()) <= TOLERANCE


@pytest.mark.parametrize("name", HIDDEN)
def test_an_output_that_cannot_be_looked_into_is_refused_or_kept(name: str) -> None:
    model = unique(Net(HIDDEN[name])).eval()
    prune = lambda: secateur.prune(model, image(), allocator="ratios", ratios={"*": 0.5})  # noqa: E731
    result = right_or_refused(prune, "output")
    if result is not None:
        assert result.model.scores.out_features == 10


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    offset: float = 0.5


class Holder:
    def __init__(self, image: torch.Tensor) -> None:
        self.image = image
        self.offset = 0.5


class Named(NamedTuple):
    image: torch.Tensor
    offset: float


class FromObject(nn.Module):
    """Reads its image from an attribute of what it is given, and hands the object on to a part."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self.key, self.part, self.b, self.scores = key, Part(), relu_conv(16, 16), nn.Linear(16, 10)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.scores(self.b(self.part(batch if self.key is None else batch[self.key])).mean((2, 3)))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = relu_conv(3, 16)

    def forward(self, batch: Any) -> torch.Tensor:
        assert not isinstance(batch, dict)
        return self.a(batch.image + batch.offset)


INPUTS: dict[str, tuple[str | None, Callable[[], Any]]] = {
    "dataclass": (None, lambda: Batch(image())),
    "plain object": (None, lambda: Holder(image())),
    "named tuple": (None, lambda: Named(image(), 0.5)),
    "object in a dict": ("batch", lambda: {"batch": Holder(image())}),
    "dataclass in a list": (0, lambda: [Batch(image())]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_in_objects_keep_their_class(name: str) -> None:
    key, make = INPUTS[name]
    model = unique(FromObject(key)).eval()
    result = right_or_refused(
        lambda: secateur.prune(model, (make(),), allocator="ratios", ratios={"*": 0.5}), "input", "Holder", "Batch"
    )
    if result is not None:
        assert result.model.b[0].out_channels == 8
        assert error(model, result.model, (make(),)) <= TOLERANCE

"""Outputs and inputs inside objects: found at every depth, or the network is refused; never cut unseen."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from _judge import TOLERANCE, error, image, leaves, masked, relu_conv, right_or_refused, unique
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


class Tagged:
    """An object whose class holds the tensor, as a cache for all of its kind."""

    shared: torch.Tensor


def tagged(scores: torch.Tensor) -> Any:
    return type("Own", (Tagged,), {"shared": scores})


def beside(scores: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    size.logits = scores  # type: ignore[attr-defined]
    return size


def with_default(scores: torch.Tensor) -> Callable[..., torch.Tensor]:
    def late(found: torch.Tensor = scores) -> torch.Tensor:
        return found

    return late


def finished(scores: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    made: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    made.set_result(scores)
    return made


class Quiet(list):
    """A list that does not give what it holds when it is gone through."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


CARRIED: dict[str, Wrap] = {
    "an attribute of a tensor": lambda y, n: beside(y, n),
    "an attribute of a tensor in a dict": lambda y, n: {"size": beside(y, n)},
    "a default of a function": lambda y, n: (n, with_default(y)),
    "a keyword's default": lambda y, n: (n, lambda *, found=y: found),
    "a method of a tensor": lambda y, n: (n, y.argmax),
    "a method of a list": lambda y, n: (n, [y].pop),
    "the class of an object": lambda y, n: (n, tagged(y)()),
    "a class": lambda y, n: [n, tagged(y)],
    "an exception": lambda y, n: (n, ValueError("low", y)),
    "a future": lambda y, n: {"size": n, "late": finished(y)},
    "a list that hides its items": lambda y, n: (n, Quiet([y])),
}


@pytest.mark.parametrize("how", CARRIED)
def test_what_carries_an_output_along_is_looked_into(how: str) -> None:
    model = unique(Net(CARRIED[how])).eval()
    result = secateur.prune(model, image(), allocator="ratios", ratios={"*": 0.5})
    assert result.model.scores.out_features == 10
    assert result.model.b[0].out_channels == 8


@pytest.mark.parametrize("name", ["storage", "capsule"])
def test_bare_memory_as_output_is_refused(name: str) -> None:
    ways: dict[str, Wrap] = {
        "storage": lambda y, n: (n, y.untyped_storage()),
        "capsule": lambda y, n: (n, torch.utils.dlpack.to_dlpack(y)),
    }
    with pytest.raises(secateur.SecateurError, match="cannot be looked into"):
        secateur.prune(Net(ways[name]).eval(), image(), allocator="ratios", ratios={"*": 0.5})


class Strict(dict):
    """A dict that is only filled when it is made."""

    def __setitem__(self, key: object, value: object) -> None:
        raise RuntimeError("this dict is frozen")


class Two(tuple):
    """A tuple whose constructor takes its items apart."""

    def __new__(cls, first: Any, second: Any) -> Two:
        return tuple.__new__(cls, (first, second))


def namespace() -> Any:
    made = types.SimpleNamespace(image=image(), offset=0.5)
    made.itself = made
    return made


def boxed() -> Any:
    found = np.empty(2, dtype=object)
    found[0], found[1] = Holder(image()), None
    return found


CLASSES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "namespace that knows itself": (None, namespace),
    "dict that cannot be set": ("batch", lambda: Strict(batch=Holder(image()))),
    "tuple with a constructor": (1, lambda: Two(0, Holder(image()))),
    "mapping that cannot be set": ("batch", lambda: Own(batch=Holder(image()))),
    "proxy of a dict": ("batch", lambda: types.MappingProxyType({"batch": Holder(image())})),
    "array of objects": (0, boxed),
}


@pytest.mark.parametrize("name", CLASSES)
def test_inputs_of_any_class_are_made_again_as_what_they_are(name: str) -> None:
    key, make = CLASSES[name]
    model = unique(FromObject(key)).eval()
    result = secateur.prune(model, (make(),), allocator="ratios", ratios={"*": 0.5})
    assert result.model.b[0].out_channels == 8
    torch.testing.assert_close(result.model(make()), masked(model, result.model)(make()))


@pytest.mark.parametrize(
    "given", [(x for x in [image()]), iter([image()]), map(abs, [image()])], ids=lambda v: str(type(v))
)
def test_an_input_that_can_be_read_once_is_refused(given: Any) -> None:
    class First(Net):
        def forward(self, found: Any) -> Any:
            return super().forward(next(found))

    with pytest.raises(secateur.SecateurError, match="input or output holds a"):
        secateur.prune(First(lambda y, n: y).eval(), (given,), budget="flops=0.5")

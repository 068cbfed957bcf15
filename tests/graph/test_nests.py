"""Tensors inside objects: found at every depth, rebuilt as what they are, refused where nobody can look."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections import UserDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.graph.nests import map_tensors, output_tensors

ONE = torch.ones(2)


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    size: int = 3


class Fields:
    """A plain object with private names and a reference to itself."""

    def __init__(self, scores: Any) -> None:
        self.__scores, self.me = scores, self


class Slots:
    __slots__ = ("__hidden", "empty", "scores")

    def __init__(self, scores: Any) -> None:
        self.scores, self.__hidden = scores, [scores + 1]


class Strict:
    """Its constructor and its attributes refuse what was not made for them, as detectron2's instances do."""

    def __init__(self, size: tuple[int, int], /, **fields: Any) -> None:
        object.__setattr__(self, "_fields", fields)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Named(NamedTuple):
    logits: Any
    rest: Any = None


class Tagged(list[Any]):
    """A list with an attribute."""


def tagged() -> Tagged:
    made = Tagged([ONE])
    made.extra = ONE + 1  # type: ignore[attr-defined]
    return made


def array() -> Any:
    made = np.empty(2, dtype=object)
    made[:] = [ONE, Fields(ONE)]
    return made


NESTS: list[tuple[Callable[[], Any], int]] = [
    (lambda: Frozen([ONE, Frozen({"a": ONE})]), 2),
    (lambda: {"instances": Fields(ONE), "size": ONE}, 2),
    (lambda: (Slots(ONE),), 2),
    (lambda: [Strict((8, 8), boxes=ONE, scores=Fields(ONE))], 2),
    (lambda: Named(ONE, Named(Fields({"deep": (ONE,)}))), 2),
    (tagged, 2),
    (lambda: UserDict(a=ONE), 1),
    (lambda: defaultdict(list, a=[ONE]), 1),
    (lambda: collections.OrderedDict(a=Fields(ONE)), 1),
    (lambda: deque([ONE, ONE]), 2),
    (lambda: torch.max(torch.eye(2), 0), 2),
    (lambda: torch.distributions.Normal(ONE, ONE + 1), 2),
    (array, 2),
    (lambda: [ONE, [ONE, None, "text", 3, np.ones(2)]], 2),
]


@pytest.mark.parametrize(("make", "count"), NESTS, ids=lambda v: "" if callable(v) else str(v))
def test_tensors_are_found_and_mapped_in_values_that_stay_what_they_are(make: Callable[[], Any], count: int) -> None:
    value = make()
    before = output_tensors(value, refuse=True)
    mapped = map_tensors(value, lambda t: t.double() * 3)
    after = output_tensors(mapped)
    assert len(before) == count
    assert type(mapped) is type(value)
    assert mapped is not value
    assert all(torch.equal(a.double() * 3, b) for a, b in zip(before, after, strict=True))
    assert all(a is b for a, b in zip(before, output_tensors(value), strict=True))  # the value itself is untouched


def test_a_list_in_itself_and_objects_in_a_ring_come_to_an_end() -> None:
    ring: list[Any] = [ONE]
    ring.append(ring)
    mapped = map_tensors(ring, lambda t: t + 1)
    assert mapped[1] is mapped
    assert torch.equal(mapped[0], ONE + 1)
    assert len(output_tensors(ring)) == 1


def test_what_holds_no_tensor_is_passed_on() -> None:
    things = (Fields("text"), object(), print, lambda: 3, iter([1, 2]), Frozen(None))
    mapped = map_tensors(things, lambda t: t + 1)
    assert all(a is b for a, b in zip(things, mapped, strict=True))
    assert output_tensors(things, refuse=True) == []


HIDDEN = [lambda t: iter([t]), lambda t: (x for x in [t]), lambda t: {"a": [map(abs, [t])]}]


@pytest.mark.parametrize("hide", HIDDEN)
def test_where_a_tensor_may_hide_an_output_is_refused(hide: Callable[[Any], Any]) -> None:
    assert output_tensors(hide(ONE)) == []
    with pytest.raises(secateur.ModelError, match="cannot be looked into"):
        output_tensors(hide(ONE), refuse=True)


def test_what_a_function_carries_is_seen() -> None:
    kept = ONE + 1
    assert len(output_tensors([functools.partial(torch.add, ONE), lambda: kept])) == 2


class Detector(nn.Module):
    """Takes and gives objects, as `wrap` and `take` say."""

    def __init__(self, take: Callable[[Any], torch.Tensor], wrap: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)
        self.take, self.wrap = take, wrap

    def forward(self, x: Any) -> Any:
        x = self.take(x)
        return self.wrap(self.fc(torch.relu(self.conv(x)).mean((2, 3))), x.sum((1, 2, 3)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, s: {"instances": Fields(y), "size": s},
        lambda y, s: (s, [Slots(y)]),
        lambda y, s: Frozen(image={"deep": (s, Strict((1, 1), scores=y))}),
        lambda y, s: Named(s, Fields(Fields(y))),
    ],
)
def test_an_output_inside_an_object_stays_whole(wrap: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    model = Detector(lambda x: x, wrap).eval()
    result = secateur.prune(model, torch.randn(2, 3, 8, 8), budget="params=0.4")
    assert [(g.name, g.width) for g in result.graph.groups] == [("conv", 16)]
    assert result.model.fc.out_features == 10  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("hold", "take"),
    [
        (Frozen, lambda v: v.image),
        (Slots, lambda v: v.scores),
        (lambda x: {"x": [Strict((8, 8), image=x)]}, lambda v: v[0]._fields["image"]),
        (lambda x: UserDict(x=Named(x)), lambda v: v.logits),
    ],
)
def test_an_input_inside_an_object_arrives_as_that_object(
    hold: Callable[[Any], Any], take: Callable[[Any], Any]
) -> None:
    image = torch.randn(2, 3, 8, 8)
    held = hold(image)
    inputs = held if isinstance(held, dict | UserDict) else (held,)
    result = secateur.prune(Detector(take, lambda y, _: y).eval(), inputs, budget="flops=0.5")
    assert result.verification is not None
    assert result.verification.exact
    assert result.model.conv.out_channels < 16  # type: ignore[union-attr]


def test_a_generator_as_output_is_refused_and_one_between_layers_is_not() -> None:
    with pytest.raises(secateur.ModelError, match="generator"):
        secateur.trace(Detector(lambda x: x, lambda y, _: (t for t in [y])), torch.randn(1, 3, 8, 8))

    class Parts(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return (t for t in x.chunk(2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.parts, self.b = nn.Conv2d(3, 8, 3), Parts(), nn.Conv2d(8, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.b(t) for t in self.parts(self.a(x))])

    assert [g.name for g in secateur.trace(Net(), torch.randn(2, 3, 8, 8)).groups] == ["a"]


def test_tensors_that_are_keys_are_seen() -> None:
    assert [t.tolist() for t in output_tensors({ONE: ONE + 1, (ONE + 2, "name"): 3})] == [[1, 1], [3, 3], [2, 2]]

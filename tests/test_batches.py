"""Batches in the forms people have them: the same inputs and targets come out of each."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.batches import Batches, inputs_of, parts_of
from secateur.errors import ConfigError, InputError, SecateurError

X, Y, W = torch.randn(4, 3, 8, 8), torch.arange(4), torch.rand(4)
Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        (X, None),
        ((X,), None),
        ([X], None),
        ((X, Y), Y),
        ([X, Y], Y),
        ((X, Y, W), Y),
        ([X, Y, ["a.png"] * 4], Y),
        (Pair(X, Y), Y),
        ({"image": X, "label": Y}, Y),
        ({"pixel_values": X, "labels": Y, "index": W}, Y),
        ({"seen": X, "weights": Y}, Y),  # the only one with four dimensions
        ({"img": X}, None),
        (UserDict({"x": X, "y": Y}), Y),
        (({"image": X}, Y), Y),
        ((X, None), None),
        ((X, {"boxes": Y}), {"boxes": Y}),
    ],
)
@pytest.mark.parametrize("example", [X[:1], (X[:1],)])
def test_one_input(batch: Any, target: Any, example: Any) -> None:
    inputs, found = parts_of(batch, example)
    assert inputs is X
    assert found is target if not isinstance(target, dict) else found == target


@pytest.mark.parametrize(
    ("batch", "target"),
    [((X, W), None), ((X, W, Y), Y), (((X, W), Y), Y), ([[X, W], Y], Y), (((X, W), Y, 1), Y), (([X, W],), None)],
)
def test_several_inputs(batch: Any, target: Any) -> None:
    """What is the target of one network is the second input of another."""
    inputs, found = parts_of(batch, (X[:1], W[:1]))
    assert tuple(map(id, inputs)) == (id(X), id(W))
    assert found is target


@pytest.mark.parametrize(
    ("batch", "target"),
    [({"a": X, "b": W, "label": Y}, Y), ((X, W, Y), Y), (((X, W), Y), Y), (({"a": X, "b": W, "c": 0}, Y), Y)],
)
def test_keywords(batch: Any, target: Any) -> None:
    inputs, found = parts_of(batch, {"a": X[:1], "b": W[:1]})
    assert list(inputs) == ["a", "b"]
    assert inputs["a"] is X
    assert inputs["b"] is W
    assert found is target


@pytest.mark.parametrize("batch", [([X[0], X[1]], "t"), (((X[0], X[1]),), "t"), (([X[0], X[1]],), "t")])
def test_a_list_of_images_is_one_argument(batch: Any) -> None:
    inputs, target = parts_of(batch, ([X[0]],))
    assert len(inputs) == 1
    assert [id(image) for image in inputs[0]] == [id(inputs[0][0]), id(inputs[0][1])]
    assert target == "t"
    assert len(inputs_of([X[0], X[1], X[2]], ([X[0]],))[0]) == 3  # a bare list of them is a batch without a target


def test_what_gives_batches() -> None:
    """A DataLoader, a list, a generator (again and again), one tensor."""

    def generator() -> Iterator[Any]:
        yield X, Y
        yield X[:1], Y[:1]

    sets = {
        "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
        "generator": generator(),
        "list": [(X, Y), {"image": X[:1], "label": Y[:1]}],
    }
    for given in sets.values():
        batches = Batches(given, X[:1])
        for _ in range(2):
            assert sum(len(x) for x, _ in batches) == sum(len(y) for _, y in batches.labelled("It")) in (4, 5)
    assert [len(x) for x in Batches(X, X[:1]).inputs()] == [4]


def test_a_target_is_asked_for_where_it_is_looked_at() -> None:
    batches = Batches([(X, Y), X], X[:1])
    assert [target is None for _, target in batches] == [False, True]
    with pytest.raises(InputError, match="The method taylor looks at targets and a batch has none"):
        list(batches.labelled("The method taylor"))


@pytest.mark.parametrize(
    ("batch", "example", "said"),
    [
        ((), X, "A batch is empty"),
        ("ab", X, "A batch is a str"),
        ((X[0], 3), X, "3x8x8 and the network takes 4x3x8x8: a single sample"),
        ({"image": X[0]}, X, "a single sample"),
        ({"one": X, "two": X}, X, "Which of one, two the network takes cannot be told"),
        ((X,), (X, W), "takes 2 inputs and a batch has 1"),
        ({"a": X}, {"a": X, "b": W}, "a batch has no 'b'"),
        ((X.to(torch.uint8), Y), X, "inputs are uint8 and the network takes float32: convert"),
        ({"image": X.double()}, X, "inputs are float64 and the network takes float32"),
        ((X[:, :1], Y), X, "4x1x8x8 and the network takes 3 channels, 4x3x8x8: convert the images"),
        (X.permute(0, 2, 3, 1), X, r"the network takes 3 channels, 4x3x8x8: permute\(0, 3, 1, 2\) as for training"),
        ({"image": torch.cat([X, X[:, :1]], 1)}, X, "4x4x8x8 and the network takes 3 channels"),
        ((X, W.long()), (X, W), "inputs are int64 and the network takes float32"),
    ],
)
def test_what_cannot_be_a_batch(batch: Any, example: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parts_of(batch, example)


@pytest.mark.parametrize("shape", [(2, 9, 16, 3), (2, 5, 3), (2, 7)])
def test_what_is_no_image_may_vary_in_its_second_dimension(shape: tuple[int, ...]) -> None:
    value = torch.zeros(shape)
    example = torch.zeros((1, 8, *shape[2:]))
    assert parts_of((value, Y), example)[0] is value


@pytest.mark.parametrize("given", [3, "train", {"x": X}, None])
def test_what_gives_no_batches(given: Any) -> None:
    with pytest.raises(SecateurError, match="give batches, such as a DataLoader") as caught:
        Batches(given, X)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("batch", [X[:0], (X[:0], Y[:0]), {"image": X[:0], "label": Y[:0]}, (X[..., :0], Y)])
def test_a_batch_of_nothing_is_refused(batch: Any) -> None:
    with pytest.raises(InputError, match="A batch holds nothing"):
        list(Batches([(X, Y), batch], X[:1]))


@pytest.mark.parametrize("example", [X[:0], (X[:0], W[:0]), {"image": X[..., :0]}])
def test_example_inputs_of_nothing_are_refused(example: Any) -> None:
    model = torch.nn.Conv2d(3, 8, 3)
    with pytest.raises(InputError, match="hold not one number"):
        secateur.prune(model, example, budget="flops=0.5")

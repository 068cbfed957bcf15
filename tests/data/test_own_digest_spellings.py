"""Samples of one's own in every form: other labels, other pixels or another order are other data, and the same are not.

Where labels are plain numbers, as most data sets give them, a digest of tensors alone would not see them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from secateur.data.own import OwnSplit, Source, digest_of_own
from secateur.tasks import create


class Fed:
    """A hash that remembers."""

    def __init__(self) -> None:
        self.fed = b""

    def update(self, data: Any) -> None:
        self.fed += bytes(data)


def _digest(samples: Any) -> bytes:
    source, found = Source("mine", samples, list), Fed()
    digest_of_own([OwnSplit(source, np.arange(len(samples)), create("classification"))], found)
    return found.fed


def _picture(value: int) -> Any:
    image = pytest.importorskip("PIL.Image")
    return image.fromarray(np.full((4, 4), value, np.uint8))


FORMS: dict[str, Callable[[int, int], Any]] = {
    "a Python number": lambda x, y: (torch.full((2,), float(x)), y),
    "a NumPy number": lambda x, y: (np.full(2, x), np.int64(y)),
    "a tensor of half precision": lambda x, y: (torch.full((2,), x, dtype=torch.bfloat16), torch.tensor(y)),
    "a name": lambda x, y: {"image": _picture(x), "label": f"class {y}"},
    "objects in an array": lambda x, y: (np.array([x, "a", None], dtype=object), y),
    "boxes": lambda x, y: ([torch.full((3, 4), float(x))], {"boxes": torch.ones(2, 4), "labels": [y, y]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_pixels_and_order_make_data_what_they_are(form: str) -> None:
    make = FORMS[form]
    plain = [make(n, n % 3) for n in range(10)]
    assert _digest(plain) == _digest([make(n, n % 3) for n in range(10)])
    assert _digest(plain) != _digest([make(n, (n + 1) % 3) for n in range(10)])
    assert _digest(plain) != _digest([make(n + (n == 7), n % 3) for n in range(10)])
    assert _digest(plain) != _digest(plain[::-1])


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_all_labels_count_where_a_set_has_them(name: str, kind: Callable[[list[int]], Any]) -> None:
    """Of a thousand samples 64 are looked at; its list of labels is looked at as a whole."""

    class Set(list[Any]):
        pass

    def made(labels: list[int]) -> Set:
        found = Set([(torch.zeros(1), 0)] * len(labels))
        setattr(found, name, kind(labels))
        return found

    labels = [n % 7 for n in range(1000)]
    other = [*labels[:3], 6, *labels[4:]]
    assert _digest(made(labels)) == _digest(made(list(labels)))
    assert _digest(made(labels)) != _digest(made(other))

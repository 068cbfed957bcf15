"""The digits inside scikit-learn: 1,797 grey images of 8x8, for demonstrations and tests without a download."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from secateur.data.images import MemoryImages
from secateur.data.options import Options
from secateur.data.order import balanced
from secateur.data.readers import Contents
from secateur.errors import DataError

_TEST, _SEED = 500, 0  # the set has no test images of its own: these are the same 50 of each class in every run


def read(path: str | None, options: Options, get: str) -> Contents:
    """1,297 training and 500 test images; grey values 0 to 16 become 0 to 255."""
    if path is not None:
        raise DataError(f"The data set digits is inside scikit-learn and has no path: leave data.path {path!r} out.")
    values, labels = load_digits(return_X_y=True)
    pixels = np.round(values.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[balanced(labels, _TEST, seed=_SEED)] = True
    row = {
        "name": "sklearn.datasets.load_digits",
        "bytes": pixels.nbytes,
        "sha256": hashlib.sha256(pixels.tobytes() + labels.astype("<i8").tobytes()).hexdigest(),
    }
    return Contents(
        MemoryImages(pixels[~test], labels[~test]),
        MemoryImages(pixels[test], labels[test]),
        classes=10,
        class_names=tuple("0123456789"),
        checksums=partial(_rows, row),
    )


def _rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row]

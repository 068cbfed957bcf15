"""Normalisations: what they promise, and that no score breaks them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secateur.allocate.normalise import NORMALISATIONS, normalisation
from secateur.errors import ConfigError

SCORES = arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e308, 1e308))


@given(SCORES, st.sampled_from([name for name in NORMALISATIONS if name != "lamp"]))
def test_order_is_kept(scores: np.ndarray, name: str) -> None:
    result = normalisation(name)(scores)
    assert np.isfinite(result).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(result[order]) >= 0).all()


@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1e308)))
def test_lamp_is_a_share(scores: np.ndarray) -> None:
    result = NORMALISATIONS["lamp"](scores)
    assert ((result >= 0) & (result <= 1)).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(result[order]) >= -1e-15).all()


def test_values() -> None:
    scores = np.array([1.0, 3.0, 2.0, 2.0])
    assert NORMALISATIONS["mean"](scores).tolist() == pytest.approx([0.5, 1.5, 1, 1])
    assert NORMALISATIONS["max"](scores).tolist() == pytest.approx([1 / 3, 1, 2 / 3, 2 / 3])
    assert NORMALISATIONS["sum"](scores).sum() == pytest.approx(1)
    assert NORMALISATIONS["standard"](scores).tolist() == pytest.approx([0, 1, 0.5, 0.5])
    assert NORMALISATIONS["gauss"](scores).std() == pytest.approx(1)
    assert NORMALISATIONS["lamp"](scores).tolist() == pytest.approx([1 / 8, 1, 2 / 7, 2 / 7])
    for name in NORMALISATIONS:
        assert NORMALISATIONS[name](np.zeros(3)).tolist() == [0, 0, 0]


def test_unknown() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gauss'"):
        normalisation("gaus")

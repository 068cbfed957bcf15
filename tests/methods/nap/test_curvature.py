"""The surgeon's formulas against dense Hessians, least squares solved again, and the worked example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from secateur.errors import ConfigError
from secateur.methods.nap.curvature import Curvature
from secateur.methods.nap.kfac import Layer

ROW = Layer("fc", "fc.weight", None, 1, 3, 4, 1, 1, "fc")


def positive(size: int, seed: int) -> torch.Tensor:
    x = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.T


def bordered(a: torch.Tensor) -> torch.Tensor:
    """A as factors hold it: a column for the one behind, whatever it holds."""
    n = len(a)
    found = torch.full((1, n + 1, n + 1), 7.0, dtype=torch.float64)
    found[0, :n, :n] = a
    return found


def curve(a: torch.Tensor, g: torch.Tensor, w: torch.Tensor, damping: float = 0.0, **options: Any) -> Curvature:
    layer = replace(ROW, outputs=len(g), columns=len(a))
    return Curvature.of(layer, bordered(a), g[None], w, None, damping=damping, **options)


def surgeon(h: torch.Tensor, w: torch.Tensor, chosen: torch.Tensor) -> tuple[float, torch.Tensor]:
    """dL_S and W after the update, from the dense Hessian; vec stacks columns."""
    inverse, v = torch.linalg.inv(h), w.T.flatten()
    at = chosen.T.flatten().nonzero().squeeze(1)
    force = torch.linalg.solve(inverse[at][:, at], v[at])
    return float(0.5 * v[at] @ force), (v - inverse[:, at] @ force).view(w.shape[1], w.shape[0]).T


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return positive(4, 0), positive(3, 1), torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()


# ------------------------------------------------------------------------------------------- (a) dense brute force


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("kind", ["relative", "split"])
def test_every_formula_is_the_dense_one(parts: Any, damping: float, kind: Any) -> None:
    a, g, w = parts
    found = curve(a, g, w, damping, kind=kind)
    h = torch.kron(found.inputs[0, 0, :4, :4].contiguous(), found.gradients[0])
    if not damping:
        torch.testing.assert_close(h, torch.kron(a, g))

    def chosen(rows: Any, columns: Any) -> torch.Tensor:
        mask = torch.zeros(3, 4, dtype=torch.bool)
        mask[rows, columns] = True
        return mask

    for i in range(3):
        for j in range(4):
            loss, after = surgeon(h, w, chosen(i, j))
            assert float(found.single()[i, j]) == pytest.approx(loss, rel=1e-9)
            assert abs(float(after[i, j])) < 1e-12
        loss, after = surgeon(h, w, chosen(i, slice(None)))
        assert float(found.rows()[i]) == pytest.approx(loss, rel=1e-9)
        rows = torch.arange(3) == i
        torch.testing.assert_close(found.split(found.without_rows(rows))[0], after)
    for columns in ([0], [2], [0, 1], [1, 3]):
        loss, after = surgeon(h, w, chosen(slice(None), columns))
        assert float(found.columns(np.array([columns]))[0]) == pytest.approx(loss, rel=1e-9)
        mask = torch.zeros(4, dtype=torch.bool)
        mask[columns] = True
        torch.testing.assert_close(found.split(found.without_columns(mask))[0], after)
    loss, after = surgeon(h, w, chosen([0, 2], slice(None)))
    joint = found.split(found.without_rows(torch.tensor([True, False, True])))[0]
    torch.testing.assert_close(joint, after)
    assert bool((joint[[0, 2]] == 0).all())
    # the joint loss of rows is not the sum of the single ones
    p = torch.tensor([0, 2])
    power = w[p] @ found.inputs[0, 0, :4, :4] @ w[p].T
    assert loss == pytest.approx(float(0.5 * (torch.linalg.inv(found.inverse_gradients[0][p][:, p]) * power).sum()))
    assert loss != pytest.approx(float(found.rows()[p].sum()), rel=1e-3)


def test_single_weights_of_a_row_go_together(parts: Any) -> None:
    """With G diagonal rows are free of each other, and the update of a mask is the dense one."""
    a, g, w = parts
    g = g.diag().diag()
    found = curve(a, g, w)
    gone = torch.rand(3, 4, generator=torch.Generator().manual_seed(5)) < 0.5
    _, after = surgeon(torch.kron(a, g), w, gone)
    result = found.split(found.without(gone))[0]
    torch.testing.assert_close(result, after)
    assert bool((result[gone] == 0).all())


def test_bias_blocks_and_groups() -> None:
    """Bias as a last column; two groups are two layers; blocks of A are a block-diagonal one."""
    w, bias = torch.randn(6, 4).double(), torch.randn(6).double()
    a = torch.stack([positive(5, 3), positive(5, 4)])
    g = torch.stack([positive(3, 5), positive(3, 6)])
    layer = Layer("c", "c.weight", "c.bias", 2, 3, 4, 1, 1, "c")
    found = Curvature.of(layer, a, g, w, bias, damping=0.0)
    single, rows, columns = found.single(), found.rows(), found.columns(np.array([[1], [2]]))
    wanted = torch.zeros(2).double()
    for q in range(2):
        whole = torch.cat([w[3 * q : 3 * q + 3], bias[3 * q : 3 * q + 3, None]], 1)
        h = torch.kron(a[q], g[q])
        for i in range(3):
            row = torch.zeros(3, 5, dtype=torch.bool)
            row[i] = True
            assert float(rows[3 * q + i]) == pytest.approx(surgeon(h, whole, row)[0])
            one = torch.zeros(3, 5, dtype=torch.bool)
            one[i, 1] = True
            assert float(single[3 * q + i, 1]) == pytest.approx(surgeon(h, whole, one)[0])
        for k, column in enumerate((1, 2)):
            mask = torch.zeros(3, 5, dtype=torch.bool)
            mask[:, column] = True
            loss, after = surgeon(h, whole, mask)
            wanted[k] += loss
            if column == 1:
                new = found.split(found.without_columns(torch.tensor([False, True, False, False])))
                torch.testing.assert_close(new[0][3 * q : 3 * q + 3], after[:, :-1])
                torch.testing.assert_close(new[1][3 * q : 3 * q + 3], after[:, -1])
    torch.testing.assert_close(columns, wanted)
    split = Layer("f", "f.weight", "f.bias", 1, 3, 4, 1, 2, "f")
    halves = torch.stack([positive(3, 7), positive(3, 8)])
    blocks = Curvature.of(split, halves, g[:1], w[:3], bias[:3], damping=0.0)
    dense = torch.zeros(5, 5).double()
    dense[:2, :2], dense[2:, 2:] = halves[0, :2, :2], halves[1]
    one = Curvature.of(replace(split, splits=1), dense[None], g[:1], w[:3], bias[:3], damping=0.0)
    torch.testing.assert_close(blocks.single(), one.single())
    torch.testing.assert_close(blocks.rows(), one.rows())
    sets = np.array([[0, 1], [1, 2]])
    torch.testing.assert_close(blocks.columns(sets), one.columns(sets))
    torch.testing.assert_close(blocks.columns(sets, "obd"), one.columns(sets, "obd"))


def test_a_depthwise_channel() -> None:
    """dL = ½ G_c (w_c A_c w_cᵀ), for G'_cc = 1 / G_c."""
    a, g = torch.stack([positive(9, k) for k in range(3)]), torch.tensor([0.5, 2.0, 3.0]).double()
    w = torch.randn(3, 9).double()
    padded = torch.zeros(3, 10, 10).double()
    padded[:, :9, :9] = a
    layer = Layer("d", "d.weight", None, 3, 1, 9, 9, 1, "d")
    found = Curvature.of(layer, padded, g.view(3, 1, 1), w, None, damping=0.0)
    wanted = torch.stack([0.5 * g[c] * w[c] @ a[c] @ w[c] for c in range(3)])
    torch.testing.assert_close(found.rows(), wanted)
    torch.testing.assert_close(found.rows("obd"), wanted)


# --------------------------------------------------------------------------------------------- (b) the worked example


def test_the_worked_example() -> None:
    a, g = torch.tensor([[2.0, 1], [1, 2]]).double(), torch.diag(torch.tensor([1.0, 4])).double()
    w = torch.tensor([[1.0, 2], [3, 0.5]]).double()
    found = curve(a, g, w)
    torch.testing.assert_close(found.single(), torch.tensor([[0.75, 3], [27, 0.75]]).double())
    torch.testing.assert_close(found.rows(), torch.tensor([7.0, 43]).double())
    torch.testing.assert_close(found.columns(np.array([[0], [1]])), torch.tensor([27.75, 3.75]).double())
    after = found.split(found.without(torch.tensor([[True, False], [False, False]])))[0]
    torch.testing.assert_close(after, torch.tensor([[0.0, 2.5], [3, 0.5]]).double())
    torch.testing.assert_close(found.rows("sum"), torch.tensor([3.75, 27.75]).double())


# ------------------------------------------------------------------------------------------------- (c) least squares


def test_on_least_squares_the_loss_is_the_true_one() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 4).double() @ torch.randn(4, 4).double(), torch.randn(50, 3).double()
    w = torch.linalg.lstsq(x, y).solution.T
    found = curve(x.T @ x / 50, torch.eye(3).double(), w)

    def loss(weights: torch.Tensor) -> float:
        return float(0.5 * (y - x @ weights.T).square().sum() / 50)

    def solved(columns: list[int], row: int) -> torch.Tensor:
        left = [j for j in range(4) if j not in columns]
        again = w.clone()
        again[row] = 0.0
        again[row, left] = torch.linalg.lstsq(x[:, left], y[:, row : row + 1]).solution[:, 0]
        return again

    for i in range(3):
        for j in range(4):
            gone = torch.zeros(3, 4, dtype=torch.bool)
            gone[i, j] = True
            rise = loss(found.split(found.without(gone))[0]) - loss(w)
            assert float(found.single()[i, j]) == pytest.approx(rise, abs=1e-12)
            assert loss(solved([j], i)) - loss(w) == pytest.approx(rise, abs=1e-12)
            plain = loss(w.masked_fill(gone, 0.0)) - loss(w)  # without the update
            assert plain == pytest.approx(float(0.5 * w[i, j] ** 2 * found.inputs[0, 0, j, j]), abs=1e-12)
            assert plain >= rise
    columns = torch.tensor([True, False, True, False])
    rise = loss(found.split(found.without_columns(columns))[0]) - loss(w)
    assert float(found.columns(np.array([[0, 2]]))[0]) == pytest.approx(rise, abs=1e-12)
    again = torch.stack([solved([0, 2], i)[i] for i in range(3)])
    assert loss(again) - loss(w) == pytest.approx(rise, abs=1e-12)


# ---------------------------------------------------------------------------------------- (d) scale, (e) OBS and OBD


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_scaling_inputs_changes_no_score_and_magnitudes_do(parts: Any, damping: float) -> None:
    a, g, w = parts
    for s in (0.1, 7.0):
        one, other = curve(a, g, w, damping), curve(a * s**2, g, w / s, damping)
        torch.testing.assert_close(one.single(), other.single())
        torch.testing.assert_close(one.rows(), other.rows())
        downstream = curve(a, g / s**2, w * s, damping)  # the output s times as large, absorbed by what reads it
        torch.testing.assert_close(one.single(), downstream.single())
        assert not torch.allclose(w.square(), (w / s).square())


def test_scaling_with_a_bias_keeps_the_scores_of_weights() -> None:
    w, bias = torch.randn(3, 4).double(), torch.randn(3).double()
    a, g = positive(5, 0)[None], positive(3, 1)[None]
    layer = replace(ROW, bias="fc.bias")
    scale = torch.tensor([3.0, 3, 3, 3, 1]).double()
    one = Curvature.of(layer, a, g, w, bias, damping=0.0)
    other = Curvature.of(layer, a * scale[:, None] * scale, g, w / 3, bias, damping=0.0)
    torch.testing.assert_close(one.single(), other.single())


def test_with_compensation_never_more_than_without(parts: Any) -> None:
    a, g, w = parts
    found, free = curve(a, g, w), curve(a, g.diag().diag(), w)
    assert bool((1 / found.inverse_gradients[0].diag() <= g.diag() + 1e-12).all())
    assert bool((found.rows() < found.rows("obd")).all())
    torch.testing.assert_close(free.rows(), free.rows("obd"))  # rows of a diagonal G
    obd = 0.5 * w.square() * g.diag()[:, None] * a.diag()
    assert bool((found.single() < obd).all())  # diagonals of the factors would be another method
    sets = np.array([[0], [1], [2], [3]])
    assert bool((found.columns(sets) < found.columns(sets, "obd")).all())
    torch.testing.assert_close(found.columns(sets, "sum"), found.single().sum(0))


# --------------------------------------------------------------------------------------------------------- damping


def test_damping() -> None:
    a, g, w = positive(4, 0), positive(3, 1), torch.randn(3, 4).double()
    found = curve(a, g, w, 0.01)
    torch.testing.assert_close(found.inputs[0, 0, :4, :4], a + 0.01 * a.trace() / 4 * torch.eye(4))
    torch.testing.assert_close(found.gradients[0], g + 0.01 * g.trace() / 3 * torch.eye(3))
    split = curve(a, g, w, 0.01, kind="split")
    pi = ((a.trace() / 4) / (g.trace() / 3)).sqrt()
    torch.testing.assert_close(split.inputs[0, 0, :4, :4], a + pi * 0.1 * torch.eye(4))
    torch.testing.assert_close(split.gradients[0], g + 0.1 / pi * torch.eye(3))


def test_rank_deficient_factors_and_dead_features() -> None:
    """Few samples, one position: rank 2 of 6. Damping keeps the inverse within its bound; dead columns come last."""
    torch.manual_seed(0)
    x = torch.randn(2, 6).double()
    x[:, 3] = 0.0
    a, g, w = x.T @ x / 2, positive(3, 1), torch.ones(3, 6).double()
    found = curve(a, g, w, 1e-3)
    ridge = 1e-3 * float(a.trace()) / 6
    assert float(found.inverse_inputs.abs().max()) <= 1 / ridge * (1 + 1e-9)
    assert bool((found.single()[:, 3] <= found.single()[:, [0, 1, 2, 4, 5]].amin(1)).all())
    with pytest.raises(ConfigError, match="raise damping"):
        curve(a - 1e-3 * torch.eye(6), g, w).single()
    nothing = curve(torch.zeros(4, 4).double(), g, torch.ones(3, 4).double(), 1e-3)
    assert bool((nothing.single() < 1e-20).all())
    with pytest.raises(ConfigError, match="not finite"):
        curve(a * float("nan"), g, w)


def test_inverses_keep_their_digits_where_single_precision_has_none() -> None:
    """A condition number of 1e9, factors stored in single precision."""
    q = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)).double()).Q
    a = q @ torch.diag(torch.logspace(0, 9, 40, dtype=torch.float64)) @ q.T
    found = curve(a, positive(3, 0), torch.randn(3, 40).double())
    error = found.inverse_inputs[0, 0, :40, :40] @ a - torch.eye(40)
    assert float(error.abs().max()) < 1e-6

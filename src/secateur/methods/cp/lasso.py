"""LASSO over channels on second moments: which few scaled channels tell best what a layer answers.

    min  1/2 bᵀ A b - qᵀ b + lambda |b|₁      A_ij = E <Z_i, Z_j>, q_i = E <Z_i, Y>, Z_i = X_i W_iᵀ

with the whole path of solutions, exact, by least angle regression. A and q come from the moments of patches:
A_ij = <E X_iᵀ X_j, W_iᵀ W_j>, so that no sample is kept.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from secateur._protocols import BoolArray, FloatArray, IntArray
from secateur.statistics.samples import PatchSums

#: Coefficients below this share of the largest are zero.
_ZERO = 1e-8


def channel_moments(
    moments: PatchSums, weight: torch.Tensor, table: IntArray, channels: int, *, constant: bool = False
) -> tuple[FloatArray, FloatArray]:
    """A [channels, channels] and q [channels] of one layer.

    Args:
        weight: of the layer. table: the channel at each position of its input, -1: of none of these.
        constant: around the means, for a layer whose bias is fitted anew.
    """
    groups, columns = moments.x.shape
    matrix = weight.double().flatten(1).unflatten(0, (groups, -1))
    xx, xy = moments.covariances(constant=constant)
    inputs = len(table) // groups
    kernel = columns // inputs
    square, right = np.zeros((channels + 1, channels + 1)), np.zeros(channels + 1)
    for g in range(groups):
        index = torch.from_numpy(np.where(table < 0, channels, table)[g * inputs : (g + 1) * inputs]).to(xx.device)
        both = (xx[g] * (matrix[g].T @ matrix[g])).view(inputs, kernel, inputs, kernel).sum((1, 3))
        one = (xy[g] * matrix[g].T).view(inputs, -1).sum(1)
        rows = torch.zeros(channels + 1, inputs, dtype=both.dtype, device=both.device).index_add_(0, index, both)
        cells = torch.zeros(channels + 1, channels + 1, dtype=both.dtype, device=both.device)
        square += cells.index_add_(1, index, rows).cpu().numpy()
        right += torch.zeros(channels + 1, dtype=one.dtype, device=one.device).index_add_(0, index, one).cpu().numpy()
    return square[:channels, :channels], right[:channels]


def path(square: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Penalties, descending, at which the set of channels changes, and the coefficients there [channels, penalties].

    Between two of them coefficients change linearly. Channels without energy, and those that repeat others exactly,
    stay at zero.
    """
    from sklearn.linear_model import lars_path_gram  # which takes a second to import

    alive = _different(square)
    if not len(alive) or not np.abs(right[alive]).max() > 0:
        return np.zeros(1), np.zeros((len(right), 1))
    scale = float(np.abs(right[alive]).max())
    gram, aims = square[np.ix_(alive, alive)] / scale, right[alive] / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each channel that repeats others, which is dropped as it should
        penalties, _, found = lars_path_gram(
            Xy=aims, Gram=gram, n_samples=1, method="lasso", max_iter=8 * len(alive), copy_Gram=True, copy_X=True
        )
    coefficients = np.zeros((len(right), len(penalties)))
    coefficients[alive] = found
    return penalties * scale, coefficients


def _different(square: FloatArray) -> IntArray:
    """Channels with energy, of those that say the same the one with most: others differ by rounding alone."""
    energy = np.diag(square)
    order = np.argsort(-energy, kind="stable")
    order = order[energy[order] > 1e-14 * max(float(energy.max(initial=0.0)), 1e-300)]
    size = np.sqrt(energy[order])
    alike = np.triu(np.abs(square[np.ix_(order, order)]) / np.outer(size, size) > 1 - 1e-9, 1).any(axis=0)
    return np.sort(order[~alike])


def lasso(square: FloatArray, right: FloatArray, penalty: float) -> FloatArray:
    """The solution at one penalty."""
    penalties, found = path(square, right)
    if penalty >= penalties[0]:
        return np.zeros(len(right))
    at = int(np.searchsorted(-penalties, -penalty))
    if at >= len(penalties):
        return np.asarray(found[:, -1])
    part = (penalties[at - 1] - penalty) / (penalties[at - 1] - penalties[at])
    return np.asarray(found[:, at - 1] + part * (found[:, at] - found[:, at - 1]))


def select(square: FloatArray, right: FloatArray, count: int) -> BoolArray:
    """The mask of the `count` channels that stay.

    The first point of the path that has as many; of more, those with the smallest coefficients go. If no point has as
    many, because others repeat those or are dead, the ones with most energy join.
    """
    width = len(right)
    if count >= width:
        return np.ones(width, dtype=np.bool_)
    _, found = path(square, right)
    size = np.abs(found)
    active = size > _ZERO * size.max(axis=0, initial=0.0)
    enough = np.flatnonzero(active.sum(axis=0) >= count)
    at = int(enough[0]) if len(enough) else int(active.sum(axis=0).argmax())
    strongest = np.lexsort((-np.diag(square), -size[:, at], ~active[:, at]))  # active ones first, by coefficient
    kept = np.zeros(width, dtype=np.bool_)
    kept[strongest[:count]] = True
    return kept

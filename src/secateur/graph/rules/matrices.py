"""Operators on square matrices and on parts written back: diagonals, triangles, matrix functions, `*_scatter`."""

from __future__ import annotations

import torch

from secateur.graph.labels import Axis, Label
from secateur.graph.rules.positions import square
from secateur.graph.rules.registry import Labels, Op, label_of, rule
from secateur.graph.rules.shape import side_by_side

DIAGONAL = "a diagonal runs through it"


@rule("tril", "triu")
def triangle(op: Op) -> Labels:
    """Below or above the diagonal: order is kept by a cut that keeps the same rows as columns, a distance is not."""
    *batch, rows, columns = op.label("self")
    offset = int(op.args["diagonal"])
    if offset in ((0, -1) if op.name.startswith("aten::tril") else (0, 1)):
        return (*batch, *square(op, rows, columns, "a triangle is cut out of it"))
    _kept(op, (rows, columns), "a triangle is cut out of it")
    return (*batch, rows, columns)


def _kept(op: Op, axes: Label, why: str) -> Label:
    for axis in axes:
        op.fix(axis, why)
    return (None,) * len(axes)


@rule("diagonal", "linalg_diagonal")
def diagonal(op: Op) -> Labels:
    """The main diagonal of two dimensions, as a new last one; another diagonal is a distance."""
    label = list(op.label("self"))
    sides, offset = (op.dim("dim1"), op.dim("dim2")), int(op.args["offset"])
    rows, columns = label[sides[0]], label[sides[1]]
    if offset:
        _kept(op, (rows, columns), DIAGONAL)
        side: Axis = None
    else:
        side, _ = square(op, rows, columns, DIAGONAL)
    return (*[axis for d, axis in enumerate(label) if d not in sides], side)


@rule("diag_embed")
def diag_embed(op: Op) -> Labels:
    """The last dimension as the diagonal of a square: both its sides are that dimension."""
    *batch, axis = op.label("self")
    if int(op.args["offset"]):
        op.fix(axis, DIAGONAL)
        return op.blank()
    rank = op.out.dim()
    sides = {int(op.args["dim1"]) % rank, int(op.args["dim2"]) % rank}
    others = iter(batch)
    return tuple(axis if d in sides else next(others) for d in range(rank))


@rule("trace")
def trace(op: Op) -> Labels:
    """The sum of the diagonal."""
    rows, columns = op.label("self")
    side, _ = square(op, rows, columns, DIAGONAL)
    op.inexact(side, "the sum of a diagonal over channels")
    return ()


@rule("block_diag")
def block_diag(op: Op) -> Labels:
    """Matrices along the diagonal: rows beside rows, columns beside columns."""
    tensors = op.args["tensors"]
    if any(t.dim() != 2 for t in tensors):
        return kept_whole(op)
    return tuple(side_by_side(op, [(label_of(t)[d], t.shape[d]) for t in tensors]) for d in range(2))


@rule("diagonal_scatter")
def diagonal_scatter(op: Op) -> Labels:
    """A diagonal written over."""
    label = list(op.label("self"))
    first, second = op.dim("dim1"), op.dim("dim2")
    *others, side = op.label("src")
    if int(op.args["offset"]):
        label[first], label[second] = _kept(op, (label[first], label[second]), DIAGONAL)
    else:
        label[first], label[second] = square(op, label[first], label[second], DIAGONAL)
    op.join(label[first], side)
    for d in range(len(label)):
        if d not in (first, second):
            label[d] = op.join(label[d], others.pop(0))
    return tuple(label)


@rule("slice_scatter")
def slice_scatter(op: Op) -> Labels:
    """A stretch of one dimension written over; its bounds must move with what is alive before them."""
    dim, label, source = op.dim(), list(op.label("self")), op.label("src")
    axis, size = label[dim], op.args["self"].shape[dim]
    bounds = [op.args.get("start"), op.args.get("end")]
    start, end = (
        (0 if bounds[0] is None else int(bounds[0])),
        (size if bounds[1] is None else min(int(bounds[1]), size)),
    )
    for d in range(len(label)):
        if d != dim:
            label[d] = op.join(label[d], source[d])
    if axis is not None and int(op.args.get("step") or 1) == 1 and 0 <= start <= end:
        op.join(axis[start:end], source[dim])
        if start:
            op.expect("start", axis[:start])
        if end < size:
            op.expect("end", axis[:end])
    elif axis is not None or source[dim] is not None:
        label[dim] = _kept(op, (axis, source[dim]), "written by position")[0]
    return tuple(label)


@rule("select_scatter")
def select_scatter(op: Op) -> Labels:
    """One index of a dimension written over, by a literal: that dimension stays as it is."""
    dim, label, source = op.dim(), list(op.label("self")), iter(op.label("src"))
    if op.args["self"].shape[dim] > 1:
        op.fix(label[dim], "written by position")
    return tuple(None if d == dim else op.join(axis, next(source)) for d, axis in enumerate(label))


@rule("as_strided")
def as_strided(op: Op) -> Labels:
    """Only the do-nothing form and the diagonal (of `fill_diagonal_`) keep labels."""
    x: torch.Tensor = op.args["self"]
    label = op.label("self")
    if tuple(x.shape) == tuple(op.out.shape) and x.stride() == op.out.stride():
        return label
    start = op.args.get("storage_offset")
    diagonal = (min(x.shape, default=0),), (sum(x.stride()),)
    if (
        len(set(x.shape)) == 1
        and (tuple(op.out.shape), op.out.stride()) == diagonal
        and start in (None, x.storage_offset())
    ):
        first = label[0]
        for axis in label[1:]:
            first = square(op, first, axis, DIAGONAL)[0]
        return (first,)
    for axis in label:
        op.fix(axis, "addressed by strides")
    return op.blank()


@rule("as_strided_scatter", "slice_inverse", "renorm")
def kept_whole(op: Op) -> Labels:
    """Everything touched stays as it is."""
    return op.keep_all(f"mixed or moved by a literal ({op.where})")


MATRIX = (
    "linalg_matrix_exp linalg_inv_ex linalg_cholesky_ex linalg_qr linalg_lu linalg_lu_factor_ex lu_unpack linalg_eig "
    "linalg_eigvals linalg_pinv linalg_householder_product linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq "
    "linalg_lu_solve linalg_solve_triangular triangular_solve cholesky cholesky_inverse cholesky_solve "
    "_cholesky_solve_helper _linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet _linalg_solve_ex _linalg_svd "
    "geqrf ormqr inverse _compute_linear_combination"
).split()


@rule(*MATRIX)
def matrix_function(op: Op) -> Labels:
    """A matrix is mixed as a whole: its sides stay as they are."""
    return op.keep_all(f"a matrix function mixes it ({op.where})")

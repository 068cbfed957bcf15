"""The baseline criteria: how important each channel looks from its weights, or from gradients of the loss.

Each function returns `Scores`, one float64 per channel and group, higher = keep. Options they share:

    members   "producers" (default): what makes the channel: its filters, norm affine, biases; "all": also what reads it
    reduce    how the members' values are combined: "sum", "mean", "max" or "prod"

Sums run in float64 whatever the dtype of the weights. Weights (two or more dimensions) count; a group that has none
is scored by its one-dimensional parameters.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from secateur._hints import checked_seed, choose
from secateur._protocols import FloatArray, GraphLike, GroupLike, MemberLike
from secateur.allocate import NORMALISATIONS
from secateur.errors import ConfigError, WeightsError
from secateur.graph.modules import parameter_names
from secateur.methods.kit.scores import Scores

#: Elements of one float64 working array while summing: small enough to stay in the processor's cache.
_CHUNK = 1 << 16
#: Elements of one float64 working array in distance computations (32 MiB).
_WORK = 1 << 22

_Terms = Callable[[torch.Tensor], torch.Tensor]
_MEMBERS = ("producers", "all")
_REDUCTIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "sum": lambda rows: rows.sum(axis=0),
    "mean": lambda rows: rows.mean(axis=0),
    "max": lambda rows: rows.max(axis=0),
    "prod": lambda rows: rows.prod(axis=0),
}


def random(graph: GraphLike, *, seed: int = 0) -> Scores:
    """Score by chance, uniform in [0, 1): what every criterion must beat (Mittal et al. 2018, arXiv:1801.10447)."""
    seed = checked_seed(seed)
    # seeded by name, so that a group's scores do not depend on which other groups there are
    scores = {
        group.name: np.random.default_rng([seed, zlib.crc32(group.name.encode())]).random(group.width)
        for group in graph.groups
    }
    return Scores(scores, {"criterion": "random", "seed": seed})


def l1(graph: GraphLike, *, reduce: str = "sum", members: str = "producers") -> Scores:
    """Score by the sum of the channel's absolute weights (Li et al. 2017, arXiv:1608.08710)."""
    tensors = graph.tensors()
    return _score(graph, "l1", _Sums(tensors, torch.abs_), reduce, members, tensors)


def l2(graph: GraphLike, *, reduce: str = "sum", members: str = "producers") -> Scores:
    """Score by the Euclidean norm of the channel's weights in each member (He et al. 2018, arXiv:1808.06866)."""
    tensors = graph.tensors()
    squares = _Sums(tensors, torch.square_)
    return _score(graph, "l2", lambda member: np.sqrt(squares(member)), reduce, members, tensors)


def lamp(graph: GraphLike, *, reduce: str = "sum", members: str = "producers") -> Scores:
    """Score by the squared norm over the sum of those not smaller in the group (Lee et al. 2021, arXiv:2010.07611).

    The paper prunes single weights; here a channel's squared norm takes the place of a squared weight.
    """
    tensors = graph.tensors()
    scores = _score(graph, "lamp", _Sums(tensors, torch.square_), reduce, members, tensors)
    return Scores({name: NORMALISATIONS["lamp"](score) for name, score in scores.items()}, scores.provenance)


def bn_scale(graph: GraphLike, *, reduce: str = "sum") -> Scores:
    """Score by |gamma| of the normalisation layers that make the channel (Liu et al. 2017, arXiv:1708.06519).

    A group without such a layer falls back to `l1`; `provenance["fallback"]` lists these groups. The units differ,
    so use a normalisation within groups when there are any.
    """
    gammas = _gammas(graph)
    tensors = graph.tensors()
    sums = _Sums(tensors, torch.abs_)
    weights = _Weights(graph, "producers", tensors)
    scores, fallback = {}, []
    for group in graph.groups:
        norms = [member for member in group.members if member.role == "producer" and member.name in gammas]
        if not norms:
            fallback.append(group.name)
        scores[group.name] = _combined([sums(member) for member in norms or weights(group)], group, reduce)
    provenance = {"criterion": "bn_scale", "reduce": reduce} | ({"fallback": {"l1": fallback}} if fallback else {})
    return Scores(scores, provenance)


def fpgm(graph: GraphLike, *, reduce: str = "sum", members: str = "producers") -> Scores:
    """Score by the sum of distances to the group's other channels: those near the geometric median go (He et al. 2019).

    arXiv:1811.00250, equation 7. Distances are taken in each member and combined by `reduce`.
    """
    tensors = graph.tensors()

    def distances(member: MemberLike) -> FloatArray:
        return _distances(_rows(tensors[member.name], member), member.name)

    return _score(graph, "fpgm", distances, reduce, members, tensors)


def taylor(
    graph: GraphLike,
    *,
    gradients: Mapping[str, torch.Tensor],
    reduce: str = "sum",
    members: str = "producers",
) -> Scores:
    """Score by how much the loss changes to first order without the channel: |sum of w * dL/dw| over what it owns.

    Molchanov et al. 2019, arXiv:1906.10771 (equation 8 before squaring). `gradients` holds dL/dw by parameter name, see
    `accumulate_gradients`; parameters without one do not count. All kinds of parameters count, not only weights:
    behind a normalisation in training mode a filter's own sum is zero, and its affine parameters carry the signal.
    """
    _check_gradients(graph, gradients)
    tensors = graph.tensors()
    sums = _Sums(tensors, torch.Tensor.contiguous, gradients)
    choose(members, _MEMBERS, "choice of members")
    scores = {}
    for group in graph.groups:
        chosen = [m for m in group.members if m.name in gradients and (members == "all" or m.role == "producer")]
        if not chosen:
            raise ConfigError(
                f"No gradient is given for any parameter of group {group.name!r}: name one of its parameters."
            )
        scores[group.name] = _combined([np.abs(sums(member)) for member in chosen], group, reduce)
    return Scores(scores, {"criterion": "taylor", "reduce": reduce, "members": members})


def _score(
    graph: GraphLike,
    criterion: str,
    value: Callable[[MemberLike], FloatArray],
    reduce: str,
    members: str,
    tensors: Mapping[str, torch.Tensor],
) -> Scores:
    """Combine the `value` [width] of every weight member of every group. tensors: of the graph."""
    choose(reduce, _REDUCTIONS, "reduction")
    weights = _Weights(graph, members, tensors)
    scores = {group.name: _combined([value(m) for m in weights(group)], group, reduce) for group in graph.groups}
    return Scores(scores, {"criterion": criterion, "reduce": reduce, "members": members})


def _combined(rows: Sequence[FloatArray], group: GroupLike, reduce: str) -> FloatArray:
    """Combine the members' values [width] by `reduce`; a group without any parameter scores 0."""
    function = _REDUCTIONS[choose(reduce, _REDUCTIONS, "reduction")]
    return function(np.stack(rows)) if rows else np.zeros(group.width)


class _Weights:
    """Chooses the members that count: weights, else other parameters, else whatever there is (a frozen norm)."""

    def __init__(self, graph: GraphLike, members: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self._all = choose(members, _MEMBERS, "choice of members") == "all"
        self._dims = {name: tensor.ndim for name, tensor in tensors.items()}
        self._parameters = parameter_names(graph.model)

    def __call__(self, group: GroupLike) -> list[MemberLike]:
        """Return the members of `group` that count."""
        members = [m for m in group.members if self._all or m.role == "producer"] or list(group.members)
        parameters = [m for m in members if m.name in self._parameters]
        return [m for m in parameters if self._dims[m.name] >= 2] or parameters or members


class _Sums:
    """Sums of terms over the indices each channel owns, each (tensor, dimension) reduced only once.

    In a dense network one weight belongs to many groups, a slice to each; summing it anew for every group would cost
    a hundred times as much.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], terms: _Terms, factors: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Sum `terms` (which may work in place) of the tensors, multiplied by the `factors` of that name if given."""
        self._tensors, self._terms, self._factors = tensors, terms, factors
        self._done: dict[tuple[str, int], FloatArray] = {}

    def __call__(self, member: MemberLike) -> FloatArray:
        """Return the sum [width] for every channel."""
        key = (member.name, member.dim)
        if key not in self._done:
            factor = None if self._factors is None else self._factors[member.name]
            self._done[key] = self._reduced(member, factor)
        values = self._done[key]
        result: FloatArray = (
            values[member.index[:, 0]] if member.index.shape[1] == 1 else values[member.index].sum(axis=1)
        )
        return result

    def _reduced(self, member: MemberLike, factor: torch.Tensor | None) -> FloatArray:
        """Return the sum [size of the dimension] of each index."""
        tensor = self._tensors[member.name]
        values = _along(tensor, member.dim, self._terms, factor).numpy()
        if not np.isfinite(values).all():
            _refuse(member.name, tensor, factor)
        return values


def _along(tensor: torch.Tensor, dim: int, terms: _Terms, factor: torch.Tensor | None) -> torch.Tensor:
    """Return the float64 sums of `terms(tensor)` over all dimensions but `dim`."""
    with torch.no_grad():
        if tensor.ndim == 1 or (tensor.numel() and tensor.numel() == tensor.shape[dim]):
            return terms(_product(tensor.reshape(-1), None if factor is None else factor.reshape(-1)))
        # [before, size, after]: no copy for dense tensors, whichever the dimension
        shape = (math.prod(tensor.shape[:dim]), tensor.shape[dim], math.prod(tensor.shape[dim + 1 :]))
        table = tensor.reshape(shape)
        factors = None if factor is None else factor.reshape(shape)
        if tensor.numel() <= _CHUNK:  # most are one piece
            return _summed(terms(_product(table, factors)))
        result = torch.zeros(shape[1], dtype=torch.float64)
        for part in _parts(shape):
            product = _product(table[part], None if factors is None else factors[part])
            result[part[1]] += _summed(terms(product))
        return result


def _summed(table: torch.Tensor) -> torch.Tensor:
    """Return the sums [size] of a table [before, size, after]."""
    rows = table.sum(2)
    return rows[0] if len(rows) == 1 else rows.sum(0)


def _parts(shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice]]:
    """Cut [before, size, after] into pieces of about _CHUNK elements along the first two dimensions."""
    before, size, after = shape
    middle = min(size, max(1, _CHUNK // max(after, 1)))
    outer = max(1, _CHUNK // max(after * middle, 1))
    for row in range(0, before, outer):
        for column in range(0, size, middle):
            yield slice(row, row + outer), slice(column, column + middle)


def _product(tensor: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """Return a float64 copy on the CPU, multiplied by the factor if there is one."""
    copy = _double(tensor)
    return copy if factor is None else copy.mul_(_double(factor))


def _double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float64 copy on the CPU (not every accelerator knows float64); magnitudes of complex numbers."""
    real = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
    return real.to("cpu", torch.float64, copy=True) if real.is_cpu else real.to("cpu").to(torch.float64, copy=True)


def _refuse(name: str, tensor: torch.Tensor, factor: torch.Tensor | None = None) -> None:
    """Raise WeightsError saying which values are not finite."""
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"The parameter {name!r} holds NaN or infinite values: repair or reload the weights.")
    if factor is not None and not torch.isfinite(factor).all():
        raise WeightsError(f"The gradient of {name!r} holds NaN or infinite values: check the loss and the data.")
    raise WeightsError(f"The values of {name!r} are too large to sum in float64: rescale the weights.")


def _rows(tensor: torch.Tensor, member: MemberLike) -> torch.Tensor:
    """Return what each channel owns as a row: [width, everything else]."""
    index = torch.from_numpy(np.ascontiguousarray(member.index).reshape(-1)).to(tensor.device)
    picked = tensor.detach().movedim(member.dim, 0).index_select(0, index)
    return picked.reshape(member.index.shape[0], -1)


def _distances(rows: torch.Tensor, name: str) -> FloatArray:
    """Return for each row the sum of its Euclidean distances to all rows, in float64 and bounded memory."""
    width, length = rows.shape
    columns = max(1, _WORK // max(width, 1))
    centre = (
        torch.cat([_double(part).mean(0) for part in torch.split(rows, columns, dim=1)]) if length else torch.zeros(0)
    )
    norms = torch.zeros(width, dtype=torch.float64)
    for begin in range(0, length, columns):
        norms += _centred(rows, centre, begin, columns).square_().sum(1)
    if not torch.isfinite(norms).all():
        _refuse(name, rows)
    sums = [_block_distances(rows, centre, norms, begin, columns) for begin in range(0, width, columns)]
    result: FloatArray = torch.cat(sums).numpy()
    return result


def _centred(rows: torch.Tensor, centre: torch.Tensor, begin: int, columns: int) -> torch.Tensor:
    """Return some columns less their mean: distances stay, and cancellation loses fewer digits."""
    return _double(rows[:, begin : begin + columns]).sub_(centre[begin : begin + columns])


def _block_distances(
    rows: torch.Tensor, centre: torch.Tensor, norms: torch.Tensor, begin: int, columns: int
) -> torch.Tensor:
    """Return the sums of distances for the rows begin to begin + columns: |a - b|^2 = |a|^2 + |b|^2 - 2 a.b."""
    block = slice(begin, begin + columns)
    squares = norms[block, None] + norms
    for start in range(0, rows.shape[1], columns):
        part = _centred(rows, centre, start, columns)
        squares.addmm_(part[block], part.T, alpha=-2.0)
    squares[torch.arange(len(squares)), torch.arange(begin, begin + len(squares))] = 0.0
    return squares.clamp_(min=0.0).sqrt_().sum(1)


def _gammas(graph: GraphLike) -> set[str]:
    """Return the names of the one-dimensional weights of normalisation modules."""
    known = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    names = set()
    for name, module in graph.model.named_modules(remove_duplicate=False):
        # frozen and third-party norms share no base class, but all carry the word
        if isinstance(module, known) or "norm" in type(module).__name__.lower():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.ndim == 1:
                names.add(f"{name}.weight" if name else "weight")
    return names


def _check_gradients(graph: GraphLike, gradients: Mapping[str, torch.Tensor]) -> None:
    """Raise ConfigError unless the gradients belong to tensors of the graph and have their shapes."""
    if not isinstance(gradients, Mapping) or not gradients:
        raise ConfigError(
            "The criterion 'taylor' needs gradients: pass data and a loss, or a dict of gradients by name."
        )
    tensors = graph.tensors()
    for name, gradient in gradients.items():
        if name not in tensors:
            raise ConfigError(f"A gradient is given for {name!r}, which is no parameter of this network: remove it.")
        if gradient.shape != tensors[name].shape:
            raise ConfigError(
                f"The gradient of {name!r} has shape {tuple(gradient.shape)}, "
                f"the parameter has {tuple(tensors[name].shape)}: pass gradients of this model."
            )

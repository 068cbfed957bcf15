"""Compensation: the surviving weights of a layer take over what its lost inputs did, as far as these can be told.

Xie, Fu, Tian, Zhou, Chen: Pruning with Compensation: Efficient Channel Pruning for Deep Convolutional Neural Networks
(arXiv:2108.13728). With mean mu and covariance Sigma of a layer's input patches in the network before the cut, S the
columns that stay and D the others, the least mean squared change of the layer's output is reached by

    W' = W_{*S} + W_{*D} Sigma_DS Sigma_SS^-1        (= W Sigma_{*S} Sigma_SS^-1)
    b' = b + W mu - W' mu_S
    W'[n,:] *= sqrt((W Sigma W^T)_nn / (W' Sigma_SS W'^T)_nn)   before b', for layers in front of a batch norm

Where this differs from the paper, and why: the columns of Sigma_SS are brought to variance 1 and `ridge` is added, so
that inputs that are equal, or fewer patches than columns, do no harm (pulling towards the weights that were there). A
layer that has no place for b' gets the best W' without one.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur._settings import Section
from secateur.graph.modules import clone_module
from secateur.repair.base import Case, Pairs, Reader, Repair, RepairRow
from secateur.statistics.gather import gather
from secateur.statistics.moments import Moment, Moments

#: Variances, relative to what they were, below which there is nothing left to bring to its old size.
_LOST = 1e-12


def corrected(
    weight: torch.Tensor,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    kept: torch.Tensor,
    *,
    ridge: float = 0.0,
    rescale: bool = False,
    constant: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """W' [outputs, kept columns] and what is to be added to the outputs [outputs].

    Args:
        weight: [outputs, columns]. mean, covariance: of the columns. kept: [columns], bool. ridge: relative to each
            input's variance. rescale: give outputs their variance back. constant: whether an addition has a place;
            if not, W' is the best without.
    """
    if bool(kept.all()):
        return weight.clone(), weight.new_zeros(len(weight))
    lost = ~kept
    about = covariance if constant else covariance + torch.outer(mean, mean)
    right = weight[:, lost] @ about[lost][:, kept]
    result = weight[:, kept] + solve(about[kept][:, kept], right.T, ridge).T
    if rescale:
        before = ((weight @ covariance) * weight).sum(1)
        after = ((result @ covariance[kept][:, kept]) * result).sum(1)
        usable = after > _LOST * before
        result = (
            result * torch.where(usable, before / torch.where(usable, after, 1.0), 1.0).clamp_min(0).sqrt()[:, None]
        )
    added = weight @ mean - result @ mean[kept] if constant else weight.new_zeros(len(weight))
    return result, added


def solve(matrix: torch.Tensor, right: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """matrix^-1 · right for a covariance, by Cholesky; a ridge tenfold larger each time until that succeeds.

    The ridge is relative to every variance; inputs without variance get zeros.
    """
    variance = matrix.diagonal()
    scale = torch.where(variance > 0, variance.clamp_min(1e-300).rsqrt(), 0.0)
    unit = matrix * scale[:, None] * scale
    while True:
        unit.diagonal().copy_(torch.where(scale > 0, 1.0 + ridge, 1.0))
        factor, failed = torch.linalg.cholesky_ex(unit)
        if not int(failed):
            return scale[:, None] * torch.cholesky_solve(scale[:, None] * right, factor)
        ridge = max(10 * ridge, 1e-8)  # at the latest with the sum of a row the matrix is definite


class CompensationSettings(Section):
    """The paper's values are the defaults, `positions` and `ridge` apart."""

    rescale: Literal["norm", "always", "never"] = Field(
        "norm",
        description="outputs get their variance back in front of a batch norm, everywhere, or never",
    )
    positions: int | None = Field(
        256, ge=1, description="output positions of an image looked at, at most (the paper: all, null)"
    )
    recollect: bool = Field(
        False, description="measure every layer's inputs in the network as repaired so far; a pass over the data each"
    )
    ridge: float = Field(1e-6, ge=0, le=1, description="relative to each input's variance")


@torch.no_grad()
def compensate(
    case: Case,
    moments: Moments,
    *,
    rescale: Literal["norm", "always", "never"] = "norm",
    ridge: float = 1e-6,
    readers: tuple[Reader, ...] | None = None,
) -> None:
    """Repair layers in place (default: all that lose inputs), with moments of inputs in the network before the cut.

    The result depends on the network before the cut alone: nothing is compensated twice.
    """
    for reader in affected(case) if readers is None else readers:
        if reader.name not in moments:
            case.notes.append(f"{reader.name} is not called as a layer, so it was not compensated.")
            continue
        moment = moments[reader.name]
        layer, dense = case.model.get_submodule(reader.name), case.dense.get_submodule(reader.name)
        place = has_place(case.dense, reader.name, reader.norm)
        scaled = rescale == "always" or (rescale == "norm" and reader.norm is not None)
        _write(case, reader, layer, dense, moment, scaled, place, ridge)


def _write(
    case: Case, reader: Reader, layer: Any, dense: Any, moment: Moment, scaled: bool, place: bool, ridge: float
) -> None:
    columns = reader.columns(dense.weight).to(moment.mean.device)
    weight = dense.weight.flatten(1).to(moment.mean)
    if moment.count < int(columns.sum()) < len(columns):
        case.notes.append(
            f"{reader.name} was compensated from {moment.count} patches, fewer than the {int(columns.sum())} weights "
            "of an output that stay: show more data."
        )
    full, added = torch.zeros_like(weight), weight.new_zeros(len(weight))
    outputs = len(weight) // len(moment.mean)
    for block in range(len(moment.mean)):  # of a grouped convolution; each reads inputs of its own
        rows = slice(block * outputs, (block + 1) * outputs)
        full[rows, columns], added[rows] = corrected(
            weight[rows],
            moment.mean[block],
            moment.covariance[block],
            columns,
            ridge=ridge,
            rescale=scaled,
            constant=place,
        )
    layer.weight.copy_(full.view(layer.weight.shape))
    if place:
        case.add_constant(reader, added - case.added(reader).to(added))


def affected(case: Case) -> tuple[Reader, ...]:
    """Readers of a case that can be fitted, and the grouped convolutions whose groups lose inputs."""
    found = list(case.readers)
    for name, module in case.dense.named_modules():
        if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or module.groups == 1:
            continue
        kept = case.slices.get(f"{name}.weight", (None, None))[1]
        if kept is None:
            continue
        inputs = np.zeros(module.weight.shape[1], dtype=np.bool_)
        inputs[kept] = True
        found.append(Reader(name, inputs, case.norms.get(name)))
    first = case.graph.recording.first_use
    return case.fitted(sorted(found, key=lambda reader: first.get(f"{reader.name}.weight", 0)))


def has_place(model: nn.Module, name: str, norm: str | None) -> bool:
    """Whether something can be added to what a layer makes: to its bias, or to what its norm takes away."""
    layer: Any = model.get_submodule(name)
    behind: Any = None if norm is None else model.get_submodule(norm)
    return layer.bias is not None or (behind is not None and behind.running_mean is not None)


class Compensation(Repair):
    """Let surviving weights take over what the lost inputs did."""

    name = "compensation"
    Config = CompensationSettings
    settings: CompensationSettings

    def apply(self, case: Case, batches: Pairs) -> None:
        """Statistics of all layers in one pass through the network before the cut; or, recollecting, layer by layer."""
        if self.settings.recollect:
            self._one_by_one(case, batches)
            return
        readers = affected(case)
        moments = self._moments(case.dense, readers, batches)
        compensate(case, moments, rescale=self.settings.rescale, ridge=self.settings.ridge, readers=readers)

    def _one_by_one(self, case: Case, batches: Pairs) -> None:
        """A twin as wide as the original loses inputs layer by layer, so that the lost ones can still be measured."""
        readers = affected(case)
        wide = copy.copy(case)
        wide.model = clone_module(case.dense, lambda tensor: tensor.detach().clone()).eval()
        for reader in readers:
            moments = self._moments(wide.model, (reader,), batches)
            for each in (case, wide):
                compensate(each, moments, rescale=self.settings.rescale, ridge=self.settings.ridge, readers=(reader,))
        case.notes[:] = dict.fromkeys(case.notes)  # both cases hold the same list

    def _moments(self, model: nn.Module, readers: tuple[Reader, ...], batches: Pairs) -> Moments:
        moments = Moments([reader.name for reader in readers], positions=self.settings.positions)
        gather(model, batches, [moments])
        return moments


ROW = RepairRow(
    name="compensation",
    summary="least squares from means and covariances of layers' inputs, in closed form",
    paper="Pruning with Compensation: Efficient Channel Pruning for Deep Convolutional Neural Networks",
    year=2021,
    arxiv="2108.13728",
    needs="calibration",
    fidelity="written from the abstract and the authors' code (formulas and variance rescaling); added here: at most "
    "256 positions per image and a small ridge; each group of a grouped convolution is solved by itself",
    factory=Compensation,
)

"""Channel pruning: CP, by LASSO selection and least-squares reconstruction.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017 (arXiv:1707.06168), and its long
form (arXiv:2211.08339). Layer by layer, front to back, without training: X_i are patches of input channel i in the
network as pruned so far, W_i the layer's weights for it, Y what the layer answered in the whole network,

    (i)  min_b 1/2N |Y - sum_i b_i X_i W_iᵀ|² + lambda |b|₁     lambda grows until c' channels have b_i != 0
    (ii) W' = argmin |Y - X_S W'ᵀ|²                              on these alone; b is forgotten

The filters that made the other channels go. A shortcut that is added to a layer's answer is made up for as in
`secateur.repair.least_squares`, which is step (ii) after any other criterion.

Where this differs from the paper, and why:
    Its full text was not obtained: see the row's fidelity. The paper sets widths by hand; here every group keeps the
    same share of its channels, or shares in the proportions of `shares` (VGG-16 as recalled: conv4 1.5 times that of
    conv1 to conv3, conv5 whole), as large as the budget allows. The count is met exactly.
    (i) runs on second moments, exact and over all samples, not on 400 of them; the path of solutions is followed
    from the largest lambda down. Around the means of every output where the layer's constant is fitted anew; the
    authors' code has one intercept for all outputs at once, which picks other channels in most layers (35 of 39, small
    networks, random weights; the refit then leaves more unexplained in 29 of these: `benchmarks/cp_intercept.py`).
    `data.calibration_images` of a recipe bounds the images, too: it is less than the 5000 of the paper unless set.
    Channels that several layers read are chosen once, by the sum of these layers' problems in the whole network, each
    divided by the squared norm of its outputs. Residual streams stay whole, as in the paper, unless the budget is out
    of reach.
    The paper's sampler in front of a branch, which reads part of a stream, does not remove channels and is left out. So
    are
    the low-rank factorisations (3C) and the filter-wise variant, which make other networks.
    A ridge penalty keeps weights close to their old values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from secateur._protocols import BoolArray, FloatArray
from secateur.methods.cp.lasso import channel_moments, select
from secateur.methods.kit.layerwise import Layerwise, LayerwiseSettings, Work
from secateur.methods.row import MethodRow
from secateur.repair.least_squares import patch_sums
from secateur.statistics.lockstep import Stop
from secateur.statistics.samples import PatchSums


class CPSettings(LayerwiseSettings):
    """Defaults are the paper's where they are known."""


class CP(Layerwise):
    """Choose by LASSO and reconstruct, one layer after the other."""

    name = "cp"
    Config = CPSettings
    settings: CPSettings

    def prepare(self) -> None:
        """Nothing is known of channels that several layers read."""
        super().prepare()
        self._shared: dict[str, FloatArray] = {}
        if self.allocator not in ("global", "uniform"):
            self.notes.append(f"CP's widths follow from its shares, so allocator={self.allocator!r} was not applied.")

    def _survey(self, work: Work) -> None:
        """A of every group that several layers read and that loses channels, from the whole network; q is A · 1."""
        several = {}
        for group, mine in self._channels.items():
            found = [layer for layer, table in self._tables.items() if np.isin(mine, table).any()]
            if work.widths[group] < len(mine) and len(found) > 1:
                several[group] = found
        self._shared = {group: np.zeros((len(self._channels[group]),) * 2) for group in several}
        layers, dense = {layer for found in several.values() for layer in found}, work.case.dense
        for stop in self._together((dense,), work, sorted(layers), {}) if layers else ():
            moments = patch_sums(dense, stop, work.sampler, None)
            energy = max(moments.energy(constant=self._has_constant(stop.layer)), 1e-30)
            for group in [g for g, found in several.items() if stop.layer in found]:
                self._shared[group] += self._problem(moments, dense, stop.layer, group)[0] / energy

    def _problem(self, moments: PatchSums, model: nn.Module, layer: str, group: str) -> tuple[FloatArray, FloatArray]:
        """A and q of one group at one layer; all other inputs of the layer do what they do now."""
        table, mine = self._tables[layer], self._channels[group]
        local = np.where(np.isin(table, mine), table - mine[0], len(mine))  # one more: all the others together
        module: Any = model.get_submodule(layer)
        constant = self._has_constant(layer)
        square, right = channel_moments(moments, module.weight, local, len(mine) + 1, constant=constant)
        return square[:-1, :-1], right[:-1] - square[:-1, -1]

    def _choose(self, work: Work, stop: Stop, moments: PatchSums, group: str, width: int) -> BoolArray:
        """The channels that the LASSO keeps longest."""
        if group in self._shared:
            return select(self._shared[group], self._shared[group].sum(1), width)
        return select(*self._problem(moments, work.case.model, stop.layer, group), width)


ROW = MethodRow(
    name="cp",
    summary="inputs selected by a LASSO to reconstruct a layer's output, then least squares on the selected ones",
    paper="Channel Pruning for Accelerating Very Deep Neural Networks",
    year=2017,
    arxiv="1707.06168",
    needs="calibration",
    acts="after training",
    granularity="channel",
    fidelity="written from the official code and a re-implementation, without the papers' text: sampling, selection, "
    "reconstruction, bias and shortcut handling; VGG-16's ratios from memory; added here: the LASSO on second moments "
    "(derived), channels that several layers read and a pull towards the old weights; left out: samplers, the "
    "filter-wise variant and the factorisations of 3C",
    factory=CP,
    settings=CPSettings,
    variants=({"streams": True, "shortcuts": False},),
)

"""Variance matching: outputs of layers that lose inputs get their former mean and variance back, channel by channel.

Zhan, Chen, Hu: Adaptive Signal Resuscitation: Channel-wise Post-Pruning Repair for Sparse Vision Networks
(arXiv:2605.21426). With a_c what channel c of a layer gave before the cut and p_c what it gives now,

    s_c = 1 + k_c (sqrt(Var a_c / Var p_c) - 1)          matched where k_c = 1
    k_c = Corr(a_c, p_c)^2, 0 if they are opposed         the share of the variance that is still the old signal
    p_c <- s_c (p_c - E p_c) + E a_c

so that a channel of which little is left is not blown up to its former size. One pass: in every batch what a layer
makes is corrected by that batch before the layers behind it look, as batch norms do in training; averages are kept.

Where this differs from the paper, of which the abstract was read: the rule of shrinkage is ours (the abstract says that
one is needed, and driven by data), and means are matched too. In front of a batch norm that is measured anew afterwards
a factor changes nothing: this repair stands in the place of `batchnorm`, not before it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from secateur._hints import few
from secateur._settings import Section
from secateur.graph.modules import call_with_copies
from secateur.repair.base import Case, Pairs, Reader, Repair, RepairRow
from secateur.repair.compensation import affected, has_place
from secateur.statistics.gather import pair

#: Variances, relative to what they were, below which there is nothing left to bring to its old size.
_LOST = 1e-12


class VarianceSettings(Section):
    """How far channels are trusted."""

    shrink: Literal["correlation", "none"] = Field(
        "correlation",
        description="channels that no longer resemble what they were are corrected less, or all of them fully",
    )


class Sums:
    """Sums over samples and positions of what a layer gave before the cut (a) and gives now (p), for each channel."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: torch.Tensor | None = None

    def add(self, before: torch.Tensor, now: torch.Tensor) -> None:
        """before, now: [channels, values], as many of each."""
        a, p = before.double(), now.double()
        sums = torch.stack([a.sum(1), p.sum(1), (a * a).sum(1), (p * p).sum(1), (a * p).sum(1)])
        self._sums = sums if self._sums is None else self._sums + sums
        self.count += before.shape[1]

    def correction(self, *, shrink: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """s and what is added, [channels] each: p becomes s p + added."""
        assert self._sums is not None
        mean_a, mean_p, square_a, square_p, product = self._sums / self.count
        var_a, var_p = (square_a - mean_a**2).clamp_min(0), (square_p - mean_p**2).clamp_min(0)
        usable = var_p > _LOST * var_a.clamp_min(1e-300)
        safe = torch.where(usable, var_p, 1.0)
        matched = torch.where(usable, (var_a / safe).sqrt(), 1.0)  # sqrt(Var a / Var p)
        shared = (product - mean_a * mean_p).clamp_min(0)
        trust = (shared**2 / (safe * torch.where(var_a > 0, var_a, 1.0))).clamp_max(1.0)  # Corr(a, p)^2
        scale = 1 + (trust if shrink else 1.0) * (matched - 1)
        return scale, mean_a - scale * mean_p


class Variance(Repair):
    """Give channels of layers that lose inputs their mean and variance back."""

    name = "variance"
    Config = VarianceSettings
    settings: VarianceSettings

    def apply(self, case: Case, batches: Pairs) -> None:
        """One pass of both networks over the images; layers that are called several times are left as they are."""
        readers = {reader.name: reader for reader in affected(case)}
        found = self._measured(case, readers, batches)
        left = [name for name in readers if name not in found]
        if left:
            case.notes.append(f"Variances are left as they are in layers that are not called just once: {few(left)}.")
        for name, sums in found.items():
            self._write(case, readers[name], sums)

    def _measured(self, case: Case, readers: dict[str, Reader], batches: Pairs) -> dict[str, Sums]:
        """Sums of layers that ran just once in every batch, in the order in which they ran."""
        device = next(case.model.parameters()).device
        sums = {name: Sums() for name in readers}
        for batch in batches:
            inputs = pair(batch, device)[0]
            before: dict[str, torch.Tensor | None] = {}
            _run(case.dense, readers, inputs, lambda name, y, kept=before: _noted(kept, name, y))
            ran: dict[str, torch.Tensor | None] = {}

            def correct(
                name: str, y: torch.Tensor, before: Any = before, ran: Any = ran
            ) -> torch.Tensor | None:  # of this batch
                _noted(ran, name, y)
                was = before.get(name)
                if was is None or name not in sums or ran[name] is None or was.shape != y.shape:
                    sums.pop(name, None)
                    return None
                linear = isinstance(case.model.get_submodule(name), nn.Linear)
                here = Sums()
                here.add(_rows(was, linear), _rows(y, linear))
                sums[name].add(_rows(was, linear), _rows(y, linear))
                s, added = (_beside(v, y, linear) for v in here.correction(shrink=self._shrink))
                return y * s + added if has_place(case.dense, name, readers[name].norm) else y * s

            _run(case.model, readers, inputs, correct)
            for name in readers:
                if ran.get(name) is None:
                    sums.pop(name, None)
        return sums

    @property
    def _shrink(self) -> bool:
        return self.settings.shrink == "correlation"

    def _write(self, case: Case, reader: Reader, sums: Sums) -> None:
        layer: Any = case.model.get_submodule(reader.name)
        scale, added = (v.to(layer.weight) for v in sums.correction(shrink=self._shrink))
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.mul_(scale)
        case.add_constant(reader, added)


def _noted(kept: dict[str, torch.Tensor | None], name: str, output: torch.Tensor) -> None:
    kept[name] = None if name in kept else output  # None: called several times


def _run(model: nn.Module, names: Any, inputs: Any, look: Any) -> None:
    """Run the network; `look(name, output)` may give another output of a layer."""
    args, keywords = call_with_copies(inputs)
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name in names
    ]
    try:
        model(*args, **keywords)
    finally:
        for handle in handles:
            handle.remove()


def _rows(output: torch.Tensor, linear: bool) -> torch.Tensor:
    """[channels, values]."""
    return output.movedim(-1 if linear else 1, 0).flatten(1)


def _beside(values: torch.Tensor, output: torch.Tensor, linear: bool) -> torch.Tensor:
    """[channels] as it is multiplied with an output."""
    return values.to(output) if linear else values.to(output).view(-1, *[1] * (output.ndim - 2))


ROW = RepairRow(
    name="variance",
    summary="channels' means and variances matched to those before pruning, less where a channel has changed much",
    paper="Adaptive Signal Resuscitation: Channel-wise Post-Pruning Repair for Sparse Vision Networks",
    year=2026,
    arxiv="2605.21426",
    needs="calibration",
    fidelity="written from the abstract: matching variances per channel is the paper's; the rule of shrinkage "
    "(squared correlation) and matching of means are added here",
    factory=Variance,
)

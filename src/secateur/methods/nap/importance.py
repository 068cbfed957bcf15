"""Importance of every channel and of every single weight from the same Kronecker factors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from secateur._protocols import FloatArray
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.graph.channels import Member
from secateur.methods.nap.curvature import Curvature, Damping, Form
from secateur.methods.nap.kfac import Factors


class Importance(nn.Module):
    """The loss that removals cost, dL, around the weights a model has now.

    Args:
        graph: of the model. inputs: what it runs with. side: layers whose loss counts for a channel: those that make
            it, those that read it. form, damping, kind: see `Curvature`. per_layer: divide scores by their layer's sum.
        factors: options of `Factors`.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Any,
        *,
        side: Literal["producer", "consumer", "both"] = "producer",
        form: Form = "obs",
        damping: float = 1e-3,
        kind: Damping = "relative",
        per_layer: bool = False,
        **factors: Any,
    ) -> None:
        super().__init__()
        self.graph, self.form, self.damping, self.kind, self.per_layer = graph, form, damping, kind, per_layer
        self.factors = Factors(graph.model, inputs, **factors)
        self.weights = tuple(layer.weight for layer in self.factors.layers.values())
        self._members: dict[str, list[tuple[str, Member]]] = {weight: [] for weight in self.weights}
        sides = {("producer", 0): "producer", ("consumer", 1): "consumer"}
        for group in graph.groups:
            for member in group.members:
                found = sides.get((member.role, member.dim))
                if member.name in self._members and found is not None and side in (found, "both"):
                    self._members[member.name].append((group.name, member))

    @property
    def scored(self) -> set[str]:
        """Groups that get a score."""
        return {group for members in self._members.values() for group, _ in members}

    @property
    def blind(self) -> bool:
        """Whether no gradient has reached any layer of which scores are taken, so that they say nothing."""
        read = [name for name, layer in self.factors.layers.items() if self._members[layer.weight]]
        return not any(bool(self.factors.gradients(name).any()) for name in read)

    def curvature(self, name: str) -> Curvature:
        """The damped factors of a layer and its weights."""
        if not self.factors.weight:
            raise ConfigError("No statistics were gathered yet: train with the method, or call collect(batches, loss).")
        layer, model = self.factors.layers[name], self.graph.model
        return Curvature.of(
            layer,
            self.factors.inputs(name),
            self.factors.gradients(name),
            model.get_parameter(layer.weight),
            None if layer.bias is None else model.get_parameter(layer.bias),
            damping=self.damping,
            kind=self.kind,
        )

    @torch.no_grad()
    def of_channels(self) -> dict[str, FloatArray]:
        """dL of every channel: the sum over the layers of its group, which are independent under this Fisher matrix."""
        found = {group.name: np.zeros(group.width) for group in self.graph.groups}
        for name, layer in self.factors.layers.items():
            members = self._members[layer.weight]
            if not members:
                continue
            curve = self.curvature(name)
            values = [self._of_member(curve, member).cpu().numpy() for _, member in members]
            for (group, member), value in zip(members, values, strict=True):
                alike = (v.sum() for (_, m), v in zip(members, values, strict=True) if m.dim == member.dim)
                found[group] += value / (max(sum(alike), 1e-300) if self.per_layer else 1.0)
        return found

    def _of_member(self, curve: Curvature, member: Member) -> torch.Tensor:
        if member.dim == 0:
            every = curve.rows(self.form)
            return every[torch.from_numpy(member.index).to(every.device)].sum(1)
        kernel = curve.layer.kernel  # the columns of an input channel lie side by side
        columns = member.index[:, :, None] * kernel + np.arange(kernel)
        return curve.columns(columns.reshape(len(columns), -1), self.form)

    @torch.no_grad()
    def of_weights(self) -> dict[str, torch.Tensor]:
        """dL of every single weight, by name of the parameter and in its shape; biases and norms have none."""
        found = {}
        for name, layer in self.factors.layers.items():
            values = self.curvature(name).single()
            if self.per_layer:
                values = values / values.sum().clamp_min(1e-300)
            found[layer.weight] = values.view(self.graph.model.get_parameter(layer.weight).shape)
        return found

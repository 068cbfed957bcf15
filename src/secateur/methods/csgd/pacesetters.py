"""Which layer speaks for a group whose channels several layers produce, and its filters as rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from secateur._protocols import FloatArray
from secateur.graph import Graph
from secateur.graph.channels import Member, module_of


class Makers:
    """The layers that make each group's channels, in order of execution; norms and biases where there are none.

    A depthwise layer has a group's channels already as its input and counts only where there is nothing else.
    """

    def __init__(self, graph: Graph) -> None:
        self._tensors = graph.tensors()
        modules = dict(graph.model.named_modules())
        self._depthwise = {
            name
            for name, module in modules.items()
            if getattr(module, "groups", 1) > 1 and getattr(module, "groups", 1) == getattr(module, "in_channels", 0)
        }
        self.of = {group.name: self._makers(group.producers()) for group in graph.groups}
        self._reads: dict[str, list[str]] = {}
        for group in graph.groups:
            for member in group.consumers():
                self._reads.setdefault(member.name, []).append(group.name)
        self._settle()

    def _makers(self, producers: tuple[Member, ...]) -> list[Member]:
        made = [m for m in producers if self._tensors[m.name].is_floating_point()]
        kernels = [m for m in made if self._tensors[m.name].numel() > max(self._tensors[m.name].shape)]
        return [m for m in kernels if module_of(m.name) not in self._depthwise] or kernels or made

    def _settle(self) -> None:
        """How many layers lie before each group, by the shortest way."""
        self._depth = dict.fromkeys(self.of, float("inf"))
        while True:
            found = {name: min(self._before(m) for m in members) for name, members in self.of.items()}
            if found == self._depth:
                return
            self._depth = found

    def _before(self, member: Member) -> float:
        """How many layers lie before a layer; one that reads nothing prunable is the first."""
        read = self._reads.get(member.name)
        return 0.0 if read is None else 1.0 + max(self._depth[name] for name in read)

    def pacesetter(self, group: str) -> Member:
        """The layer that makes a group's channels with the fewest layers before it; of equals the one that runs first.

        In a residual stage that is the stem or the projection, whichever branch the code runs first.
        """
        return min(self.of[group], key=self._before)

    def rows(self, group: str, of: Literal["pacesetter", "all"] = "pacesetter") -> FloatArray:
        """One row a channel: what the pacesetter (or every layer) has for it, flattened."""
        members = [self.pacesetter(group)] if of == "pacesetter" else self.of[group]
        return np.concatenate([_rows(self._tensors[member.name], member) for member in members], axis=1)


def _rows(tensor: torch.Tensor, member: Member) -> FloatArray:
    rows = tensor.detach().to("cpu", torch.float64).movedim(member.dim, 0)
    result: FloatArray = rows.reshape(len(rows), -1).numpy()[member.index].reshape(len(member.index), -1)
    return result

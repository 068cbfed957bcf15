"""The gates at work in a model: hooks on its convolutions and on what stands behind them, while it trains and is tried.

What they saw in a forward pass is held until the next one, for the losses and for counting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from secateur.forms.gated import saliency, thresholded
from secateur.methods.manidp.sites import Site


class Gate(nn.Module):
    """The weights of one gate: F1 [hidden, inputs], F2 [outputs, hidden] and b [outputs]."""

    def __init__(self, site: Site, like: torch.Tensor, start: Literal["open", "kaiming"], seed: int) -> None:
        """Draw F1, Kaiming normal; b = 1 and F2 = 0, so that the gate is open, or F2 drawn as well."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(outputs: int, inputs: int) -> nn.Parameter:
            weight = torch.empty(outputs, inputs)
            nn.init.kaiming_normal_(weight, generator=generator)
            return nn.Parameter(weight.to(like.device))

        self.reduce, self.expand = drawn(site.hidden, site.inputs), drawn(site.outputs, site.hidden)
        self.shift = nn.Parameter(torch.ones(site.outputs, device=like.device))
        if start == "open":
            nn.init.zeros_(self.expand)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Saliencies [batch, outputs] for maps [batch, inputs, height, width], in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            return saliency(x.float(), self.reduce.float(), self.expand.float(), self.shift.float())


class SiteGates:
    """All gates of a model, and what they saw in the last forward pass, by number of the site.

    pi: saliencies [batch, outputs], before the threshold. features: GAP of what is gated, in training.
    masks: what channels were multiplied by. read: inputs that were not zero [batch], where that is counted.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], gates: nn.ModuleList) -> None:
        """Insert the hooks."""
        self.sites, self.gates = tuple(sites), gates
        self.thresholds: torch.Tensor | None = None  # [sites]
        self._stays: Sequence[torch.Tensor] | None = None
        self._constant: Sequence[torch.Tensor] | None = None
        self._counting = False
        self.forget()
        for k, site in enumerate(self.sites):
            model.get_submodule(site.name).register_forward_pre_hook(partial(self._look, k))
            model.get_submodule(site.end).register_forward_hook(partial(self._gate, k))

    def forget(self) -> None:
        """Let go of what was seen."""
        self.pi: dict[int, torch.Tensor] = {}
        self.features: dict[int, torch.Tensor] = {}
        self.masks: dict[int, torch.Tensor] = {}
        self.read: dict[int, torch.Tensor] = {}

    @contextmanager
    def at(
        self,
        thresholds: torch.Tensor,
        *,
        stays: Sequence[torch.Tensor] | None = None,
        constant: Sequence[torch.Tensor] | None = None,
        counting: bool = False,
    ) -> Iterator[None]:
        """Inside, gates have these thresholds [sites].

        stays: outputs that may open at all, 1 or 0. constant: masks that stand for those of every image.
        counting: see which inputs are zero.
        """
        before = self.thresholds, self._stays, self._constant, self._counting
        self.thresholds, self._stays, self._constant, self._counting = thresholds, stays, constant, counting
        try:
            yield
        finally:
            self.thresholds, self._stays, self._constant, self._counting = before

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteGates:
        """Copies of hooked layers share their gates, until they are taken out."""
        return self

    def taken_out(self, twin: nn.Module) -> None:
        """Remove the hooks from a copy of the model."""
        for site in self.sites:
            for hooks in (
                twin.get_submodule(site.name)._forward_pre_hooks,
                twin.get_submodule(site.end)._forward_hooks,
            ):
                for number, hook in list(hooks.items()):
                    if isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self:
                        del hooks[number]

    def _look(self, k: int, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if k == 0:
            self.forget()
        x = args[0]
        self.pi[k] = self.gates[k](x)
        if self._counting:
            self.read[k] = (x.abs().amax((2, 3)) > 0).sum(1)

    def _gate(self, k: int, layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        pi = self.pi[k]
        if torch.is_grad_enabled():
            self.features[k] = (output.relu() if self.sites[k].relu else output).float().mean((2, 3))
        mask = pi if self.thresholds is None else thresholded(pi, self.thresholds[k])
        if self._stays is not None:
            mask = mask * self._stays[k]
        if self._constant is not None:
            mask = self._constant[k].expand_as(mask)
        self.masks[k] = mask.detach()
        return output * mask.to(output.dtype)[:, :, None, None]

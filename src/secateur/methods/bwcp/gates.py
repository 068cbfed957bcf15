"""Gates on the channels of batch norms: one mask a group, made by the norms that own it, felt by all it passes through.

A gated norm is an ordinary batch norm whose class was changed, so that names, parameters and optimisers stay what they
were. It shows the `Gates` its scale and shift, as they look behind whitening, and gets back the mask of its channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from secateur._distributed import world
from secateur._protocols import BoolArray, FloatArray, GroupLike
from secateur.errors import RunError
from secateur.graph.norms import Place
from secateur.methods.bwcp import whitening
from secateur.methods.bwcp.concrete import Sharpening, gate_logit, margin, soft_gate

#: Scale and shift [C] of a norm as they look behind whitening.
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Table:
    """What one norm carries: its groups, the positions of their channels, and which of the groups it owns."""

    entries: tuple[tuple[str, torch.Tensor, bool], ...]
    channels: int

    @cached_property
    def whole(self) -> bool:
        """Whether the norm's channels are one group's, one by one."""
        _, index, _ = self.entries[0]
        return len(self.entries) == 1 and torch.equal(index, torch.arange(self.channels)[:, None])

    def owned(self) -> torch.Tensor:
        """1 at positions whose group this norm owns, else 0."""
        result = torch.zeros(self.channels)
        for _, index, owner in self.entries:
            result[index.reshape(-1)] = float(owner)
        return result


class Gates:
    """The masks of all groups in one forward pass.

    open: whether gates act at all. level: the margin z at which a gate is as often open as shut (0: P = 1/2).
    sharpness: see `gate_logit`. draws: how many random draws were made.
    """

    def __init__(
        self,
        groups: Iterable[GroupLike],
        places: Iterable[Place],
        channels: Mapping[str, int],
        *,
        floors: Mapping[str, int],
        delta: float,
        temperature: float,
        sharpening: Sharpening,
        seed: int,
    ) -> None:
        """Take the groups that pass through norms; `channels` are the norms' widths, `floors` the groups' least."""
        found = list(places)
        self.groups = {g.name: g.width for g in groups if any(p.group == g.name for p in found)}
        self.owners = {g: [p.norm for p in found if p.group == g and p.owner] for g in self.groups}
        self.tables = {
            norm: _Table(
                tuple((p.group, torch.from_numpy(p.index), p.owner) for p in found if p.norm == norm), channels[norm]
            )
            for norm in dict.fromkeys(p.norm for p in found)
        }
        self.floors = {name: floors[name] for name in self.groups}
        self.delta, self.temperature, self.sharpening, self.seed = delta, temperature, sharpening, seed
        self.open, self.level, self.sharpness, self.draws = False, 0.0, 1.0, 0
        self.layers: dict[str, GatedNorm] = {}
        self.settled: dict[str, torch.Tensor] | None = None  # masks that stand for good, once they are decided
        self._offsets = dict(zip(self.groups, np.cumsum([0, *self.groups.values()]), strict=False))
        self._mode: Literal["soft", "fixed"] | None = None  # None: soft in training, hard in evaluation
        self._fixed: dict[str, torch.Tensor] = {}
        self._begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> Gates:
        """Copies of gated layers share their gates."""
        return self

    def _begin(self) -> None:
        """Forget the masks of the last forward pass."""
        self._masks: dict[str, torch.Tensor] = {}
        self._seen: set[str] = set()
        self._uniform: torch.Tensor | None = None

    # -------------------------------------------------------------------------------------------- the forward pass

    def mask(self, layer: GatedNorm, seen: Pair | None) -> torch.Tensor | None:
        """The mask [C] of a norm's channels in this forward pass; None where nothing is masked.

        seen: the norm's scale and shift behind whitening in this pass, if they are its own. A norm that comes a second
        time begins a new forward pass.
        """
        if layer.key in self._seen:
            self._begin()
        self._seen.add(layer.key)
        if not self.open and self._mode != "fixed":
            return None
        table, like = self.tables[layer.key], _wide(layer.weight)
        for group, _, _ in table.entries:
            if group not in self._masks:
                self._masks[group] = self._mask_of(group, layer, seen)
        if table.whole:
            return self._masks[table.entries[0][0]].to(like)
        result = torch.ones(table.channels, device=like.device, dtype=like.dtype)
        for group, index, _ in table.entries:
            where = index.to(result.device)
            values = self._masks[group].to(result)[:, None].expand(where.shape)
            result = result.index_put((where.reshape(-1),), values.reshape(-1))
        return result

    def _mask_of(self, group: str, layer: GatedNorm, seen: Pair | None) -> torch.Tensor:
        if self._mode == "fixed":
            return self._fixed[group]
        if self.settled is not None:
            return self.settled[group]
        margins = [self._margin(group, owner, seen if owner == layer.key else None) for owner in self.owners[group]]
        with torch.no_grad():
            least = torch.stack(margins).amin(0) if len(margins) > 1 else margins[0].detach()
            kept = self._floor(group, least)
        if self._mode == "soft" or layer.training:
            uniform = self._draw(group, layer.weight.device)
            gates = [
                soft_gate(gate_logit(z - self.level, self.sharpening, self.sharpness), uniform, self.temperature)
                for z in margins
            ]
            product = torch.stack(gates).prod(0) if len(gates) > 1 else gates[0]
            return product.masked_fill(kept, 1.0)
        return (kept | (least >= self.level)).to(torch.float32)

    def _margin(self, group: str, owner: str, seen: Pair | None) -> torch.Tensor:
        """z [width] of a group's channels by one of its owners; a channel at several positions takes their mean."""
        scale, shift = self.layers[owner].equivalent() if seen is None else seen
        found = margin(scale, shift, self.delta)
        if self.tables[owner].whole:
            return found
        index = next(index for name, index, _ in self.tables[owner].entries if name == group)
        return found[index.to(scale.device)].mean(1)

    def _floor(self, group: str, z: torch.Tensor) -> torch.Tensor:
        """The channels [width] that never close: those with the largest margins."""
        kept = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        kept[torch.argsort(z, descending=True, stable=True)[: self.floors[group]]] = True
        return kept

    def _draw(self, group: str, device: torch.device) -> torch.Tensor:
        """This pass's uniform numbers [width] for a group: one draw, the same for all who ask and in every process."""
        if self._uniform is None:
            numbers = np.random.default_rng([self.seed, self.draws]).random(sum(self.groups.values()), dtype=np.float32)
            self._uniform = torch.from_numpy(numbers).to(device)
            self.draws += 1
        start = int(self._offsets[group])
        return self._uniform[start : start + self.groups[group]]

    # --------------------------------------------------------------------------------------------------- questions

    @torch.no_grad()
    def margins(self) -> dict[str, FloatArray]:
        """z [width] of every gated group as evaluation sees it, the least over the owners."""
        found = {
            group: torch.stack([self._margin(group, owner, None) for owner in owners]).amin(0).double().cpu().numpy()
            for group, owners in self.owners.items()
        }
        for group, z in found.items():
            if not np.isfinite(z).all():
                raise RunError(
                    f"The batch norms of group {group!r} hold NaN or infinity, so the training has diverged: lower the "
                    "learning rate."
                )
        return found

    def hard_masks(self) -> dict[str, BoolArray]:
        """Which channels the gates' level keeps as evaluation sees them; level 0 is the rule P >= 1/2."""
        return self.closed_below(self.level, self.margins())

    def closed_below(self, level: float, margins: Mapping[str, FloatArray]) -> dict[str, BoolArray]:
        """The masks that a level makes of margins, the floors included."""
        return {group: (z >= level) | self._floor(group, torch.from_numpy(z)).numpy() for group, z in margins.items()}

    def pressure(self, *, reward: bool) -> dict[str, torch.Tensor]:
        """1 for positions [C] of each norm that decide over a channel which may go; all that decide, for a reward."""
        masks = self.hard_masks()
        result = {}
        for norm, table in self.tables.items():
            weight = table.owned()
            for group, index, owner in table.entries:
                if owner and not reward and int(masks[group].sum()) <= self.floors[group]:
                    weight[index.reshape(-1)] = 0.0
            result[norm] = weight
        return result

    def settle(self, masks: Mapping[str, BoolArray]) -> None:
        """Let these masks stand instead of random gates from now on."""
        self.settled = self._as_tensors(masks)

    def _as_tensors(self, masks: Mapping[str, BoolArray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(masks[name]).float() for name in self.groups}

    @contextmanager
    def soft(self) -> Iterator[None]:
        """Do in evaluation what training does: draw gates, unless masks are settled."""
        with self._as("soft", {}):
            yield

    @contextmanager
    def fixed(self, masks: Mapping[str, BoolArray]) -> Iterator[None]:
        """Let the masks of a plan stand in for the gates, open or not."""
        with self._as("fixed", self._as_tensors(masks)):
            yield

    @contextmanager
    def _as(self, mode: Literal["soft", "fixed"], masks: dict[str, torch.Tensor]) -> Iterator[None]:
        before, draws = (self._mode, self._fixed), self.draws
        self._mode, self._fixed = mode, masks
        self._begin()
        try:
            yield
        finally:
            self._mode, self._fixed = before
            self.draws = draws  # looking changes nothing
            self._begin()


class GatedNorm(_BatchNorm):
    """A batch norm whose scale and shift are multiplied by the mask."""

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    gates: Gates
    key: str
    plain_class: type[_BatchNorm]

    def equivalent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift [C] as they look behind whitening; there is none here."""
        return _wide(self.weight), _wide(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [N, C, ...] and mask it."""
        mask = self.gates.mask(self, None)
        weight, bias = (self.weight, self.bias) if mask is None else (self.weight * mask, self.bias * mask)
        if self.training and world() > 1:
            return self._over_processes(x, weight, bias)
        if self.training:
            self.num_batches_tracked.add_(1)
        rate = self.rate if self.training else 0.0
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, self.training, rate, self.eps)

    def _over_processes(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The same with the statistics of all processes."""
        wide = whitening.dense(_wide(x))
        found = whitening.moments(wide, 1)
        mean, variance = found.mean, found.variance
        self.follow(mean, variance, found.count)
        one = torch.ones(self.num_features, 1, 1, device=x.device)
        matrix, shift = whitening.composed(one, weight, bias, mean, variance, self.eps)
        return whitening.affine(wide, matrix, shift, returned=found.returned).to(x.dtype)

    @property
    def rate(self) -> float:
        """How far running statistics move towards this batch's."""
        return self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)

    @torch.no_grad()
    def follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        """Move the running statistics towards these of `count` values."""
        self.num_batches_tracked.add_(1)
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.rate)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.rate)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """The class this stood for checks; what reaches it here has passed once."""


class WhitenedNorm(GatedNorm):
    """A gated batch norm that also whitens blocks of channels, as one affine map of its input."""

    whitening: torch.Tensor  # running inverse root [blocks, size, size]
    correlation: torch.Tensor  # running correlation, from which folding knows the variance behind the map
    source: str
    size: int
    newton_steps: int
    root_momentum: float

    def equivalent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """W gamma and W beta [C] with the running matrix."""
        matrix = self.whitening.clone()  # the buffer moves on before gradients are taken
        both = torch.stack([_wide(self.weight), _wide(self.bias)], 1).view(*matrix.shape[:2], 2)
        result = (matrix @ both).view(-1, 2)
        return result[:, 0], result[:, 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, whiten and mask x [N, C, ...]; everything but x in single precision."""
        with torch.autocast(x.device.type, enabled=False):
            wide, weight, bias = whitening.dense(_wide(x)), _wide(self.weight), _wide(self.bias)
            if not self.training:
                root, mean, variance = self.whitening, _wide(self.running_mean), _wide(self.running_var)
                matrix, shift = whitening.composed(root, weight, bias, mean, variance, self.eps)
                mask = self.gates.mask(self, None)
                return whitening.affine(wide, matrix, shift, mask).to(x.dtype)
            sums = whitening.moments(wide, self.size)
            found = whitening.mapped(sums, weight, bias, self.newton_steps, self.eps)
            self.follow(found.mean, found.variance, sums.count)
            with torch.no_grad():
                self.whitening.lerp_(found.root, self.root_momentum)
                self.correlation.lerp_(found.correlation, self.rate)
            mask = self.gates.mask(self, (found.scale, found.offset))
            return whitening.affine(wide, found.matrix, found.shift, mask, sums.returned).to(x.dtype)

    @torch.no_grad()
    def fold(self, layer: nn.Module) -> None:
        """Put the whole map into the layer before, and leave a norm that changes nothing in evaluation.

        K' = A K and b' = A b with A = W diag(gamma / sigma); the norm keeps the running statistics that A x has, and
        the scale and shift that make it the identity plus W beta, so that training can go on.
        """
        blocks = self.whitening.double()
        shape = blocks.shape[:2]
        sigma = (self.running_var.double() + self.eps).sqrt().view(shape)
        matrix = blocks * (self.weight.double().view(shape) / sigma)[:, None, :]
        kernel = cast(torch.Tensor, layer.weight)
        kernel.copy_((matrix @ kernel.double().reshape(*shape, -1)).view(kernel.shape))
        if layer.bias is not None:
            bias = cast(torch.Tensor, layer.bias)
            bias.copy_((matrix @ bias.double().view(*shape, 1)).view(-1))
        covariance = self.correlation.double() * sigma[:, :, None] * sigma[:, None, :]
        variance = (matrix @ covariance @ matrix.transpose(1, 2)).diagonal(dim1=1, dim2=2).reshape(-1).clamp_min(0)
        self.running_mean.copy_((matrix @ self.running_mean.double().view(*shape, 1)).view(-1))
        self.running_var.copy_(variance)
        self.weight.copy_((self.running_var.double() + self.eps).sqrt())
        self.bias.copy_((blocks @ self.bias.double().view(*shape, 1)).view(-1))


def _wide(x: torch.Tensor) -> torch.Tensor:
    """x in single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def insert(
    model: nn.Module, gates: Gates, sources: Mapping[str, str | None], *, size: int, newton_steps: int, momentum: float
) -> None:
    """Turn the norms of `gates` into gated ones; those that alone read a layer whiten blocks of up to `size`."""
    for key in gates.tables:
        norm, source = cast(Any, model.get_submodule(key)), sources[key]
        feeding = model.get_submodule(source) if source is not None else None
        block = whitening.block_size(norm.num_features, size, getattr(feeding, "groups", 1)) if feeding else 1
        norm.plain_class, norm.gates, norm.key = type(norm), gates, key
        norm.__class__ = WhitenedNorm if block > 1 else GatedNorm
        if block > 1:
            eye = torch.eye(block, device=norm.weight.device, dtype=_wide(norm.weight).dtype).repeat(
                norm.num_features // block, 1, 1
            )
            norm.register_buffer("whitening", eye)
            norm.register_buffer("correlation", eye.clone())
            norm.source, norm.size, norm.newton_steps, norm.root_momentum = source, block, newton_steps, momentum
        gates.layers[key] = norm


def extract(model: nn.Module) -> None:
    """Fold whitening into the layers before, and make gated norms ordinary again (without their masks)."""
    for module in model.modules():
        if isinstance(module, WhitenedNorm):
            module.fold(model.get_submodule(module.source))
            del module.whitening, module.correlation, module.source, module.size
            del module.newton_steps, module.root_momentum
        if isinstance(module, GatedNorm):
            plain = module.plain_class
            del module.gates, module.key, module.plain_class
            module.__class__ = plain  # type: ignore[assignment]

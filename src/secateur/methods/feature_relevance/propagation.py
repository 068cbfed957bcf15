"""Layer-wise relevance propagation through any network: one forward pass written down, then walked backwards by rules.

Bach et al., On Pixel-Wise Explanations by Layer-Wise Relevance Propagation, 2015. What arrives at the tape are ATen
calls, so that functions, modules and in-place variants are the same to it; a rule belongs to an operator, not to a
module type:

    convolutions, products with weights   R_in = x (W+ᵀ (α R / Z+) + W-ᵀ (-β R / Z-)), Z± the terms above, below 0
    activations, norms, constants         R_in = R
    views, slices, concatenations, maxima R_in = where the value came from
    sums, means, average pools            R_in = x · dy/dx · R / y, every term its share
    products of two activations           all to the larger tensor, for the smaller is a gate; to equal ones half each
    anything else                         as sums, and the operator is named in `unknown`

The bias of a layer takes nothing. A tensor with several readers receives the sum of what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from secateur.graph.calls import Mode, map_args, schema_of
from secateur.graph.recorder import find_rule
from secateur.graph.rules import tensors_in
from secateur.graph.rules.factory import LIKES, MAKERS
from secateur.graph.rules.pointwise import pointwise

#: Added to Z+ and Z-, whose terms have one sign each: only what is nothing meets it.
SMALL = 1e-9
#: Added to sums, whose terms may cancel, away from zero.
STABLE = 1e-6

_LINEAR = frozenset("convolution _convolution mm addmm bmm baddbmm matmul linear".split())
_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit _batch_norm_no_update batch_norm "
    "cudnn_batch_norm miopen_batch_norm batch_norm_with_update native_layer_norm layer_norm native_group_norm "
    "group_norm _fused_rms_norm rms_norm _softmax _log_softmax softmax log_softmax native_dropout dropout prelu "
    "_prelu_kernel clone contiguous alias detach lift_fresh _to_copy to".split()
)
_ROUTES = frozenset(
    "view _unsafe_view reshape _reshape_alias view_copy flatten unflatten permute movedim transpose t squeeze "
    "unsqueeze expand repeat slice narrow select unbind split chunk split_with_sizes cat stack flip roll "
    "constant_pad_nd pad pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold as_strided index "
    "index_select gather max_pool2d_with_indices max_pool1d_with_indices max_pool3d_with_indices max_pool2d "
    "adaptive_max_pool2d mkldnn_max_pool2d adaptive_max_pool1d adaptive_max_pool3d amax max upsample_nearest2d "
    "upsample_nearest1d upsample_nearest3d reflection_pad2d replication_pad2d reflection_pad1d replication_pad1d "
    "im2col".split()
)
_SHARES = frozenset(
    "add sub rsub sum mean avg_pool2d avg_pool1d avg_pool3d _adaptive_avg_pool2d adaptive_avg_pool2d "
    "mkldnn_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d upsample_bilinear2d upsample_linear1d "
    "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa col2im".split()
)
#: Operators that weigh values by attention: relevance goes to the values, argument 2.
_ATTENTIONS = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
)


@dataclass(frozen=True)
class Ref:
    """Stands in a call's arguments for an activation: its number on the tape."""

    number: int


@dataclass(eq=False)
class Call:
    """One operator call that activations pass through."""

    name: str
    kind: str
    func: Any
    args: Any
    kwargs: dict[str, Any]
    inputs: list[int]  # numbers of the activations it reads
    outputs: list[int]  # of its outputs; -1 where that is no activation


@dataclass(frozen=True)
class Rule:
    """The relevance of a layer's positive and negative parts: α R and -β R, with α - β = 1."""

    alpha: float = 2.0

    @property
    def beta(self) -> float:
        """What keeps the total."""
        return self.alpha - 1.0


@dataclass(eq=False)
class Activation:
    """One value on the tape: who made it, who reads it, its shape and, where a rule asks for it, the value."""

    shape: tuple[int, ...]
    maker: Call | None
    readers: list[Call] = field(default_factory=list)
    value: torch.Tensor | None = None
    depth: int = 0  # layers with weights on the way here


class Tape(Mode):
    """Writes down the operator calls of a forward pass under it; memory: the activations that rules will ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.activations: list[Activation] = []
        self.unknown: dict[str, None] = {}  # operators without a rule
        self._shared: dict[int, list[int]] = {}  # storage -> kept values in it
        self._written: dict[int, int] = {}  # storage -> the call that last wrote into it

    def start(self, tensors: Iterable[torch.Tensor]) -> None:
        """These are the network's inputs."""
        for tensor in tensors:
            if tensor.is_floating_point():
                self._mark(tensor, Activation(tuple(tensor.shape), None))

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of an activation; None for what does not depend on the inputs."""
        tape, number, made = getattr(tensor, "_secateur_activation", (None, 0, 0))
        if tape is not self:
            return None
        if self._written.get(tensor.untyped_storage().data_ptr(), -1) > made:
            self.unknown.setdefault("a write through a view")
        return int(number)

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        read = [t for value in (*args, *kwargs.values()) for t in tensors_in(value)]
        found = [n for n in map(self.number, read) if n is not None]
        if not found:
            return func(*args, **kwargs)
        name = schema_of(func).name.removeprefix("aten::")
        if name in LIKES or name in MAKERS:  # takes the shape, no value
            return func(*args, **kwargs)
        inputs = list(dict.fromkeys(found))
        kept_args = map_args(tuple(args), self._refer)
        kept = {key: map_args(value, self._refer) for key, value in kwargs.items()}
        kind = self._kind(name, func, kept_args, inputs)
        if kind not in ("pass", "gate"):
            self._keep(read)
        written = self._before_write(func, args, kwargs)
        out = func(*args, **kwargs)
        for tensor in written:
            self._written[tensor.untyped_storage().data_ptr()] = len(self.calls)
        call = Call(name, kind, func, kept_args, kept, inputs, [])
        depth = max(self.activations[n].depth for n in inputs) + (kind == "linear")
        for tensor in tensors_in(out) if not isinstance(out, torch.Tensor) else [out]:
            if not tensor.is_floating_point():
                call.outputs.append(-1)
                continue
            call.outputs.append(self._mark(tensor, Activation(tuple(tensor.shape), call, depth=depth)))
        for n in inputs:
            self.activations[n].readers.append(call)
        self.calls.append(call)
        return out

    def _mark(self, tensor: torch.Tensor, activation: Activation) -> int:
        holder: Any = tensor
        holder._secateur_activation = (self, len(self.activations), len(self.calls))
        self.activations.append(activation)
        return len(self.activations) - 1

    def _refer(self, tensor: torch.Tensor) -> Any:
        number = self.number(tensor)
        return tensor if number is None else Ref(number)

    def _keep(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            number = self.number(tensor)
            if number is not None and self.activations[number].value is None:
                self.activations[number].value = tensor.detach()  # an object of its own: marks stay with the other
                self._shared.setdefault(tensor.untyped_storage().data_ptr(), []).append(number)

    def _before_write(self, func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """Copy kept values that the call will write over; returns what it writes to."""
        if not func._schema.is_mutable:
            return []
        written: list[torch.Tensor] = []
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                written += tensors_in(value)
        for tensor in written:
            for number in self._shared.pop(tensor.untyped_storage().data_ptr(), []):
                value = self.activations[number].value
                assert value is not None
                self.activations[number].value = value.clone()
        return written

    def _kind(self, name: str, func: Any, args: Any, inputs: list[int]) -> str:
        for plain in (name, name.removesuffix("_"), name.removesuffix("_copy")):
            if plain in _NORMS:
                return "pass"
            if plain in _ROUTES:
                return "route"
            if plain in _LINEAR:
                return "linear" if len(inputs) == 1 and _operands(plain, args) is not None else "both"
            if plain in _ATTENTIONS:
                return "attention"
            if plain in _SHARES:
                return "share" if len(inputs) > 1 or plain not in ("add", "sub", "rsub") else "pass"
            if plain in ("mul", "div") and len(inputs) > 1:
                return "gate"
        if len(inputs) == 1 and find_rule(f"aten::{name}", torch.Tag.pointwise in func.tags) is pointwise:
            return "pass"
        self.unknown.setdefault(name)
        return "share"

    # ---------------------------------------------------------------------------------------------------- backwards

    @torch.no_grad()
    def walk(self, output: int, relevance: torch.Tensor, wanted: Iterable[int], rule: Rule) -> dict[int, torch.Tensor]:
        """The relevance of the wanted activations, by number, if the output's is `relevance`; what gets none is absent.

        Layers before the first of them are not walked through.
        """
        sought = set(wanted)
        arrived, found = {output: relevance}, dict[int, torch.Tensor]()
        for call in reversed(self.calls):
            given = [arrived.pop(n, None) if n >= 0 else None for n in call.outputs]
            found.update((n, r) for n, r in zip(call.outputs, given, strict=True) if n in sought and r is not None)
            if len(found) == len(sought):
                break
            if all(r is None for r in given):
                continue
            for number, part in self._back(call, given, rule):
                arrived[number] = arrived[number] + part if number in arrived else part
        return found

    def _back(self, call: Call, given: list[torch.Tensor | None], rule: Rule) -> Iterable[tuple[int, torch.Tensor]]:
        first = next(r for r in given if r is not None)
        match call.kind:
            case "pass":
                return [(call.inputs[0], _fitted(first, self.activations[call.inputs[0]].shape))]
            case "linear":
                return [(call.inputs[0], self._layer(call, first, rule))]
            case "gate":
                return self._gated(call, first)
            case "attention":
                values = call.args[2].number
                return [(n, part) for n, part in self._shares(call, given) if n == values]
            case "both":
                return [(n, part / len(call.inputs)) for n, part in self._shares(call, given)]
            case "route":
                return self._again(call, lambda outs: given)
        return self._shares(call, given)

    def _layer(self, call: Call, relevance: torch.Tensor, rule: Rule) -> torch.Tensor:
        operands = _operands(call.name.removesuffix("_"), call.args)
        assert operands is not None
        weight, forward, adjoint = operands
        x = self.activations[call.inputs[0]].value
        assert x is not None
        return alpha_beta(x, weight, relevance, forward, adjoint, rule)

    def _shares(self, call: Call, given: list[torch.Tensor | None]) -> list[tuple[int, torch.Tensor]]:
        """x · dy/dx · R / y."""

        def over(outs: list[torch.Tensor]) -> list[torch.Tensor | None]:
            return [None if r is None else r / stable(y.detach()) for r, y in zip(given, outs, strict=True)]

        found = []
        for number, part in self._again(call, over):
            value = self.activations[number].value
            assert value is not None
            found.append((number, value * part))
        return found

    def _gated(self, call: Call, relevance: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        sizes = {n: torch.Size(self.activations[n].shape).numel() for n in call.inputs}
        largest = [n for n, size in sizes.items() if size == max(sizes.values())]
        if call.name.startswith("div"):
            largest = [n for n in largest if isinstance(call.args[0], Ref) and n == call.args[0].number] or largest
        return [(n, _fitted(relevance, self.activations[n].shape) / len(largest)) for n in largest]

    def _again(
        self, call: Call, slopes: Callable[[list[torch.Tensor]], list[torch.Tensor | None]]
    ) -> list[tuple[int, torch.Tensor]]:
        """Run the operator once more, and differentiate."""
        leaves = {}
        for number in call.inputs:
            value = self.activations[number].value
            assert value is not None
            leaves[number] = value.detach().requires_grad_()

        def put(value: Any) -> Any:
            if isinstance(value, Ref):  # a copy, where the operator writes into its argument
                leaf = leaves[value.number]
                return leaf.clone() if call.func._schema.is_mutable else leaf
            return type(value)(map(put, value)) if isinstance(value, (list, tuple)) else value

        with torch.enable_grad():
            out = call.func(*put(call.args), **{key: put(value) for key, value in call.kwargs.items()})
            outs = [out] if isinstance(out, torch.Tensor) else list(tensors_in(out))
            pairs = [(y, s) for y, s in zip(outs, slopes(outs), strict=True) if s is not None and y.requires_grad]
            if not pairs:
                return []
            ys, ss = [y for y, _ in pairs], [s.to(y) for y, s in pairs]
            gradients = torch.autograd.grad(ys, list(leaves.values()), ss, allow_unused=True)
        return [(n, g) for n, g in zip(leaves, gradients, strict=True) if g is not None]


def alpha_beta(
    x: torch.Tensor,
    weight: torch.Tensor,
    relevance: torch.Tensor,
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    adjoint: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    rule: Rule,
) -> torch.Tensor:
    """The relevance of a layer's input; forward(x, W) is the layer without its bias, adjoint(s, W, x) its transpose.

    Where x has negative values they meet the weights of the other sign, so that Z+ and Z- keep theirs.
    """
    above, below = weight.clamp(min=0), weight.clamp(max=0)
    parts = [(x, above, below)]
    if bool((x < 0).any()):
        parts = [(x.clamp(min=0), above, below), (x.clamp(max=0), below, above)]
    plus = sum((forward(part, w) for part, w, _ in parts[1:]), start=forward(parts[0][0], above))
    minus = sum((forward(part, w) for part, _, w in parts[1:]), start=forward(parts[0][0], below))
    up = rule.alpha * relevance / plus.add_(SMALL)
    down = -rule.beta * relevance / minus.sub_(SMALL)
    result = torch.zeros_like(x)
    for part, positive, negative in parts:
        slope = adjoint(up, positive, part)
        if rule.beta:
            slope = slope.add_(adjoint(down, negative, part))
        result.addcmul_(part, slope)
    return result


def stable(y: torch.Tensor) -> torch.Tensor:
    """y, away from zero by as much as keeps its sign."""
    return y + torch.where(y < 0, -STABLE, STABLE)


def _operands(name: str, args: Any) -> tuple[torch.Tensor, Callable[..., Any], Callable[..., Any]] | None:
    """Weight, map and transposed map of a product of an activation with a constant; None where it is something else."""
    if name in ("convolution", "_convolution"):
        if not isinstance(args[0], Ref) or not isinstance(args[1], torch.Tensor):
            return None
        rest = tuple(args[3:9])
        return (
            args[1],
            lambda x, w: torch.ops.aten.convolution(x, w, None, *rest),
            lambda s, w, x: torch.ops.aten.convolution_backward(s, x, w, None, *rest, [True, False, False])[0],
        )
    at = 1 if name in ("addmm", "baddbmm") else 0
    if not isinstance(args[at], Ref) or not isinstance(args[at + 1], torch.Tensor):
        return None
    weight = args[at + 1].mT if name == "linear" else args[at + 1]
    return weight, lambda x, w: x @ w, lambda s, w, x: s @ w.mT


def _fitted(relevance: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """What was broadcast takes the sum."""
    return relevance if tuple(relevance.shape) == shape else relevance.sum_to_size(shape)

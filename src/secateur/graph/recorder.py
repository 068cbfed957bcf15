"""The recorder: the dispatch mode that writes down every ATen call of a forward pass, and what it writes.

What comes out is a `Recording`: the operator calls in order, the ledger the rules filled, and which parameters ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.graph.calls import TRANSPARENT, Mode, bind, depends_on_data, on_one_device, schema_of
from secateur.graph.code import Code
from secateur.graph.forms import Form
from secateur.graph.hooks import telling_hooks
from secateur.graph.labels import Axis, Ids, Label, Ledger
from secateur.graph.leaving import watching
from secateur.graph.modules import Modules, module_stack, modules_of, output_tensors, plain_kernels, tensors_of, to_meta
from secateur.graph.rules import RULES, Expect, Op, is_constant, is_fixed, label_of, positions
from secateur.graph.rules.pointwise import pointwise
from secateur.graph.shapes import run_on_meta

SOFTMAX = frozenset(f"aten::{name}" for name in ("_softmax", "softmax", "_safe_softmax", "_log_softmax", "log_softmax"))


@dataclass(frozen=True)
class Unsupported:
    """An operator without a rule, and a module it ran in; everything it touched is frozen."""

    operator: str
    module: str


@dataclass
class Call:
    """One recorded operator call, as much as the later steps need."""

    name: str
    module: str
    shapes: tuple[tuple[int, ...], ...]
    labels: tuple[Label, ...]
    expects: tuple[Expect, ...]
    mixes: bool
    weight: tuple[Axis, Axis] | None
    strides: tuple[tuple[int, ...], ...]  # of the outputs: PyTorch picks operators by them
    form: Form | None = None  # of a convolution or linear layer
    value: Any = None  # of an operator whose result has a size that depends on data, on a run with real tensors
    repeats: int = 1  # how many groups of a convolution share the columns of its weight


@dataclass
class Buffer:
    """One allocation of the forward pass: its axes, when it is born and last used."""

    sizes: tuple[int, ...]
    label: Label
    birth: int
    death: int


@dataclass(frozen=True, eq=False)
class Tap:
    """One labelled dimension of a module's output: tensor number `position`, dimension `dim`, slot ids `axis`."""

    module: str
    position: int
    dim: int
    axis: Ids


@dataclass
class Recording:
    """All that one run taught."""

    ledger: Ledger
    calls: list[Call] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    places: dict[str, Label] = field(default_factory=dict)  # label of every parameter and buffer
    first_use: dict[str, int] = field(default_factory=dict)
    taps: list[Tap] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)
    on_meta: bool = True
    touched: set[str] = field(default_factory=set)  # parameters used in training only, of which nothing is carried on
    training_error: str = ""  # why the run in training mode came to nothing
    gradients: bool = False  # a tensor was asked whether gradients are taken of it
    compiled: list[str] = field(default_factory=list)  # modules compiled in place; they were run uncompiled
    softmaxed: list[Ids] = field(default_factory=list)  # axes along which a softmax was taken
    scales: list[Ids] = field(default_factory=list)  # axes of fixed vectors that rise or fall: values of bins, maybe
    random: dict[str, str] = field(default_factory=dict)  # operators that drew random numbers -> where


def places_of(calls: list[Call]) -> list[tuple[str, str, int]]:
    """Where every call is: its module, its operator, and how often that ran there before."""
    seen: Counter[tuple[str, str]] = Counter()
    places = []
    for call in calls:
        places.append((call.module, call.name, seen[call.module, call.name]))
        seen[call.module, call.name] += 1
    return places


class RuleError(ModelError):
    """A rule fails or returned a label that does not fit its tensor: a defect of the rule, never of the model."""


def find_rule(name: str, is_pointwise: bool) -> Callable[[Op], Any] | None:
    """The rule of an operator; in-place, copy and functional variants share it."""
    for suffix in ("", "_", "_copy", "_functional"):
        found = RULES.get(name.removesuffix(suffix))
        if found is not None:
            return found
    return pointwise if is_pointwise else None


def _fits(label: Label, shape: Sequence[int]) -> bool:
    """Whether a label has an entry for every dimension, of its length."""
    if len(label) != len(shape):
        return False
    for axis, size in zip(label, shape, strict=True):  # noqa: SIM110 - `all` of a generator takes twice as long
        if axis is not None and len(axis) != size:
            return False
    return True


class Recorder(Mode):
    """The dispatch mode that labels tensors as they flow."""

    def __init__(self, recording: Recording, meta: bool) -> None:
        super().__init__()
        self.recording, self.meta = recording, meta
        self.stack: list[str] = [""]
        self.outside = 0  # how many hooks of the program, none of the model's, are at work
        self.moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.meta:
            args, kwargs = on_one_device(args, kwargs, self._move)
        return self.record(func, args, kwargs)

    def execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator; verification overrides this."""
        return run_on_meta(schema_of(func).own, func, args, kwargs) if self.meta else func(*args, **kwargs)

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute one call, apply its rule, label its outputs, note its buffers."""
        schema = schema_of(func)
        name, aliases = schema.name, schema.aliases
        if schema.random:
            self.recording.random.setdefault(name.removeprefix("aten::"), self.stack[-1])
        out = self.execute(func, args, kwargs)
        bound = bind(schema, args, kwargs)
        calls = self.recording.calls
        op = Op(len(calls), name, self.stack[-1], bound, out, self.recording.ledger)
        self._note_uses(op)
        positions.before(op)
        counted = len(self.recording.ledger.macs)
        labels = self._labels(op, schema.pointwise)
        if self.outside:
            del self.recording.ledger.macs[counted:]
            op.form = None
        if name in SOFTMAX and labels[0] and (mixed := labels[0][op.dim()]) is not None:
            self.recording.softmaxed.append(mixed)
        elif name == "aten::exp":  # a softmax written out
            self.recording.softmaxed += [axis for axis in labels[0] if axis is not None]
        outs = op.outputs()
        constant = all(map(is_constant, op.tensors()))
        fixed = constant and all(map(is_fixed, op.tensors()))
        for k, tensor in enumerate(outs):
            label = labels[k] if k < len(labels) else (None,) * tensor.dim()
            vars(tensor)["_secateur_fixed"] = fixed
            self._attach(tensor, label, constant, aliases[k] if k < len(aliases) else None, args, op.index)
        positions.after(op)
        if name not in TRANSPARENT:
            calls.append(self._call(op, outs, labels))
            if not self.meta and depends_on_data(name, bound):
                calls[-1].value = out
        return out

    @staticmethod
    def _call(op: Op, outs: list[torch.Tensor], labels: list[Label]) -> Call:
        shapes = tuple([tuple(t.shape) for t in outs])
        strides = tuple([t.stride() for t in outs])
        seen = (shapes, tuple(labels), tuple(op.expects), op.mixes, op.weight, strides)
        repeats = int(op.args.get("groups") or 1) if op.weight is not None else 1
        return Call(op.name, op.module, *seen, op.form, repeats=repeats)

    def _labels(self, op: Op, is_pointwise: bool) -> list[Label]:
        found = find_rule(op.name, is_pointwise)
        if found is None:
            return self._freeze(op)
        try:
            result = found(op)
        except Exception as error:
            raise RuleError(
                f"The rule of {op.name} fails in {op.module or 'the model'} ({type(error).__name__}: {error}); "
                "please report it, or register another with secateur.graph.rule."
            ) from error
        labels = result if isinstance(result, list) else [result]
        for label, out in zip(labels, op.outputs(), strict=False):
            if not _fits(label, out.shape):
                sizes = [None if axis is None else len(axis) for axis in label]
                raise RuleError(f"The rule of {op.name} labels {sizes} for a tensor of shape {tuple(out.shape)}.")
        return labels

    def _freeze(self, op: Op) -> list[Label]:
        if not self.outside or any(axis is not None for t in op.tensors() for axis in label_of(t)):
            self.recording.unsupported.append(Unsupported(op.name, op.module))
        return op.keep_all(f"operator {op.name} has no rule (in {op.module or 'the model'})")

    def _attach(
        self, tensor: torch.Tensor, label: Label, constant: bool, alias: int | None, args: Any, index: int
    ) -> None:
        holder: Any = tensor
        source = args[alias] if alias is not None and alias < len(args) else None
        buffer = getattr(source, "_secateur_buffer", None) if isinstance(source, torch.Tensor) else None
        if alias is None and not constant and tensor.numel() and not self.outside:
            buffer = len(self.recording.buffers)
            self.recording.buffers.append(Buffer(tuple(tensor.shape), label, index, index))
        holder._secateur_label, holder._secateur_constant, holder._secateur_buffer = label, constant, buffer

    def _note_uses(self, op: Op) -> None:
        for tensor in op.tensors():
            buffer = getattr(tensor, "_secateur_buffer", None)
            if buffer is not None:
                self.recording.buffers[buffer].death = op.index
            name = getattr(tensor, "_secateur_name", None)
            if name is not None:
                self.recording.first_use.setdefault(name, op.index)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of a constant, with its label."""
        if id(tensor) not in self.moved:
            twin: Any = to_meta(tensor)
            vars(twin).update(vars(tensor))
            self.moved[id(tensor)] = (tensor, twin)
        return self.moved[id(tensor)][1]


def forward(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    recorder: Recorder,
    *,
    gradients: bool = False,
    modules: Modules | None = None,
    code: Code | None = None,
) -> Any:
    """Run `model` under `recorder`, noting taps; with `gradients` as training does, for a forward that asks.

    modules, code: all of `modules_of(model)` and what they run, if they are known.
    """

    def tap(name: str, output: Any) -> None:
        for position, tensor in enumerate(output_tensors(output)):
            for dim, axis in enumerate(label_of(tensor)):
                if axis is not None:
                    recorder.recording.taps.append(Tap(name, position, dim, axis))

    def asked() -> None:
        recorder.recording.gradients = True

    def hooked(step: int) -> None:
        recorder.outside += step

    modules = modules_of(model) if modules is None else modules
    code = Code(module for _, module in modules) if code is None else code
    watched = watching(code, recorder.recording.ledger, recorder.stack, asked)
    with (
        plain_kernels(),
        torch.set_grad_enabled(gradients),
        module_stack(model, recorder.stack, tap, modules),
        watched,
        telling_hooks(hooked),
        recorder,
    ):
        return model(*args, **kwargs)


def label_parameters(modules: Modules, recording: Recording) -> None:
    """Fresh ids for every dimension of every parameter and buffer, except the kernel positions of convolutions."""
    kernels = {
        id(tensor)
        for _, module in modules
        if isinstance(module, nn.modules.conv._ConvNd)
        for tensor in (module.parameters() if module._modules else module._parameters.values())
        if tensor is not None and tensor.dim() >= 3
    }
    parameter = recording.ledger.parameter
    for name, tensor in tensors_of(modules).items():
        shape = tensor.shape
        if id(tensor) in kernels:
            label: Label = (parameter(shape[0]), parameter(shape[1]), *(None,) * (len(shape) - 2))
        else:
            label = tuple([parameter(n) for n in shape])
        holder: Any = tensor
        holder._secateur_label, holder._secateur_constant, holder._secateur_name = label, True, name
        recording.places[name] = label

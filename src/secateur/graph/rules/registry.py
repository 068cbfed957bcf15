"""The table operator -> rule, and `Op`, what a rule gets to see of one operator call.

A rule returns the label of the operator's output (a list of labels where it has several) and writes ties into the
ledger. An operator without a rule freezes what it touches and is reported; `rule` adds one, in user code too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.graph.forms import Form
from secateur.graph.labels import Axis, Ids, Label, Ledger

Labels = Label | list[Label]
Rule = Callable[["Op"], Labels]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen (or custom) operators by qualified name, such as ``"aten::relu"`` or ``"mylib::gate"``.

    names: without `::`, of ATen.

    The rule is called with an `Op`; it returns the label of the output, or a list of labels for several outputs.
    In-place variants (``relu_``) use the same rule. Registering a name again replaces the rule.

        @secateur.graph.rule("mylib::gate")
        def gate(op):
            return op.same("input")        # elementwise in its argument `input`
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return register


@dataclass(frozen=True)
class Expect:
    """Integer argument `arg` (entry `position` of a list) must equal the alive count of `axis`, times `sign`."""

    arg: str
    position: int | None
    axis: Ids
    sign: int = 1


def label_of(value: torch.Tensor) -> Label:
    """The label a tensor carries; a tensor the trace did not make has none."""
    label = getattr(value, "_secateur_label", None)
    return label if label is not None else (None,) * value.dim()


def is_constant(value: torch.Tensor) -> bool:
    """Whether a tensor depends on parameters, buffers and constants alone, not on the model's inputs."""
    return getattr(value, "_secateur_constant", True)


def is_fixed(value: torch.Tensor) -> bool:
    """Whether a tensor is a constant in which no parameter had a part: masking channels leaves its values alone."""
    fixed: bool | None = getattr(value, "_secateur_fixed", None)
    return fixed if fixed is not None else is_constant(value) and not isinstance(value, nn.Parameter)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of one operator argument, lists included."""
    if isinstance(value, torch.Tensor):
        return [value]
    found: list[torch.Tensor] = []
    if isinstance(value, _LISTS):
        for item in value:
            kind = type(item)
            if kind in _NUMBERS:  # most items are, and this is asked soonest
                continue
            if kind is not list and isinstance(item, torch.Tensor):
                found.append(item)
            elif isinstance(item, _LISTS) and not _NUMBERS.issuperset(map(type, item)):
                found += tensors_in(item)
    return found


_LISTS = (list, tuple)
_NUMBERS = frozenset({int, float, bool, type(None), str, torch.dtype, torch.device})


@dataclass
class Op:
    """One operator call during the trace: its arguments by schema name, its outputs, where it ran."""

    index: int
    name: str  # "aten::convolution"
    module: str  # path of the innermost executing module
    args: dict[str, Any]
    out: Any
    ledger: Ledger
    expects: list[Expect] = field(default_factory=list)
    weight: tuple[Axis, Axis] | None = None  # of a layer: the axes of its weight as stored (rows, columns)
    mixes: bool = False  # sums or normalises over a labelled dimension: verification recomputes it on the survivors
    form: Form | None = None  # of a convolution or linear layer: what it is besides its widths
    _tensors: list[torch.Tensor] | None = None
    _outputs: list[torch.Tensor] | None = None

    @property
    def where(self) -> str:
        """The operator and the module it ran in, for messages."""
        return f"{self.name.removeprefix('aten::')} in {self.module or 'the model'}"

    def label(self, arg: str) -> Label:
        """Label of the tensor argument `arg`."""
        return label_of(self.args[arg])

    def same(self, arg: str) -> Label:
        """The output is labelled exactly as argument `arg`."""
        return self.label(arg)

    def blank(self) -> Label:
        """The label of an output of which nothing is known."""
        rank: int = self.out.dim()
        return (None,) * rank

    def tensors(self) -> list[torch.Tensor]:
        """All tensor arguments, lists flattened."""
        if self._tensors is None:
            self._tensors = tensors_in(list(self.args.values()))
        return self._tensors

    def outputs(self) -> list[torch.Tensor]:
        """All tensor outputs."""
        if self._outputs is None:
            self._outputs = tensors_in(self.out)
        return self._outputs

    def dim(self, arg: str = "dim", of: str = "self") -> int:
        """A dimension argument, made non-negative."""
        rank = max(self.args[of].dim(), 1)
        dim: int = int(self.args[arg]) % rank
        return dim

    def expect(self, arg: str, axis: Ids, position: int | None = None, sign: int = 1) -> None:
        """After a cut, integer `arg` (entry `position` of a list) must be `sign` times the alive count of `axis`."""
        self.expects.append(Expect(arg, position, axis, sign))

    def inexact(self, axis: Axis, why: str) -> None:
        """The operator mixes the values along `axis`."""
        if axis is not None:
            self.mixes = True
            self.ledger.inexact(axis, f"{why} ({self.where})")
            self.ledger.mix(axis, f"{why} ({self.where})", all(is_constant(t) for t in self.tensors()))

    def join(self, a: Axis, b: Axis) -> Axis:
        """`Ledger.join` with this operator as the reason."""
        if a is None or b is None:
            return self.ledger.join(a, b, f"meets a size that is not prunable ({self.where})")
        self.ledger.tie(a, b)
        return a

    def fix(self, axis: Axis, why: str) -> None:
        """`Ledger.fix` with this operator as the place."""
        self.ledger.fix(axis, f"{why} ({self.where})")

    def keep_all(self, reason: str) -> list[Label]:
        """Fix every index of every argument; dimensions of the outputs that look like one stay that one.

        So what meets an output is told the true reason.
        """
        alike: dict[tuple[int, int], Axis] = {}
        for tensor in self.tensors():
            for d, axis in enumerate(label_of(tensor)):
                self.ledger.fix(axis, reason)
                if axis is not None and len(axis) > 1:
                    alike.setdefault((d - tensor.dim(), len(axis)), axis)
        return [tuple(alike.get((d - out.dim(), size)) for d, size in enumerate(out.shape)) for out in self.outputs()]

    def broadcast(self, tensors: Sequence[torch.Tensor], rank: int | None = None) -> Label:
        """The label of tensors combined element by element under broadcasting."""
        rank = max(t.dim() for t in tensors) if rank is None else rank
        result: list[Axis] = [None] * rank
        seen = [0] * rank
        for tensor in tensors:
            label, offset = label_of(tensor), rank - tensor.dim()
            for d, size in enumerate(tensor.shape):
                at = d + offset
                if at < 0:
                    continue
                if size == 1:
                    if seen[at] == 0 and result[at] is None:
                        result[at] = label[d]
                elif seen[at] == 0:
                    result[at], seen[at] = label[d], size
                else:
                    result[at] = self.join(result[at], label[d])
        return tuple(result)

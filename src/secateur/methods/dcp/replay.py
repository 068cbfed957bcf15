"""A forward pass that is run again and again from one layer on: all that comes before is done once and remembered.

Modules that have returned before the layer begins are not called again; they give what they gave. Only those results
are kept that something else than such modules reads. Where that does not lead to the same input of the layer (code that
shares a module between places, or writes into a result), everything is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.graph.calls import Mode
from secateur.graph.modules import call_with_copies, map_tensors, module_stack, output_tensors
from secateur.graph.rules import tensors_in

_SUMS = (torch.ops.aten.add, torch.ops.aten.add_)
_Call = tuple[str, int]  # a module, and which of its calls


class _Stop(BaseException):
    """Nothing behind this place is wanted."""


@dataclass
class _Visit:
    """One call of a module in the recorded pass."""

    call: _Call
    parent: _Visit | None
    done: bool = False  # it has returned before the layer began
    outputs: list[int] = field(default_factory=list)


class _Reads(Mode):
    """Notes which tensors are read in which call of a module, and cut points: results all that follows depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = [""]
        self.here: _Visit = _Visit(("", 0), None)
        self.visits: list[_Visit] = []
        self.reads: list[tuple[_Visit, int]] = []
        self._alive: list[Any] = []  # or identities would be used again

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in tensors_in((args, kwargs or {})):
            self.reads.append((self.here, id(tensor)))
        out = func(*args, **(kwargs or {}))
        self._alive.append((out, args))
        return out

    def keep(self, value: Any) -> None:
        """Hold on to what a module returns."""
        self._alive.append(value)


class Replay:
    """Passes of `model` over batches, from the call of `layer` to the result of the module `end` (None: to the end).

    Everything before `layer` must stay as it is. Memory: what is needed of the results before it, for all batches.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], layer: str, end: str | None) -> None:
        self.model, self.batches, self.layer, self.end = model, batches, layer, end
        self._known: list[dict[_Call, Any]] = [{} for _ in batches]
        with torch.no_grad():
            kept = self._record()
            wanted = [self._reach(number, kept) for number in range(len(batches))]
            self.skips = all(torch.equal(x, self._reach(n, None)) for n, x in enumerate(wanted))
        if not self.skips:
            self._known = [{} for _ in batches]

    def _record(self) -> dict[_Call, bool]:
        """The calls that need not be made again, and whether anybody reads their results."""
        mode, counts, begun = _Reads(), Counter[str](), False

        def enter(name: str) -> None:
            mode.here = _Visit((name, counts[name]), mode.here)
            counts[name] += 1
            mode.visits.append(mode.here)

        def leave(name: str, output: Any) -> None:
            mode.keep(output)
            mode.here.outputs = [id(tensor) for tensor in output_tensors(output)]
            mode.here.done = not begun
            assert mode.here.parent is not None
            mode.here = mode.here.parent

        def begin(*_: Any) -> None:
            nonlocal begun
            begun = True

        args, keywords = call_with_copies(self.batches[0])
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_pre_hook(lambda *_, name=name: enter(name)).remove)
            stack.callback(self.model.get_submodule(self.layer).register_forward_pre_hook(begin).remove)
            stack.enter_context(module_stack(self.model, mode.stack, leave))
            stack.enter_context(mode)
            self.model(*args, **keywords)
        top = [v for v in mode.visits if v.done and v.parent is not None and not v.parent.done]
        read = {tensor for visit, tensor in mode.reads if not _inside(visit)}
        return {visit.call: any(tensor in read for tensor in visit.outputs) for visit in top}

    def _reach(self, number: int, kept: dict[_Call, bool] | None) -> torch.Tensor:
        """What the layer reads; remembers results on the way if told which."""
        found: list[torch.Tensor] = []

        def begin(_: Any, args: Any, keywords: Any) -> None:
            found.append(args[0] if args else keywords["input"])
            raise _Stop

        hook = self.model.get_submodule(self.layer).register_forward_pre_hook(begin, with_kwargs=True)
        try:
            with self._instead(number, kept):
                self._call(number)
        except _Stop:
            pass
        finally:
            hook.remove()
        return found[0]

    def run(self, number: int) -> Any:
        """One pass over batch `number`: what the module `end`, or the model, returns."""
        if self.end is None:
            with self._instead(number, None):
                return self._call(number)
        found: list[Any] = []

        def stop(_: Any, __: Any, output: Any) -> None:
            found.append(output)
            raise _Stop

        hook = self.model.get_submodule(self.end).register_forward_hook(stop)
        try:
            with self._instead(number, None):
                self._call(number)
        except _Stop:
            pass
        finally:
            hook.remove()
        return found[0]

    def _call(self, number: int) -> Any:
        args, keywords = call_with_copies(self.batches[number])
        return self.model(*args, **keywords)

    @contextmanager
    def _instead(self, number: int, kept: dict[_Call, bool] | None) -> Iterator[None]:
        """Inside, modules give what they gave; or, if `kept` says which to remember, their results are remembered."""
        known, counts = self._known[number], Counter[str]()
        names = {name for name, _ in (known if kept is None else kept)}
        modules: dict[str, Any] = {name: m for name, m in self.model.named_modules() if name in names}

        def instead(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **keywords: Any) -> Any:
                call = (name, counts[name])
                counts[name] += 1
                if kept is None and call in known:
                    return map_tensors(known[call], torch.clone)
                output = forward(*args, **keywords)
                if kept is not None and call in kept:
                    known[call] = map_tensors(output, torch.clone if kept[call] else _empty)
                return output

            return called

        before = {name: module.__dict__.get("forward") for name, module in modules.items()}
        try:
            for name, module in modules.items():
                module.forward = instead(name, module.forward)
            yield
        finally:
            for name, module in modules.items():
                del module.forward
                if before[name] is not None:
                    module.forward = before[name]


def _inside(visit: _Visit | None) -> bool:
    """Whether a call is, or is made by, one that need not be made again."""
    while visit is not None:
        if visit.done:
            return True
        visit = visit.parent
    return False


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """Nothing, in the shape of a tensor."""
    return tensor.new_zeros(()).expand(tensor.shape)


def cut_points(model: nn.Module, inputs: Any) -> list[str]:
    """Modules, in order, whose result is all that what follows depends on: a place for a classifier of its own.

    One for each stretch between two weighted layers, the last there; with at least one axis besides the channels. In
    networks that add activations up, only stretches with such a sum count: they are the ends of residual blocks.
    """
    modules = dict(model.named_modules())
    weighted = {name for name, m in modules.items() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
    made: dict[int, int] = {}
    reads: list[int] = []
    found: list[tuple[int, int, str]] = []  # operators so far, weighted layers so far, module
    layers = 0
    sums: set[int] = set()  # stretches in which two results of one shape are added

    class _Operators(Mode):
        def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
            read = [t for t in tensors_in((args, kwargs or {})) if id(t) in made]
            used = [made[id(t)] for t in read]
            if func.overloadpacket in _SUMS and len(read) == 2 and read[0].shape == read[1].shape:
                sums.add(layers)
            out = func(*args, **(kwargs or {}))
            reads.append(min(used, default=len(reads)))
            for tensor in tensors_in(out):
                made[id(tensor)] = len(reads) - 1
            alive.append((out, args))
            return out

    def leave(name: str, output: Any) -> None:
        nonlocal layers
        layers += name in weighted
        alive.append(output)
        if name and isinstance(output, torch.Tensor) and output.dim() > 2 and id(output) in made:
            found.append((made[id(output)], layers, name))

    alive: list[Any] = []
    args, keywords = call_with_copies(inputs)
    for tensor in output_tensors([list(args), keywords]):
        made[id(tensor)] = -1
    stack: list[str] = [""]
    with torch.no_grad(), module_stack(model, stack, leave), _Operators():
        model(*args, **keywords)
    least = [len(reads)] * (len(reads) + 1)  # of all operators from one on, the earliest result that is read
    for k in range(len(reads) - 1, -1, -1):
        least[k] = min(least[k + 1], reads[k])
    cuts = [(layer, name) for operator, layer, name in found if least[operator + 1] >= operator]
    last = dict(cuts)  # the last of every stretch
    ends = {layer: name for layer, name in last.items() if layer in sums} or last
    return [name for _, name in sorted(ends.items())]

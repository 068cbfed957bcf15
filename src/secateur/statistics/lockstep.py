"""Several models, and all batches, in one forward pass that waits wherever a layer of interest is reached.

Reconstruction goes layer by layer: what a layer receives depends on the weights found for all those before it. Instead
of running the network anew for every layer, each batch is one pass, begun once, that is held up in front of a layer
while its weights change, and then goes on. The first model is one whose weights nobody changes: it is held up behind
the layer, so that its answer is computed once. Memory: what a forward pass holds of all batches together, at one layer.
Where that is too much, which is early in a network, batches go there one by one instead, anew for each of these layers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import nn

from secateur.graph.calls import TRANSPARENT, Mode
from secateur.graph.modules import call_with_copies
from secateur.graph.rules import tensors_in
from secateur.statistics.gather import count
from secateur.statistics.narrow import computes_as_usual, usual_answer


@dataclass(frozen=True)
class Standing:
    """One batch at a layer.

    inputs: of the layer, in every model.
    answer: of the first model, as the layer's weights and bias alone make it.
    held: results of operators, of every model.
    """

    inputs: tuple[torch.Tensor, ...]
    answer: torch.Tensor
    held: tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Stop:
    """All passes stand at one layer, which has not run yet but in the first model.

    layer: its name. batches: gives what stands there, batch by batch; to be asked before the next stop.
    """

    layer: str
    batches: Callable[[], Iterator[Standing]]


@dataclass(frozen=True)
class Made:
    """An operator of a pass: how many ran before it, and what it is called."""

    number: int
    name: str


class _Left(BaseException):
    """A pass that nobody wants to go on with."""


class _Counter(Mode):
    """Numbers the operators of one pass and keeps the results of some, unless another operator has their number."""

    def __init__(self, wanted: Collection[Made]) -> None:
        super().__init__()
        self.wanted, self.number = {made.number: made.name for made in wanted}, 0
        self.kept: dict[int, torch.Tensor] = {}

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in TRANSPARENT:  # PyTorch puts some in or not, as results are kept elsewhere or not
            return out
        if self.wanted.get(self.number) == func._schema.name and isinstance(out, torch.Tensor):
            self.kept[self.number] = out
        self.number += 1
        return out


class _Pass(threading.Thread):
    """One model on one batch; of all passes only one runs at any time."""

    def __init__(self, model: nn.Module, inputs: Any, wanted: Collection[Made]) -> None:
        super().__init__(daemon=True)
        self.model, self.inputs, self.counter = model, inputs, _Counter(wanted)
        self.layer: str | None = None  # where it stands
        self.input: torch.Tensor | None = None
        self.answer: torch.Tensor | None = None
        self.began = 0  # operators before the layer
        self.error: BaseException | None = None
        self._leave = False
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._leave:
                args, keywords = call_with_copies(self.inputs)
                with torch.no_grad(), self.counter:
                    self.model(*args, **keywords)
        except _Left:
            pass
        except BaseException as error:  # told by whoever drives this pass
            self.error = error
        self.layer = self.input = self.answer = None
        self._stands.release()

    def advance(self) -> None:
        """Go on to the next layer of interest, or to the end."""
        if not self.is_alive() and self.ident is None:
            self.start()
        self._go.release()
        self._stands.acquire()
        if self.error is not None:
            raise self.error

    def stand(self, layer: str, x: torch.Tensor, answer: torch.Tensor | None) -> None:
        """Wait in front of a layer, or behind it with what it answered."""
        self.layer, self.input, self.answer = layer, x, answer
        self._stands.release()
        self._go.acquire()
        self.input = self.answer = None
        if self._leave:
            raise _Left

    def close(self) -> None:
        """Let it end."""
        self._leave = True
        if self.ident is not None:
            self._go.release()
            self.join()


def _begin(*_: Any) -> None:
    here = threading.current_thread()
    if isinstance(here, _Pass):
        here.began = here.counter.number


def _hold(name: str, layer: Any, args: tuple[Any, ...], keywords: dict[str, Any], answer: Any = None) -> None:
    here = threading.current_thread()
    if isinstance(here, _Pass):
        x = args[0] if args else keywords["input"]
        if answer is not None and not (computes_as_usual(layer) and len(layer._forward_hooks) == 1):
            answer = usual_answer(layer, x, layer.weight, layer.bias)  # what a fit of the weights can follow
        here.stand(name, x, answer)


def together(
    models: Sequence[nn.Module],
    batches: Iterable[Any],
    layers: Collection[str],
    held: Mapping[str, Made] | None = None,
    anew: Sequence[str] = (),
) -> Iterator[Stop]:
    """Run models of one class over all batches of inputs, and stop at every call of `layers`, in order of execution.

    Between two stops the weights of layers that have not run may change, but not in the first model. Models should
    evaluate: see `untouched`.

    Args:
        layers: names of convolutions and linear layers. held: {layer: an operator before it} whose result is
            wanted at the layer's stop; see `secateur.statistics.shortcuts`. anew: the first of the layers, in their
            order, if each runs once: batches go there one by one from the beginning, see `crowded`.
    """
    wanted, shown = dict(held or {}), list(batches)
    if wanted:  # what a network does in its first pass only, and remembers, is not to be counted
        for model in models:
            once(model, shown[0])
    for layer in anew:
        yield Stop(layer, partial(_one_by_one, models, shown, layer, wanted.pop(layer, None)))
    rest = [layer for layer in layers if layer not in anew]
    if rest or not anew:
        yield from _side_by_side(models, shown, rest, wanted)


def _one_by_one(models: Sequence[nn.Module], shown: Sequence[Any], layer: str, made: Made | None) -> Iterator[Standing]:
    """Every batch in front of one layer, the others not begun."""
    with ExitStack() as stack:
        for number, model in enumerate(models):
            stack.callback(_hooked(model, layer, behind=not number))
        for inputs in shown:
            row = [_Pass(model, inputs, {made} if made else ()) for model in models]
            try:
                for each in row:
                    each.advance()
                yield _standing(row, made)
            finally:
                for each in row:
                    each.close()


def _side_by_side(
    models: Sequence[nn.Module], shown: Sequence[Any], layers: Collection[str], wanted: dict[str, Made]
) -> Iterator[Stop]:
    """All batches of all models, from one layer to the next."""
    with ExitStack() as stack:
        for number, model in enumerate(models):
            for name in layers:
                stack.callback(_hooked(model, name, behind=not number))
        passes = [[_Pass(model, inputs, set(wanted.values())) for model in models] for inputs in shown]
        for each in (one for row in passes for one in row):
            stack.callback(each.close)
        while True:
            for each in (one for row in passes for one in row):
                each.advance()
            layer = passes[0][0].layer if passes and passes[0] else None
            if layer is None:
                return
            made = wanted.pop(layer, None)
            yield Stop(layer, partial(_all_standing, passes, made))
            if made is not None and made not in wanted.values():
                for each in (one for row in passes for one in row):
                    each.counter.kept.pop(made.number, None)


def _all_standing(passes: Sequence[Sequence[_Pass]], made: Made | None) -> Iterator[Standing]:
    return (_standing(row, made) for row in passes)


def _standing(row: Sequence[_Pass], made: Made | None) -> Standing:
    """What stands in front of a layer; a result that one of the models lacks is held of none."""
    seen, answer = tuple(each.input for each in row if each.input is not None), row[0].answer
    assert answer is not None
    held = [None if made is None or made.number >= each.began else each.counter.kept.get(made.number) for each in row]
    shapes = {None if tensor is None else tensor.shape for tensor in held}
    return Standing(seen, answer, tuple(held if len(shapes) == 1 else [None] * len(row)))


@torch.no_grad()
def once(model: nn.Module, inputs: Any) -> None:
    """Run a model on one batch."""
    args, keywords = call_with_copies(inputs)
    model(*args, **keywords)


def _hooked(model: nn.Module, layer: str, *, behind: bool) -> Callable[[], None]:
    """Let passes wait in front of this layer, or behind it; returns how that ends."""
    module, stack = model.get_submodule(layer), ExitStack()
    stack.callback(module.register_forward_pre_hook(_begin).remove)
    hold = partial(_hold, layer)
    if behind:
        stack.callback(module.register_forward_hook(hold, with_kwargs=True).remove)
    else:
        stack.callback(module.register_forward_pre_hook(hold, with_kwargs=True).remove)
    return stack.close


@torch.no_grad()
def crowded(model: nn.Module, shown: Sequence[Any], layers: Collection[str], memory: float) -> list[str]:
    """The first layers in front of which the passes of all batches together would hold more than so many bytes.

    Up to the last such layer, in order of execution. One pass of the first batch tells, without what is handed in.
    """
    living, began, held = _Living(), list[str](), list[float]()

    def note(name: str, *_: Any) -> None:
        began.append(name)
        held.append(living.bytes())

    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(partial(note, name)).remove)
        args, keywords = call_with_copies(shown[0])
        with living:
            model(*args, **keywords)
    times = sum(count(inputs) for inputs in shown) / max(count(shown[0]), 1)
    return began[: max((place + 1 for place, number in enumerate(held) if number * times > memory), default=0)]


class _Living(Mode):
    """Knows the results of operators that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._results: list[ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._results += [ref(tensor) for tensor in tensors_in((out,))]
        return out

    def bytes(self) -> float:
        """Of their memory, each piece once."""
        self._results = [result for result in self._results if result() is not None]
        pieces = [tensor.untyped_storage() for result in self._results if (tensor := result()) is not None]
        return float(sum({piece.data_ptr(): piece.nbytes() for piece in pieces}.values()))


@torch.no_grad()
def visits(model: nn.Module, inputs: Any, layers: Collection[str]) -> dict[str, int]:
    """How often each of these layers runs in one forward pass; those that never do are left out."""
    counts: dict[str, int] = {}

    def count(name: str, *_: Any) -> None:
        counts[name] = counts.get(name, 0) + 1

    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(partial(count, name)).remove)
        args, keywords = call_with_copies(inputs)
        model(*args, **keywords)
    return counts


class Operators(Mode):
    """Numbers operators as a pass of `together` does, and notes which made a tensor last, and which sums there are."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.made: dict[int, Made] = {}  # tensor -> the operator that wrote it last
        self.began: dict[str, int] = {}  # layer -> operators before it
        self.sums: list[tuple[int, Made]] = []  # a tensor that something is added to, and what made that
        self._alive: list[Any] = []  # or identities would be used again

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func._schema.name in ("aten::add", "aten::add_") and (kwargs or {}).get("alpha", 1) == 1:
            terms = [t for t in tensors_in(args) if not isinstance(t, nn.Parameter)]
            if len(terms) == 2 and terms[0].shape == terms[1].shape:
                both = ((a, self.made.get(id(b))) for a, b in (terms, terms[::-1]))
                self.sums += [(id(a), made) for a, made in both if made is not None]
        out = func(*args, **(kwargs or {}))
        self._alive.append((out, args))
        if func._schema.name in TRANSPARENT:
            source = self.made.get(id(args[0])) if args else None
            self.made |= {} if source is None else {id(out): source}
            return out
        if isinstance(out, torch.Tensor):
            self.made[id(out)] = Made(self.number, func._schema.name)
        self.number += 1
        return out

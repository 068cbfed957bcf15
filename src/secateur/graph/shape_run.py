"""The shape run: the narrowed model without storage, every call compared with what the plan promises."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.graph.calls import TRANSPARENT, Mode, bind, depends_on_data, map_args, on_one_device, schema_of
from secateur.graph.modules import META, as_call, map_tensors, plain_kernels, to_evaluation, to_meta
from secateur.graph.recorder import Call
from secateur.graph.rules import tensors_in
from secateur.graph.shapes import run_on_meta
from secateur.graph.sizes import EXCHANGED, OTHERWISE, Sizes


@dataclass(frozen=True)
class Disagreement:
    """Call number `call` got other sizes than promised."""

    call: int
    detail: str


class _Checker(Mode):
    """Runs a narrowed model and compares every call with what the plan promises, up to the first that disagrees."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.at = sizes, 0
        self.calls, self.meta = sizes.recording.calls, sizes.recording.on_meta
        self.found: list[Disagreement] = []

    def handle(self, func: Any, args: Any, kwargs: Any) -> Any:
        calls, meta = self.calls, self.meta
        if meta:
            args, kwargs = on_one_device(args, kwargs)
        schema = schema_of(func)
        name = schema.name
        if name in TRANSPARENT:
            return func(*args, **kwargs)
        if self.at >= len(calls):
            raise _Diverged(self.at, "the narrowed model makes more operator calls")
        call = calls[self.at]
        if call.name != name:
            raise _Diverged(self.at, f"{name} {OTHERWISE} {call.name}")
        promised = self.sizes.shapes(call)
        if call.expects or not meta:
            bound = bind(schema, args, kwargs)
            if not meta and depends_on_data(name, bound):  # the values are not comparable; go on as the original did
                self.at += 1
                return self._narrow(call)
            self._check_arguments(call, bound)
        try:
            out = run_on_meta(schema.own, func, args, kwargs) if meta else func(*args, **kwargs)
        except Exception as error:
            if not meta or len(promised) != 1:
                raise
            self.found.append(Disagreement(self.at, " ".join(str(error).split())[:200]))
            out = torch.empty(promised[0], device=META, dtype=_dtype(args))
        got = tuple([tuple(t.shape) for t in tensors_in(out)])
        if promised != got:
            out = self._check_shapes(out, self.sizes.fitting(call, promised, got))
        self.at += 1
        if self.found:
            raise _Enough
        return out

    def _narrow(self, call: Call) -> Any:
        """What the original got, without the dead indices of labelled dimensions."""
        labels = iter(call.labels)

        def narrow(tensor: torch.Tensor) -> torch.Tensor:
            for dim, axis in enumerate(next(labels, ())):
                if axis is not None:
                    tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(self.sizes.alive[axis])))
            return tensor

        return map_args(call.value, narrow)

    def _check_arguments(self, call: Call, bound: dict[str, Any]) -> None:
        for expect in call.expects:
            got = bound.get(expect.arg)
            if expect.position is not None and got is not None:
                got = got[expect.position]
            want = expect.sign * self.sizes.count(expect.axis, 0)
            if got is not None and int(got) != want:
                self.found.append(Disagreement(self.at, f"{expect.arg} is {int(got)} and must be {want}"))

    def _check_shapes(self, out: Any, promised: tuple[tuple[int, ...], ...]) -> Any:
        outs = tensors_in(out)
        for got, want in zip(outs, promised, strict=False):
            if tuple(got.shape) != want:
                if not self.found or self.found[-1].call != self.at:
                    turned = EXCHANGED if sorted(got.shape) == sorted(want) else ""
                self.found.append(Disagreement(self.at, f"the result is {tuple(got.shape)} and must be {want}{turned}"))
                if not self.sizes.recording.on_meta:
                    raise _Diverged(self.at, self.found[-1].detail)
                return _reshaped(out, outs, promised)
        return out


def _reshaped(out: Any, outs: list[torch.Tensor], promised: tuple[tuple[int, ...], ...]) -> Any:
    """An operator's result with the promised shapes."""
    swap = {id(g): torch.empty(w, device=META, dtype=g.dtype) for g, w in zip(outs, promised, strict=False)}
    return map_args(out, lambda t: swap.get(id(t), t))


class _Enough(BaseException):
    """The first call that disagrees is all there is to know; no model may catch this."""


class _Diverged(Exception):
    def __init__(self, call: int, detail: str) -> None:
        super().__init__(detail)
        self.call = call


def _dtype(args: Any) -> torch.dtype:
    return next((t.dtype for a in args for t in tensors_in(a)), torch.float32)


@contextmanager
def forgetting(modules: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """A forward inside may keep what it has computed, and the next run is to be like this one: attributes as before."""
    kept = [(holder, dict(holder)) for _, module in modules for holder in (vars(module), module._buffers)]
    try:
        yield
    finally:
        for holder, before in kept:
            if list(holder.keys()) != list(before) or not all(map(operator.is_, holder.values(), before.values())):
                holder.clear()
                holder.update(before)


def check_sizes(model: nn.Module, inputs: object, sizes: Sizes) -> list[Disagreement]:
    """What is wrong with the first call of the narrowed model that does not get the sizes the plan promises."""
    meta = sizes.recording.on_meta
    args, kwargs = map_tensors(as_call(inputs), to_meta if meta else lambda t: t.detach().clone())
    modules = to_evaluation(model)
    checker = _Checker(sizes)
    with forgetting(modules):
        try:
            with plain_kernels(), checker:
                model(*args, **kwargs)
        except _Enough:
            pass
        except _Diverged as error:
            checker.found.append(Disagreement(error.call, str(error)))
        except Exception as error:
            checker.found.append(Disagreement(checker.at, " ".join(str(error).split())[:200]))
    return checker.found

"""Verify: the cut network computes what the masked original computes.

Both get the same random weights, norm statistics and inputs, so that nothing hides behind a small scale or a trained zero.
Where an operator normalises over channels, masking and removing differ by nature; then the original is run once more with
every such operator computed on the surviving channels only, and that is compared with the cut network instead.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import VerificationError
from secateur.graph.capture import (
    TRANSPARENT,
    Call,
    Recorder,
    Recording,
    _capture,
    _map_args,
    _schema,
    as_call,
    clone_module,
    forward,
    label_parameters,
    map_tensors,
    named_tensors,
    output_tensors,
    plain_kernels,
)
from secateur.graph.channels import Bools, components
from secateur.graph.cut import Slices, take
from secateur.graph.labels import Label, Ledger
from secateur.graph.rules import is_constant, label_of

TOLERANCE = {torch.float64: 1e-10}
DEFAULT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Verification:
    """How the cut network compares with the masked original."""

    exact: bool  # masking and removing agree within the tolerance
    max_relative_error: float  # masked original against cut network: largest difference over largest output
    structural_error: float | None  # the same with normalisations computed on the survivors; None if not needed
    tolerance: float
    reasons: tuple[str, ...]  # why removal is not masking; empty when exact
    outputs: int  # elements compared

    @property
    def passed(self) -> bool:
        """Whether the cut is proven, exactly or structurally."""
        return self.exact or (self.structural_error is not None and self.structural_error <= self.tolerance)


def verify(
    original: nn.Module,
    narrow: nn.Module,
    example_inputs: object,
    slices: Slices,
    *,
    reasons: tuple[str, ...] = (),
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Verification:
    """Compare `narrow` with the masked `original` on random weights and inputs.

    Args:
        original: the network before the cut. narrow: the network after it.
        example_inputs: as for `trace`; their values are replaced by random ones of the same shapes.
        slices: kept indices of every narrowed tensor (`Cut.slices`).
        reasons: why some of the removed channels are inexact.
        seed: of the random weights and inputs.
        dtype: compute in this type (default: the model's, half types as float32).

    Raises:
        VerificationError: when neither comparison agrees, or nothing finite can be compared.
    """
    _check_slices(original, narrow, slices)
    dtypes = [dtype] if dtype is not None else list(dict.fromkeys((_compute_type(original), torch.float64)))
    result = _verify(original, narrow, example_inputs, slices, reasons, seed, dtypes[0])
    for kind in dtypes[1:]:  # double precision tells rounding of large numbers from a wrong cut
        if not result.passed:
            with suppress(RuntimeError):  # models that make float32 tensors of their own do not run in double precision
                result = _verify(original, narrow, example_inputs, slices, reasons, seed, kind)
    if result.passed:
        return result
    raise VerificationError(
        f"The cut network differs from the masked original: relative error {result.max_relative_error:.1e}, and "
        f"{result.structural_error:.1e} with normalisations taken into account (tolerance {result.tolerance:.0e}). This is a "
        "defect of Secateur's rules for this network; please report it, and keep the layers concerned with `ignore`. "
        f"Known of these channels: {'; '.join(result.reasons) or 'nothing'}."
    )


def _verify(
    original: nn.Module,
    narrow: nn.Module,
    example_inputs: object,
    slices: Slices,
    reasons: tuple[str, ...],
    seed: int,
    dtype: torch.dtype,
) -> Verification:
    tolerance = TOLERANCE.get(dtype, DEFAULT_TOLERANCE)
    generator = torch.Generator().manual_seed(seed)
    wide = _random_twin(original, dtype, generator)
    inputs = map_tensors(as_call(example_inputs), lambda t: _random_input(t, dtype, generator))
    with plain_kernels():
        _calibrate(wide, inputs, generator)
        small = _twin(narrow, dtype)
        _copy_slices(wide, small, slices)
        _mask(wide, slices)
        got, scalars = _run_noting_scalars(small, inputs)
        error, compared = _compare(_run(wide, inputs), got)
    if error <= tolerance:
        return Verification(True, error, None, tolerance, (), compared)
    structural, count, more = _structural(wide, inputs, slices, got, scalars)
    if error == float("inf") and structural <= tolerance:
        more = (*more, "with slices set to zero the original does not compute numbers (a norm of zero weights)")
    return Verification(False, error, structural, tolerance, (*reasons, *more), compared or count)


# ------------------------------------------------------------------------------------------------- random weights


def _compute_type(model: nn.Module) -> torch.dtype:
    kinds = {t.dtype for t in named_tensors(model).values() if t.is_floating_point()}
    return torch.float64 if kinds == {torch.float64} else torch.float32


def _twin(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    def convert(tensor: torch.Tensor) -> torch.Tensor:
        return (
            tensor.detach().to("cpu", dtype, copy=True)
            if tensor.is_floating_point()
            else tensor.detach().to("cpu", copy=True)
        )

    return clone_module(model, convert).eval()


def _random_twin(model: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
    """Vectors (affines, biases, layer scales, statistics) and vanishing weights become random numbers of order one."""
    twin = _twin(model, dtype)
    parameters = {id(p) for p in twin.parameters()}
    for tensor in named_tensors(twin).values():
        if not tensor.is_floating_point() or tensor.dim() == 0:
            continue
        vector = tensor.numel() == max(tensor.shape)
        data = tensor.data
        if vector and (id(tensor) not in parameters or float(data.mean()) > 0.5):
            data.uniform_(0.5, 1.5, generator=generator)
        elif vector:
            data.normal_(0, 0.5, generator=generator)
        elif id(tensor) in parameters and tensor.numel() > 1 and float(data.std()) < 1e-4:
            data.normal_(0, 0.05, generator=generator)
    return twin


def _random_input(tensor: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.clone()
    low, high = float(tensor.min()), float(tensor.max())
    if 0 <= low and high <= 1:  # images in [0, 1] stay images
        return torch.rand(tensor.shape, generator=generator, dtype=dtype)
    return torch.randn(tensor.shape, generator=generator, dtype=dtype)


class _Calibrate(TorchDispatchMode):
    """Batch norms take their running statistics from what they see, so that no layer saturates or vanishes."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, names, _, _ = _schema(func)
        if "batch_norm" in name:
            bound = {n: (args[k] if k < len(args) else None) for k, (n, _) in enumerate(names)}
            mean, var, x = bound.get("running_mean"), bound.get("running_var"), bound["input"]
            if mean is not None and var is not None:
                dims = [d for d in range(x.dim()) if d != 1]
                noise = torch.rand(2, x.shape[1], generator=self.generator, dtype=x.dtype) * 0.5 + 0.75
                mean.copy_(x.mean(dims) * noise[0])
                var.copy_((x.var(dims, unbiased=False) + 1e-2) * noise[1])
        return func(*args, **(kwargs or {}))


def _calibrate(model: nn.Module, inputs: Any, generator: torch.Generator) -> None:
    with _Calibrate(generator):
        _run(model, inputs)


def _copy_slices(wide: nn.Module, small: nn.Module, slices: Slices) -> None:
    source = named_tensors(wide)
    for name, tensor in named_tensors(small).items():
        kept = slices.get(name)
        tensor.data.copy_(source[name] if kept is None else take(source[name], kept))


def _mask(wide: nn.Module, slices: Slices) -> None:
    """Every slice that was removed becomes zero."""
    for name, tensor in named_tensors(wide).items():
        for dim, kept in enumerate(slices.get(name, ())):
            if kept is not None:
                dead = torch.ones(tensor.shape[dim], dtype=torch.bool)
                dead[torch.from_numpy(kept)] = False
                tensor.data.index_fill_(dim, dead.nonzero().ravel(), 0)


def _check_slices(original: nn.Module, narrow: nn.Module, slices: Slices) -> None:
    """The cut network's own numbers are slices of the original's."""
    source = named_tensors(original)
    for name, tensor in named_tensors(narrow).items():
        kept = slices.get(name)
        want = source[name] if kept is None else take(source[name], kept)
        if tensor.shape != want.shape or not torch.equal(tensor.detach().cpu(), want.detach().cpu()):
            raise VerificationError(f"{name} of the cut network is not a slice of the original's.")


# ------------------------------------------------------------------------------------------------------- running


def _run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    args, kwargs = map_tensors(inputs, torch.clone)
    throwaway = clone_module(model, lambda t: t)  # shares the tensors; what a forward caches in attributes goes with it
    return output_tensors(throwaway(*args, **kwargs))


def _numbers(args: Any) -> tuple[float, ...]:
    """The floating-point numbers among an operator's arguments, as Python numbers or as constant tensors without dimensions."""
    return tuple(float(a) for a in args if _is_number(a))


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and is_constant(value) and not isinstance(value, nn.Parameter)
    return isinstance(value, float)


class _Scalars(TorchDispatchMode):
    """Notes the numbers every operator is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[float, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _schema(func)[0] not in TRANSPARENT:
            self.calls.append((_schema(func)[0], _numbers(args)))
        return func(*args, **(kwargs or {}))


def _run_noting_scalars(
    model: nn.Module, inputs: Any
) -> tuple[list[torch.Tensor], list[tuple[str, tuple[float, ...]]]]:
    noted = _Scalars()
    with noted:
        outputs = _run(model, inputs)
    return outputs, noted.calls


def _compare(want: list[torch.Tensor], got: list[torch.Tensor]) -> tuple[float, int]:
    """Largest difference over the largest value, over all outputs; and how many elements that were."""
    if len(want) != len(got) or any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return float("inf"), 0
    worst, count = 0.0, 0
    for a, b in zip(want, got, strict=True):
        if not a.numel():
            continue
        a, b = a.to(torch.float64), b.to(torch.float64)
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf"), 0
        worst = max(worst, float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12))
        count += a.numel()
    if count == 0:
        raise VerificationError(
            "The outputs hold no numbers on random input, so nothing can be compared; give example inputs (or detection "
            "thresholds) with which the model returns something."
        )
    return worst, count


# -------------------------------------------------------------------------------- removal where masking differs


class _Removing(Recorder):
    """Runs the masked original, but computes every mixing operator on the surviving channels only."""

    def __init__(
        self, recording: Recording, plan: list[Call], alive: Bools, scalars: list[tuple[str, tuple[float, ...]]]
    ) -> None:
        super().__init__(recording, meta=False)
        self.plan, self.alive = plan, alive
        aligned = len(scalars) == len(plan) and all(c.name == s[0] for c, s in zip(plan, scalars, strict=True))
        self.scalars = scalars if aligned else None
        self.rescaled: dict[str, None] = {}

    def execute(self, func: Any, args: Any, kwargs: Any, op: Any) -> Any:
        """One call; where it mixes channels, on the survivors."""
        at = len(self.recording.calls)
        if _schema(func)[0] in TRANSPARENT or at >= len(self.plan):
            return func(*args, **kwargs)
        call = self.plan[at]
        args = self._scalars(call, at, args)
        if not call.mixes:
            return func(*args, **kwargs)
        names = [n for n, _ in _schema(func)[1]]
        args = list(args)
        for expect in call.expects:
            self._adjust(args, names, expect)
        small = [_map_args(a, self._gather) for a in args]
        out = func(*small, **{k: _map_args(v, self._gather) for k, v in kwargs.items()})
        return self._restore(out, call)

    def _scalars(self, call: Call, at: int, args: Any) -> Any:
        if self.scalars is None:
            return args
        now = _numbers(args)
        new = self.scalars[at][1]
        if now == new or len(now) != len(new):
            return args
        self.rescaled[f"a constant that depends on the width ({call.name.removeprefix('aten::')} in {call.module})"] = (
            None
        )
        queue = iter(new)
        return tuple(_like(next(queue), a) if _is_number(a) else a for a in args)

    def _adjust(self, args: list[Any], names: list[str], expect: Any) -> None:
        value = expect.sign * int(self.alive[expect.axis].sum())
        k = names.index(expect.arg)
        if k >= len(args):
            return
        if expect.position is None:
            args[k] = value
        else:
            args[k] = [value if i == expect.position else n for i, n in enumerate(args[k])]

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        result = tensor
        for dim, axis in enumerate(label_of(tensor)):
            if axis is not None and tensor.shape[dim] == len(axis) and not bool(self.alive[axis].all()):
                result = result.index_select(dim, torch.from_numpy(np.flatnonzero(self.alive[axis])))
        return result

    def _restore(self, out: Any, call: Call) -> Any:
        queue = iter(zip(call.shapes, call.labels, strict=False))

        def scatter(tensor: torch.Tensor) -> torch.Tensor:
            shape, label = next(queue, (tuple(tensor.shape), ()))
            return _scatter(tensor, shape, label, self.alive)

        return _map_args(out, scatter)


def _like(number: float, value: Any) -> Any:
    return torch.full_like(value, number) if isinstance(value, torch.Tensor) else number


def _scatter(tensor: torch.Tensor, shape: tuple[int, ...], label: Label, alive: Bools) -> torch.Tensor:
    """Put the survivors back to their places among zeros."""
    for dim, (size, axis) in enumerate(zip(shape, label, strict=False)):
        if tensor.shape[dim] != size and axis is not None:
            full = torch.zeros([*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]], dtype=tensor.dtype)
            tensor = full.index_copy_(dim, torch.from_numpy(np.flatnonzero(alive[axis])), tensor)
    return tensor


def _structural(
    wide: nn.Module, inputs: Any, slices: Slices, got: list[torch.Tensor], scalars: list[tuple[str, tuple[float, ...]]]
) -> tuple[float, int, tuple[str, ...]]:
    """Error of the cut network against the original with removed (not masked) channels in every mixing operator.

    Also how many elements were compared, and further reasons why removing is not masking.
    """
    args, kwargs = inputs
    recording = _capture(wide, args, kwargs, meta=False)
    alive = _alive_from_slices(recording, slices)
    again = Recording(Ledger(), on_meta=False)
    twin = clone_module(wide, lambda t: t.detach())
    label_parameters(twin, again)
    removing = _Removing(again, recording.calls, alive, scalars)
    fresh = map_tensors(inputs, _variable)
    try:
        outputs = output_tensors(forward(twin, fresh[0], fresh[1], removing))
    except Exception as error:
        return float("inf"), 0, (f"could not be compared structurally ({type(error).__name__}: {error})",)
    return *_compare(outputs, got), tuple(removing.rescaled)


def _variable(tensor: torch.Tensor) -> torch.Tensor:
    twin: Any = tensor.clone()
    twin._secateur_constant = False
    return twin  # type: ignore[no-any-return]


def _alive_from_slices(recording: Recording, slices: Slices) -> Bools:
    """Alive slots of a recording on real tensors, from what was cut out of the parameters alone."""
    component = components(recording.ledger.size, recording.ledger.ties)
    dead = np.zeros(int(component.max(initial=-1)) + 1, dtype=bool)
    for name, kept in slices.items():
        for axis, index in zip(recording.places[name], kept, strict=True):
            if axis is not None and index is not None:
                gone = np.ones(len(axis), dtype=bool)
                gone[index] = False
                dead[component[axis[gone]]] = True
    before = -1
    while before != int(
        dead.sum()
    ):  # through products: an axis is dead where all its slots are, a slot where any axis is
        before = int(dead.sum())
        for product in recording.ledger.products:
            grid = component[product.slots]
            for k, axis in enumerate(product.axes):
                rows = np.moveaxis(grid, k, 0).reshape(len(axis), -1)
                dead[component[axis]] |= dead[rows].all(axis=1)
                dead[rows] |= dead[component[axis]][:, None]
    alive: Bools = ~dead[component]
    return alive

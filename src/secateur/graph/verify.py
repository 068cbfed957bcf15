"""Verify: the cut network computes what the masked original computes.

Both get the same random weights, norm statistics and inputs. Where masking and removing differ by nature
(`removal.py`), the original with removed channels is compared instead.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.errors import SecateurError, VerificationError
from secateur.graph.cut import Slices, take
from secateur.graph.labels import Ids
from secateur.graph.mixing import Mixed
from secateur.graph.modules import as_call, map_tensors, named_tensors, plain_kernels
from secateur.graph.parametrised import rescaled
from secateur.graph.randomise import calibrate, random_input, random_twin, run, twin_of
from secateur.graph.removal import run_noting_scalars, run_removing

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


@torch.inference_mode(False)
def verify(
    original: nn.Module,
    narrow: nn.Module,
    example_inputs: object,
    slices: Slices,
    *,
    reasons: tuple[str, ...] = (),
    seed: int = 0,
    dtype: torch.dtype | None = None,
    random: Mapping[str, str] | None = None,
    used: Container[str] | None = None,
    mixed: Mixed | None = None,
) -> Verification:
    """Compare `narrow` with the masked `original` on random weights and inputs.

    Args:
        original: the network before the cut. narrow: the network after it.
        example_inputs: as for `trace`; their values are replaced by random ones of the same shapes.
        slices: kept indices of every narrowed tensor (`Cut.slices`).
        reasons: why some of the removed channels are inexact.
        seed: of the random weights and inputs.
        dtype: compute in this type (default: the model's, half types as float32).
        used: names of the tensors a forward uses, if known: the others are left alone.
        mixed: dimensions of weights whose values meet, and why (`secateur.graph.mixing`).
        random: operators that drew random numbers when the network was traced, and where; told if nothing agrees.

    Raises:
        VerificationError: when neither comparison agrees, or nothing finite can be compared.
    """
    _check_slices(original, narrow, slices)
    given = (original, narrow, example_inputs, slices, reasons, seed)
    result = _tried(given, dtype or compute_type(original), used, mixed or {})
    unexplained = not result.passed or not (result.exact or result.reasons)
    if unexplained and dtype is None and result.tolerance == DEFAULT_TOLERANCE:
        # double precision tells rounding (of large numbers, of autocast within the forward) from a wrong cut
        with suppress(VerificationError):
            again = _tried(given, torch.float64, used, mixed or {})
            result = again if again.passed or not result.passed else result
    if result.passed:
        return _with_rescaled(result, rescaled(original, narrow, slices))
    if not _repeats(original, example_inputs, seed):
        drawn = ", ".join(f"{name} in {module or 'the model'}" for name, module in (random or {}).items())
        raise VerificationError(
            f"The forward draws random numbers in evaluation{f' ({drawn})' if drawn else ''}: two runs of "
            f"{type(original).__name__} on one input differ, so a cut cannot be compared with the original. Let "
            "dropout and noise follow self.training, or use verify=False to do without proof."
        )
    raise VerificationError(
        f"The cut network differs from the masked original: relative error {result.max_relative_error:.1e}, and "
        f"{result.structural_error:.1e} with normalisations taken into account (tolerance {result.tolerance:.0e}). "
        "This is a defect of Secateur's rules for this network; please report it, and keep the layers concerned with "
        f"`ignore`. Known of these channels: {'; '.join(result.reasons) or 'nothing'}."
    )


def _with_rescaled(result: Verification, notes: tuple[str, ...]) -> Verification:
    """Where surviving weights change, masked weights and masked channels differ: the cut is right, and not exact."""
    if not notes:
        return result
    structural = result.max_relative_error if result.exact else result.structural_error
    return replace(result, exact=False, structural_error=structural, reasons=(*result.reasons, *notes))


def _repeats(model: nn.Module, example_inputs: object, seed: int) -> bool:
    """Whether two runs on the same random input give the same."""
    generator = torch.Generator().manual_seed(seed)
    twin = twin_of(model, None)
    inputs = map_tensors(as_call(example_inputs), lambda t: random_input(t, None, generator))
    with plain_kernels():
        return largest_error(run(twin, inputs), run(twin, inputs))[0] <= DEFAULT_TOLERANCE


def _tried(
    given: tuple[nn.Module, nn.Module, object, Slices, tuple[str, ...], int],
    dtype: torch.dtype | None,
    used: Container[str] | None,
    mixed: Mixed,
) -> Verification:
    """`_verify`, of whose arguments the first are `given`; what a forward may raise is a VerificationError."""
    try:
        return _verify(*given, dtype, used, mixed)
    except SecateurError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise VerificationError(
            "The network cannot be verified, for it does not run on random weights and inputs "
            f"({type(error).__name__}: {said}); its forward may take another way there than on the example. "
            f"{_remedy(given[0], used)}"
        ) from error


def _remedy(original: nn.Module, used: Container[str] | None) -> str:
    """What to do about a forward that goes by its data: layers that the example did not reach are as wide as before."""
    from secateur.graph.explain import shorten

    idle = [name for name, _ in original.named_parameters() if used is not None and name not in used]
    if not idle:
        return "Use verify=False to do without proof."
    return (
        f"The example did not reach {', '.join(shorten(idle))}, which stayed whole and may not fit: give inputs that "
        "go every way, such as a larger batch."
    )


def _verify(
    original: nn.Module,
    narrow: nn.Module,
    example_inputs: object,
    slices: Slices,
    reasons: tuple[str, ...],
    seed: int,
    dtype: torch.dtype | None,
    used: Container[str] | None,
    mixed: Mixed,
) -> Verification:
    tolerance = TOLERANCE.get(dtype, DEFAULT_TOLERANCE) if dtype is not None else _mixed_tolerance(original)
    generator = torch.Generator().manual_seed(seed)
    wide = random_twin(original, dtype, generator, used)
    inputs = map_tensors(as_call(example_inputs), lambda t: random_input(t, dtype, generator))
    with plain_kernels():
        calibrate(wide, inputs, generator)
        small = twin_of(narrow, dtype, used)
        _copy_slices(wide, small, slices, used)
        whole = {name: t.detach().clone() for name, t in wide.named_parameters() if _meets(name, mixed, slices)}
        _mask(wide, slices)
        got, scalars = run_noting_scalars(small, inputs)
        error, compared = largest_error(run(wide, inputs), got)
        if error <= tolerance and whole:
            _mask(wide, {name: _unmixed(slices[name], mixed[name]) for name in whole}, whole)
            unmasked = largest_error(run(wide, inputs), got)[0]
            if unmasked > tolerance:
                why = (f"the weights that stay change with it: {w}" for n in whole for w in mixed[n].values())
                return Verification(False, unmasked, error, tolerance, tuple(dict.fromkeys(why)), compared)
    if error <= tolerance:
        return Verification(True, error, None, tolerance, (), compared)
    removed, more = run_removing(wide, inputs, slices, scalars)
    structural, count = largest_error(removed, got)
    if structural == float("inf"):
        removed, more = run_removing(wide, inputs, slices, scalars, finite=True)
        structural, count = largest_error(removed, got)
    if error == float("inf") and structural <= tolerance:
        more = (*more, "with slices set to zero the original does not compute numbers (a norm of zero weights)")
    return Verification(False, error, structural, tolerance, tuple(dict.fromkeys((*reasons, *more))), compared or count)


def _float_types(model: nn.Module) -> set[torch.dtype]:
    return {t.dtype for t in named_tensors(model).values() if t.is_floating_point()}


def compute_type(model: nn.Module) -> torch.dtype | None:
    """The type to verify in: float64 for such models, float32 for others; None keeps a mixture as it is."""
    kinds = _float_types(model)
    if len(kinds) > 1:
        return None
    return torch.float64 if kinds == {torch.float64} else torch.float32


def _mixed_tolerance(model: nn.Module) -> float:
    coarse = {torch.float16, torch.bfloat16} & _float_types(model)
    return 2e-2 if coarse else DEFAULT_TOLERANCE


def _copy_slices(wide: nn.Module, small: nn.Module, slices: Slices, used: Container[str] | None) -> None:
    source = named_tensors(wide)
    for name, tensor in named_tensors(small).items():
        if used is not None and name not in used:
            continue
        kept = slices.get(name)
        tensor.data.copy_(source[name] if kept is None else take(source[name], kept))


def _meets(name: str, mixed: Mixed, slices: Slices) -> bool:
    """Whether anything was removed from a parameter along a dimension whose values meet."""
    return any(kept is not None and dim in mixed.get(name, ()) for dim, kept in enumerate(slices.get(name, ())))


def _unmixed(kept: tuple[Ids | None, ...], mixed: Container[int]) -> tuple[Ids | None, ...]:
    return tuple(None if dim in mixed else index for dim, index in enumerate(kept))


def _mask(wide: nn.Module, slices: Slices, values: Mapping[str, torch.Tensor] | None = None) -> None:
    """Every parameter slice that was removed becomes zero; statistics stay, for the code may divide by them.

    values: what parameters hold before.
    """
    for name, tensor in wide.named_parameters():
        if values is not None and name in values:
            tensor.data.copy_(values[name])
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
            raise VerificationError(
                f"{name} of the cut network is not a slice of the original's: something changes the network meanwhile, "
                "such as training in another thread; prune a copy of it (copy.deepcopy)."
            )


def largest_error(want: list[torch.Tensor], got: list[torch.Tensor]) -> tuple[float, int]:
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
            "The outputs hold no numbers on random input, so nothing can be compared; give example inputs (or "
            "detection thresholds) with which the model returns something."
        )
    return worst, count

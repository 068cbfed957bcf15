"""The second proof: a network with its forms computes what it computes with their plain references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import VerificationError
from secateur.forms.base import LayerForm
from secateur.forms.building import build_into
from secateur.forms.kinds import FORMS
from secateur.graph.modules import as_call, clone_module, map_tensors, plain_kernels
from secateur.graph.randomise import calibrate, random_input, random_twin, run
from secateur.graph.verify import DEFAULT_TOLERANCE, TOLERANCE, compute_type, largest_error


@dataclass(frozen=True)
class FormsProof:
    """How the network with forms compares with the same network computed plainly."""

    layers: int  # that are computed another way
    max_relative_error: float  # largest difference over largest output
    tolerance: float


@torch.inference_mode(False)
def prove(model: nn.Module, forms: Mapping[str, LayerForm], example_inputs: Any, *, seed: int = 0) -> FormsProof:
    """Compare the forms with their references inside the cut `model`, on random weights and inputs.

    Args:
        model: the cut network, its layers still as they are. forms: by layer. example_inputs: what it runs with.
        seed: of the random weights and inputs.

    Raises:
        VerificationError: they differ by more than the tolerance of the proof of a cut. PlanError: a form does not fit.
    """
    build_into(clone_module(model, lambda tensor: tensor), forms)  # what does not fit is said first
    dtype = compute_type(model)
    tolerance = TOLERANCE.get(dtype, DEFAULT_TOLERANCE) if dtype is not None else DEFAULT_TOLERANCE
    error = _error(model, forms, example_inputs, seed, dtype)
    if error > tolerance == DEFAULT_TOLERANCE:  # double precision tells rounding from a wrong form
        tolerance = TOLERANCE[torch.float64]
        error = _error(model, forms, example_inputs, seed, torch.float64)
    if not error <= tolerance:
        raise VerificationError(
            f"The layers that are computed another way differ from their plain references: relative error {error:.1e} "
            f"(tolerance {tolerance:.0e}). This is a defect of Secateur's forms; please report it."
        )
    return FormsProof(len(forms), error, tolerance)


def _error(
    model: nn.Module, forms: Mapping[str, LayerForm], example_inputs: Any, seed: int, dtype: torch.dtype | None
) -> float:
    generator = torch.Generator().manual_seed(seed)
    twin = random_twin(model, dtype, generator)
    inputs = map_tensors(as_call(example_inputs), lambda tensor: random_input(tensor, dtype, generator))
    for name in forms:  # trained weights may be zero where it matters
        weight = twin.get_submodule(name).get_parameter("weight").data
        weight.normal_(0, max(float(weight.std()), 0.05), generator=generator)
    kind = dtype or torch.float32
    drawn = {name: FORMS[form.kind].drawn(form.data, generator, kind) for name, form in forms.items()}
    plain, built = (clone_module(twin, lambda tensor: tensor.detach().clone()) for _ in range(2))
    build_into(plain, drawn, plain=True)
    build_into(built, drawn)
    with plain_kernels():
        calibrate(plain, inputs, generator)
        for name, buffer in built.named_buffers():
            if name in dict(plain.named_buffers()):
                buffer.copy_(plain.get_buffer(name))
        wanted = run(plain, inputs)
        if any(FORMS[form.kind].per_input for form in forms.values()):
            return max(largest_error(want, run(built, one))[0] for one, want in _images(inputs, wanted))
        return largest_error(wanted, run(built, inputs))[0]


def _images(inputs: Any, outputs: list[torch.Tensor]) -> Iterator[tuple[Any, list[torch.Tensor]]]:
    """Inputs and outputs of one image after another."""
    tensors: list[torch.Tensor] = []
    map_tensors(inputs, tensors.append)
    images = next((len(tensor) for tensor in tensors if tensor.dim()), 1)

    def only(tensor: torch.Tensor, at: int) -> torch.Tensor:
        return tensor[at : at + 1] if tensor.dim() and len(tensor) == images else tensor

    for at in range(images):
        yield map_tensors(inputs, partial(only, at=at)), [only(tensor, at) for tensor in outputs]

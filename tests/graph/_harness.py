"""What every cut must pass, whatever the network: written without the code it judges."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur import Plan, Result


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics of order one, so that nothing hides behind a one, a zero or a small scale."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        data = tensor.data
        if not data.is_floating_point() or "mask" in name or "kernel" in name:
            continue
        fresh = torch.rand(data.shape, generator=generator)
        if "running_var" in name or name.endswith(("gamma", "gain", "scale")):
            data.copy_(fresh + 0.5)
        elif data.dim() < 2:
            data.copy_(fresh - 0.3)
        else:
            data.copy_((fresh - 0.5) * (2.0 / max(data[0].numel(), 1) ** 0.5))
    return model


@contextmanager
def countable() -> Iterator[None]:
    """No gradients, no fused attention: both hide products from the counter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on example inputs as `trace` takes them; the inputs survive in-place operators."""
    inputs = copy.deepcopy(inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def count(model: nn.Module, inputs: Any) -> tuple[int, int]:
    """MACs of one forward pass by torch's own counter, and parameters by numel."""
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    with countable(), FlopCounterMode(display=False) as counter:
        call(twin, inputs)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


def outputs(value: Any) -> list[torch.Tensor]:
    """The tensors of a model output, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return outputs(list(value.values()))
    if isinstance(value, tuple | list):
        return [t for item in value for t in outputs(item)]
    return [] if value is None or not hasattr(value, "__dict__") else outputs(vars(value))


def state(model: nn.Module) -> dict[str, Any]:
    """Everything a prune must leave alone."""
    tensors = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    sizes = {
        f"{n}.{k}": v for n, m in model.named_modules() for k, v in vars(m).items() if isinstance(v, int | tuple | str)
    }
    return {"tensors": tensors, "sizes": sizes, "identity": [id(p) for p in model.parameters()]}


def assert_same_state(before: dict[str, Any], model: nn.Module) -> None:
    """The model is, tensor by tensor and attribute by attribute, what it was."""
    after = state(model)
    assert before["sizes"] == after["sizes"]
    assert before["identity"] == after["identity"]
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, tensor in before["tensors"].items():
        torch.testing.assert_close(after["tensors"][name], tensor, rtol=0, atol=0, equal_nan=True)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer."""
    return {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}


def halve(model: nn.Module, inputs: Any, seed: int = 0, share: float = 0.5, **options: Any) -> Result:
    """Prune a random `share` of every group through the public door."""
    return secateur.prune(model, inputs, method="random", allocator="ratios", ratios={"*": share}, seed=seed, **options)


def masked(result: Result) -> nn.Module:
    """The original with every removed channel's entries set to zero, told by the groups' members alone.

    Buffers stay: a deviation of zero would divide by zero, and consumers that are zero hide what they make of it.
    """
    twin = copy.deepcopy(result.graph.model).eval()
    tensors = dict(twin.named_parameters())
    for group in result.graph.groups:
        gone = ~result.plan.masks[group.name]
        for member in group.members:
            if member.name in tensors:
                index = torch.from_numpy(member.index[gone].ravel())
                tensors[member.name].data.index_fill_(member.dim, index, 0)
    return twin


def masked_error(result: Result, inputs: Any) -> float:
    """Relative difference of the masked original and the cut model on the example inputs, in double precision."""
    with countable():
        want = outputs(call(masked(result), inputs))
        got = outputs(call(copy.deepcopy(result.model).eval(), inputs))
    assert [t.shape for t in want] == [t.shape for t in got]
    pairs = [(a.double(), b.double()) for a, b in zip(want, got, strict=True) if a.numel()]
    assert all(bool(torch.isfinite(a).all()) for a, _ in pairs)
    return max(float((a - b).abs().max()) / max(float(a.abs().max()), 1e-9) for a, b in pairs)


def round_trip(plan: Plan) -> Plan:
    """The plan through its file."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):  # waiting for the disk proves nothing here
        path = Path(folder, "plan.json")
        plan.save(path)
        return Plan.load(path)


def assert_sound(result: Result, inputs: Any, *, macs: bool = True) -> None:
    """Proof, costs before and after against independent counts."""
    proof = result.verification
    assert proof is not None
    assert proof.passed
    assert proof.outputs > 0
    for model, cost in ((result.graph.model, result.before), (result.model, result.after)):
        counted, params = count(model, inputs)
        assert cost.params == params
        if macs:
            assert cost.macs == counted
    for group in result.graph.groups:
        for member in group.members:
            assert member.index.shape[0] == group.width


def assert_applies(result: Result, fresh: nn.Module, inputs: Any) -> None:
    """The plan, saved and loaded, gives the same shapes on a fresh copy of the original."""
    plan = round_trip(result.plan)
    assert plan == result.plan
    again = secateur.apply(fresh, inputs, plan, verify=False)
    assert shapes(again.model) == shapes(result.model)
    assert again.after == result.after

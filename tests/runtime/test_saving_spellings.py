"""Networks with a cut's tensors and another computation: refused when saved, for they would be loaded as others."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import DIGIT, assert_sentence
from torch import nn

import secateur
from secateur.errors import SecateurError
from secateur.runtime import save_model


def first(network: nn.Module, kind: type[nn.Module]) -> Any:
    return next(module for module in network.modules() if isinstance(module, kind))


def replaced(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, kind):
                setattr(owner, name, make(child))
    return network


def padded_by_wrapping(network: nn.Module) -> nn.Module:
    layer = first(network, nn.Conv2d)
    layer.padding_mode, layer._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
    return network


def doubled(network: nn.Module) -> nn.Module:
    class Doubled(type(network)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = 2 * super().forward(x)
            return found

    network.__class__ = Doubled
    return network


def bound_forward(network: nn.Module) -> nn.Module:
    whole = network.forward
    network.forward = lambda x: whole(x).softmax(1)
    return network


def set_on(kind: type[nn.Module], name: str, value: Any) -> Callable[[nn.Module], nn.Module]:
    def change(network: nn.Module) -> nn.Module:
        setattr(first(network, kind), name, value)
        return network

    return change


def hooked(network: nn.Module) -> nn.Module:
    first(network, nn.BatchNorm2d).register_forward_hook(lambda module, inputs, output: output.clamp(max=0.1))
    return network


def hooked_before(network: nn.Module) -> nn.Module:
    network.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2,))
    return network


OTHERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "another activation": lambda m: replaced(m, nn.ReLU, lambda _: nn.GELU()),
    "no activation": lambda m: replaced(m, nn.ReLU, lambda _: nn.Identity()),
    "a steadier norm": set_on(nn.BatchNorm2d, "eps", 0.1),
    "a longer stride": set_on(nn.Conv2d, "stride", (2, 2)),
    "a wider kernel": set_on(nn.Conv2d, "dilation", (2, 2)),
    "another padding": padded_by_wrapping,
    "code of a subclass": doubled,
    "a forward of its own": bound_forward,
    "a hook that changes what a layer gives": hooked,
    "a hook that changes what it is given": hooked_before,
}


def together_in_memory(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(network: nn.Module) -> nn.Module:
    found: Any = torch.compile(network)
    return found  # type: ignore[no-any-return]


ALIKE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "dropout, which evaluation passes by": lambda m: replaced(m, nn.ReLU, lambda a: nn.Sequential(a, nn.Dropout())),
    "an activation in place": lambda m: replaced(m, nn.ReLU, lambda _: nn.ReLU(inplace=True)),
    "channels together in memory": together_in_memory,
    "a weight laid out by columns": lambda m: set_on(
        nn.Linear, "weight", nn.Parameter(first(m, nn.Linear).weight.detach().T.contiguous().T)
    )(m),
    "weights that are no longer trained": lambda m: m.requires_grad_(False),
    "a hook that looks": lambda m: (m.register_forward_hook(lambda module, inputs, output: None), m)[1],
    "compiled": compiled,
}


def save(folder: Path, network: nn.Module, plan: secateur.Plan) -> None:
    save_model(folder, network, reference="zoo:tiny", arguments={"in_channels": 1}, inputs=DIGIT, plan=plan)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_computes_something_else_is_refused(pruned: secateur.Result, tmp_path: Path, kind: str) -> None:
    network = OTHERS[kind](copy.deepcopy(pruned.model))
    with pytest.raises(SecateurError, match="computes something else than 'zoo:tiny' cut by this plan") as refused:
        save(tmp_path / "a", network, pruned.plan)
    assert_sentence(refused.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ALIKE)
def test_what_computes_the_same_is_saved(pruned: secateur.Result, tmp_path: Path, kind: str) -> None:
    network = ALIKE[kind](copy.deepcopy(pruned.model))
    training, x = network.training, torch.randn(3, 1, 8, 8)
    save(tmp_path / "a", network, pruned.plan)
    assert network.training == training
    torch.testing.assert_close(secateur.load(tmp_path / "a")(x), pruned.model(x), rtol=1e-4, atol=1e-5)


def drawing(network: nn.Module) -> nn.Module:
    network.register_forward_hook(lambda module, inputs, output: output + random.random())
    return network


def locked(network: nn.Module) -> nn.Module:
    network.lock = threading.Lock()  # type: ignore[assignment]
    return network


def on_another_device(network: nn.Module) -> nn.Module:
    def refuse(module: nn.Module, inputs: Any) -> None:
        if not inputs[0].is_cuda:
            raise AssertionError("Torch not compiled with CUDA enabled")

    network.register_forward_pre_hook(refuse)
    return network


def interrupting(network: nn.Module) -> nn.Module:
    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        raise StopIteration

    first(network, nn.Linear).register_forward_hook(stop)
    return network


SILENT: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "noise that no seed reaches": (drawing, "it answers the same inputs otherwise every time"),
    "a lock among its attributes": (locked, "it cannot be copied"),
    "code for a GPU alone": (on_another_device, "AssertionError: Torch not compiled with CUDA enabled"),
    "a hook that ends the pass": (interrupting, "StopIteration"),
}


@pytest.mark.parametrize("kind", SILENT)
def test_what_cannot_be_compared_is_said(pruned: secateur.Result, tmp_path: Path, kind: str) -> None:
    change, why = SILENT[kind]
    with pytest.warns(UserWarning, match="was not compared, for") as warned:
        header = save_model(
            tmp_path / "a", change(copy.deepcopy(pruned.model)),
            reference="zoo:tiny", arguments={"in_channels": 1}, inputs=DIGIT, plan=pruned.plan,
        )  # fmt: skip
    assert why in header["not_compared"]
    assert header["not_compared"] in {str(each.message) for each in warned}
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(secateur.load(tmp_path / "a")(x), pruned.model(x), rtol=1e-4, atol=1e-5)


def test_what_is_compared_needs_no_word(pruned: secateur.Result, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path / "a", copy.deepcopy(pruned.model), pruned.plan)


def test_tensors_without_numbers_are_refused(pruned: secateur.Result, tmp_path: Path) -> None:
    network = copy.deepcopy(pruned.model)
    layer = first(network, nn.Conv2d)
    layer.weight = nn.Parameter(layer.weight.to("meta"))
    with pytest.raises(SecateurError, match="has a shape and no numbers"):
        save(tmp_path / "a", network, pruned.plan)
    assert not (tmp_path / "a").exists()

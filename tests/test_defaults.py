"""A program's default device and number type are its own: what Secateur does within them is what it does without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur import references
from secateur.methods import METHODS, create
from secateur.runtime import save_model

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + LABELS.view(-1, 1, 1, 1) / 2
PAIRS = [(IMAGES[:12], LABELS[:12]), (IMAGES[12:], LABELS[12:])]


class Making(nn.Module):
    """A network whose forward makes tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y = y + torch.zeros(y.shape[1], 1, 1) + torch.full((1,), 0.5)
        y = self.b(y[:, torch.arange(y.shape[1])].relu())
        found: torch.Tensor = self.fc(y.mean((2, 3)))
        return found


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def nested(outer: Any, inner: Any) -> Iterator[None]:
    with outer, inner:
        yield


DEVICES: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "inside meta": lambda: torch.device("meta"),
    "meta by default": lambda: default_device("meta"),
    "cpu inside meta": lambda: nested(torch.device("meta"), torch.device("cpu")),
    "meta inside cpu": lambda: nested(default_device("cpu"), torch.device("meta")),
}
TYPES = {"double": torch.float64, "bfloat16": torch.bfloat16, "half": torch.float16}
WITHIN: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    **DEVICES,
    **{name: partial(default_type, kind) for name, kind in TYPES.items()},
}


def same(found: nn.Module, wanted: nn.Module) -> bool:
    one, other = found.state_dict(), wanted.state_dict()
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def by_name(method: str, model: nn.Module) -> nn.Module:
    return secateur.prune(model, X, method=method, budget="flops=0.5", data=PAIRS).model


def by_hand(model: nn.Module) -> nn.Module:
    graph = secateur.trace(model, X)
    plan = secateur.allocate(secateur.score("l1", graph), graph, "flops=0.5")
    cut = graph.cut(plan)
    assert graph.verify(cut, plan).exact
    return cut.model


def by_plan(model: nn.Module) -> nn.Module:
    found = secateur.prune(model, X, budget="flops=0.5")
    return secateur.apply(model, X, found.plan).model


def by_method(model: nn.Module) -> nn.Module:
    found = create("random", model, X, budget="flops=0.5").finish()
    assert isinstance(found, nn.Module)
    return found


WAYS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "l1": lambda model: by_name("l1", model),
    "taylor": lambda model: by_name("taylor", model),
    "fpgm": lambda model: by_name("fpgm", model),
    "pfp": lambda model: by_name("pfp", model),
    "by hand": by_hand,
    "by plan": by_plan,
    "by method": by_method,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("within", WITHIN)
def test_a_network_is_pruned_as_without(within: str, way: str) -> None:
    model = made(plain)
    wanted = WAYS[way](model)
    with WITHIN[within]():
        found = WAYS[way](model)
    assert same(found, wanted)


@pytest.mark.parametrize("within", DEVICES)
@pytest.mark.parametrize("way", ["l1", "by hand", "by plan", "pfp"])
def test_so_is_one_whose_forward_makes_tensors(way: str, within: str) -> None:
    model = made(Making)
    wanted = WAYS[way](model)
    with DEVICES[within]():
        found = WAYS[way](model)
    assert same(found, wanted)
    assert sum(p.numel() for p in found.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_network_of_the_default_type_is_pruned_as_it_is_without(kind: torch.dtype) -> None:
    model = made(plain).to(kind)
    wanted = secateur.prune(model, X.to(kind), budget="flops=0.5").model
    with default_type(kind):
        found = secateur.prune(model, X.to(kind), budget="flops=0.5")
        own = secateur.prune(made(Making).to(kind), X.to(kind), budget="flops=0.5")  # it runs within this type alone
    assert same(found.model, wanted)
    assert own.verification is not None


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("given", [False, True])
def test_a_folder_is_loaded_as_without(given: bool, within: str, tmp_path: Path) -> None:
    loaded = references.load("zoo:tiny", seed=1)
    wanted = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5").model
    save_model(tmp_path, wanted, reference="zoo:tiny", inputs=loaded.inputs)
    with WITHIN[within]():
        found = secateur.load(tmp_path, loaded.model if given else None)
    assert same(found, wanted)


def test_the_default_is_the_programs_again_also_after_a_refusal() -> None:
    model = made(plain)
    with torch.device("meta"):
        secateur.prune(model, X, budget="flops=0.5", verify=False)
        assert torch.zeros(1).is_meta
        with pytest.raises(secateur.SecateurError, match="meta device"):
            secateur.prune(made(plain), torch.empty(1, 3, 8, 8), budget="flops=0.5")
        assert torch.zeros(1).is_meta
    assert not torch.zeros(1).is_meta


SLOW: dict[str, dict[str, Any]] = {"functionality": {"ascent_steps": 2, "restarts": 1, "size": 8}}
ONE_CALL = [row.name for row in METHODS if row.acts != "while training"]


@pytest.mark.long
@pytest.mark.parametrize("method", ONE_CALL)
def test_every_method_takes_the_same_channels(method: str) -> None:
    model, budget = made(plain), "params=0.5" if method == "dkp" else "flops=0.5"

    def pruned() -> nn.Module:
        torch.manual_seed(3)
        return secateur.prune(model, X, method=method, budget=budget, data=PAIRS, **SLOW.get(method, {})).model

    wanted = pruned().state_dict()
    for within in ("inside meta", "double", "bfloat16"):
        with WITHIN[within]():
            found = pruned().state_dict()
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)

"""A cut in place is made or not: what stops it halfway leaves the network whole. A copy knows what was noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.graph import cut
from secateur.graph.sizes import Repair

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """With a size of its own that follows a cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = 16
        self.a, self.b, self.scores = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.b(self.a(x).relu()).relu().mean((2, 3))
        return self.scores(x.view(-1, self.width))


@pytest.mark.parametrize(("owner", "name"), [(cut, "put"), (Repair, "apply")], ids=["tensors", "sizes"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), MemoryError(), RuntimeError("no storage")], ids=repr)
def test_what_stops_a_cut_in_place_leaves_the_network_whole(
    owner: Any, name: str, stop: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Heads()
    model(IMAGE).sum().backward()
    want, gradients = model(IMAGE), [p.grad for p in model.parameters()]
    graph = secateur.trace(model, IMAGE)
    plan = secateur.prune(model, IMAGE, budget="flops=0.5").plan
    real, calls = getattr(owner, name), 0
    most = 3 if name == "put" else 2 * len(graph.cut(plan).repairs)  # sizes are set on a copy before

    def stopping(*given: Any) -> None:
        nonlocal calls
        calls += 1
        real(*given)
        if calls == most:
            raise stop

    monkeypatch.setattr(owner, name, stopping)
    with pytest.raises(type(stop)):
        graph.cut(plan, inplace=True)
    monkeypatch.undo()
    assert model.width == 16
    assert model.b.out_channels == 16
    assert torch.equal(model(IMAGE), want)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    graph.cut(plan, inplace=True)
    assert model(IMAGE).shape == want.shape
    assert model.width < 16


NOTES: dict[str, Callable[[torch.Tensor], None]] = {
    "a switch": lambda p: setattr(p, "_no_weight_decay", True),
    "a dict of options": lambda p: setattr(p, "_optim", {"lr": 0.1}),
    "a name": lambda p: setattr(p, "tag", "stem"),
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("how", NOTES)
def test_what_is_noted_on_parameters_stays_noted(how: str, inplace: bool) -> None:
    model = Heads()
    for parameter in model.parameters():
        NOTES[how](parameter)
    want = vars(model.a.weight)
    result = secateur.prune(model, IMAGE, budget="flops=0.5", inplace=inplace)
    assert result.model.b.out_channels < 16
    for parameter in result.model.parameters():
        assert {name: value for name, value in vars(parameter).items() if not name.startswith("_secateur")} == want


def test_a_tensor_noted_on_a_parameter_is_not_taken_along_at_its_old_width() -> None:
    model = Heads()
    model.a.weight.mask = torch.ones_like(model.a.weight)  # type: ignore[attr-defined]
    result = secateur.prune(model, IMAGE, budget="flops=0.5")
    assert not hasattr(result.model.a.weight, "mask")

"""DKP: rows with kernels of their own against brute force, what is left of every kind of network, refusals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError, ModelError, VerificationError
from secateur.methods.dcp.greedy import Part
from secateur.methods.dcp.kernels import DKP, Kernels, kernels_of
from secateur.repair import repairs
from secateur.statistics.samples import PatchSums
from secateur.testing.networks import NETWORKS, Network


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def _goal(x: torch.Tensor, y: torch.Tensor) -> Kernels:
    return Kernels(PatchSums.of([(x[:, None], y)]), constant=False)


# ------------------------------------------------------------------------------------------------------ one layer's fit


def test_every_row_is_fitted_on_kernels_of_its_own() -> None:
    x, weight = _draw(60, 6) @ _draw(6, 6, seed=4), _draw(3, 6, seed=1)
    y, kept = x @ weight.T, _some(3, 6)
    found = _goal(x, y).fit(weight, kept, 0.0)
    for row in range(3):
        wanted = torch.linalg.lstsq(x[:, kept[row]], y[:, row]).solution
        torch.testing.assert_close(found[row, kept[row]], wanted, rtol=1e-6, atol=1e-8)
    assert not found[~kept].any()


def test_a_pull_holds_weights_where_they_are() -> None:
    """(XᵀX/N + r d I)⁻¹ (Xᵀy/N + r d w), d the mean of the diagonal, written out for every row."""
    x, weight = _draw(50, 5), _draw(4, 5, seed=1)
    y, kept, ridge = _draw(50, 4, seed=2), _some(4, 5), 0.3
    found = _goal(x, y).fit(weight, kept, ridge)
    square, right = x.T @ x / 50, x.T @ y / 50
    pull = ridge * square.diagonal().mean()
    for row in range(4):
        on = kept[row].nonzero().squeeze(1)
        inner = square[on][:, on] + pull * torch.eye(len(on), dtype=torch.float64)
        wanted = torch.linalg.solve(inner, right[on, row] + pull * weight[row, on])
        torch.testing.assert_close(found[row, on], wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_copies_among_the_inputs_do_no_harm(seed: int, ridge: float) -> None:
    """Directions without curvature, and rows that are at their best already: the second fit changes nothing."""
    x = _draw(40, 9, seed=seed)
    x[:, 3], x[:, 6], x[:, 8] = x[:, 0], x[:, 1], 0.0
    y, kept, start = _draw(40, 5, seed=seed + 100), _some(5, 9, seed=seed), _draw(5, 9, seed=seed + 200)
    goal = _goal(x, y)
    once = goal.fit(start, kept, ridge)
    twice = goal.fit(once, kept, ridge)
    for row in range(5):
        best = torch.linalg.lstsq(x[:, kept[row]], y[:, row], driver="gelsd").solution
        least = float((y[:, row] - x[:, kept[row]] @ best).square().sum())
        for found in (once, twice):
            left = float((y[:, row] - x[:, kept[row]] @ found[row, kept[row]]).square().sum())
            assert left == pytest.approx(least, rel=1e-4)
    torch.testing.assert_close(twice, once, rtol=1e-3, atol=1e-3)
    assert float(twice.abs().max()) < 20


def test_grouped_layers_have_kernels_by_output_and_input_of_the_group() -> None:
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    units = kernels_of(grouped)
    assert units.tolist() == [[2 * k, 2 * k + 1] for k in range(6)]
    kept = torch.zeros(12, dtype=torch.bool)
    kept[[0, 7]] = True
    open_ = Part("layer", grouped, units, grouped.weight.detach()).open(kept)
    assert open_[:, :, 0, 0].nonzero().tolist() == [[0, 0], [3, 1]]


# --------------------------------------------------------------------------------------------------- through a network


def _block(inputs: int, outputs: int, *, norm: bool, before: bool) -> list[nn.Module]:
    conv: nn.Module = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
    if not norm:
        return [conv, nn.ReLU()]
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv] if before else [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _chain(seed: int, *, norm: bool, before: bool = False) -> nn.Module:
    """Four convolutions, with norms behind them, before them, or without."""
    torch.manual_seed(seed)
    widths = [3, 6, 8, 8, 6]
    layers = [m for a, b in pairwise(widths) for m in _block(a, b, norm=norm, before=before)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def _data(seed: int, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(count)
    ]


def _pruned(model: nn.Module, budget: str = "params=0.5", seed: int = 0, **settings: Any) -> tuple[DKP, nn.Module]:
    method = DKP(model, torch.randn(1, 3, 8, 8), budget=budget, **settings)
    method.collect(_data(seed), F.cross_entropy)
    return method, method.finish()


CHAINS = {"norms": {"norm": True}, "pre-activation": {"norm": True, "before": True}, "no norms": {"norm": False}}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", CHAINS)
def test_every_layer_that_was_looked_at_is_pruned(kind: str, seed: int) -> None:
    """The share of every layer, and answers nearer to the whole network's than without the fits."""
    model = _chain(seed, **CHAINS[kind])
    method, small = _pruned(model, seed=seed, weight=0.0)
    images = _data(seed)[0][0]
    bare = _chain(seed, **CHAINS[kind])
    for name, mask in method.weight_masks.by_name().items():
        weight = small.get_parameter(name).detach()
        assert int(weight.count_nonzero()) == int(mask.sum())
        assert float(mask.double().mean()) == pytest.approx(0.5, abs=0.02)
        assert not weight[~mask].any()
        bare.get_parameter(name).data.mul_(mask)
    with torch.no_grad():
        wanted, found, unfitted = (net[:-3](images) for net in (model, small, bare))  # type: ignore[index]
        assert float((found - wanted).norm()) < 0.8 * float((unfitted - wanted).norm())


def _patches(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1).double()  # [places, columns]


@pytest.mark.parametrize("kind", ["no norms", "pre-activation"])
def test_kernels_and_weights_are_those_of_brute_force(kind: str) -> None:
    """All places, one kernel after the other: |G_jk| from the patches, then least squares of every row on its own."""
    model = _chain(2, **CHAINS[kind])
    method, small = _pruned(model, seed=2, weight=0.0, rounds=10_000, positions=64, ridge=0.0)
    images = torch.cat([x for x, _ in _data(2)])
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    reference = _chain(2, **CHAINS[kind]).double()
    dense = _chain(2, **CHAINS[kind]).double()
    for name in convolutions[1:]:
        seen: dict[str, torch.Tensor] = {}
        for net, what in ((reference, "x"), (dense, "y")):
            layer = net.get_submodule(name)
            hook = layer.register_forward_hook(
                lambda _, x, y, what=what, seen=seen: seen.__setitem__(what, x[0] if what == "x" else y)
            )
            with torch.no_grad():
                net(images.double())
            hook.remove()
        layer = reference.get_submodule(name)
        x, y = _patches(layer, seen["x"]), seen["y"].detach().movedim(1, -1).flatten(0, 2)
        former = layer.weight.detach().flatten(1)
        fitted, constant, kept = _brute(x, y, former, method._counts()[name], bias=method._has_constant(name))
        assert torch.equal(kept, (small.get_parameter(f"{name}.weight").flatten(2) != 0).any(2))
        layer.weight.data.copy_(fitted.view_as(layer.weight))
        layer.bias = nn.Parameter(constant)  # or in the norm that alone reads it
    with torch.no_grad():
        torch.testing.assert_close(small(images), reference(images.double()).float(), rtol=2e-3, atol=2e-4)


def _brute(
    x: torch.Tensor, y: torch.Tensor, former: torch.Tensor, count: int, *, bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, constant and [outputs, inputs] which kernels were chosen."""
    outputs, columns = former.shape
    kept = torch.zeros(outputs, columns // 9, dtype=torch.bool)
    weight = torch.zeros_like(former)
    ones = torch.ones(len(x), 1, dtype=x.dtype) if bias else x[:, :0]
    constant = y.mean(0) if bias else torch.zeros(outputs, dtype=x.dtype)
    for _ in range(count):
        gradient = (x @ weight.T + constant - y).T @ x / y.numel()
        scores = gradient.view(outputs, -1, 9).norm(dim=2)
        scores[kept] = -1.0
        row, column = divmod(int(scores.argmax()), scores.shape[1])
        kept[row, column] = True
        on = kept[row].repeat_interleave(9)
        found = torch.linalg.lstsq(torch.cat([x[:, on], ones], 1), y[:, row], driver="gelsd").solution
        weight[row, on] = found[: int(on.sum())]
        if bias:
            constant[row] = found[-1]
    return weight, constant, kept


def _network(name: str) -> Network:
    return next(n for n in NETWORKS if n.name == name)


def test_what_a_result_says() -> None:
    network = _network("residual")
    method = DKP(network.make(), network.inputs(), budget="params=0.4", weight=0.0, rounds=4)
    method.collect(network.batches(4), F.cross_entropy)
    small = method.finish()
    weights = {name: small.get_parameter(f"{name}.weight") for name in method._tables}
    assert "stem.0" not in weights
    kernels = {name: (w.flatten(2) != 0).any(2) for name, w in weights.items()}
    shares = [float(k.float().mean()) for k in kernels.values()]
    assert max(shares) - min(shares) < 0.02
    assert not kernels["first.0"].all(1).any()  # irregular inside a filter
    kept = sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())
    assert 0.99 * 0.4 <= kept <= 0.4
    assert method.result is not None
    assert method.result.plan.provenance["sparse"]["names"] == [f"{name}.weight" for name in weights]
    assert method.result.plan.provenance["mode"] == "weight"
    assert all(mask.all() for mask in method.plan().masks.values())
    with pytest.raises(ConfigError, match="would fill zeros that dkp has made"):
        method.finish(repairs("batchnorm"), list(network.batches(1)))


def test_a_layer_to_ignore_stays_whole() -> None:
    method, small = _pruned(
        _chain(0, norm=True), budget="params=0.6", weight=0.0, constraints=Constraints(ignore=("3",))
    )
    assert (small.get_parameter("3.weight") != 0).all()
    assert sum(method._counts().values()) * 9 <= 0.6 * method.weight_masks.total


def test_classifiers_have_a_say() -> None:
    alone = _pruned(_chain(3, norm=True), weight=0.0)[0].weight_masks.by_name()
    told = _pruned(_chain(3, norm=True), weight=50.0, heads=1)[0]
    assert [head.module for head in told._heads] == ["8"]
    assert any((mask != alone[name]).any() for name, mask in told.weight_masks.by_name().items())


def test_depthwise_kernels_are_no_choice() -> None:
    network = _network("depthwise")
    assert list(DKP(network.make(), network.inputs(), budget="params=0.5")._tables) == ["body.0", "body.6"]


def test_refusals() -> None:
    model, images = _chain(0, norm=True), torch.randn(1, 3, 8, 8)
    for setting in ({"streams": True}, {"shares": {"3": 2.0}}, {"norm": "sum"}, {"stop": "share"}):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))}"):
            DKP(model, images, budget="params=0.5", **setting)
    with pytest.raises(BudgetError, match="save no flops: give the share of weights that stay"):
        DKP(model, images, budget="flops=0.5")
    with pytest.raises(BudgetError, match="less than one kernel for each of 3 layers"):
        DKP(model, images, budget="params=0.01")
    with pytest.raises(ConfigError, match=r"constraints\.align is about channels"):
        DKP(model, images, budget="params=0.5", constraints=Constraints(align=2))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 5))
    with pytest.raises(ModelError, match="DKP chooses kernels of convolutions behind the first"):
        DKP(linear, images, budget="params=0.5")
    with pytest.raises(ConfigError, match="has seen no data"):
        DKP(model, images, budget="params=0.5").finish()
    noted = DKP(model, images, budget="params=0.5", allocator="uniform").notes
    assert "Counts follow from one share for all layers: allocator and normalise were not applied." in noted


def test_nothing_is_finished_that_is_not_pruned() -> None:
    method, _ = _pruned(_chain(0, norm=False), weight=0.0)
    method._fitted.clear()  # what a defect of the last step would do
    with pytest.raises(VerificationError, match="weights that are not zero, and the masks let 720 stay"):
        method.finish()


# ----------------------------------------------------------------------------------- layers that the loss does not see


class Projected(nn.Module):
    """A detector's ways: the loss sees raw maps; a fixed projection of them, and a branch, are for evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fixed = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 1, 1, bias=False)
        self.side = nn.Conv2d(6, 2, 1)
        self.fixed.weight = nn.Parameter(torch.arange(4.0).view(1, 4, 1, 1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.a(x).relu()
        raw = self.b(x)
        return raw, self.fixed(raw.softmax(1)), self.side(x)


def test_fixed_weights_stay_and_a_layer_off_the_loss_is_fitted_to_its_answers() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    made = DKP(Projected().eval(), images[:1], budget="params=0.5", steps=1, per_column=0, rounds=1)
    made.collect([(images, torch.zeros(4))], lambda out, target: out[0].square().mean())
    model = made.finish()
    assert torch.equal(model.fixed.weight.flatten(), torch.arange(4.0))
    assert (model.b.weight == 0).any()
    assert (model.side.weight == 0).any()
    assert any("not trained" in note and "fixed" in note for note in made.notes)

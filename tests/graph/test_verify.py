"""The proof really fails on a wrong cut, exact or structural, and passes to ten digits in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from _harness import halve, randomise
from structures._case import Net, conv, head
from torch import nn

import secateur
from secateur import Plan, Result, VerificationError, trace
from secateur.graph import Cut
from secateur.graph.randomise import calibrate

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def exact() -> nn.Module:
    return randomise(
        Net(
            lambda m, x: m.head(m.n(m.c2(m.c1(h := m.stem(x)).relu()) + h)),
            stem=conv(3, 8), c1=conv(8, 12), c2=conv(12, 8), n=nn.BatchNorm2d(8), head=head(8),
        )
    )  # fmt: skip


def normed() -> nn.Module:
    return randomise(
        Net(
            lambda m, x: m.fc2(m.fc1(m.norm(m.stem(x).permute(0, 2, 3, 1))).relu().mean((1, 2))),
            stem=conv(3, 16), norm=nn.LayerNorm(16), fc1=nn.Linear(16, 12), fc2=nn.Linear(12, 5),
        )
    )  # fmt: skip


def swapped(model: nn.Module, name: str, dim: int) -> None:
    """Two indices of one tensor change places."""
    tensor = model.get_parameter(name).data
    index = torch.arange(tensor.shape[dim])
    index[0], index[1] = 1, 0
    tensor.copy_(tensor.index_select(dim, index).clone())


def nudged(model: nn.Module, name: str) -> None:
    """One weight is off by a tenth."""
    model.get_parameter(name).data.view(-1)[0] += 0.1


def check(result: Result, damaged: nn.Module, slices: object = None) -> None:
    result.graph.verify(Cut(damaged, slices or result.cut.slices, ()), result.plan)


DAMAGE: dict[str, Callable[[nn.Module], None]] = {
    "two input channels of a consumer swapped": lambda m: swapped(
        m, "c1.weight" if hasattr(m, "c1") else "fc1.weight", 1
    ),
    "two filters swapped": lambda m: swapped(m, "stem.weight", 0),
    "one weight off": lambda m: nudged(m, "stem.weight"),
    "one bias off": lambda m: nudged(m, "stem.bias"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("build", [exact, normed])
def test_damaged_weights_are_found(build: Callable[[], nn.Module], damage: str) -> None:
    result = halve(build(), IMAGE)
    damaged = copy.deepcopy(result.model)
    DAMAGE[damage](damaged)
    with pytest.raises(VerificationError, match="slice"):
        check(result, damaged)


@pytest.mark.parametrize(
    ("build", "name", "dim"),
    [(exact, "c1.weight", 1), (exact, "n.weight", 0), (normed, "fc1.weight", 1), (normed, "norm.weight", 0)],
)
def test_a_cut_that_keeps_other_channels_in_one_place_is_found(
    build: Callable[[], nn.Module], name: str, dim: int
) -> None:
    """Weights and slices agree, but a consumer kept the wrong channels: only running both networks shows it."""
    result = halve(build(), IMAGE)
    damaged, slices = copy.deepcopy(result.model), dict(result.cut.slices)
    kept = list(slices[name])
    everything = np.arange(result.graph.tensors()[name].shape[dim])
    other = np.setdiff1d(everything, kept[dim])[: len(kept[dim])]
    kept[dim] = np.sort(np.concatenate([kept[dim][len(other) :], other]))
    slices[name] = tuple(kept)
    original = result.graph.tensors()[name].detach()
    for d, index in enumerate(kept):
        if index is not None:
            original = original.index_select(d, torch.from_numpy(index))
    damaged.get_parameter(name).data = original.clone()
    with pytest.raises(VerificationError, match="differs"):
        check(result, damaged, slices)


@pytest.mark.parametrize("build", [exact, normed])
def test_a_network_that_computes_something_else_is_found(build: Callable[[], nn.Module]) -> None:
    """The weights are right, the code is not."""
    result = halve(build(), IMAGE)
    damaged = copy.deepcopy(result.model)
    run = damaged.run
    damaged.run = lambda m, x: run(m, x) * 1.001
    with pytest.raises(VerificationError, match="differs"):
        check(result, damaged)


@pytest.mark.parametrize("build", [exact, normed])
def test_another_constant_is_never_called_exact(build: Callable[[], nn.Module]) -> None:
    """Numbers in code may follow a width (the scale of attention), so they are told, not refused."""
    result = halve(build(), IMAGE)
    other = copy.deepcopy(result.model)
    getattr(other, "n" if hasattr(other, "n") else "norm").eps = 0.5
    proof = result.graph.verify(Cut(other, result.cut.slices, ()), result.plan)
    assert not proof.exact
    assert any("constant" in reason for reason in proof.reasons)


def test_missing_bias_is_found() -> None:
    result = halve(exact(), IMAGE)
    damaged = copy.deepcopy(result.model)
    damaged.c1.bias = None
    with pytest.raises(VerificationError):
        check(result, damaged)


def test_damage_behind_a_zero_scale_is_found() -> None:
    """Scales of zero and statistics of one hide nothing: verification draws its own."""
    model = exact()
    nn.init.zeros_(model.n.weight)
    nn.init.zeros_(model.c2.weight)
    result = halve(model, IMAGE)
    damaged = copy.deepcopy(result.model)
    run = damaged.run

    def other(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        m.c1.forward = lambda t: type(m.c1).forward(m.c1, t) * 1.01
        try:
            return run(m, x)
        finally:
            del m.c1.forward

    damaged.run = other
    with pytest.raises(VerificationError, match="differs"):
        check(result, damaged)


@pytest.mark.parametrize("build", [exact, normed])
def test_double_precision_agrees_to_ten_digits(build: Callable[[], nn.Module]) -> None:
    proof = halve(build().double(), IMAGE.double()).verification
    assert proof.passed
    assert proof.tolerance == 1e-10
    assert (proof.max_relative_error if proof.exact else proof.structural_error) <= 1e-10


def test_single_precision_can_be_verified_in_double() -> None:
    result = halve(exact(), IMAGE)
    proof = result.graph.verify(result.cut, result.plan, dtype=torch.float64)
    assert proof.tolerance == 1e-10
    assert proof.exact


def test_inexact_says_why_and_exact_says_nothing() -> None:
    proof = halve(exact(), IMAGE).verification
    assert (proof.exact, proof.reasons, proof.structural_error) == (True, (), None)
    proof = halve(normed(), IMAGE).verification
    assert not proof.exact
    assert proof.max_relative_error > proof.tolerance >= proof.structural_error
    assert any("layer norm" in reason for reason in proof.reasons)


def test_verification_is_seeded_and_leaves_the_dice_alone() -> None:
    result = halve(exact(), IMAGE)
    dice = torch.random.get_rng_state()
    proofs = [result.graph.verify(result.cut, result.plan, seed=s) for s in (0, 0, 1)]
    assert proofs[0] == proofs[1]
    assert torch.equal(torch.random.get_rng_state(), dice)


def test_verification_is_optional() -> None:
    assert halve(exact(), IMAGE, verify=False).verification is None


def test_outputs_without_numbers_cannot_be_verified() -> None:
    model = Net(lambda m, x: m.c(m.stem(x))[:0], stem=conv(3, 8), c=conv(8, 6))
    graph = trace(model, IMAGE)
    plan = Plan.full(graph)
    with pytest.raises(secateur.SecateurError, match="nothing can be compared"):
        graph.verify(graph.cut(plan), plan)


@torch.no_grad()
def test_statistics_are_made_where_a_network_keeps_any() -> None:
    """Random weights saturate norms that go by old statistics; a network without any is not run for nothing."""
    runs: list[int] = []
    for model, passes in ((exact(), 1), (normed(), 0)):
        model.register_forward_pre_hook(lambda *_: runs.append(1))
        norm = next((m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), None)
        if norm is not None:
            assert norm.running_mean is not None
            norm.running_mean.fill_(1e4)
        runs.clear()
        calibrate(model.eval(), ((IMAGE,), {}), torch.Generator().manual_seed(0))
        assert len(runs) == passes
        if norm is not None:
            assert float(norm.running_mean.abs().max()) < 100  # type: ignore[operator, union-attr]


class Frozen(nn.Module):
    """A norm whose statistics are parameters that are not trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean, self.var = (nn.Parameter(torch.full((width,), v), requires_grad=False) for v in (0.0, 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.1, 1e-5)


def test_statistics_may_be_parameters() -> None:
    net = Net(
        lambda m, x: m.head(m.b(m.a(x).relu()).relu()),
        a=nn.Sequential(conv(3, 16), Frozen(16)), b=nn.Sequential(conv(16, 16), Frozen(16)), head=head(16),
    ).eval()  # fmt: skip
    result = secateur.prune(net, torch.randn(2, 3, 8, 8), budget="flops=0.5")
    assert result.verification is not None
    assert result.verification.exact

"""Batch whitening: the worked numbers of the specification, the fast pass beside the reference, folding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from secateur.methods.bwcp import whitening
from secateur.methods.bwcp.whitening import inverse_root, normalised


def scalar(value: float, steps: int) -> float:
    return inverse_root(torch.tensor([[[value]]], dtype=torch.float64), steps).item()


@pytest.mark.parametrize(
    ("value", "iterates"),
    [
        (1.0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        (0.25, [1.375, 1.73755, 1.9506, 1.99818, 2.0]),
        (1 / 16, [1.46875, 2.10411, 2.86506, 3.56265, 3.93089]),
        (0.0, [1.5, 2.25, 3.375, 5.0625, 7.59375]),
    ],
)
def test_newton_on_one_number(value: float, iterates: list[float]) -> None:
    found = [scalar(value, k) for k in range(1, 6)]
    assert found == pytest.approx(iterates, abs=1e-5)


GAMMA = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
BETA = torch.tensor([0.3, -0.2], dtype=torch.float64)
RHO = torch.tensor([[[1.0, 0.4], [0.4, 1.0]]], dtype=torch.float64)


def phi(z: torch.Tensor) -> torch.Tensor:
    return (1 + torch.erf(z / math.sqrt(2))) / 2


def equivalents(steps: int, rho: torch.Tensor = RHO) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    root = inverse_root(normalised(GAMMA, rho), steps)[0]
    return root, root @ GAMMA[0], root @ BETA


def test_worked_case_of_two_channels() -> None:
    assert torch.allclose(normalised(GAMMA, RHO)[0], torch.tensor([[0.8, 0.16], [0.16, 0.2]]).double(), atol=1e-9)
    root, gh, bh = equivalents(1)
    assert torch.allclose(root, torch.tensor([[1.1, -0.08], [-0.08, 1.4]]).double(), atol=1e-9)
    assert gh.tolist() == pytest.approx([1.06, 0.62], abs=1e-9)
    assert bh.tolist() == pytest.approx([0.346, -0.304], abs=1e-9)
    assert phi((BETA - 0.05) / GAMMA[0]).tolist() == pytest.approx([0.5987, 0.3085], abs=1e-4)
    assert phi((bh - 0.05) / gh).tolist() == pytest.approx([0.6100, 0.2840], abs=1e-4)
    # the equivalent scale is not the deviation of the whitened channel, and is not meant to be
    covariance = GAMMA[0][:, None] * GAMMA[0][None] * RHO[0]
    assert (root @ covariance @ root.T).diagonal().sqrt().tolist() == pytest.approx([1.0846, 0.6720], abs=1e-4)


def test_worked_case_after_five_steps() -> None:
    _, gh, bh = equivalents(5)
    assert gh.tolist() == pytest.approx([1.0082, 0.8770], abs=1e-4)
    assert bh.tolist() == pytest.approx([0.4185, -0.5828], abs=1e-4)
    assert phi((bh - 0.05) / gh).tolist() == pytest.approx([0.6426, 0.2353], abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_without_correlation_only_the_threshold_moves(steps: int) -> None:
    _, gh, bh = equivalents(steps, torch.eye(2, dtype=torch.float64)[None])
    assert torch.allclose(bh / gh, BETA / GAMMA[0])
    assert torch.allclose(phi(bh / gh), phi(BETA / GAMMA[0]))
    assert (phi((bh - 0.05) / gh) > phi((BETA - 0.05) / GAMMA[0])).all()
    if steps == 1:
        assert phi((bh - 0.05) / gh).tolist() == pytest.approx([0.6005, 0.3187], abs=1e-4)


def test_at_its_own_threshold_whitening_never_lowers_a_probability() -> None:
    """Proposition 3 (2): delta_c = |gamma| sqrt(sum_j (gamma_j beta_c - gamma_c beta_j)^2 rho_cj^2) / (...)."""
    generator = torch.Generator().manual_seed(0)
    checked = 0
    for _ in range(3000):
        gamma = torch.randn(6, generator=generator, dtype=torch.float64)
        beta = torch.randn(6, generator=generator, dtype=torch.float64)
        sample = torch.randn(6, 24, generator=generator, dtype=torch.float64)
        rho = torch.corrcoef(sample)
        root = inverse_root(normalised(gamma[None], rho[None]), 1)[0]
        gh, bh = root @ gamma, root @ beta
        square = gamma.square().sum()
        crossed = ((gamma[None] * beta[:, None] - gamma[:, None] * beta[None]).square() * rho.square()).sum(1).sqrt()
        rest = square - (gamma.square()[None] * rho).sum(1)
        delta = square.sqrt() * crossed / rest
        held = rest > 1e-9
        before, after = phi((beta - delta) / gamma.abs()), phi((bh - delta) / gh.abs())
        assert (after[held] >= before[held] - 1e-9).all()
        checked += int(held.sum())
    assert checked > 17_000


def test_delta_of_the_worked_case() -> None:
    gamma, beta, rho = GAMMA[0], BETA, RHO[0]
    square = gamma.square().sum()
    crossed = ((gamma[None] * beta[:, None] - gamma[:, None] * beta[None]).square() * rho.square()).sum(1).sqrt()
    delta = square.sqrt() * crossed / (square - (gamma.square()[None] * rho).sum(1))
    assert delta.tolist() == pytest.approx([1.0435, 0.2609], abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 4, 16]), st.floats(0.01, 100.0))
def test_what_holds_for_every_block(seed: int, size: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gamma = torch.randn(1, size, generator=generator, dtype=torch.float64)
    rho = torch.corrcoef(torch.randn(size, 4 * size, generator=generator, dtype=torch.float64))[None]
    found = normalised(gamma, rho)
    assert found.diagonal(dim1=1, dim2=2).sum().item() == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(found, normalised(gamma * factor, rho), atol=1e-6)
    root = inverse_root(found, 5)
    assert torch.allclose(root, root.transpose(1, 2), atol=1e-8)
    alike = inverse_root(normalised(gamma, torch.ones_like(rho)), 5)
    assert torch.allclose(alike[0] @ gamma[0], gamma[0], atol=1e-6)


def test_few_steps_keep_what_an_exact_root_destroys() -> None:
    """With an exact inverse root every uncorrelated channel would look alike, however small its gamma."""
    gamma, eye = torch.tensor([[1.0, 0.1, 0.01]], dtype=torch.float64), torch.eye(3, dtype=torch.float64)[None]
    few = inverse_root(normalised(gamma, eye), 5)[0] @ gamma[0]
    exact = inverse_root(normalised(gamma, eye), 60)[0] @ gamma[0]
    assert exact.tolist() == pytest.approx([gamma.norm().item()] * 3, rel=1e-3)
    assert few[2] < 0.1 * few[0]


def test_at_the_start_every_channel_is_below_the_threshold() -> None:
    gamma = torch.ones(1, 16, dtype=torch.float64)
    root = inverse_root(normalised(gamma, torch.eye(16, dtype=torch.float64)[None]), 5)[0]
    assert torch.allclose(root, 3.93089 * torch.eye(16, dtype=torch.float64), atol=1e-4)
    probability = phi((root @ torch.zeros(16, dtype=torch.float64) - 0.05) / (root @ gamma[0]))
    assert probability.tolist() == pytest.approx([0.49493] * 16, abs=1e-5)


@pytest.mark.parametrize(
    ("channels", "largest", "groups", "size"), [(64, 16, 1, 16), (24, 16, 1, 8), (7, 16, 1, 1), (64, 16, 32, 2)]
)
def test_blocks_are_halved_until_they_divide(channels: int, largest: int, groups: int, size: int) -> None:
    assert whitening.block_size(channels, largest, groups) == size


def fast(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, size: int, steps: int) -> torch.Tensor:
    sums = whitening.moments(x, size)
    found = whitening.mapped(sums, gamma, beta, steps, 1e-5)
    return whitening.affine(x, found.matrix, found.shift, returned=sums.returned)


@pytest.mark.parametrize("shape", [(6, 8, 5, 5), (4, 8, 7), (16, 8), (3, 8, 2, 3, 2)])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_fast_pass_equals_the_reference_with_all_its_gradients(shape: tuple[int, ...], size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 3).requires_grad_()
    gamma = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    beta = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    slow, _ = whitening.whitening_reference(x, gamma, beta, size, 5, 1e-5)
    quick = fast(x, gamma, beta, size, 5)
    # the two differ by where the batch norm's epsilon enters the trace
    assert torch.allclose(slow, quick, atol=1e-4)
    wanted = torch.autograd.grad((slow * weight).sum(), (x, gamma, beta))
    given = torch.autograd.grad((quick * weight).sum(), (x, gamma, beta))
    for a, b in zip(wanted, given, strict=True):
        assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_fast_pass_are_exact(masked: bool) -> None:
    """Also where a mask is made of how scale and shift look behind whitening."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, 4, 2, 2), (4,), (4,)]
    given = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]

    def layer(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        sums = whitening.moments(x, 2)
        found = whitening.mapped(sums, gamma, beta, 3, 1e-5)
        mask = torch.sigmoid(found.scale * found.offset) if masked else None
        return whitening.affine(x, found.matrix, found.shift, mask, sums.returned)

    assert torch.autograd.gradcheck(layer, given, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_step_there_and_back_is_the_chain_of_its_parts(size: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 8, 3, 3, generator=generator, dtype=torch.float64)
    gamma, beta = (torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sums = whitening.moments(x + 2, size)
    total, products = (t.clone().requires_grad_() for t in (sums.total, sums.products))
    sums = whitening.NormStatistics(total, products, sums.count, sums.returned)
    found = whitening.mapped(sums, gamma, beta, steps, 1e-5)
    root = inverse_root(normalised(gamma.view(-1, size), sums.correlation(1e-5)), steps)
    matrix, shift = whitening.composed(root, gamma, beta, sums.mean, sums.variance, 1e-5)
    behind = [(root @ v.view(-1, size, 1)).view(-1) for v in (gamma, beta)]
    wanted, given = (matrix, shift, *behind), (found.matrix, found.shift, found.scale, found.offset)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in wanted]
    gradients = []
    for outputs in (wanted, given):
        value = sum(((o * w).sum() for o, w in zip(outputs, weights, strict=True)), torch.zeros(()))
        gradients.append(torch.autograd.grad(value, (total, products, gamma, beta)))
    for a, b in zip((*wanted, *gradients[0], root), (*given, *gradients[1], found.root), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)
    for a, b in ((sums.mean, found.mean), (sums.variance, found.variance), (sums.correlation(1e-5), found.correlation)):
        assert torch.allclose(a, b)


def test_single_channels_are_a_batch_norm() -> None:
    x = torch.randn(8, 6, 5, 5, dtype=torch.float64)
    gamma, beta = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    wanted = F.batch_norm(x, None, None, gamma, beta, training=True)
    assert torch.allclose(fast(x, gamma, beta, 1, 5), wanted, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mean_far_from_zero_does_no_harm_in_single_precision(layout: torch.memory_format) -> None:
    x = (torch.randn(64, 32, 8, 8) + 30.0).contiguous(memory_format=layout)
    found = whitening.moments(x, 16).covariance
    for block, channels in zip(found, x.double().transpose(0, 1).reshape(2, 16, -1), strict=True):
        assert torch.allclose(block.double(), torch.cov(channels, correction=0), atol=2e-3)


@pytest.mark.parametrize("shape", [(4, 8, 5, 5), (6, 8, 40, 30), (4, 8, 1, 1), (3, 1, 4, 4)])
def test_channels_of_a_pixel_may_lie_together(shape: tuple[int, ...]) -> None:
    """The same values and gradients, laid out as what came in."""
    size = min(4, shape[1])
    x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    gamma, beta, weight = torch.rand(shape[1]).requires_grad_(), torch.rand(shape[1]), torch.randn(shape)
    found = []
    for each in (x, x.detach().contiguous().requires_grad_()):
        y = fast(each, gamma, beta, size, 5)
        assert y.is_contiguous(memory_format=torch.channels_last if each is x else torch.contiguous_format)
        gradients = torch.autograd.grad((y * weight).sum(), (each, gamma))
        found.append((y, *gradients))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_other_ways_to_lie_in_memory_are_made_dense() -> None:
    x = torch.randn(5, 4, 8, 5).permute(1, 2, 0, 3)
    gamma, beta = torch.rand(8), torch.rand(8)
    wanted = fast(x.contiguous(), gamma, beta, 4, 5)
    assert torch.allclose(fast(whitening.dense(x), gamma, beta, 4, 5), wanted, atol=1e-5)


def test_an_activation_may_work_in_place() -> None:
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    nn.ReLU(inplace=True)(fast(x, torch.ones(8), torch.zeros(8), 4, 5)).sum().backward()
    assert x.grad is not None

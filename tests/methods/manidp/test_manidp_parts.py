"""ManiDP's equations: the worked numbers of losses, schedule and thresholds, and gradients against sums in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from secateur.methods.manidp.losses import easiness, similarity, sparsity
from secateur.methods.manidp.thresholds import between, kth, largest_rate, remaining


def test_easy_images_weigh_more() -> None:
    """C = .5, q = 1: CE .1 weighs .8, .3 .4, and .5 and .6 nothing."""
    losses = torch.tensor([0.1, 0.3, 0.5, 0.6])
    assert easiness(losses, 0.5, 1.0).tolist() == pytest.approx([0.8, 0.4, 0, 0])
    assert easiness(losses, 0.5, 2.0).tolist() == pytest.approx([0.64, 0.16, 0, 0])


def test_a_hard_batch_is_not_pressed() -> None:
    weights = easiness(torch.tensor([0.5, 0.9]), 0.5, 1.0)
    assert sparsity([torch.rand(2, 3)], weights) == 0


def test_sparsity_is_the_mean_saliency_of_easy_images() -> None:
    """Two layers of 2 and 1 channels: mean_i (w_i mean_c pi) = (.8 * 2 + 0) / 2 and (.8 * 5) / 2."""
    found = sparsity([torch.tensor([[1.0, 3.0], [7.0, 9.0]]), torch.tensor([[5.0], [1.0]])], torch.tensor([0.8, 0.0]))
    assert found.item() == pytest.approx(0.8 + 2.0)


def test_similarity() -> None:
    """(1, 0), (0, 1) against (1, 1), (1, 1): the cosines differ by 1 twice, 2 / 2^2; lengths do not matter."""
    a, b = torch.eye(2), torch.ones(2, 2)
    assert similarity([a], [b]).item() == pytest.approx(0.5)
    assert similarity([a * torch.tensor([[3.0], [0.1]])], [b * 7]).item() == pytest.approx(0.5)
    assert similarity([a, a], [b, a]).item() == pytest.approx(0.5)


def test_losses_and_gradients_against_loops() -> None:
    """A batch of six, two layers: finite differences of sums over images and pairs of images."""
    generator = np.random.default_rng(0)
    shapes = ((6, 4), (6, 3))
    pis = [generator.uniform(0.1, 1, shape) for shape in shapes]
    features = [generator.uniform(0.1, 1, shape) for shape in shapes]
    losses, limit = generator.uniform(0, 1, 6), 0.6

    def by_loops(pis: list[np.ndarray], features: list[np.ndarray], losses: np.ndarray) -> float:
        total = 0.0
        for pi, f in zip(pis, features, strict=True):
            for i in range(6):
                weight = max((limit - losses[i]) / limit, 1e-10) if losses[i] < limit else 0.0
                total += 0.3 * weight * sum(pi[i]) / len(pi[i]) / 6
                for j in range(6):
                    a = pi[i] @ pi[j] / math.sqrt((pi[i] @ pi[i]) * (pi[j] @ pi[j]))
                    b = f[i] @ f[j] / math.sqrt((f[i] @ f[i]) * (f[j] @ f[j]))
                    total += 0.7 * (a - b) ** 2 / 36
        return total

    every = [*pis, *features, losses]
    tensors = [torch.from_numpy(values.copy()).requires_grad_() for values in every]
    weights = easiness(tensors[4], limit, 1.0)
    found = 0.3 * sparsity(tensors[:2], weights) + 0.7 * similarity(tensors[:2], tensors[2:4])
    assert found.item() == pytest.approx(by_loops(pis, features, losses), rel=1e-9)
    found.backward()
    for values, tensor in zip(every, tensors, strict=True):
        for at in np.ndindex(values.shape):
            kept, sides = values[at], []
            for step in (1e-6, -1e-6):
                values[at] = kept + step
                sides.append(by_loops(pis, features, losses))
            values[at] = kept
            assert tensor.grad[at].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-9)


def test_the_remaining_rate_falls_by_a_cosine() -> None:
    """t = .6, E = 400."""
    found = [round(remaining(0.6, (epoch + 1) / 400), 4) for epoch in (0, 99, 199, 399)]
    assert found == [1.0, 0.9414, 0.8, 0.6]


def test_channels_that_the_rate_keeps() -> None:
    """16 channels, t = .5, E = 10: r_e 16 is 15.8, 15.2, 14.4, 13.2, 12, 10.8, 9.6, 8.8, 8.2, 8, rounded up."""
    means = torch.arange(16, 0, -1).double()  # the k-th largest is 17 - k
    kept = [17 - int(kth(means, remaining(0.5, (epoch + 1) / 10))) for epoch in range(10)]
    assert kept == [16, 16, 15, 14, 12, 11, 10, 9, 9, 8]


def test_a_threshold_is_a_mean_saliency() -> None:
    means = torch.tensor([0.9, 0.1, 0.5, 0.3], dtype=torch.float64)
    assert kth(means, 0.5) == 0.5
    assert [kth(means, rate) for rate in (1.0, 0.76, 0.75, 0.26, 0.25, 0.0)] == [0.1, 0.1, 0.3, 0.5, 0.9, 0.9]


def test_thresholds_rise_evenly_between_channels() -> None:
    means = torch.tensor([0.9, 0.1, 0.5, 0.3], dtype=torch.float64)
    for k in range(1, 5):
        assert between(means, k / 4, 2.0) == pytest.approx(kth(means, k / 4))
    assert between(means, 0.5 + 0.125, 2.0) == pytest.approx(0.4)  # half way from .3 to .5
    assert between(means, 0.0, 2.0) == pytest.approx(2.0)
    assert between(means, 0.125, 2.0) == pytest.approx(1.45)
    assert [between(means, rate, 2.0) for rate in (1.5, 2.0)] == pytest.approx([0.05, 0])  # all that is not 0 is open
    found = [between(means, rate, 2.0) for rate in np.linspace(0, 2, 60)]
    assert found == sorted(found, reverse=True)


def test_the_largest_rate_that_meets_a_bound() -> None:
    assert largest_rate(lambda rate: rate <= 0.3) == pytest.approx(0.3, abs=1e-4)
    assert largest_rate(lambda rate: rate <= 0.3) <= 0.3
    assert largest_rate(lambda _: True) == 1.0
    assert largest_rate(lambda _: False) == 0.0

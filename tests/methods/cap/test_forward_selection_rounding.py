"""Forward selection on fewer images than columns: what rounding leaves of a covariance is not taken for signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.methods.cap.forward_selection import ForwardSelection, forward_order


def selection(channels: int, each: int, samples: int, noise: float, rank: int = 12) -> ForwardSelection:
    """Inputs of few directions and a little more, seen so few times; their covariance off by `noise`."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns = channels * each
    x = draw(samples, rank) @ draw(rank, columns) + 0.01 * draw(samples, columns)
    sigma, error = x.T @ x / samples, noise * draw(columns, columns)
    deviation = sigma.diagonal().sqrt()
    sigma += (error + error.T) / 2 * deviation[:, None] * deviation
    places = np.arange(columns).reshape(channels, each)
    return ForwardSelection(draw(16, columns), sigma, [(np.arange(channels), places)], ridge=1e-6)


@pytest.mark.parametrize("noise", [1e-8, 1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize(("channels", "each", "samples"), [(80, 1, 30), (24, 4, 30), (60, 1, 8)])
def test_rounding_does_not_grow_from_choice_to_choice(channels: int, each: int, samples: int, noise: float) -> None:
    found = selection(channels, each, samples, noise)
    order, gains = forward_order([found], channels)
    assert sorted(order) == [*range(channels)]
    assert gains.sum() < 1.01  # shares of one loss; 10^30 and more without a bound
    assert gains[: 12 + 4].sum() > 0.95  # what there is to win is won first
    weight = found.corrected(len(found.order) // 2)
    assert float(weight.abs().max()) < 1e3 * float(found.weight.abs().max())


def test_a_sound_covariance_is_taken_as_it_is() -> None:
    """Bounds and projections change nothing where no rounding is: gains sum to the whole, and L L^T is Sigma."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 24, generator=generator, dtype=torch.float64)
    sigma, weight = x.T @ x / 400, torch.randn(5, 24, generator=generator, dtype=torch.float64)
    found = ForwardSelection(weight, sigma, [(np.arange(12), np.arange(24).reshape(12, 2))])
    _, gains = forward_order([found], 12)
    assert gains.sum() == pytest.approx(1.0, abs=1e-12)
    factor = found._space * found.deviation[:, None]
    torch.testing.assert_close(factor @ factor.T, sigma)

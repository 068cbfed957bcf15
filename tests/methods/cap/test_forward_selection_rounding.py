"""Forward selection on fewer images than columns: what rounding leaves of a covariance is not taken for signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.methods.cap.forward_selection import ForwardSelection, forward_order


def selection(channels: int, each: int, samples: int, noise: float) -> tuple[ForwardSelection, torch.Tensor]:
    """Inputs of 12 directions and a little more, seen so few times; their covariance off by `noise`, and as it is."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns = channels * each
    x = draw(samples, 12) @ draw(12, columns) + 0.01 * draw(samples, columns)
    sigma, error = x.T @ x / samples, noise * draw(columns, columns)
    deviation = sigma.diagonal().sqrt()
    true = sigma.clone()
    sigma += (error + error.T) / 2 * deviation[:, None] * deviation
    places = np.arange(columns).reshape(channels, each)
    return ForwardSelection(draw(16, columns), sigma, [(np.arange(channels), places)], ridge=1e-6), true


@pytest.mark.parametrize(
    ("channels", "each", "samples", "noise", "bar"),
    [(80, 1, 30, 1e-8, 1e-5), (80, 1, 30, 1e-6, 3e-4), (24, 4, 30, 1e-6, 2e-5), (60, 1, 8, 1e-5, 1e-4),
     (200, 1, 100, 3e-7, 1e-3), (200, 1, 100, 1e-5, 0.03)],
)  # fmt: skip
def test_rounding_is_no_signal(channels: int, each: int, samples: int, noise: float, bar: float) -> None:
    """Taken for signal it grows from choice to choice, to 10^30 and more, and corrections go by it."""
    found, true = selection(channels, each, samples, noise)
    order, gains = forward_order([found], channels)
    assert sorted(order) == [*range(channels)]
    assert gains.sum() < 1.01  # shares of one loss
    for kept in (0.3, 0.5, 0.8):
        change = found.corrected(found.ends[int(kept * channels)]) - found.weight
        lost, whole = (float((w @ true @ w.T).trace()) for w in (change, found.weight))
        assert lost < bar * whole


def test_a_sound_covariance_is_taken_as_it_is() -> None:
    """Nothing changes where no rounding is: gains sum to the whole, and L L^T is Sigma."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 24, generator=generator, dtype=torch.float64)
    sigma, weight = x.T @ x / 400, torch.randn(5, 24, generator=generator, dtype=torch.float64)
    found = ForwardSelection(weight, sigma, [(np.arange(12), np.arange(24).reshape(12, 2))])
    _, gains = forward_order([found], 12)
    assert gains.sum() == pytest.approx(1.0, abs=1e-12)
    factor = found._space * found.deviation[:, None]
    torch.testing.assert_close(factor @ factor.T, sigma)

"""Images held out: in pieces that are alike, shown again and again as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.statistics.held_out import HeldOut


def held(images: int) -> HeldOut:
    """So many images of one channel, whose class is what they are."""
    x = torch.arange(8 * images).remainder(3).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    result = HeldOut(images, F.cross_entropy)
    list(result.rest([(x, x[:, 0, 0, 0].long())], torch.device("cpu")))
    return result


class Nearest(nn.Module):
    """Says which number an image is, and writes over it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(1)
        return -(x.mean((1, 2, 3))[:, None] + 1 - torch.arange(3)).abs()


@pytest.mark.parametrize(("images", "sizes"), [(1, [1]), (32, [32]), (33, [17, 16]), (65, [22, 22, 21])])
def test_no_piece_is_much_smaller_than_the_others(images: int, sizes: list[int]) -> None:
    assert [len(inputs) for inputs, _ in held(images).pieces()] == sizes


def test_a_network_that_writes_over_its_input_is_measured_on_the_same_images() -> None:
    images, model = held(40), Nearest()
    assert [images.begin(model), images.measure(model), images.measure(model)] == [1.0] * 3
    assert images.right(model, 1) == images.right(model, 1) == (20, 20)


def test_the_whole_is_measured_as_its_pieces_are() -> None:
    """With statistics of the batch, another cut of the images is another accuracy."""
    torch.manual_seed(0)
    images = held(100)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).eval()
    told = images.begin(model)
    right = [images.right(model, piece)[0] for piece in range(len(images.pieces()))]
    assert told == images.share(sum(right))

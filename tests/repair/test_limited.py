"""Images of a reconstruction lie with their channels together, where the network takes them so."""

from __future__ import annotations

import torch
from torch import nn

from secateur.repair.least_squares import limited


class Views(nn.Module):
    """Flattens as old code does, which needs channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x).view(len(x), -1))


def test_channels_lie_together_where_the_network_takes_them_so() -> None:
    batches = [(torch.randn(4, 3, 4, 4), torch.zeros(4)) for _ in range(3)]
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3))
    for model, together in ((plain, True), (Views(), False)):
        norm = next(model.children())
        found = [images for images, _ in limited(batches, 6, model.train())]
        assert len(found) == 2  # whole batches, until there are six images
        for images, (given, _) in zip(found, batches, strict=False):
            assert torch.equal(images, given)
            assert images.is_contiguous(memory_format=torch.channels_last) is together
        assert norm.training
        assert not norm.running_mean.any()  # trying has left no trace


def test_a_table_is_no_image() -> None:
    table = torch.randn(4, 3)
    found, _ = next(limited([(table, None)], 4, nn.Linear(3, 2)))
    assert torch.equal(found, table)

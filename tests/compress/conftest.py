"""A small network that tells four kinds of images apart, trained in a second, and its images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _quarters import images, network
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    model, (pixels, labels) = network(), images(240)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(12):
        for x, y in zip(pixels.split(40), labels.split(40), strict=True):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval()


@pytest.fixture
def model(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


@pytest.fixture
def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*images(240)), batch_size=40, shuffle=True)

"""Methods at work while training on VGG-16-BN, DenseNet-40 and MobileNetV2 for 32x32: cut, verified, within 1%."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from secateur.methods import create
from secateur.models import create as network


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16_bn", "densenet40", "mobilenet_v2"])
@pytest.mark.parametrize("method", ["gdp", "ghfp"])
def test_a_short_training_ends_in_a_verified_network_within_the_budget(method: str, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pruner = create(method, network(name), torch.randn(1, 3, 32, 32, generator=generator), budget="flops=0.5", steps=4)
    optimiser = torch.optim.SGD(pruner.parameter_groups(5e-4), lr=0.01, momentum=0.9)
    pruner.train()
    for _ in range(4):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        labels = torch.randint(0, 10, (4,), generator=generator)
        optimiser.zero_grad()
        pruner.before_forward(labels)
        output = pruner(images)
        pruner.after_forward(output, labels)
        (F.cross_entropy(output, labels) + pruner.loss()).backward()
        pruner.after_backward()
        optimiser.step()
        pruner.after_step()
        pruner.after_epoch()
    pruner.finish()
    result = pruner.result
    assert result is not None
    assert result.verification is not None
    assert result.verification.exact
    assert 0.99 * 0.5 <= result.reached("flops") <= 0.5

"""BatchNorm re-estimation: statistics worked out by hand, and those that the cut network itself would measure."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import InputError
from secateur.plan import Plan
from secateur.repair import Case
from secateur.repair.batchnorm import BatchNorm
from secateur.testing import NETWORKS

RESIDUAL = NETWORKS[0]


def two_norms() -> nn.Sequential:
    """Two inputs, copied by a linear layer, normed twice; then one answer."""
    copying = nn.Linear(2, 2, bias=False)
    net = nn.Sequential(copying, nn.BatchNorm1d(2, eps=1e-12), nn.BatchNorm1d(2, eps=1e-12), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[1].weight.copy_(torch.tensor([2.0, 1.0]))
        net[1].bias.copy_(torch.tensor([0.0, 5.0]))
        for norm in (net[1], net[2]):
            norm.running_mean.fill_(7.0)
            norm.running_var.fill_(9.0)
    return net.eval()


def repaired(net: nn.Module, data: Any, *, removed: int | None = None, **settings: Any) -> tuple[Any, list[str]]:
    """The network after the repair, as wide as before, and the notes."""
    graph = secateur.trace(net, next(iter(data))[0])
    masks = {group.name: np.ones(group.width, dtype=np.bool_) for group in graph.groups}
    if removed is not None:
        next(iter(masks.values()))[removed] = False
    case = Case(copy.deepcopy(net), lambda: copy.deepcopy(net), graph, Plan(masks))
    with torch.no_grad():
        BatchNorm(**settings).apply(case, data)
    return case.model, case.notes


def batch(*rows: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(rows, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.int64)


def numbers(tensor: torch.Tensor) -> Any:
    return pytest.approx(tensor.tolist())


def test_by_hand() -> None:
    """Batches of two and of four: means 2, 5 and 6, 0; variances (by n - 1) 2, 18 and 20/3, 4/3."""
    data = [batch([1, 2], [3, 8]), batch([3, 1], [5, -1], [7, 1], [9, -1])]
    net, notes = repaired(two_norms(), data)
    assert notes == []
    assert numbers(net[1].running_mean) == [(2 * 2 + 4 * 6) / 6, (2 * 5 + 4 * 0) / 6]
    assert numbers(net[1].running_var) == [(2 * 2 + 4 * 20 / 3) / 6, (2 * 18 + 4 * 4 / 3) / 6]
    # the second norm receives what the first makes of each batch: mean 0 and variance 1 (by n), times 2, and plus 5
    assert numbers(net[2].running_mean) == [0, 5]
    assert numbers(net[2].running_var) == [4 * (2 * 2 + 4 * 4 / 3) / 6, (2 * 2 + 4 * 4 / 3) / 6]


def test_as_many_batches_as_asked_for() -> None:
    data = [batch([1, 2], [3, 8]), batch([3, 1], [5, -1], [7, 1], [9, -1])]
    net, _ = repaired(two_norms(), data, batches=1)
    assert numbers(net[1].running_mean) == [2, 5]
    assert numbers(net[1].running_var) == [2, 18]


def test_a_channel_that_goes_no_longer_counts() -> None:
    """Two equal convolutions, one behind the other: without the first channel the second layer gets half."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.Conv1d(2, 1, 1, bias=False), nn.BatchNorm1d(1), nn.Flatten())
    nn.init.ones_(net[0].weight)
    nn.init.ones_(net[1].weight)
    data = [(torch.tensor([[[1.0]], [[3.0]]]), torch.zeros(2))]
    assert repaired(net, data)[0][2].running_mean.tolist() == [4.0]
    assert repaired(net, data, removed=0)[0][2].running_mean.tolist() == [2.0]


def test_one_image_that_is_left_over_is_left_out() -> None:
    data = [batch([1, 2], [3, 8]), batch([100, 100])]
    net, notes = repaired(two_norms(), data)
    assert numbers(net[1].running_mean) == [2, 5]
    assert notes == ["A batch of one image was left out when norms were measured anew."]


def test_batches_of_one_number_have_no_variance() -> None:
    with pytest.raises(InputError, match=r"with batches of 1: Expected more than 1 value.*; show other batches\.$"):
        repaired(two_norms(), [batch([1, 2]), batch([3, 4])])


def test_single_images_with_positions_are_looked_at() -> None:
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = RESIDUAL.make().eval()
    single, notes = repaired(net, [(image[None], 0) for image in images])
    means = F.conv2d(images, net.stem[0].weight, padding=1).mean((0, 2, 3))  # type: ignore[union-attr,index,arg-type]
    torch.testing.assert_close(single.stem[1].running_mean, means)
    assert notes == []


def test_norms_without_statistics_are_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1))
    _, notes = repaired(net.eval(), [(torch.randn(2, 3, 4, 4), 0)])
    assert notes == ["The network has no batch norms with running statistics, so none were measured anew."]


class Twice(nn.Module):
    """One norm that runs twice, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.spare = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        nn.init.constant_(self.spare.running_mean, 3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.norm(self.conv(x + 4)).mean((2, 3), keepdim=True)


def test_a_norm_that_runs_twice_averages_both_and_one_that_never_runs_keeps_what_it_had() -> None:
    net, _ = repaired(Twice().eval(), [(torch.ones(2, 1, 2, 2), 0), (torch.zeros(2, 1, 2, 2), 0)])
    assert numbers(net.norm.running_mean) == [(1 + 5 + 0 + 4) / 4] * 2
    assert net.spare.running_mean.tolist() == [3.0, 3.0]


def test_all_else_stays() -> None:
    net = RESIDUAL.make()
    with_dropout = nn.Sequential(net, nn.Dropout(0.9)).eval()
    for module in with_dropout.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    torch.manual_seed(0)
    before = torch.get_rng_state()
    after, _ = repaired(with_dropout, list(RESIDUAL.batches(2)))
    assert torch.equal(before, torch.get_rng_state())  # nothing was dropped
    kept = dict(with_dropout.named_parameters())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in after.named_parameters())
    norms = [module for module in after.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.3}
    assert not any(norm.training or norm._forward_pre_hooks for norm in norms)


# ------------------------------------------------------------------------------------------------- of the cut network


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_statistics_are_those_the_cut_network_measures_itself(network: Any) -> None:
    net, data = network.make().eval(), list(network.batches(3))
    options: dict[str, Any] = {"budget": "flops=0.6", "method": "random"}
    found = secateur.prune(net, network.inputs(), data=data, repair="batchnorm", **options)
    assert found.verification is not None
    assert found.verification.passed
    own = secateur.prune(net, network.inputs(), **options)
    assert all(np.array_equal(own.plan.masks[name], mask) for name, mask in found.plan.masks.items())
    for module in own.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for images, _ in data:  # of one size, so that the average over batches is one over images
            own.model(images)
        own.model.eval()
        torch.testing.assert_close(found.model.eval()(data[0][0]), own.model(data[0][0]), rtol=1e-4, atol=1e-4)
    wanted = own.model.state_dict()
    for name, tensor in found.model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-5)

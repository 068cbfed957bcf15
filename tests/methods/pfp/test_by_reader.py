"""PFP's union over layers: whoever asks for a channel with the largest error decides, and never its number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.methods.pfp.by_error import MOST, asked
from secateur.methods.pfp.by_reader import SATURATED, Asking, errors
from secateur.methods.pfp.method import PFP
from secateur.methods.pfp.sensitivity import Sensitivities
from secateur.models import create
from secateur.statistics.gather import gather
from secateur.testing._selection import permute
from secateur.testing.networks import NETWORKS

RESIDUAL = next(network for network in NETWORKS if network.name == "residual")


def reader(shares: list[float], flow: list[float], alpha: float = 300.0) -> Asking:
    return Asking(np.arange(len(shares)), np.array(shares), np.array(flow), alpha)


def best_first(*readers: Asking) -> list[int]:
    (found,) = errors(readers, [len(readers[0].channels)])
    return np.argsort(-found, kind="stable").tolist()


def test_equal_shares_stand_as_other_layers_have_them() -> None:
    """A layer in which all shares are 1 (but for rounding) says how many, the other one says which."""
    alike = reader([1.0, 1 - 1e-7, 1.0, 1 - 2e-7], [0.25] * 4)
    other = reader([0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.2, 0.3])
    assert best_first(alike, other) == best_first(other, alike) == [1, 3, 2, 0]


def test_where_all_layers_say_the_same_the_flow_decides() -> None:
    assert best_first(reader([1.0] * 4, [0.1, 0.2, 0.4, 0.3])) == [2, 3, 1, 0]
    both = reader([1.0] * 3, [0.5, 0.1, 0.4]), reader([1.0] * 3, [0.1, 0.4, 0.5])
    assert best_first(*both) == [2, 0, 1]  # means 0.45, 0.3, 0.25


def test_an_error_is_the_largest_of_each_layers_own() -> None:
    """Not that of the largest share and the largest α: layer by layer, over all that a layer reads."""
    rng = np.random.default_rng(0)
    s, t = rng.random(6), rng.random(10)
    first = Asking(np.arange(6), s, np.full(6, 1 / 6), 200.0)
    second = Asking(np.arange(10), t, np.full(10, 0.1), 400.0)  # a concatenation of two groups
    found = np.concatenate(errors([first, second], [6, 4]))
    wanted = asked(t, 400.0)
    wanted[:6] = np.maximum(wanted[:6], asked(s, 200.0))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    mixed = asked(np.maximum(np.append(s, np.zeros(4)), t)[:6], 400.0)
    assert not np.allclose(found[:6], mixed)


def test_two_that_are_asked_for_in_any_case_stand_as_the_second_layer_has_them() -> None:
    """Each is the most sensitive of one layer, so that both have the largest error there is."""
    one, other = reader([0.9, 0.2, 0.5], [0.3] * 3), reader([0.001, 0.9, 0.8], [0.3] * 3)
    (found,) = errors([one, other], [3])
    assert found[:2] == pytest.approx([MOST, MOST])
    assert found[1] > found[0] > found[2]  # 0.2 is asked for before 0.001


def test_numbers_of_channels_say_nothing() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        shares = np.where(rng.random((3, 12)) < 0.6, 1.0, rng.random((3, 12)))
        flow, order = rng.random((3, 12)), rng.permutation(12)
        plain = [Asking(np.arange(12), s, f, 300.0) for s, f in zip(shares, flow, strict=True)]
        moved = [Asking(np.arange(12), s[order], f[order], 300.0) for s, f in zip(shares, flow, strict=True)]
        np.testing.assert_array_equal(errors(plain, [12])[0][order], errors(moved, [12])[0])


def test_the_flow_is_the_share_of_all_that_is_summed_up() -> None:
    """Σ |W| = (4, 2, 2) and Σ |a| = (2, 3, 3) over two points: 8, 6 and 6 of 20; channels with two positions add up."""
    layer = nn.Sequential(nn.Linear(3, 2))
    layer[0].weight.data = torch.tensor([[1.0, -2, 1], [3, 0, -1]])
    points = torch.tensor([[1.0, -1, 2], [-1, 2, 1]])
    found = Sensitivities({"0": np.arange(3)})
    gather(layer, [(points[:1], None), (points[1:], None)], [found])
    assert found.flow["0"].tolist() == pytest.approx([0.4, 0.3, 0.3])
    torch.manual_seed(0)
    conv, x = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, groups=2)), torch.randn(2, 6, 5, 5)
    seen = Sensitivities({"0": np.array([0, 1, 2, 0, 1, 2])})
    gather(conv, [(x, None)], [seen])
    with torch.no_grad():
        conv[0].weight.abs_()
        conv[0].bias.zero_()
        each = [float(conv(x.abs() * (torch.arange(6) == k).view(1, -1, 1, 1)).sum()) for k in range(6)]
    np.testing.assert_allclose(seen.flow["0"].numpy(), np.array(each) / sum(each), rtol=1e-5)


def shown(model: nn.Module, **options: object) -> PFP:
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    method = PFP(model, x[:1], **{"budget": "flops=0.5", "images": 24, **options})
    method.collect([(x, None)], F.cross_entropy)
    return method


def new() -> nn.Module:
    torch.manual_seed(0)
    model = create("resnet8_b")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape))
    return model


def test_streams_with_a_strided_shortcut_follow_their_channels() -> None:
    """All shares in front of a strided 1x1 shortcut are 1, and yet the choice follows the channels."""
    plain, moved = shown(new(), units="all"), new()
    assert plain.sensitivities is not None
    shortcut = next(name for name in plain.sensitivities.of if name.startswith("layer2") and "shortcut" in name)
    assert float(plain.sensitivities.of[shortcut].min()) >= SATURATED
    generator = np.random.default_rng(0)
    orders = {group.name: generator.permutation(group.width) for group in plain.graph.groups}
    permute(moved, plain.graph, orders)
    before, after = plain.plan().masks, shown(moved, units="all").plan().masks
    assert not before["conv1"].all()
    for name, order in orders.items():
        assert before[name][order].tolist() == after[name].tolist(), name


def test_streams_stay_whole_unless_the_budget_is_out_of_reach() -> None:
    def widths(**options: object) -> tuple[dict[str, int], list[str]]:
        method = PFP(RESIDUAL.make(), RESIDUAL.inputs(), **options)
        method.collect(RESIDUAL.batches(2), F.cross_entropy)
        return method.plan().widths, [note for note in method.notes if "stream" in note or "make together" in note]

    inside, said = widths(budget="flops=0.5")
    assert inside["stem.0"] == 24
    assert "stay whole: stem.0" in said[0]
    every, unsaid = widths(budget="flops=0.5", units="all")
    assert every["stem.0"] < 24
    assert not unsaid
    deep, why = widths(budget="flops=0.02")
    assert deep["stem.0"] < 24
    assert "cannot be met with residual streams whole" in why[0]

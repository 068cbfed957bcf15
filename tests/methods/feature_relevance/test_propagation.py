"""Layer-wise relevance propagation: rules against hand-worked numbers, conservation, and every kind of network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.graph.modules import plain_kernels
from secateur.methods.feature_relevance.propagation import Rule, Tape, alpha_beta, stable
from secateur.models import create
from secateur.testing import NETWORKS

RULE = Rule()


def propagate(
    function: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
    relevance: torch.Tensor | None = None,
    rule: Rule = RULE,
) -> tuple[list[torch.Tensor], Tape]:
    """The relevance of every input if that of the output is as given (ones)."""
    tape, given = Tape(), [x.clone() for x in inputs]
    tape.start(given)
    numbers = [tape.number(x) for x in given]
    with plain_kernels(), tape:
        # clones make calls of their own, so that what the inputs receive is complete
        out = function(*(x * 1 for x in given))
    number = tape.number(out)
    assert number is not None
    sought = [call.outputs[0] for call in tape.calls[: len(inputs)]]
    assert numbers == list(range(len(inputs)))
    found = tape.walk(number, torch.ones_like(out) if relevance is None else relevance, sought, rule)
    return [found.get(n, torch.zeros_like(x)) for n, x in zip(sought, inputs, strict=True)], tape


def positive(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signed(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("x", "row", "wanted"),
    [((1.0, 2.0), (1.0, -1.0), (2.0, -1.0)), ((1.0, 2.0, 3.0), (1.0, 0.5, -1.0), (1.0, 1.0, -1.0))],
)
def test_linear_by_hand(x: tuple[float, ...], row: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    weight, bias = torch.tensor([row], dtype=torch.float64), torch.tensor([7.0], dtype=torch.float64)
    (found,), _ = propagate(lambda t: F.linear(t, weight, bias), torch.tensor([x], dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([wanted], dtype=torch.float64), atol=1e-8)  # the bias takes nothing


@pytest.mark.parametrize(
    "options",
    [
        {}, {"stride": 2}, {"stride": 2, "padding": 1}, {"padding": 1, "dilation": 2}, {"groups": 2, "padding": 1},
        {"stride": 3, "padding": 2},
    ],
)  # fmt: skip
def test_convolutions_keep_the_total(options: dict[str, Any]) -> None:
    weight = signed(6, 32 // options.get("groups", 1), 3, 3, seed=1)  # wide: both signs under every output
    x = positive(2, 32, 9, 9)
    y = F.conv2d(x, weight, **options)
    relevance = signed(*y.shape, seed=2)
    (found,), _ = propagate(lambda t: F.conv2d(t, weight, **options), x, relevance=relevance)
    assert found.sum() == pytest.approx(float(relevance.sum()), rel=1e-6)


def test_other_layers_with_weights_keep_the_total() -> None:
    weight, x = signed(32, 3, 3, 3, seed=1), positive(2, 32, 5, 5)
    (found,), _ = propagate(lambda t: F.conv_transpose2d(t, weight, stride=2, padding=1, output_padding=1), x)
    assert found.sum() == pytest.approx(2 * 3 * 10 * 10)
    tokens, matrix = positive(2, 3, 32), signed(5, 32, seed=1)
    (found,), _ = propagate(lambda t: F.linear(t, matrix), tokens)
    assert found.sum() == pytest.approx(2 * 3 * 5)
    line = signed(5, 32, 3, seed=1)
    (found,), _ = propagate(lambda t: F.conv1d(t, line, padding=1), positive(2, 32, 7))
    assert found.sum() == pytest.approx(2 * 5 * 7)


def test_without_negative_weights_the_total_doubles_and_stays_finite() -> None:
    """The negative part is nothing over nothing."""
    x, weight = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4, 3)
    (found,), _ = propagate(lambda t: F.linear(t, weight), x)
    assert torch.isfinite(found).all()
    assert found.sum() == pytest.approx(2 * 8, rel=1e-5)
    (found,), _ = propagate(lambda t: F.linear(t, 0 * weight), x)
    assert torch.isfinite(found).all()
    (found,), _ = propagate(lambda t: F.linear(t, weight), 0 * x)
    assert (found == 0).all()


def test_inputs_of_either_sign_meet_weights_of_either_sign() -> None:
    """Terms are sorted by their own sign, so that neither sum passes through zero."""
    x, weight, relevance = signed(8, 6), signed(5, 6, seed=1), signed(8, 5, seed=2)
    terms = x[:, None] * weight
    plus, minus = terms.clamp(min=0), terms.clamp(max=0)
    shares = 2 * plus / plus.sum(2, keepdim=True) - minus / minus.sum(2, keepdim=True)
    wanted = (shares * relevance[:, :, None]).sum(1)
    (found,), _ = propagate(lambda t: F.linear(t, weight), x, relevance=relevance)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.sum() == pytest.approx(float(relevance.sum()), rel=1e-6)


def test_other_rules() -> None:
    x, weight = positive(1, 3), torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    found = alpha_beta(x, weight, torch.ones(1, 1).double(), lambda a, w: a @ w.T, lambda s, w, a: s @ w, Rule(1.0))
    assert found[0, 2] == 0
    assert found.sum() == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------- other operators


def test_maxima_take_all_and_means_share() -> None:
    x = positive(2, 3, 8, 8)
    (found,), _ = propagate(lambda t: F.max_pool2d(t, 2), x)
    winners = F.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3) == x
    assert torch.equal(found, winners.double())
    for pool in (lambda t: F.avg_pool2d(t, 8), lambda t: F.adaptive_avg_pool2d(t, 1), lambda t: t.mean((2, 3))):
        (found,), _ = propagate(pool, x)
        assert torch.allclose(found.sum((2, 3)), torch.ones(2, 3).double(), atol=1e-5)  # the code's form has 64 there
        assert torch.allclose(found, x / x.sum((2, 3), keepdim=True), atol=1e-5)


def test_sums_divide_in_proportion() -> None:
    u, v = torch.tensor([[3.0, -1.0, 2.0]]).double(), torch.tensor([[1.0, 5.0, -8.0]]).double()
    (a, b), _ = propagate(lambda s, t: s + t, u, v)
    assert torch.allclose(a + b, torch.ones(1, 3).double(), atol=1e-5)
    assert torch.allclose(a, torch.tensor([[0.75, -0.25, -1 / 3]]).double(), atol=1e-5)
    (a, b), _ = propagate(lambda s, t: s + t, u, -u)  # what cancels entirely
    assert torch.isfinite(a).all()
    assert (stable(torch.tensor([0.0, -1e-9])) == torch.tensor([1e-6, -1e-6 - 1e-9])).all()


def test_what_passes_and_what_is_routed() -> None:
    x, norm = signed(2, 4, 3, 3), nn.BatchNorm2d(4).double().eval()
    for function in (norm, torch.relu, F.silu, F.dropout, lambda t: 3 * t + 2, nn.Identity(), F.hardswish):
        (found,), tape = propagate(function, x)
        assert torch.equal(found, torch.ones_like(x))
        assert not tape.unknown
    relevance = signed(2, 6, 3, 3, seed=3)
    (a, b), _ = propagate(lambda s, t: torch.cat([s, t[:, 2:]], 1), x, x, relevance=relevance)
    assert torch.equal(a, relevance[:, :4])
    assert torch.equal(b[:, 2:], relevance[:, 4:])
    assert (b[:, :2] == 0).all()
    (found,), _ = propagate(lambda t: sum(t.chunk(2, 1)).flatten(1), positive(2, 4, 3, 3))  # type: ignore[union-attr]
    assert found.sum() == pytest.approx(2 * 2 * 9, rel=1e-4)


def test_several_readers_add_up() -> None:
    x = positive(2, 3)
    (found,), _ = propagate(lambda t: torch.cat([t, t, torch.relu(t)], 1), x)
    assert torch.equal(found, torch.full_like(x, 3.0))


def test_gates_take_nothing() -> None:
    x, gate = positive(2, 4, 3, 3), positive(2, 4, 1, 1, seed=1)
    (a, b), _ = propagate(lambda s, t: s * t, x, gate)
    assert torch.equal(a, torch.ones_like(x))
    assert (b == 0).all()
    (found,), _ = propagate(lambda t: t * torch.sigmoid(t), x)
    assert torch.equal(found, torch.ones_like(x))


def test_writes_in_place_do_not_spoil_what_is_needed() -> None:
    weight = signed(5, 4, 3, 3, seed=1)

    def network(inplace: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(t: torch.Tensor) -> torch.Tensor:
            y = F.conv2d(t, weight[:4], padding=1)
            y = F.relu(y, inplace=inplace)
            y = y.add_(t) if inplace else y + t
            y = F.relu(y, inplace=inplace)
            return F.conv2d(y, weight, padding=1)

        return run

    x = positive(2, 4, 5, 5)
    (wanted,), _ = propagate(network(False), x)
    (found,), tape = propagate(network(True), x)
    assert torch.allclose(found, wanted)
    assert not tape.unknown


def test_what_has_no_rule_is_named() -> None:
    x = positive(3, 4)
    (found,), tape = propagate(lambda t: torch.cumsum(t, 1), x)
    assert list(tape.unknown) == ["cumsum"]
    assert found.sum() == pytest.approx(12, rel=1e-4)

    def through_a_view(t: torch.Tensor) -> torch.Tensor:
        t[:, :2].mul_(2.0)
        return t

    _, tape = propagate(through_a_view, x)
    assert "a write through a view" in tape.unknown


# ------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["resnet8", "densenet40", "mobilenet_v2", "preresnet20", "vgg16_bn"])
def test_networks_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    model = create(name).eval()
    x = torch.rand(2, 3, 32, 32)
    (found,), tape = propagate(model, x, relevance=F.one_hot(torch.tensor([1, 4]), 10).float())
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0
    assert not tape.unknown


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_toy_networks(network: Any) -> None:
    model = network.make().eval()
    (found,), tape = propagate(model, network.inputs().abs(), relevance=torch.ones(2, 5))
    assert torch.isfinite(found).all()
    assert not tape.unknown


def test_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    (found,), tape = propagate(lambda t: layer(t).mean(1), torch.rand(2, 5, 8))
    assert torch.isfinite(found).all()
    assert not tape.unknown


def test_a_chain_without_biases_keeps_the_total_and_does_not_see_scales() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.Linear(8 * 4, 5, bias=False)]

    def run(t: torch.Tensor) -> torch.Tensor:
        return layers[2](torch.relu(layers[1](torch.relu(layers[0](t)))).flatten(1))

    for layer in layers:
        layer.double()
    x = positive(2, 3, 8, 8)
    start = F.one_hot(torch.tensor([0, 3]), 5).double()
    (found,), _ = propagate(run, x, relevance=start)
    assert found.sum() == pytest.approx(2.0, rel=1e-4)
    with torch.no_grad():
        layers[1].weight *= 37.0
    (scaled,), _ = propagate(run, x, relevance=start)
    assert torch.allclose(scaled, found, atol=1e-6)
    (more,), _ = propagate(run, x, relevance=5 * start)
    assert torch.allclose(more, 5 * scaled)

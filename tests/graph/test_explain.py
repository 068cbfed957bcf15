"""What `Graph.explain` says is true and short."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.errors import ConfigError
from secateur.graph.explain import shorten, shorten_reasons
from secateur.models import create


def graph_of(name: str) -> secateur.Graph:
    return secateur.trace(create(name), torch.randn(1, 3, 32, 32))


def test_a_layer_with_a_width_on_both_sides() -> None:
    said = graph_of("resnet20").explain("layer2.0.conv2")
    assert said.startswith("layer2.0.conv2: Conv2d(32, 32")
    assert "input: group layer2.0.conv1, 32 channels" in said
    assert "output: group " in said
    assert "these lose the same channels together" in said  # the residual stream
    assert "removal is exact" in said


def test_costs_are_those_of_the_network_without_the_channel() -> None:
    graph = graph_of("lenet5")
    said = graph.explain("conv2")
    whole = graph.cost()
    mask = torch.ones(16, dtype=torch.bool).numpy()
    mask[0] = False
    left = graph.cost(secateur.Plan({"conv2": mask}))
    assert whole.macs - left.macs == 18_000
    assert "one channel costs 18K MACs" in said
    assert whole.params - left.params == 3_151
    assert "3.151K parameters" in said
    with FlopCounterMode(display=False) as counter:
        nn.Conv2d(6, 16, 5)(torch.zeros(1, 6, 14, 14))
    assert counter.get_total_flops() // 2 == 240_000
    assert "costs 240K MACs" in said


def test_the_classifier_says_why_it_stays() -> None:
    said = graph_of("resnet20").explain("fc")
    assert "output: 10 channels cannot be pruned: reaches the model's output" in said
    assert "group layer3.0.conv2, 32 channels" in said


def test_the_first_layer_says_why_its_input_stays() -> None:
    assert "input: 3 channels cannot be pruned: " in graph_of("lenet5").explain("conv1")


def test_depthwise_follows_its_input() -> None:
    said = graph_of("mobilenet_v2").explain(_depthwise(create("mobilenet_v2")))
    assert "depthwise: its channels follow its input" in said
    assert "  input" not in said


def _depthwise(model: nn.Module) -> str:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1][2]


def test_one_channel_is_not_depthwise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3))
    said = secateur.trace(model, torch.randn(1, 3, 12, 12)).explain("1")
    assert "depthwise" not in said
    assert "output: group 1, 8 channels" in said


def test_a_norm_follows() -> None:
    said = graph_of("resnet20").explain("layer2.0.bn1")
    assert "follows its input" in said
    assert "output: group layer2.0.conv1" in said


def test_a_block_a_parameter_and_a_layer_without_parameters() -> None:
    graph = graph_of("resnet20")
    assert "groups made inside: layer2.0.conv1" in graph.explain("layer2.0")
    assert "dimension 1 (input side): group layer2.0.conv1" in graph.explain("layer2.0.conv2.weight")
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    said = secateur.trace(plain, torch.randn(1, 3, 12, 12)).explain("1")
    assert "no parameters" in said
    assert "output: group 0" in said


def test_a_shared_module_and_a_tied_weight_by_their_other_names() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(8, 8, 3, padding=1)
            self.again = self.first
            self.stem, self.tied, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.tied.weight = self.stem.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.end(self.again(self.first(self.stem(x) + self.tied(x))))
            return out

    graph = secateur.trace(Shared(), torch.randn(1, 3, 8, 8))
    assert "costs 73.73K MACs" in graph.explain("again")  # both of its calls
    assert graph.explain("again").split("\n")[1:] == graph.explain("first").split("\n")[1:]
    assert "the same tensor as stem.weight" in graph.explain("tied.weight")


def test_an_unused_layer() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 8), nn.Linear(8, 8)
            self.end = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.end(self.used(x))
            return out

    said = secateur.trace(Idle(), torch.randn(2, 4)).explain("idle")
    assert "8 channels cannot be pruned: its module never ran" in said


def test_inexact_groups_say_why() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    said = secateur.trace(model, torch.randn(2, 4)).explain("0")
    assert "removal is inexact" in said
    assert "a layer norm over channels" in said


def test_attention_is_told_in_heads() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    graph = secateur.trace(nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 2)), torch.randn(2, 5, 8))
    said = graph.explain("1.self_attn")
    assert "4 channels of 12 indices" in said
    assert "input: group 0, 16 channels" in said
    assert "1.self_attn.out_proj [weight x4]" in said


def test_a_dense_network_stays_short() -> None:
    graph = graph_of("densenet40")
    for name in ("fc", graph.groups[0].name, graph.groups[10].name):
        said = graph.explain(name)
        assert len(said.splitlines()) < 40
        assert max(map(len, said.splitlines())) < 200


@pytest.mark.parametrize("name", ["tiny", "resnet20", "vgg16_bn", "mobilenet_v1", "preresnet20", "densenet40"])
def test_everything_can_be_explained(name: str) -> None:
    graph = graph_of(name)
    names = [n for n, _ in graph.model.named_modules() if n] + list(graph.tensors()) + [g.name for g in graph.groups]
    for subject in names[:: max(len(names) // 60, 1)]:
        said = graph.explain(subject)
        assert said.startswith((f"{subject}: ", f"group {subject}: "))
        assert not re.search(r"\bnan\b|\binf\b", said)


def test_every_group_is_found_from_each_of_its_members() -> None:
    graph = graph_of("tiny")
    for group in graph.groups:
        for member in group.members:
            assert f"group {group.name}" in graph.explain(member.name)


@pytest.mark.parametrize(
    ("name", "near"), [("layer2.0.conf2", "layer2.0.conv2"), ("FC", "names look like"), ("", "names")]
)
def test_unknown_names_get_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        graph_of("resnet20").explain(name)


def test_lists_are_shortened_by_pattern() -> None:
    names = [f"a.{k}.conv{j}" for k in range(4) for j in (1, 2)]
    assert shorten(names) == ["a.{0..3}.conv{1..2} (8)"]
    assert shorten(names[:3]) == names[:3]
    reasons = [f"a layer norm over channels (native_layer_norm in b.{k})" for k in range(3)]
    assert shorten_reasons(reasons) == [f"{reasons[0]}, and 2 more such places"]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_grouped_convolutions() -> None:
    import torchvision

    graph = secateur.trace(torchvision.models.resnext50_32x4d(), torch.randn(1, 3, 64, 64))
    said = graph.explain("layer1.0.conv2")
    assert "output: group layer1.0.conv2, 4 channels of 32 indices" in said
    assert "depthwise" not in said


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 5, 1), nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((self.left(x).flatten(2) @ self.right(x).flatten(2).mT).flatten(1))


def test_of_two_widths_that_multiply_one_stays_for_the_other() -> None:
    graph = secateur.trace(Bilinear(), torch.randn(2, 3, 4, 4))
    reasons = {frozen.name: frozen.reason for frozen in graph.frozen}
    assert reasons["right"] == "two sizes multiply, and the other one is pruned (view in the model)"
    assert reasons["right"] in graph.explain("right")


class Ghost(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x.relu()], 1)[:, :9]


def test_a_channel_that_has_no_like_is_not_called_tied() -> None:
    graph = secateur.trace(nn.Sequential(nn.Conv2d(3, 5, 1), Ghost(), nn.Conv2d(9, 4, 1)), torch.randn(2, 3, 4, 4))
    assert [(group.name, group.width) for group in graph.groups] == [("0", 4)]
    assert "one channel is used as no other is" in {frozen.reason for frozen in graph.frozen}

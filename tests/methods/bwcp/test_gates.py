"""Gates: the worked numbers of the specification, who owns a mask, and how masks meet at shortcuts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import RunError
from secateur.graph.norms import places, sources
from secateur.methods.bwcp.concrete import gate_logit, margin, soft_gate
from secateur.methods.bwcp.gates import GatedNorm, Gates, WhitenedNorm, extract, insert
from secateur.models import create

IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def gated(model: nn.Module, size: int = 16, floor: int = 1) -> Gates:
    graph = secateur.trace(model, IMAGE)
    known = sources(graph)
    found = places(graph, known)
    modules = dict(model.named_modules())
    gates = Gates(
        graph.groups,
        found,
        {p.norm: modules[p.norm].num_features for p in found},
        floors={g.name: floor for g in graph.groups},
        delta=0.05,
        temperature=0.5,
        sharpening="none",
        seed=0,
    )
    insert(model, gates, known.of, size=size, newton_steps=5, momentum=0.1)
    return gates


# -------------------------------------------------------------------------------------------------- single gates


def test_worked_gate_with_its_gradients() -> None:
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    uniform = torch.sigmoid(torch.tensor(0.37, dtype=torch.float64))
    z = margin(scale, shift, 0.05)
    assert torch.special.ndtr(z).item() == pytest.approx(0.62267, abs=1e-5)
    gate = soft_gate(gate_logit(z, "none", 1.0), uniform, 0.5)
    assert gate.item() == pytest.approx(0.85091, abs=1e-5)
    by_scale, by_shift = torch.autograd.grad(gate, (scale, shift))
    assert by_scale.item() == pytest.approx(-0.16026, abs=1e-5)
    assert by_shift.item() == pytest.approx(0.51285, abs=1e-5)


@pytest.mark.parametrize(("temperature", "mean"), [(0.5, 0.231), (2.0, 0.355), (0.1, None)])
def test_a_gate_is_open_as_often_as_the_probability_says(temperature: float, mean: float | None) -> None:
    z = torch.special.ndtri(torch.tensor(0.2, dtype=torch.float64))
    uniform = torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gate = soft_gate(gate_logit(z, "none", 1.0), uniform, temperature)
    assert (gate > 0.5).double().mean().item() == pytest.approx(0.2, abs=3e-3)
    if mean is not None:
        assert gate.mean().item() == pytest.approx(mean, abs=3e-3)


@pytest.mark.parametrize("sharpening", ["probability", "logit"])
def test_only_sharpening_brings_soft_and_hard_together(sharpening: str) -> None:
    """A lower temperature makes single draws harder but leaves their frequency; sharpening moves the frequency."""
    z = torch.special.ndtri(torch.tensor([0.3, 0.7], dtype=torch.float64))
    uniform = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cold = (soft_gate(gate_logit(z, "none", 1.0), uniform, 0.01) > 0.5).double().mean(0)
    assert cold.tolist() == pytest.approx([0.3, 0.7], abs=0.01)
    sharp = (soft_gate(gate_logit(z, sharpening, 40.0), uniform, 0.5) > 0.5).double().mean(0)  # type: ignore[arg-type]
    assert sharp[0] < 0.001
    assert sharp[1] > 0.999


@pytest.mark.parametrize("sharpening", ["none", "probability", "logit"])
@pytest.mark.parametrize("far", [-1e5, -1e3, 1e3, 1e5])
def test_channels_far_from_the_threshold_give_no_nan(sharpening: str, far: float) -> None:
    scale = torch.tensor([1.0, 1e-12, 0.0], requires_grad=True)
    shift = torch.tensor([far, far, far], requires_grad=True)
    gate = soft_gate(gate_logit(margin(scale, shift, 0.05), sharpening, 40.0), torch.tensor([0.0, 0.5, 1.0]), 0.5)  # type: ignore[arg-type]
    gate.sum().backward()
    for tensor in (gate, scale.grad, shift.grad):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_hard_rule_is_a_threshold_on_the_shift(temperature: float) -> None:
    """P >= 1/2 wherever W beta >= delta, whatever the scale (not 0) and the temperature."""
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.randn(10_000, generator=generator), torch.randn(10_000, generator=generator)
    shift[:10] = 0.05
    z = margin(scale, shift, 0.05)
    assert torch.equal(z >= 0, shift >= torch.tensor(0.05))
    half = soft_gate(gate_logit(z, "none", 1.0), torch.tensor(0.5), temperature)
    assert torch.equal(half[10:] >= 0.5, (shift >= 0.05)[10:])


# ---------------------------------------------------------------------------------------------------- ownership


def owners(model: nn.Module) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    graph = secateur.trace(model, IMAGE)
    found = places(graph, sources(graph))
    own: dict[str, list[str]] = {}
    inherit: dict[str, list[str]] = {}
    for place in found:
        (own if place.owner else inherit).setdefault(place.group, []).append(place.norm)
    return own, inherit


def test_projection_shortcut_has_two_owners_and_identity_inherits() -> None:
    own, inherit = owners(create("resnet14_b"))
    assert own["layer2.0.conv2"] == ["layer2.0.bn2", "layer2.0.shortcut.1"]
    assert inherit["layer2.0.conv2"] == ["layer2.1.bn2"]
    assert own["conv1"] == ["bn1"]
    assert inherit["conv1"] == ["layer1.0.bn2", "layer1.1.bn2"]


def test_depthwise_convolutions_inherit() -> None:
    own, inherit = owners(create("mobilenet_v2"))
    assert own["features.4.conv.0"] == ["features.4.conv.1"]
    assert inherit["features.4.conv.0"] == ["features.4.conv.4"]


def test_dense_segments_keep_their_own_masks() -> None:
    own, inherit = owners(create("densenet40"))
    assert own["features.1.conv"] == ["features.2.bn"]
    assert "features.3.bn" in inherit["features.1.conv"]
    assert own["features.2.conv"] == ["features.3.bn"]


def test_pre_activation_streams_are_gated_where_they_are_read() -> None:
    own, inherit = owners(create("preresnet20"))
    assert own["layer1.0.conv3"] == ["layer1.1.bn1"]
    assert "layer2.0.bn1" in inherit["layer1.0.conv3"]


def test_whitening_needs_a_layer_that_feeds_the_norm_alone() -> None:
    whitened = {
        name: [n for n, m in model.named_modules() if isinstance(m, WhitenedNorm)]
        for name in ("densenet40", "preresnet20", "mobilenet_v2")
        for model in [create(name)]
        if gated(model)
    }
    assert whitened["densenet40"] == []  # all of them stand behind concatenations
    assert "layer1.1.bn1" not in whitened["preresnet20"]  # on the trunk
    assert "layer1.0.bn2" in whitened["preresnet20"]
    assert "features.4.conv.1" in whitened["mobilenet_v2"]
    assert "features.4.conv.4" not in whitened["mobilenet_v2"]  # a depthwise kernel cannot mix channels


class Reused(nn.Module):
    """A convolution whose output is read twice, and a norm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.twice = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        x = F.relu(self.bn1(x)) + x
        x = F.relu(self.twice(self.conv2(x)))
        x = F.relu(self.twice(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def test_layers_used_twice_are_left_alone() -> None:
    graph = secateur.trace(Reused(), IMAGE)
    assert sources(graph).of == {"bn1": None}


# -------------------------------------------------------------------------------------------------- in a network


def test_one_draw_for_each_group_in_each_pass() -> None:
    model = create("resnet8_b").train()
    gates = gated(model)
    gates.open = True
    model(IMAGE)
    first = {name: mask.detach().clone() for name, mask in gates._masks.items()}
    assert gates.draws == 1
    assert set(first) == set(gates.groups)
    model(IMAGE)
    assert gates.draws == 2
    assert any(not torch.equal(first[name], gates._masks[name]) for name in first)


def test_shortcuts_feel_the_mask_of_their_stage() -> None:
    model = create("resnet8_b").train()
    gates = gated(model)
    gates.open = True
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in ("layer2.0.bn2", "layer2.0.shortcut.1", "layer1.0.bn2", "bn1")
    ]
    masks = {g: torch.ones(w) for g, w in gates.groups.items()}
    masks["layer2.0.conv2"][3] = 0.0
    masks["conv1"][5] = 0.0
    with gates.fixed({g: m.bool().numpy() for g, m in masks.items()}):
        model(IMAGE)
    for hook in hooks:
        hook.remove()
    for name, channel in (("layer2.0.bn2", 3), ("layer2.0.shortcut.1", 3), ("layer1.0.bn2", 5), ("bn1", 5)):
        assert (seen[name][:, channel] == 0).all()
        assert (seen[name][:, channel + 1] != 0).any()


def test_the_mask_at_a_projection_is_a_product() -> None:
    model = create("resnet8_b").train()
    gates = gated(model, floor=0)
    gates.open = True
    torch.manual_seed(0)
    for layer in gates.layers.values():
        nn.init.normal_(layer.bias)
    model(IMAGE)
    group = "layer2.0.conv2"
    uniform = gates._draw(group, torch.device("cpu"))
    # both factors from running matrices or from this batch: bound the product by either of them
    shortcut = model.get_submodule("layer2.0.shortcut.1")
    assert isinstance(shortcut, WhitenedNorm)
    assert gates.owners[group] == ["layer2.0.bn2", "layer2.0.shortcut.1"]
    assert (gates._masks[group] <= 1).all()
    with torch.no_grad():
        model.eval()
        factors = [
            soft_gate(gate_logit(gates._margin(group, owner, None), "none", 1.0), uniform, 0.5)
            for owner in gates.owners[group]
        ]
        with gates.soft():
            gates.draws = 0  # the draw of the pass above
            model(IMAGE)
            assert torch.allclose(gates._masks[group], factors[0] * factors[1], atol=1e-6)


def test_hard_masks_of_two_owners_are_their_conjunction() -> None:
    model = create("resnet8_b").eval()
    gates = gated(model, floor=0)
    torch.manual_seed(1)
    for layer in gates.layers.values():
        nn.init.normal_(layer.bias)
    shifts = [gates.layers[owner].equivalent()[1] for owner in gates.owners["layer2.0.conv2"]]
    wanted = ((shifts[0] >= 0.05) & (shifts[1] >= 0.05)).numpy()
    assert np.array_equal(gates.hard_masks()["layer2.0.conv2"], wanted)
    assert 0 < wanted.sum() < len(wanted)


def test_a_floor_keeps_the_best_channels_open() -> None:
    model = create("resnet8_b").train()
    gates = gated(model, floor=4)
    gates.open = True
    for layer in gates.layers.values():
        nn.init.constant_(layer.bias, -3.0)
    for mask in gates.hard_masks().values():
        assert mask.sum() == 4
    model(IMAGE)
    for mask in gates._masks.values():
        assert (mask == 1).sum() >= 4


def test_a_training_that_diverged_is_told_as_one() -> None:
    gates = gated(create("tiny"))
    next(iter(gates.layers.values())).weight.data[0] = float("nan")
    with pytest.raises(RunError, match="the training has diverged: lower the learning rate"):
        gates.margins()


def test_closed_gates_change_nothing_but_whitening() -> None:
    torch.manual_seed(0)
    model = create("resnet8_b").train()
    wanted = model(IMAGE)
    twin = create("resnet8_b").train()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if "running" not in k}, strict=False)
    gated(twin, size=1)
    assert all(type(m) is GatedNorm for m in twin.modules() if isinstance(m, nn.BatchNorm2d | GatedNorm))
    assert torch.allclose(twin(IMAGE), wanted, atol=1e-5)


def test_statistics_are_those_of_a_batch_norm() -> None:
    torch.manual_seed(0)
    model, twin = create("tiny").train(), create("tiny").train()
    twin.load_state_dict(model.state_dict())
    gated(twin)
    model(IMAGE)
    twin(IMAGE)
    # the first norm sees the same input in both
    for name in ("running_mean", "running_var"):
        plain, whitened = (getattr(m.get_submodule("stem.1"), name) for m in (model, twin))
        assert torch.allclose(plain, whitened, rtol=1e-4, atol=1e-5)
    assert int(twin.get_submodule("stem.1").num_batches_tracked) == 1


def test_the_running_average_is_of_the_root_and_not_of_the_correlation() -> None:
    torch.manual_seed(0)
    model = create("tiny").train()
    gated(model)
    norm = model.get_submodule("stem.1")
    assert isinstance(norm, WhitenedNorm)
    for _ in range(30):
        model(torch.randn(4, 3, 32, 32) * torch.rand(1) + torch.randn(4, 3, 1, 1) * 3)
    from secateur.methods.bwcp.whitening import inverse_root, normalised

    of_average = inverse_root(normalised(norm.weight.view(-1, norm.size), norm.correlation), 5)
    assert not torch.allclose(of_average, norm.whitening, atol=1e-3)


def test_roots_stay_in_single_precision_under_autocast() -> None:
    torch.manual_seed(0)
    model = create("resnet8_b").train()
    gated(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(IMAGE)
    norm = model.get_submodule("bn1")
    assert isinstance(norm, WhitenedNorm)
    assert norm.whitening.dtype == torch.float32
    assert torch.isfinite(out).all()
    out.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_removing_gives_back_what_was_there() -> None:
    model = create("resnet8_b")
    names = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    gated(model)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} != names
    extract(model)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == names
    assert all(type(m) is nn.BatchNorm2d for n, m in model.named_modules() if "bn" in n)


# ------------------------------------------------------------------------------------------------------- folding


def trained(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters as if from training."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, GatedNorm):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    model.train()
    for _ in range(5):
        model(torch.randn(8, 3, 32, 32) * 2 + 1)
    return model.eval().double()


@pytest.mark.parametrize("bias", [False, True])
def test_folding_is_exact_on_one_layer(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=bias), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
    gated(model)
    trained(model)
    x = IMAGE.double()
    wanted = model(x)
    norm = model[1]
    assert isinstance(norm, WhitenedNorm)
    # the formulas of the paper, with the norm folded away altogether
    matrix = torch.block_diag(*norm.whitening) @ torch.diag(norm.weight / (norm.running_var + norm.eps).sqrt())
    kernel = torch.einsum("oc,cihw->oihw", matrix, model[0].weight)
    shift = torch.block_diag(*norm.whitening) @ norm.bias - matrix @ norm.running_mean
    if bias:
        shift = shift + matrix @ model[0].bias
    assert torch.allclose(F.conv2d(x, kernel, shift), norm(model[0](x)), atol=1e-12)
    extract(model)
    assert torch.allclose(model(x), wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet8_b", "resnet8", "mobilenet_v2", "preresnet20", "vgg16_bn"])
def test_folding_is_exact_on_whole_networks(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, width=0.5)
    gated(model)
    trained(model)
    x = torch.randn(2, 3, 32, 32).double()
    wanted = model(x)
    extract(model)
    assert torch.allclose(model(x), wanted, rtol=1e-9, atol=1e-9 * float(wanted.detach().abs().max()))


def test_training_can_go_on_behind_a_fold() -> None:
    """The batch norm left behind normalises by nearly the statistics it says it has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))
    gated(model)
    for module in model.modules():
        if isinstance(module, GatedNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    model.train()
    data = torch.randn(64, 3, 16, 16)
    for _ in range(200):
        model(data)
    extract(model)
    model.eval()
    wanted = model(data)
    model.train()
    assert torch.allclose(model(data), wanted, atol=0.05 * float(wanted.detach().std()))


def test_cutting_before_folding_computes_another_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
    gates = gated(model)
    trained(model)
    x = IMAGE.double()
    mask = np.arange(32) % 3 != 0
    with gates.fixed(dict.fromkeys(gates.groups, mask)):
        wanted = model(x)
    norm, keep = model[1], torch.from_numpy(np.flatnonzero(mask))
    assert isinstance(norm, WhitenedNorm)
    raw = torch.block_diag(*norm.whitening)[keep][:, keep]  # the filters that stay, whitened among themselves
    y = F.conv2d(x, model[0].weight[keep], model[0].bias[keep])
    y = (y - norm.running_mean[keep][:, None, None]) / (norm.running_var[keep] + norm.eps).sqrt()[:, None, None]
    y = y * norm.weight[keep][:, None, None] + norm.bias[keep][:, None, None]
    wrong = F.conv2d(F.relu(torch.einsum("oc,nchw->nohw", raw, y)), model[3].weight[:, keep], model[3].bias)
    extract(model)
    right = F.conv2d(F.relu(model[1](model[0](x)))[:, keep], model[3].weight[:, keep], model[3].bias)
    assert torch.allclose(right, wanted, atol=1e-10)
    assert not torch.allclose(wrong, wanted, atol=1e-2 * float(wanted.detach().abs().max()))


def test_an_unaffected_logit_of_one_half() -> None:
    assert gate_logit(torch.zeros(1), "probability", 40.0).item() == 0.0
    assert math.isclose(gate_logit(torch.zeros(1), "logit", 10.0).item(), 0.0, abs_tol=1e-6)

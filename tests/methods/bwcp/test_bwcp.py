"""BWCP in training: its penalty, its controller, the budget it ends on, and what its specification calls traps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import BudgetError, ConfigError, ModelError
from secateur.methods.bwcp import BWCP
from secateur.methods.bwcp.gates import GatedNorm, WhitenedNorm
from secateur.models import create

IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pruner(name: str = "tiny", budget: str = "flops=0.6", steps: int = 40, **settings: Any) -> BWCP:
    torch.manual_seed(0)
    return BWCP(create(name), IMAGE, budget=budget, steps=steps, **settings)


def batches(count: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose mean colour tells their class."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(0, 10, (16,), generator=generator)
        images = torch.randn(16, 3, 32, 32, generator=generator) * 0.5
        images[:, 0] += labels[:, None, None] / 5.0 - 1.0
        images[:, 1] += (labels % 3)[:, None, None].float() - 1.0
        yield images, labels


def train(method: BWCP, steps: int, lr: float = 0.05) -> list[float]:
    method.train()
    optimiser = torch.optim.SGD(method.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for images, labels in batches(steps):
        loss = F.cross_entropy(method(images), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        (loss + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    return losses


# ------------------------------------------------------------------------------------------------------ the result


@pytest.mark.parametrize("name", ["resnet8_b", "resnet8", "preresnet20", "vgg16_bn", "densenet40", "tiny"])
def test_every_structure_is_trained_cut_and_equal_to_its_masked_self(name: str) -> None:
    torch.manual_seed(0)
    model = create(name, width=0.5 if name in ("vgg16_bn", "densenet40") else 1.0)
    method = BWCP(model, IMAGE, budget="flops=0.5", steps=4, warmup=0.25)
    train(method, 4)
    small = method.finish()
    assert method.result is not None
    assert method.result.verification is not None
    assert method.result.verification.exact
    assert 0.49 <= method.result.reached("flops") <= 0.5
    assert method.agreement <= 1e-5
    assert type(small) is type(model)
    assert not any(isinstance(m, GatedNorm) for m in small.modules())
    assert small(IMAGE).shape == (4, 10)


def test_depthwise_networks() -> None:
    torch.manual_seed(0)
    model = create("mobilenet_v2", width=0.5).double()  # so deep and narrow that single precision shows
    method = BWCP(model, IMAGE.double(), budget="flops=0.6", steps=3)
    method.train()
    (method(torch.randn(8, 3, 32, 32).double()).sum() + method.loss()).backward()
    for _ in range(3):
        method.after_step()
    method.finish()
    assert method.agreement <= 1e-9


@pytest.mark.parametrize("budget", ["flops=0.7", "params=0.5", "flops=0.8,params=0.6", "peak=0.8"])
def test_any_budget(budget: str) -> None:
    method = pruner("resnet8_b", budget, steps=5)
    train(method, 5)
    method.finish()
    assert method.result is not None
    for key, bound in (part.split("=") for part in budget.split(",")):
        assert method.result.reached(key) <= float(bound)


def test_constraints_hold() -> None:
    torch.manual_seed(0)
    constraints = secateur.Constraints(ignore=("layer1.*",), min_channels=4, align=4)
    method = BWCP(create("resnet8_b"), IMAGE, budget="flops=0.6", steps=4, constraints=constraints)
    train(method, 4)
    method.finish()
    assert method.result is not None
    widths = method.result.plan.widths
    assert all(width % 4 == 0 and width >= 4 for width in widths.values())
    assert widths["layer1.0.conv1"] == 16


def test_finishing_leaves_the_method_as_it_was() -> None:
    method = pruner(steps=10)
    train(method, 5)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    first = method.finish()
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())
    again = method.finish()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_fine_tuning_goes_on_from_the_folded_network() -> None:
    method = pruner(steps=20)
    train(method, 20)
    small = method.finish().train()
    optimiser = torch.optim.SGD(small.parameters(), 0.01)
    for images, labels in batches(3, seed=1):
        loss = F.cross_entropy(small(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss)


def test_same_seed_same_plan_and_another_seed_another() -> None:
    plans = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        method = BWCP(create("tiny"), IMAGE, budget="flops=0.6", steps=20, seed=seed)
        train(method, 20)
        method.finish()
        assert method.result is not None
        plans.append((method.result.plan, method.model.state_dict()))
    assert plans[0][0] == plans[1][0]
    assert all(torch.equal(a, b) for a, b in zip(plans[0][1].values(), plans[1][1].values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(plans[0][1].values(), plans[2][1].values(), strict=True))


def test_state_goes_on_where_it_was() -> None:
    def run(stop: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        torch.manual_seed(0)
        method = BWCP(create("tiny"), IMAGE, budget="flops=0.6", steps=12)
        optimiser = torch.optim.SGD(method.parameters(), 0.05)
        for number, (images, labels) in enumerate(batches(12)):
            if stop and number == 7:
                tensors, state = {k: v.clone() for k, v in method.state_dict().items()}, method.state()
                torch.manual_seed(9)
                method = BWCP(create("tiny"), IMAGE, budget="flops=0.6", steps=12)
                method.load_state_dict(tensors)
                method.load_state(state)
                optimiser = torch.optim.SGD(method.parameters(), 0.05)
            method.train()
            optimiser.zero_grad()
            (F.cross_entropy(method(images), labels) + method.loss()).backward()
            optimiser.step()
            method.after_step()
        return method.state_dict(), method.state()

    whole, resumed = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].values(), resumed[0].values(), strict=True))
    assert whole[1] == resumed[1]


# ------------------------------------------------------------------------------------------------------ the penalty


def test_penalty_is_on_the_size_of_gamma_and_on_beta_with_its_sign() -> None:
    method = pruner(controller=False, lambda1=0.5, lambda2=0.25, warmup=0.0)
    for layer in method.gates.layers.values():
        nn.init.constant_(layer.weight, -2.0)
        nn.init.constant_(layer.bias, -3.0)
    channels = sum(layer.num_features for layer in method.gates.layers.values())
    assert method.loss().item() == pytest.approx(channels * (0.5 * 2.0 - 0.25 * 3.0))


def test_penalty_acts_on_raw_parameters_and_not_on_whitened_ones() -> None:
    method = pruner(controller=False, warmup=0.0)
    train(method, 3)
    gradients = torch.autograd.grad(method.loss(), [layer.bias for layer in method.gates.layers.values()])
    assert all(torch.allclose(g, torch.full_like(g, 8e-5)) for g in gradients)


def test_with_fixed_strengths_nothing_is_steered() -> None:
    method = pruner(controller=False, steps=20)
    train(method, 20)
    assert method.gates.level == 0.0
    assert method.metrics()["strength"] == 8e-5


def test_fixed_strengths_leave_a_network_below_the_budget_alone() -> None:
    method = pruner(budget="flops=0.9", controller=False, steps=4, warmup=0.0, floor=0.3)
    for layer in method.gates.layers.values():
        nn.init.constant_(layer.bias, -3.0)
    method.finish()
    assert method.result is not None
    assert method.result.reached("flops") < 0.5  # the floors only


def test_the_controller_works_in_both_directions() -> None:
    method = pruner(steps=100)
    method.step = 60
    method._follow()
    for layer in method.gates.layers.values():
        nn.init.constant_(layer.bias, 1.0)
    for _ in range(5):
        method.steering.look(method.progress, 0.01)
    assert method.steering.strength > 0
    for layer in method.gates.layers.values():
        nn.init.constant_(layer.bias, -1.0)
    for _ in range(200):
        method.steering.look(method.progress, 0.01)
    assert method.steering.strength < 0


def test_groups_at_their_floor_are_not_pressed_further() -> None:
    method = pruner(steps=100, warmup=0.0, floor=0.25)
    for layer in method.gates.layers.values():
        nn.init.constant_(layer.bias, -1.0)
    method.steering.strength = 1e-3
    method._press()
    assert method._pressure.sum() == 0
    method.steering.strength = -1e-3
    method._press()
    assert method._pressure.sum() > 0


def test_the_cost_keeps_to_its_ramp() -> None:
    method = pruner("resnet8_b", "flops=0.5", steps=60, warmup=0.2, ramp=0.7, settle=1.0)
    for layer in method.gates.layers.values():
        nn.init.normal_(layer.bias)
    for step in range(60):
        method.after_step()
        if method.gates.open:
            left = method.metrics()["flops"]
            assert left <= method.steering.ramp.wanted(method.progress, method.aim.goal) + 1e-9, step
            assert left >= method.steering.ramp.wanted(method.progress, method.aim.goal) - 0.06, step
    assert method.steering.ramp.wanted(method.progress, method.aim.goal) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------------ traps


def test_evaluation_during_warm_up_masks_nothing() -> None:
    method = pruner(steps=100, start=[1.0, 0.0])
    method.eval()
    method(IMAGE)
    for layer in method.gates.layers.values():
        assert method.gates.mask(layer, None) is None
    # by the hard rule everything but the floors would be gone
    assert all((~mask).any() for mask in method.gates.hard_masks().values())


def test_a_whole_training_with_dying_channels_gives_no_nan() -> None:
    method = pruner("resnet8_b", "flops=0.3", steps=40, warmup=0.05, strength=0.5, level=False)
    with torch.no_grad():  # some are as dead as can be from the start
        for layer in method.gates.layers.values():
            layer.weight[::5] = 1e-7
            layer.bias[::5] = -0.5
    losses = train(method, 40, lr=0.02)
    assert np.isfinite(losses).all()
    for name, tensor in method.state_dict().items():
        assert torch.isfinite(tensor).all(), name
    method.finish()


def test_the_network_that_is_trained_at_the_end_is_the_one_that_is_cut() -> None:
    method = pruner("tiny", "flops=0.7", steps=120, floor=0.3)
    train(method, 120)
    method.eval()
    outputs = {}
    for mode, entered in method.evaluation_modes().items():
        with entered, torch.no_grad():
            outputs[mode] = [method(x) for x, _ in batches(10, seed=5)]
    assert all(torch.equal(soft, hard) for soft, hard in zip(outputs["soft"], outputs["hard"], strict=True))
    small = method.finish().eval()
    with torch.no_grad():
        found = [small(x) for x, _ in batches(10, seed=5)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs["hard"], found, strict=True))
    right = np.mean(
        [(o.argmax(1) == y).float().mean().item() for o, (_, y) in zip(found, batches(10, seed=5), strict=True)]
    )
    assert right > 0.3  # it has learnt


def test_before_masks_settle_gates_are_random() -> None:
    method = pruner("tiny", "flops=0.7", steps=100, settle=1.0)
    train(method, 40)
    method.eval()
    with method.evaluation_modes()["soft"], torch.no_grad():
        assert not torch.equal(method(IMAGE), method(IMAGE))
    with method.evaluation_modes()["hard"], torch.no_grad():
        assert torch.equal(method(IMAGE), method(IMAGE))


def test_settled_masks_survive_a_restart() -> None:
    method = pruner("tiny", "flops=0.7", steps=20)
    train(method, 18)
    other = pruner("tiny", "flops=0.7", steps=20)
    other.load_state_dict(method.state_dict())
    other.load_state(method.state())
    assert other.plan() == method.plan()
    assert other.gates.settled is not None


def test_looking_at_the_soft_network_changes_no_draw() -> None:
    method = pruner(steps=10, warmup=0.0)
    train(method, 2)
    draws = method.gates.draws
    with method.evaluation_modes()["soft"], torch.no_grad():
        method.eval()(IMAGE)
    assert method.gates.draws == draws


def test_gradients_flow_through_the_whitening() -> None:
    """Statistics and roots are differentiated through; cutting that path would give other gradients."""
    method = pruner(steps=10)
    method.train()
    norm = method.model.get_submodule("stem.1")
    assert isinstance(norm, WhitenedNorm)
    x = torch.randn(8, norm.num_features, 6, 6, requires_grad=True)
    weight = torch.randn_like(x)
    (given,) = torch.autograd.grad((norm(x) * weight).sum(), x)
    assert torch.allclose(given.sum((0, 2, 3)), torch.zeros(norm.num_features), atol=1e-3)  # shifts change nothing
    along = (given * (x - x.mean((0, 2, 3), keepdim=True))).sum()
    assert along.abs() < 1e-2 * (given.norm() * x.norm())  # nor does the scale


def test_a_fresh_network_does_not_feed_its_head_what_whitening_amplified() -> None:
    usual = pruner("resnet8_b", steps=10, start=[1.0, 0.5]).train()
    scaled = pruner("resnet8_b", steps=10).train()
    assert scaled(IMAGE).std() < usual(IMAGE).std() / 2


def test_trained_norms_are_left_as_they_are() -> None:
    model = create("tiny")
    norm = model.get_submodule("stem.1")
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    kept = norm.weight.detach().clone()
    BWCP(model, IMAGE, budget="flops=0.6")
    assert torch.equal(norm.weight, kept)


# --------------------------------------------------------------------------------------------------------- bad input


class NoNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(ModelError, match="has no batch norm"):
        BWCP(NoNorm(), IMAGE, budget="flops=0.5")


def test_groups_without_batch_norm_stay_whole_and_are_named() -> None:
    class Half(NoNorm):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.conv = nn.Linear(8, 8), nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(F.relu(self.hidden(F.relu(self.conv(x)).mean((2, 3)))))

    method = BWCP(Half(), IMAGE, budget="flops=0.6", steps=2)
    assert method.notes == ["Groups without a batch norm stay whole: hidden."]
    assert method.finish().hidden.out_features == 8
    with pytest.raises(BudgetError, match="the method cannot prune 1 group"):
        BWCP(Half(), IMAGE, budget="params=0.2")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": 0.5}, "Unknown key"),
        ({"temprature": 0.5}, "did you mean 'method.temperature'"),
        ({"temperature": 0.0}, "above 0"),
        ({"newton_steps": 0}, "from 1 to 20"),
        ({"sharpen": "sigmoid"}, "one of probability, logit, none"),
        ({"sharpness": [1.0]}, "sharpness"),
        ({"warmup": 1.0}, "below 1"),
        ({"floor": 1.5}, "from 0 to 1"),
        ({"momentum": "much"}, "a number"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pruner(**settings)
    assert words in str(caught.value)


def test_a_budget_out_of_reach_is_told_at_once() -> None:
    with pytest.raises(BudgetError, match="cannot be met"):
        pruner(budget="flops=0.001")

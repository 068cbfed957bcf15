"""Centripetal SGD: what its specification lists as properties and traps, with its worked numbers, and the merge."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import BudgetError, ConfigError, ModelError, VerificationError
from secateur.graph import trace
from secateur.graph.cut import alive_slots, cut
from secateur.graph.modules import named_tensors
from secateur.methods.csgd import CSGD
from secateur.methods.csgd import method as csgd
from secateur.methods.csgd.centripetal import (
    Centripetal,
    Rows,
    attraction,
    centripetal_reference,
    clustered_rows,
    projection,
)
from secateur.methods.csgd.pacesetters import Makers
from secateur.methods.csgd.partitions import biased, even, spread
from secateur.methods.kit.clustering import kmeans, ordered
from secateur.models import create
from secateur.plan import Plan
from secateur.repair.merging import collapse, difference, kept, merge, mergeable, outputs
from secateur.testing.networks import NETWORKS, Network

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOY = {network.name: network for network in NETWORKS}
SIX = ordered(np.array([0, 1, 0, 2, 1, 0]))  # clusters {0, 2, 5}, {1, 4}, {3}


def first_rows(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([np.flatnonzero(labels == label)[0] for label in labels])


def update(weight: torch.Tensor, gradient: torch.Tensor, labels: np.ndarray[Any, Any], **how: float) -> torch.Tensor:
    """What becomes of the gradient of one matrix."""
    parameter = nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    rows = [Rows("w", 0, first_rows(labels), vector=False)]
    Centripetal(rows, {"w": parameter}).transform(vectors=0.0, **how)
    return parameter.grad


def toy(name: str = "residual", budget: str = "flops=0.5", steps: int = 60, **settings: Any) -> CSGD:
    return CSGD(TOY[name].make(), TOY[name].inputs(), budget=budget, steps=steps, **settings)


def train(method: CSGD, batches: Any, lr: float = 0.1, **options: Any) -> None:
    method.train()
    optimiser = torch.optim.SGD(method.parameters(), lr, **options)
    for images, labels in batches:
        optimiser.zero_grad()
        (F.cross_entropy(method(images), labels) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()


def images(count: int, size: int = 32) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        yield torch.randn(4, 3, size, size, generator=generator), torch.randint(0, 10, (4,), generator=generator)


# ------------------------------------------------------------------------------- the matrices and the update (1 to 6)


def test_gamma_is_a_projection_and_lambda_has_two_eigenvalues() -> None:
    eta, eps = 0.01, 0.5
    gamma = projection(first_rows(SIX))
    assert torch.allclose(gamma @ gamma, gamma)
    assert torch.allclose(gamma.sum(1), torch.ones(6).double())
    assert gamma.trace().item() == pytest.approx(3)
    pull = attraction(gamma, eta, eps)
    assert torch.allclose(pull, (eta + eps) * torch.eye(6).double() - eps * gamma)
    assert torch.allclose(pull.sum(1), torch.full((6,), eta).double())
    values = torch.linalg.eigvalsh(pull)
    assert torch.allclose(values, torch.tensor([eta] * 3 + [eta + eps] * 3).double())


def test_lambda_entry_by_entry() -> None:
    eta, eps = 0.01, 0.5
    pull = attraction(projection(first_rows(SIX)), eta, eps)
    assert pull[0, 0].item() == pytest.approx(eta + eps - eps / 3)
    assert pull[0, 2].item() == pytest.approx(-eps / 3)
    assert pull[0, 1].item() == 0
    assert pull[3, 3].item() == pytest.approx(eta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_update_is_the_one_with_matrices(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(6, 7, dtype=dtype, generator=generator) for _ in range(2))
    found = update(weight, gradient, SIX, strength=0.5, decay=0.01)
    wanted = centripetal_reference(weight, gradient, first_rows(SIX), eta=0.01, eps=0.5)
    assert torch.allclose(found, wanted, atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_two_scalar_filters() -> None:
    weight, gradient = torch.tensor([[[1.0], [3.0]], [[0.4], [0.2]]], dtype=torch.float64)
    found = weight - 0.1 * update(weight, gradient, np.array([0, 0]), strength=0.5, decay=0.01)
    assert found.flatten().tolist() == pytest.approx([1.019, 2.917], abs=1e-12)
    assert (found[1] - found[0]).item() == pytest.approx(2 * (1 - 0.1 * 0.51), abs=1e-12)
    assert (found[1] - found[0]).item() == pytest.approx(1.898, abs=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_the_mean_of_a_cluster_moves_as_with_plain_sgd(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    gamma = projection(first_rows(SIX))
    moved = weight - 0.1 * update(weight, gradient, SIX, strength=eps, decay=0.01)
    mean = gamma @ weight
    assert torch.allclose(gamma @ moved, mean - 0.1 * (gamma @ gradient + 0.01 * mean))


def test_singletons_take_the_plain_step_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(5, 4, generator=generator) for _ in range(2))
    assert torch.equal(update(weight, gradient, np.arange(5), strength=7.0), gradient)
    decayed = update(weight, gradient, np.arange(5), strength=7.0, decay=0.01)
    assert torch.allclose(decayed, gradient + 0.01 * weight)


@pytest.mark.parametrize(("eta", "eps"), [(0.0, 0.0), (0.0, 0.3), (0.02, 0.3)])
def test_differences_follow_their_law_whatever_the_loss(eta: float, eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    gamma, start = projection(first_rows(SIX)), None
    for _ in range(10):
        start = weight - gamma @ weight if start is None else start
        gradient = torch.randn(6, 4, dtype=torch.float64, generator=generator)
        weight = weight - 0.1 * update(weight, gradient, SIX, strength=eps, decay=eta)
    assert start is not None
    assert torch.allclose(weight - gamma @ weight, start * (1 - 0.1 * (eta + eps)) ** 10, atol=1e-12)


def test_nesterov_after_twenty_thousand_steps() -> None:
    mu, tau, eta, eps = 0.9, 0.03, 1e-4, 3e-3
    parameter = nn.Parameter(torch.tensor([[1.0], [3.0]]).double())
    field = Centripetal([Rows("w", 0, np.array([0, 0]), vector=False)], {"w": parameter})
    optimiser = torch.optim.SGD([parameter], tau, momentum=mu, nesterov=True, weight_decay=eta)
    law, momentum = 1.0, 0.0
    for step in range(20_000):
        pull = (eta + eps) * law
        momentum = pull if step == 0 else mu * momentum + pull
        law -= tau * (pull + mu * momentum)
        if step < 200:
            parameter.grad = torch.full_like(parameter, 0.1 * step)
            field.transform(strength=eps, vectors=0.0)
            optimiser.step()
        if step == 199:
            assert ((parameter[1] - parameter[0]) / 2).item() == pytest.approx(law, rel=1e-9)
    assert law == pytest.approx(7.2e-9, rel=0.01)
    assert np.exp(-20_000 * tau * (eta + eps) / (1 - mu)) == pytest.approx(8.4e-9, rel=0.01)


# --------------------------------------------------------------------------------------------- merging (7, 8, 9, 11)


def duplicated(network: Network, seed: int = 0) -> tuple[Any, nn.Module, dict[str, Any]]:
    """A network in double precision in which the channels of random clusters are equal."""
    model = network.make().double().eval()
    graph = trace(model, network.inputs().double())
    generator = np.random.default_rng(seed)
    clusters = {g.name: ordered(generator.integers(0, g.width // 2, g.width)) for g in graph.groups}
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_()
    collapse(named_tensors(model), graph, clusters)
    return graph, model, clusters


def narrowed(graph: Any, model: nn.Module, clusters: dict[str, Any]) -> nn.Module:
    alive = alive_slots(graph.solution, {name: kept(labels) for name, labels in clusters.items()})
    return cut(model, graph.example_inputs, graph.recording, graph.solution, alive, inplace=False).model


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_merging_equal_channels_changes_nothing_and_dropping_them_does(network: Network) -> None:
    graph, model, clusters = duplicated(network)
    wanted = outputs(model, graph.example_inputs)
    dropped = outputs(narrowed(graph, model, clusters), graph.example_inputs)
    merge(named_tensors(model), graph, clusters)
    assert difference(wanted, outputs(model, graph.example_inputs)) < 1e-12
    assert difference(wanted, outputs(narrowed(graph, model, clusters), graph.example_inputs)) < 1e-12
    assert difference(wanted, dropped) > 1e-3


def test_a_linear_layer_behind_a_flattening_reads_blocks() -> None:
    graph, model, _ = duplicated(TOY["no norm"])
    labels = ordered(np.arange(24) // 3)
    columns = dict(model.named_parameters())["5.weight"].detach().clone()
    merge(named_tensors(model), graph, {"2": labels})
    found = dict(model.named_parameters())["5.weight"].detach()
    blocks = columns.view(32, 8, 3, 4).sum(2)  # 24 channels of 2x2 pixels, channel by channel
    assert torch.allclose(found.view(32, 8, 3, 4)[:, :, 0], blocks)
    assert not found.view(32, 8, 3, 4)[:, :, 1:].any()


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_the_wide_network_and_of_the_narrow_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).double()
    x = torch.randn(4, 3, 8, 8).double()
    graph, clusters = trace(model, x), {"0": SIX}
    collapse(named_tensors(model), graph, clusters)
    merged = copy.deepcopy(model)
    merge(named_tensors(merged), graph, clusters)
    narrow = narrowed(graph, merged, clusters)
    wide, small = gradients(model.train(), x), gradients(narrow.train(), x)
    for cluster, members in enumerate(([0, 2, 5], [1, 4], [3])):
        assert torch.allclose(wide["0.weight"][members].sum(0), small["0.weight"][cluster])
        for member in members:
            assert torch.allclose(wide["3.weight"][:, member], small["3.weight"][:, cluster])


def test_statistics_of_duplicates_meet_with_the_norms_momentum() -> None:
    norm = nn.BatchNorm1d(2).double().train()
    norm.running_mean.copy_(torch.tensor([0.0, 1.0]))
    for _ in range(5):
        column = torch.randn(16, 1).double()
        x = norm(column.expand(16, 2))
        assert torch.equal(x[:, 0], x[:, 1])
    assert (norm.running_mean[1] - norm.running_mean[0]).item() == pytest.approx(0.9**5)


@pytest.mark.parametrize(("share", "removed"), [(5 / 8, 0.6086), (13 / 16, 0.339), (11 / 16, 0.527)])
def test_what_narrower_resnet56_costs(share: float, removed: float) -> None:
    graph = RESNET56.get("graph") or RESNET56.setdefault("graph", trace(create("resnet56"), IMAGE))
    masks = {g.name: np.arange(g.width) < round(g.width * share) for g in graph.groups}
    assert 1 - graph.cost(Plan(masks)).macs / graph.cost().macs == pytest.approx(removed, abs=6e-4)


RESNET56: dict[str, Any] = {}


def test_the_trunk_stays_of_one_width() -> None:
    method = CSGD(create("resnet8_b"), IMAGE, budget="flops=0.5", steps=3)
    small = method.finish()
    for stage in (small.layer1, small.layer2, small.layer3):
        widths = {block.conv2.out_channels for block in stage}
        widths |= {block.shortcut[0].out_channels for block in stage if isinstance(block.shortcut, nn.Sequential)}
        assert len(widths) == 1
    assert method.merging < 1e-5


# ------------------------------------------------------------------------------ with an optimiser, as methods are used


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("own_decay", [True, False])
def test_steps_are_the_papers_with_the_optimisers_decay_or_the_methods(own_decay: bool, nesterov: bool) -> None:
    eta, tau, mu = 0.01, 0.05, 0.9
    settings = {} if own_decay else {"weight_decay": eta}
    method = CSGD(TOY["residual"].make().double(), TOY["residual"].inputs().double(), budget="flops=0.5", steps=60,
                  strength=0.5, vectors=1.0, **settings)  # fmt: skip
    rows = {entry.name: entry for entry in method.update.rows if not entry.vector}
    optimiser = torch.optim.SGD(
        method.parameters(), tau, momentum=mu, nesterov=nesterov, weight_decay=eta if own_decay else 0.0
    )
    paper = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in method.model.named_parameters()}
    for step, (x, y) in enumerate(TOY["residual"].batches(4)):
        optimiser.zero_grad()
        (F.cross_entropy(method(x.double()), y) + method.loss()).backward()
        for name, p in method.model.named_parameters():
            if name in rows:
                weight, momentum = paper[name]
                flat = centripetal_reference(weight.flatten(1), p.grad.flatten(1), rows[name].first, eta=eta, eps=0.5)
                turned = flat.view(weight.shape)
                momentum = turned if step == 0 else mu * momentum + turned
                paper[name] = weight - tau * (turned + mu * momentum if nesterov else momentum), momentum
        method.after_backward()
        optimiser.step()
        method.after_step()
    assert len(rows) == 6
    found = dict(method.model.named_parameters())
    assert all(torch.allclose(found[name], paper[name][0], atol=1e-12) for name in rows)


def test_vectors_get_their_share_of_the_pull_and_no_decay_of_the_methods() -> None:
    method = toy(strength=0.5, vectors=0.1, weight_decay=0.01)
    parameters = dict(method.model.named_parameters())
    with torch.no_grad():
        parameters["stem.1.weight"].uniform_(0.5, 1.5)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    method.loss().backward()
    method.after_backward()
    gamma = projection(next(r.first for r in method.update.rows if r.name == "stem.1.weight")).float()
    vector, kernel = parameters["stem.1.weight"], parameters["stem.0.weight"]
    assert torch.allclose(vector.grad, 0.05 * (vector - gamma @ vector), atol=1e-7)
    mean = (gamma @ kernel.flatten(1)).view_as(kernel)
    assert torch.allclose(kernel.grad, 0.5 * (kernel - mean) + 0.01 * kernel, atol=1e-6)


def test_momentum_of_an_earlier_training_carries_differences_on_and_fresh_momentum_does_not() -> None:
    old, fresh = (torch.tensor([[1.0], [1.0]]).double().requires_grad_() for _ in range(2))
    for parameter, before in ((old, [[1.0], [-1.0]]), (fresh, [[0.0], [0.0]])):
        optimiser = torch.optim.SGD([parameter], 0.1, momentum=0.9)
        optimiser.state[parameter]["momentum_buffer"] = torch.tensor(before).double()
        parameter.grad = update(parameter.detach(), torch.tensor([[3.0], [1.0]]).double(), np.array([0, 0]), strength=1)
        optimiser.step()
    assert (old[0] - old[1]).item() == pytest.approx(-0.18)
    assert torch.equal(fresh[0], fresh[1])


def test_equal_filters_stay_equal_with_an_adaptive_optimiser() -> None:
    parameter = nn.Parameter(torch.ones(6, 4).double())
    field = Centripetal([Rows("w", 0, first_rows(SIX), vector=False)], {"w": parameter})
    optimiser = torch.optim.AdamW([parameter], 0.1)
    for _ in range(5):
        parameter.grad = torch.randn(6, 4).double()
        field.transform(strength=0.5, vectors=0.0)
        optimiser.step()
    gamma = projection(first_rows(SIX))
    assert torch.allclose(parameter, gamma @ parameter, atol=1e-12)
    assert not torch.allclose(parameter[0], parameter[1])


def test_biases_norms_and_depthwise_layers_are_in_clusters_too() -> None:
    names = {row.name for row in toy("depthwise").update.rows}
    assert {"body.0.weight", "body.1.weight", "body.1.bias", "body.3.weight", "body.4.weight"} <= names
    names = {row.name for row in toy("no norm").update.rows}
    assert {"0.bias", "2.bias", "5.weight", "5.bias"} <= names
    assert not {"7.weight", "7.bias"} & names


def one_step(method: CSGD, parts: int, scale: float) -> dict[str, torch.Tensor]:
    x, y = next(TOY["residual"].batches(1))
    method.eval()  # norms with one batch's statistics would tell parts from the whole
    for part, aims in zip(x.chunk(parts), y.chunk(parts), strict=True):
        ((F.cross_entropy(method(part), aims) + method.loss()) * (scale / parts)).backward()
        method.after_backward()
    return {name: p.grad / scale for name, p in method.model.named_parameters()}


@pytest.mark.parametrize(("parts", "scale"), [(2, 1.0), (4, 1.0), (1, 1024.0), (4, 65536.0)])
def test_parts_of_a_batch_and_scaled_losses_come_to_the_same(parts: int, scale: float) -> None:
    wanted, found = one_step(toy(strength=0.5), 1, 1.0), one_step(toy(strength=0.5), parts, scale)
    assert all(torch.allclose(wanted[name], found[name], atol=1e-5) for name in wanted)


def test_several_processes_come_to_the_same() -> None:
    # each has half of the batch and of the loss; the engine adds the gradients up
    wanted, halves = one_step(toy(strength=0.5), 1, 1.0), []
    x, y = next(TOY["residual"].batches(1))
    for part, aims in zip(x.chunk(2), y.chunk(2), strict=True):
        method = toy(strength=0.5)
        method.eval()
        ((F.cross_entropy(method(part), aims) + method.loss()) * 0.5).backward()
        method.after_backward()
        halves.append({name: p.grad for name, p in method.model.named_parameters()})
    assert all(torch.allclose(wanted[name], halves[0][name] + halves[1][name], atol=1e-5) for name in wanted)


def test_all_processes_take_the_first_ones_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    first = toy(seed=0).clusters
    sent = torch.from_numpy(np.concatenate(list(first.values())))
    monkeypatch.setattr(csgd, "world", lambda: 2)
    monkeypatch.setattr(csgd, "rank", lambda: 1)
    monkeypatch.setattr(csgd, "global_sum", lambda own: own + sent)
    other = toy(seed=5).clusters
    assert all(np.array_equal(first[name], other[name]) for name in first)


def test_a_loop_without_the_methods_loss_is_told() -> None:
    method = toy()
    x, y = next(TOY["residual"].batches(1))
    F.cross_entropy(method(x), y).backward()
    with pytest.raises(ConfigError, match="add loss"):
        method.after_backward()


def test_parameters_without_gradients_are_left_alone() -> None:
    method = toy(strength=0.5)
    method.model.stem[0].weight.requires_grad_(False)
    before = method.model.stem[0].weight.clone()
    train(method, TOY["residual"].batches(2))
    assert torch.equal(before, method.model.stem[0].weight)
    assert method.model.stem[0].weight.grad is None


def test_groups_that_stay_whole_are_trained_plainly() -> None:
    method = toy(budget="flops=0.7", constraints=secateur.Constraints(ignore=("first.0",)))
    names = {row.name for row in method.update.rows}
    assert not {"first.0.weight", "first.1.weight", "first.1.bias"} & names
    assert "second.0.weight" in names


def test_chi_has_the_pull_as_its_gradient_but_a_penalty_alone_is_not_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    gamma, eps = projection(first_rows(SIX)), 0.5
    chi = (weight - gamma @ weight).square().sum()
    slope = torch.autograd.grad(eps / 2 * chi, weight)[0]
    pull = update(weight.detach(), torch.zeros(6, 4).double(), SIX, strength=eps)
    assert torch.allclose(slope, pull)

    gradient = torch.randn(6, 4, dtype=torch.float64, generator=generator)  # a loss that tells members apart
    apart = weight.detach() - 0.1 * (gradient + slope)
    together = weight.detach() - 0.1 * update(weight.detach(), gradient, SIX, strength=eps)
    law = (1 - 0.1 * eps) * (weight.detach() - gamma @ weight.detach())
    assert torch.allclose(together - gamma @ together, law)
    assert not torch.allclose(apart - gamma @ apart, law, atol=1e-3)


def converging(network: Network) -> CSGD:
    model = network.make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # running statistics meet as fast as weights
    return CSGD(model, network.inputs(), budget="flops=0.5", steps=60, strength=5.0, vectors=1.0)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_cut_network_computes_what_the_trained_one_does(network: Network) -> None:
    method = converging(network)
    assert method.metrics()["deviation"] > 0.1
    train(method, network.batches(45), weight_decay=1e-4)
    assert method.metrics()["deviation"] < 1e-6
    small = method.finish()
    assert method.agreement < 1e-5
    assert method.merging < 1e-5
    assert method.result is not None
    assert method.result.verification is not None
    assert method.result.verification.exact
    assert 0.45 <= method.result.reached("flops") <= 0.5
    assert not method.notes
    x, _ = next(network.batches(1, seed=9))
    trained, cut_ = method.eval()(x), small.eval()(x)
    assert float((trained - cut_).detach().abs().max() / trained.detach().abs().max()) < 1e-5


def test_chi_falls_by_its_law() -> None:
    method = toy(strength=1.0)
    before = method.metrics()
    train(method, TOY["residual"].batches(5))
    after = method.metrics()
    assert after["chi"] / before["chi"] == pytest.approx(0.9**10, rel=1e-3)
    assert after["flops"] == before["flops"] <= 0.5


@pytest.mark.parametrize(
    ("vectors", "says"),
    [(1.0, "Train longer, or raise `strength`."), (0.5, "Train longer, or raise `vectors`, then `strength`.")],
)
def test_filters_that_are_not_equal_yet_are_noted_and_still_merged_exactly(vectors: float, says: str) -> None:
    method = toy(vectors=vectors)
    x, _ = next(TOY["residual"].batches(1))
    method.eval()
    with method.evaluation_modes()["hard"]:
        equal = method(x)
    small = method.finish().eval()
    assert torch.allclose(equal, small(x), atol=1e-5)
    assert method.agreement > 1e-2
    assert "had not become equal" in method.notes[-1]
    assert method.notes[-1].endswith(says)


def test_a_merge_that_is_not_exact_is_refused() -> None:
    method = toy()
    method.finish()
    assert method.result is not None
    with torch.no_grad():
        method.result.model.head.fc.weight += 1.0
    with pytest.raises(VerificationError, match="merged network differs"):
        method.check(method.result)


# ---------------------------------------------------------------------------------------------------------- structures


@pytest.mark.parametrize("name", ["vgg16_bn", "densenet40", "mobilenet_v2", "preresnet20", "resnet8_b"])
def test_whole_networks_are_merged_exactly(name: str) -> None:
    width = {"preresnet20": 0.5, "resnet8_b": 1.0}.get(name, 0.25)
    torch.manual_seed(0)
    method = CSGD(create(name, width=width), IMAGE, budget="flops=0.5", steps=3, restarts=1)
    train(method, images(1), lr=0.01)
    method.finish()
    assert method.merging < 1e-5
    assert method.result is not None
    assert method.result.verification is not None
    assert method.result.verification.passed
    assert 0.495 <= method.result.reached("flops") <= 0.5


class Dense(nn.Module):
    """Two layers of three channels; a norm reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        result: torch.Tensor = self.head(F.relu(self.norm(torch.cat([a, self.b(x)], 1))))
        return result


def test_partitions_are_composed_behind_a_concatenation() -> None:
    graph = trace(Dense(), torch.randn(2, 3, 4, 4))
    clusters = {"a": np.array([0, 0, 1]), "b": np.array([0, 1, 1])}
    rows = {row.name: row.first.tolist() for row in clustered_rows(graph, clusters)}
    assert rows["norm.weight"] == rows["norm.bias"] == [0, 0, 2, 3, 4, 4]  # [[0, 1], [2], [3], [4, 5]]
    assert rows["a.weight"] == [0, 0, 2]
    assert rows["b.weight"] == [0, 1, 1]


class Late(nn.Module):
    """A block whose main branch runs before its projection, with a second block behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 8, 1)
        self.projection, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = self.two(F.relu(self.one(x))) + self.projection(x)
        x = F.relu(x + self.three(x))
        result: torch.Tensor = self.head(self.depthwise(x))
        return result


def test_the_projection_sets_the_pace_and_all_others_follow() -> None:
    torch.manual_seed(0)
    method = CSGD(Late(), torch.randn(2, 3, 6, 6), budget="flops=0.6")
    group = next(g for g in method.graph.groups if g.width == 8)
    makers = Makers(method.graph)
    assert makers.pacesetter(group.name).name == "projection.weight"
    assert {m.name for m in makers.of[group.name]} == {"two.weight", "projection.weight", "three.weight"}
    firsts = {row.name: row.first.tolist() for row in method.update.rows}
    followers = ["two.weight", "two.bias", "projection.bias", "three.weight", "depthwise.weight", "depthwise.bias"]
    assert all(firsts[name] == firsts["projection.weight"] for name in followers)
    number = [g.name for g in method.graph.groups].index(group.name)
    rows = method.model.projection.weight.detach().flatten(1).double().numpy()
    alone = kmeans(rows, method.plan().widths[group.name], seed=number)
    assert np.array_equal(alone, method.clusters[group.name])
    together = makers.rows(group.name, "all")
    assert together.shape == (8, 6 + 4 + 8)


def test_the_stem_sets_the_pace_of_the_first_stage() -> None:
    makers = Makers(trace(create("resnet8_b"), IMAGE))
    assert makers.pacesetter("conv1").name == "conv1.weight"
    named = {makers.pacesetter(name).name for name in makers.of}
    assert {"layer2.0.shortcut.0.weight", "layer3.0.shortcut.0.weight"} <= named


class Norms(nn.Module):
    """One layer behind which all channels are looked at together, and one behind which they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 16)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(F.relu(self.second(self.norm(self.first(x)))))
        return result


def test_groups_that_cannot_be_merged_stay_whole() -> None:
    torch.manual_seed(0)
    method = CSGD(Norms(), torch.randn(4, 6), budget="flops=0.8")
    assert method.plan().widths["first"] == 12
    assert method.plan().widths["second"] < 16
    assert method.notes == ["Groups in which merging equal channels is not exact stay whole: first."]
    assert not mergeable(method.graph, {"first": np.array([0] * 6 + list(range(1, 7)))})
    method.finish()
    assert method.merging < 1e-5


class Casting(nn.Module):
    """Casts what is not of single precision, so that it makes other calls in double precision; or counts on a size."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.fixed = nn.Linear(6, 12), nn.Linear(12, 3), fixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).float().to(x.dtype)
        if self.fixed:
            hidden = hidden.view(-1, 6 + 6)
        result: torch.Tensor = self.second(F.relu(hidden))
        return result


def test_code_that_casts_is_tried_in_its_own_precision() -> None:
    graph = trace(Casting(), torch.randn(4, 6))
    assert mergeable(graph, {"first": np.array([0] * 6 + list(range(1, 7)))})
    CSGD(Casting(), torch.randn(4, 6), budget="flops=0.6").finish()


def test_widths_that_do_not_fit_a_size_in_code_are_no_merge() -> None:
    graph = trace(Casting(fixed=True), torch.randn(4, 6))
    assert not mergeable(graph, {"first": np.array([0] * 6 + list(range(1, 7)))})


def test_a_network_in_which_nothing_can_be_merged_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3))
    with pytest.raises(ModelError, match="Merging equal channels changes"):
        CSGD(model, torch.randn(4, 6), budget="flops=0.8")


# -------------------------------------------------------------------------------------------- clusters and their number


def test_even_and_biased_clusters() -> None:
    rows = np.zeros((7, 2))
    assert even(rows, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]  # [0, 1, 2], [3, 4], [5, 6]
    assert biased(rows, 3).tolist() == [0, 0, 0, 0, 0, 1, 2]  # the first holds 7 - 3 + 1


def test_kmeans_finds_what_is_alike_however_long_rows_are() -> None:
    generator = np.random.default_rng(0)
    for length in (3, 500):
        centres = generator.normal(size=(4, length)) * 10
        truth = np.array([0, 1, 2, 3, 0, 1, 2, 0, 1, 3])
        rows = centres[truth] + generator.normal(size=(10, length)) * 0.01
        assert kmeans(rows, 4).tolist() == truth.tolist()  # numbered by their first rows
        assert np.array_equal(kmeans(rows, 6, seed=3), kmeans(rows, 6, seed=3))


def test_no_cluster_is_empty_even_if_rows_are_equal() -> None:
    labels = kmeans(np.ones((8, 3)), 5)
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3, 4]


def test_the_smallest_channel_of_each_cluster_stays() -> None:
    method = toy()
    plan = method.plan()
    for name, labels in method.clusters.items():
        assert np.flatnonzero(plan.masks[name]).tolist() == [
            int(np.flatnonzero(labels == label).min()) for label in range(max(labels) + 1)
        ]
    assert plan.provenance["clusters"]["stem.0"] == method.clusters["stem.0"].tolist()
    json.dumps(plan.provenance, allow_nan=False)


def test_groups_keep_the_same_share_or_more_where_filters_differ() -> None:
    alike = toy()
    shares = [np.mean(mask) for mask in alike.plan().masks.values()]
    assert max(shares) - min(shares) < 0.2  # channels of the last layer cost little and use up what is left
    model = TOY["residual"].make()
    with torch.no_grad():
        model.first[0].weight[1:] = model.first[0].weight[:1] + 1e-3 * torch.randn(31, 24, 3, 3)
    method = CSGD(model, TOY["residual"].inputs(), budget="flops=0.5", widths="spread", allocator="global")
    widths = method.plan().widths
    assert widths["first.0"] < 4 < widths["second.0"]


def test_spread_takes_the_farthest_row_next() -> None:
    score = spread(np.array([[0.0], [10.0], [9.0], [4.0]]))
    assert score.tolist() == [10.0, 10.0, 1.0, 4.0]


def test_vectors_get_in_a_short_training_what_they_got_in_the_papers() -> None:
    """A tenth of the kernels' strength, and more where that is at its cap: share times strength times steps stands."""
    assert toy(steps=600 * 782).vectors == 0.1
    assert toy(steps=6 * 782).vectors == pytest.approx(0.1)  # the strength does it
    assert toy(steps=700).strength == 1.0
    assert toy(steps=700).vectors == pytest.approx(0.1 * 3e-3 * 600 * 782 / 700)
    assert toy(steps=10).vectors == 1.0
    assert toy(steps=10, vectors=0.2).vectors == 0.2
    assert toy(steps=600 * 782, strength=3e-4).vectors == pytest.approx(1.0)


def test_rounds_share_the_steps_so_each_gets_the_strength_of_a_whole_training() -> None:
    assert toy(steps=60 * 782, rounds=2).strength == pytest.approx(2 * toy(steps=60 * 782).strength)
    assert toy(steps=700, rounds=2).vectors == pytest.approx(2 * toy(steps=700).vectors)


def test_the_strength_is_the_papers_in_a_training_as_long_and_more_in_a_shorter_one() -> None:
    assert toy(steps=600 * 782).strength == pytest.approx(3e-3)
    assert toy(steps=10**7).strength == 3e-3
    assert toy(steps=6 * 782).strength == pytest.approx(0.3)
    assert toy(steps=10).strength == 1.0
    assert toy(steps=10, strength=0.05).strength == 0.05


# ------------------------------------------------------------------------------------------ rounds, and wide to narrow


def test_rounds_cluster_the_clusters_again() -> None:
    method = toy(steps=6, rounds=3)
    widths, seen = [], [method.clusters]
    batches = list(TOY["residual"].batches(6))
    for batch in batches:
        train(method, [batch])
        widths.append(max(method.clusters["second.0"]) + 1)
        seen.append(method.clusters)
    final = toy(steps=6).plan().widths["second.0"]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
    assert widths[-1] == final
    for finer, coarser in itertools.pairwise(seen):
        for name in finer:  # who was together stays together
            pairs = set(zip(finer[name].tolist(), coarser[name].tolist(), strict=True))
            assert len(pairs) == max(finer[name]) + 1
    method.finish()
    assert method.merging < 1e-5


def test_the_plan_meets_the_budget_before_the_last_round_too() -> None:
    method = toy(steps=6, rounds=3)
    before = method.state()
    method.finish()
    assert method.result is not None
    assert method.result.reached("flops") <= 0.5
    assert method.state() == before


def test_state_brings_rounds_and_clusters_back() -> None:
    method = toy(steps=6, rounds=3)
    train(method, TOY["residual"].batches(3))
    state = json.loads(json.dumps(method.state()))
    other = toy(steps=6, rounds=3, seed=7)
    other.load_state(state)
    assert other.state() == method.state()
    assert other.plan().widths == method.plan().widths
    assert all(np.array_equal(other.clusters[name], method.clusters[name]) for name in method.clusters)


def test_a_narrow_network_is_narrowed_again() -> None:
    network = TOY["residual"]
    method = converging(network)
    train(method, network.batches(45))
    wide = method.eval()(next(network.batches(1))[0])
    again = CSGD(method.finish(), network.inputs(), budget="flops=0.7", steps=60, strength=5.0, vectors=1.0)
    assert torch.allclose(again.eval()(next(network.batches(1))[0]), wide, atol=1e-4)
    train(again, network.batches(45))
    again.finish()
    assert again.agreement < 1e-5


def test_wide_then_squeezed_ends_at_the_widths_of_the_narrow_network() -> None:
    network: Callable[..., nn.Module] = create
    method = CSGD(network("resnet8_b", width=2.0), IMAGE, budget="flops=0.3", steps=3, squeeze=2.0, clustering="even")
    assert all(np.bincount(labels).tolist() == [2] * (len(labels) // 2) for labels in method.clusters.values())
    small = method.finish()
    plain = network("resnet8_b")
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert method.merging < 1e-5


def test_a_squeeze_beyond_the_budget_says_what_it_leaves() -> None:
    with pytest.raises(BudgetError, match=r"squeeze=2 leaves 0\.2\d+ of the macs"):
        toy(budget="flops=0.2", squeeze=2.0)


@pytest.mark.parametrize(
    "wrong", [{"clustering": "dbscan"}, {"strength": 0.0}, {"vectors": 2.0}, {"squeeze": 1.0}, {"rounds": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        toy(**wrong)

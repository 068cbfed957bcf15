"""MetaPruning: masked full-width networks are the cropped ones, genes are the authors', the search is an evolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from secateur import runs
from secateur.errors import ConfigError, ModelError
from secateur.methods.metapruning import MetaPruning
from secateur.methods.metapruning.genes import Evolution, Genes, crossed, mutated, width_of
from secateur.methods.metapruning.method import _ratios
from secateur.methods.trials import Shown
from secateur.recipe import Recipe
from secateur.repair import remeasure
from secateur.testing import NETWORKS
from secateur.testing.networks import Network, block, conv
from secateur.training import Silent

NETWORK = NETWORKS[0]


class Bottleneck(nn.Module):
    """8 -> 4 -> 16 channels with a convolution in the shortcut, between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.body = nn.Sequential(*block(8, 4, 1), *block(4, 4), *conv(4, 16, 1))
        self.shortcut = nn.Sequential(*conv(8, 16, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = self.fc(torch.relu(self.body(x) + self.shortcut(x)).mean((2, 3)))
        return result


def made(network: Network = NETWORK, **options: Any) -> MetaPruning:
    return MetaPruning(network.make(), network.inputs(), **{"budget": "flops=0.5", **options})


def images(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Given:
    """Stands for trials: it has images alone."""

    def images(self, most: int) -> list[tuple[torch.Tensor, None]]:
        return [(images(most), None)]


def cropped(method: MetaPruning, genes: dict[str, int]) -> nn.Module:
    method._trials = Given()  # type: ignore[assignment]
    plan = method._plan_of(method._widths(genes))
    return method._generated(method.graph.cut(plan).model, plan, _ratios(genes))


# -------------------------------------------------------------------------------------------------------------- genes


def test_widths_are_the_papers() -> None:
    assert [width_of(64, i) for i in (0, 15, 30)] == [6, 35, 64]
    assert width_of(256, 15) == 140
    assert width_of(1, 0) == 1
    every = [(c, i) for c in range(8, 2049) for i in range(31)]
    floats = [(c, i) for c, i in every if max(int(c * ((10 + 3 * i) / 100)), 1) != width_of(c, i)]
    assert len(floats) == 52  # where the authors' product of floats is one channel short
    assert {(c, 16) for c in (100, 200, 400, 800)} <= set(floats)
    assert not [c for c, _ in floats if c & (c - 1) == 0]


def flops_of_resnet50(genes: list[int]) -> float:
    """As the authors' counter: multiply-adds, one for every input of a norm and a ReLU, nine for a maximum, biases."""
    stem, *stages = width_of(64, genes[0]), *(width_of(c, g) for c, g in zip((256, 512, 1024), genes[1:4], strict=True))
    inner, total, reads = iter(genes[4:]), stem * (112**2 * (3 * 49 + 2) + 56**2 * 9), stem
    for number, (blocks, base, out) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), (*stages, 2048), strict=True)):
        size = 56 // 2**number
        for k in range(blocks):
            before = size * (2 if number and not k else 1)
            mid = width_of(base, next(inner))
            total += before**2 * mid * (reads + 2) + size**2 * mid * (mid * 9 + 2) + size**2 * out * (mid + 2)
            total += 0 if k else size**2 * out * (reads + 1)
            reads = out
    return (total + 2048 * 1000 + 1000) / 1e6


def test_the_published_resnet50_of_one_gigaflop() -> None:
    genes = [19, 9, 15, 13, 10, 9, 10, 6, 9, 13, 11, 12, 7, 18, 7, 13, 12, 10, 19, 18]
    assert [width_of(c, g) for c, g in zip((64, 256, 512, 1024), genes, strict=False)] == [42, 94, 281, 501]
    assert [width_of(c, g) for c, g in zip((64, 64, 64, 128), genes[4:], strict=False)] == [25, 23, 25, 35]
    assert flops_of_resnet50([30] * 20) == pytest.approx(4111.71, abs=0.01)
    assert flops_of_resnet50(genes) == pytest.approx(1038.43, abs=0.01)
    assert flops_of_resnet50([0] * 20) == pytest.approx(85.69, abs=0.01)
    assert flops_of_resnet50([15] * 20) == pytest.approx(1359.03, abs=0.01)


def test_mutation_and_crossover() -> None:
    assert mutated((0, 30, 12, 5), (30, 1, 0, 26)) == (30, 0, 12, 0)
    assert crossed((1, 2, 3), (7, 8, 9), np.array([True, False, True])) == (7, 2, 9)


def each(error: Callable[[Genes], float]) -> Callable[[list[Genes]], list[float]]:
    return lambda tested: [error(genes) for genes in tested]


def evolution(**options: Any) -> Evolution:
    given = {"length": 12, "feasible": lambda genes: sum(genes) <= 200, "population": 20, "mutants": 10,
             "crossovers": 10, "parents": 5, "probability": 0.1, "seed": 3}  # fmt: skip
    return Evolution(**{**given, **options})


def test_the_evolution_beats_chance_and_tests_nothing_twice() -> None:
    star, asked = np.random.default_rng(0).integers(0, 31, 12), list[Genes]()

    def error(genes: Genes) -> float:
        asked.append(genes)
        return float(((np.array(genes) - star) ** 2).sum())

    best, tops = evolution(feasible=lambda genes: True).run(40, each(error))
    chance = np.random.default_rng(1).integers(0, 31, (1000, 12))
    assert tops[-1] < 0.5 * ((chance - star) ** 2).sum(1).min()
    assert tops == sorted(tops, reverse=True)
    assert len(set(asked)) == len(asked)
    assert evolution(feasible=lambda genes: True).run(40, each(error))[0] == best


def test_all_that_is_tested_is_feasible_and_of_known_parents() -> None:
    asked: list[Genes] = []
    evolution().run(5, each(lambda genes: asked.append(genes) or float(sum(genes))))  # type: ignore[func-returns-value]
    assert max(map(sum, asked)) <= 200
    generation = list(evolution(probability=1.0, crossovers=0, population=10)._generation(
        [(3,) * 12], {(3,) * 12: 0.0}, np.random.default_rng(0)))  # fmt: skip
    assert all(all(gene != 3 for gene in genes) for genes in generation)
    pairs = evolution(mutants=0, population=10)._generation(
        [(3,) * 12, (9,) * 12], {(3,) * 12: 0.0, (9,) * 12: 1.0}, np.random.default_rng(0)
    )
    assert all(set(genes) == {3, 9} for genes in pairs)
    same = evolution(probability=0.0, crossovers=0, mutants=10, population=10)
    assert len(same._generation([(3,) * 12], {(3,) * 12: 0.0}, np.random.default_rng(0))) == 10  # random ones fill up


def test_an_infeasible_limit_ends() -> None:
    best, _ = evolution(feasible=lambda genes: False).run(3, each(lambda genes: 1.0))
    assert best == (0,) * 12


# --------------------------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("network", [Network("bottleneck", Bottleneck), *NETWORKS], ids=lambda n: n.name)
def test_the_masked_full_width_network_is_the_cropped_one(network: Network) -> None:
    method = made(network, budget="flops=0.7")
    for step in (1, 2):
        method.step = step
        genes = method.drawn(step)
        small = cropped(method, genes)
        x = images()
        with torch.no_grad():
            wanted = small.train()(x)
            given = method.train()(x)
        assert torch.allclose(given, wanted, atol=1e-5 * float(wanted.abs().max())), step
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in method.model.parameters())


def test_a_generated_bottleneck() -> None:
    method = made(Network("bottleneck", Bottleneck), hidden=2)
    names = {group.name: group.width for group in method.graph.groups}
    genes = {name: {8: 12, 4: 17, 16: 9}[width] for name, width in names.items()}
    widths = method._widths(genes)
    assert {names[name]: width for name, width in widths.items()} == {8: 3, 4: 2, 16: 5}
    generator = method.net.generators[method.net.names.index("body.0.weight")]
    assert generator.encoding(_ratios(genes)) == [0.46, 0.61]
    e = torch.tensor([0.46, 0.61])
    z = torch.relu(generator.first.weight @ e + generator.first.bias)
    wanted = (generator.second.weight @ z + generator.second.bias).view(4, 8, 1, 1)
    small = cropped(method, genes)
    assert torch.equal(small.body[0].weight, wanted[:2, :3])
    assert (small.shortcut[0].weight.shape, small.body[6].weight.shape) == ((5, 3, 1, 1), (5, 2, 1, 1))
    assert method.net.generators[0].encoding(_ratios(genes)) == [1.0, 0.46]  # the stem reads what is fixed


def test_two_encodings_give_two_weights_for_one_slice() -> None:
    method = made()
    one, other = (dict.fromkeys(method._whole(), ratio) for ratio in (0.4, 0.7))
    a, b = (method.net.weights(ratios)["first.0.weight"][:4, :4] for ratios in (one, other))
    assert bool(((a - b).abs() > 1e-3).any())


def test_what_is_masked_gets_no_gradient() -> None:
    method = made().train()
    widths = method._widths(method.drawn(0))
    cross_entropy(method(images()), torch.arange(8) % 5).backward()
    generator = method.net.generators[method.net.names.index("first.0.weight")]
    out, reads = widths["first.0"], widths["stem.0"]
    rows = generator.second.weight.grad.view(32, 24, 9, -1)
    biases = generator.second.bias.grad.view(32, 24, 9)
    for gradient in (rows, biases):
        assert float(gradient[out:].abs().max()) == float(gradient[:, reads:].abs().max()) == 0
        assert bool((gradient[:out, :reads] != 0).any())
    assert method.model.first[0].weight.grad is None
    assert method.model.head.fc.weight.grad is not None


def test_norms_have_no_scale_and_shift_while_weights_are_generated() -> None:
    method, x = made().eval(), images()
    before = method(x)
    with torch.no_grad():
        method.model.stem[1].weight.mul_(3)
        method.model.stem[1].bias.add_(1)
    assert torch.equal(method(x), before)


def test_training_with_a_gene_changes_its_bank_alone() -> None:
    method = made().train()
    genes = method.drawn(0)
    before = {name: bank.clone() for name, bank in method.net.named_buffers()}
    method(images())
    number = method.net.norms.index("first.1")
    bank, old = method.net.get_buffer(f"bank{number}"), before[f"bank{number}"]
    moved = (bank != old).flatten(1).any(1).nonzero().flatten().tolist()
    assert len(moved) == 1
    assert width_of(32, moved[0]) == width_of(32, genes["first.0"])
    assert not [name for name, _ in method.net.named_parameters() if "bank" in name]
    held = {name: bank.clone() for name, bank in method.net.named_buffers()}
    method.eval()(images())
    assert all(torch.equal(held[name], bank) for name, bank in method.net.named_buffers())


def test_one_batch_gives_its_own_mean_and_unbiased_variance() -> None:
    norm, x = nn.BatchNorm2d(3), images(6)
    remeasure(nn.Sequential(norm).eval(), [(x, None)])
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(norm.running_var, x.var((0, 2, 3), unbiased=True), atol=1e-5)


def test_the_whole_network_is_plain() -> None:
    method = made()
    method.eval()
    x = images()
    assert torch.allclose(method.plain().eval()(x), method(x), atol=1e-5)


def test_layers_that_are_not_generated_are_refused() -> None:
    class Grouped(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(288, 5))

    with pytest.raises(ModelError, match=r"1\.weight is of a PReLU: choose another method"):
        MetaPruning(Grouped(), torch.zeros(1, 3, 8, 8), budget="flops=0.5")


# -------------------------------------------------------------------------------------------------------------- search


def searched(**options: Any) -> tuple[MetaPruning, list[Any]]:
    method, kept = made(**options), list[Any]()
    method.search(Shown(NETWORK.batches(3, seed=2), cross_entropy, method.model, 0, kept=kept.append))
    return method, kept


def test_candidates_fit_and_the_best_is_kept_with_new_weights() -> None:
    method, kept = searched()
    assert all(method.aim.met(row["about"]["widths"]) for row in kept)
    assert {row["epochs"] for row in kept} == {0}
    plan = method.plan()
    assert all((np.diff(mask.astype(int)) <= 0).all() for mask in plan.masks.values())  # first channels
    assert plan.provenance["accuracy"][-1] == max(row["accuracy"] for row in kept)
    inherited = method.graph.cut(plan).model.neck[0].weight
    small, again = method.finish(), method.graph.cut(plan).model
    assert not torch.equal(small.neck[0].weight, inherited)
    bound = 1 / np.sqrt(again.neck[0].in_channels)  # of PyTorch's initialisation, by the narrow fan-in
    assert 0.5 * bound < float(small.neck[0].weight.detach().abs().max()) <= bound
    assert torch.equal(small.stem[1].weight, torch.ones_like(small.stem[1].weight))
    assert any("its accuracy is chance until it is trained" in note for note in method.notes)


def test_generated_weights_are_a_warm_start() -> None:
    method, _ = searched(weights="generated", population=3, iterations=1)
    plan = method.plan()
    ratios = {group.name: plan.widths[group.name] / group.width for group in method.graph.groups}
    small = method.finish()
    wanted = method.net.weights(ratios)["neck.0.weight"][: plan.widths["neck.0"], : plan.widths["stem.0"]]
    assert torch.equal(small.neck[0].weight, wanted)


def test_nothing_tried_is_refused() -> None:
    with pytest.raises(ConfigError, match="has tried nothing"):
        made().finish()


RECIPE = """
name: metapruning
model: zoo:resnet8
data: {name: digits, train_images: 200, batch_size: 50}
method: {name: metapruning, hidden: 2, population: 3, mutants: 2, crossovers: 1, iterations: 2, images: 64}
budget: flops=0.5
train: {epochs: 1, lr: 0.05}
export: {onnx: false, pt2: false}
latency: null
engine: {device: cpu}
"""


class Dying(Silent):
    """Ends the process, as far as this process can, at the fourth trial."""

    def trial(self, done: int, total: int | None, best: str) -> None:
        if done == 4:
            raise KeyboardInterrupt


def test_a_run_that_is_interrupted_in_the_search_ends_as_one_that_is_not(tmp_path: Path) -> None:
    runs.start(Recipe.parse(RECIPE), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        runs.start(Recipe.parse(RECIPE), tmp_path / "cut", progress=Dying())
    assert (tmp_path / "cut" / "search.jsonl").read_text().count("\n") == 5
    outcome = runs.resume(tmp_path / "cut")
    for name in ("search.jsonl", "plan.json", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert outcome.results["verification"]["exact"]
    assert 0.495 <= outcome.results["remaining"]["macs"] <= 0.5

"""CaP: the ranking is greedy on the compensated loss, the search keeps its bars, what is measured is what is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.allocate import Constraints
from secateur.errors import BudgetError, ConfigError
from secateur.graph.modules import clone_module
from secateur.methods import method
from secateur.methods.cap.forward_selection import ForwardSelection, forward_order
from secateur.methods.cap.ranking import Ranked
from secateur.methods.cap.structural_search import StructuralSearch, largest_share
from secateur.methods.kit.reading import families, unread
from secateur.plan import Plan
from secateur.repair.compensation import corrected
from secateur.statistics import gather
from secateur.statistics.held_out import HeldOut
from secateur.statistics.moments import Moments
from secateur.testing import NETWORKS
from secateur.testing.networks import Concatenation, grouped


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(columns: int, seed: int = 0) -> torch.Tensor:
    half = draw(3 * columns, columns, seed=seed) @ draw(columns, columns, seed=seed + 1)
    return half.T @ half / len(half)


def parts(channels: int, each: int = 1) -> list[tuple[Any, Any]]:
    return [(np.arange(channels), np.arange(channels * each).reshape(channels, each))]


def order_of(weight: torch.Tensor, sigma: torch.Tensor, each: int = 1) -> tuple[list[int], list[float]]:
    """The order and the gains, not as shares."""
    channels = len(sigma) // each
    selection = ForwardSelection(weight, sigma, parts(channels, each))
    order, gains = forward_order([selection], channels)
    return order.tolist(), (gains * selection.total).tolist()


def loss(weight: torch.Tensor, sigma: torch.Tensor, kept: list[int]) -> float:
    cross = weight @ sigma[:, kept]
    explained = cross @ torch.linalg.solve(sigma[kept][:, kept], cross.T) if kept else torch.zeros(1, 1)
    return float(torch.trace(weight @ sigma @ weight.T) - torch.trace(explained))


# ----------------------------------------------------------------------------------------------------------- ranking


def test_two_inputs() -> None:
    sigma = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    selection = ForwardSelection(weight, sigma, parts(2))
    assert selection.total == pytest.approx(34)
    assert selection.gains(2) * 34 == pytest.approx([25, 32])
    assert order_of(weight, sigma) == ([1, 0], pytest.approx([32, 2]))
    one = ForwardSelection(weight, sigma, parts(2))
    one.choose(0)
    assert one.corrected(1).tolist() == [[pytest.approx(2.5), 0.0]]


@pytest.mark.parametrize(("channels", "each", "outputs"), [(6, 1, 3), (5, 3, 4), (4, 2, 12)])
def test_gains_are_differences_of_the_loss(channels: int, each: int, outputs: int) -> None:
    sigma, weight = covariance(channels * each), draw(outputs, channels * each, seed=4)
    order, gains = order_of(weight, sigma, each)
    columns = np.arange(channels * each).reshape(channels, each)
    kept: list[int] = []
    for channel, gain in zip(order, gains, strict=True):
        left = [c for c in range(channels) if columns[c, 0] not in kept]
        before = loss(weight, sigma, kept)
        possible = {c: before - loss(weight, sigma, kept + columns[c].tolist()) for c in left}
        assert channel == max(possible, key=lambda c: possible[c])
        assert gain == pytest.approx(possible[channel], rel=1e-6, abs=1e-8)
        kept += columns[channel].tolist()
    assert sum(gains) == pytest.approx(loss(weight, sigma, []), rel=1e-8)
    assert min(gains) >= 0


@pytest.mark.parametrize("row", [[0.0, 1, 0, 0], [1.0, -2, 0, 1]], ids=["duplicate", "affine"])
def test_what_others_tell_comes_last(row: list[float]) -> None:
    mixing = torch.cat([torch.eye(4), torch.tensor([row])]).double()
    sigma, weight = mixing @ covariance(4) @ mixing.T, draw(3, 5, seed=2)
    order, gains = order_of(weight, sigma)
    assert gains[-1] == pytest.approx(0, abs=1e-8 * sum(gains))
    assert order[-1] in {4, *(k for k in range(4) if row[k])}  # one of those that are told by the others


def test_uncorrelated_inputs_go_by_norm_times_deviation() -> None:
    variance, weight = draw(8).square() + 0.1, draw(3, 8, seed=3)
    order, gains = order_of(weight, torch.diag(variance))
    wanted = weight.square().sum(0) * variance
    assert order == wanted.argsort(descending=True).tolist()
    assert gains == pytest.approx(sorted(wanted.tolist(), reverse=True))


def test_scale_and_numbering_of_channels_do_not_matter() -> None:
    sigma, weight = covariance(8), draw(3, 8, seed=3)
    order, gains = order_of(weight, sigma, 2)
    scale = torch.tensor([0.01, 3.0, 50.0, 1.0]).double().repeat_interleave(2)
    scaled, same = order_of(weight / scale, sigma * scale[:, None] * scale, 2)
    assert scaled == order
    assert same == pytest.approx(gains)
    shuffled = [2, 0, 3, 1]
    columns = [2 * c + k for c in shuffled for k in (0, 1)]
    other, _ = order_of(weight[:, columns], sigma[columns][:, columns], 2)
    assert [shuffled[c] for c in other] == order


def test_channels_that_never_change_come_last() -> None:
    sigma, weight = covariance(6), draw(2, 6, seed=3)
    sigma[2:4] = sigma[:, 2:4] = 0.0  # channel 1
    weight[:, 4:] = 0.0  # channel 2 varies, but nobody minds
    order, gains = order_of(weight, sigma, 2)
    assert order[-1] == 1
    assert gains[-1] == 0.0


def test_what_a_prefix_comes_to_is_the_repair() -> None:
    sigma, weight, fixed = covariance(11), draw(4, 11, seed=5), np.array([9, 10])
    selection = ForwardSelection(weight, sigma, [(np.arange(3), np.arange(9).reshape(3, 3))], fixed, ridge=1e-6)
    order, _ = forward_order([selection], 3)
    for stay in range(4):
        kept = torch.zeros(11, dtype=torch.bool)
        kept[fixed] = True
        for channel in order[:stay]:
            kept[3 * channel : 3 * channel + 3] = True
        found = selection.corrected(selection.ends[stay])
        wanted, _ = corrected(weight, torch.zeros(11).double(), sigma, kept, ridge=1e-6)
        torch.testing.assert_close(found[:, kept], wanted, rtol=1e-4, atol=1e-6)
        assert not found[:, ~kept].any()
        variance = ((found @ sigma) * found).sum(1)
        torch.testing.assert_close(selection.outputs(found, selection.ends[stay]), variance, rtol=1e-4, atol=1e-6)
    assert torch.equal(selection.corrected(11), weight)


def test_several_layers_are_summed_as_shares() -> None:
    sigma, small, large = covariance(4), draw(2, 4, seed=5), 1e3 * draw(3, 4, seed=6)
    both = [ForwardSelection(w, sigma, parts(4)) for w in (small, large)]
    first = sum(s.gains(4) for s in both)
    order, gains = forward_order(both, 4)
    assert order[0] == int(np.argmax(first))
    assert gains.sum() == pytest.approx(2.0)


# ------------------------------------------------------------------------------------------------------------ search


def test_binary_search() -> None:
    assert largest_share(lambda share: 1 - share**2 >= 0.91, 1.0, 20) == pytest.approx(0.3, abs=1e-6)
    assert largest_share(lambda share: False, 0.9, 6) == 0.0
    assert largest_share(lambda share: True, 0.9, 6) == pytest.approx(0.9 * (1 - 2**-6))


def toy(shares: tuple[float, ...]) -> float:
    weights = (1.0, 0.2, 0.05)
    return 1 - sum(w * s**2 for w, s in zip(weights, shares, strict=False))


def reached(shares: tuple[float, ...], bar: float) -> bool:
    return toy(shares) >= bar


def test_bars_fall_by_equal_steps_and_slack_is_handed_on() -> None:
    search = StructuralSearch(3, reached, 1.0, 0.9, 16)
    shares = search.run(0.02)
    for unit in range(3):
        assert toy(shares[: unit + 1]) >= 1.0 - 0.02 * (unit + 1)
    assert toy(shares) >= 1.0 - 3 * 0.02  # the tolerated accuracy
    assert shares[0] == pytest.approx(0.02**0.5, abs=1e-4)
    assert shares[2] == pytest.approx(((0.06 - 0.02 - 0.02) / 0.05) ** 0.5, abs=1e-3)
    idle = StructuralSearch(
        2, lambda shares, bar: 1.0 - (0.05 * shares[1] if len(shares) > 1 else 0.0) >= bar, 1.0, 1.0, 16
    )
    assert idle.run(0.02) == pytest.approx((1.0, 0.8), abs=1e-3)  # the second may use both steps


def test_the_step_follows_from_the_budget() -> None:
    search = StructuralSearch(3, reached, 1.0, 0.9, 12)
    for limit in (0.3, 1.0, 2.2):
        shares, step = search.toward(lambda shares, limit=limit: sum(shares) >= limit, 12)
        assert sum(shares) < limit
        assert sum(search.run(step * 1.02 + 1e-5)) > 0.97 * limit
    shares, step = search.toward(lambda shares: True, 3)  # met from the beginning
    assert step == 0.0
    assert shares == (0.0, 0.0, 0.0)
    shares, _ = search.toward(lambda shares: False, 8)  # out of reach: as far as it goes
    assert min(shares) > 0.5


# ---------------------------------------------------------------------------------------------------------- held out


def stream(sizes: list[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    start = 0
    for size in sizes:
        yield torch.arange(start, start + size).float()[:, None], torch.arange(start, start + size) % 3
        start += size


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [3, 9, 8], [7, 13]])
def test_one_image_in_eight_is_held_out(sizes: list[int]) -> None:
    held = HeldOut(100, F.cross_entropy)
    rest = torch.cat([inputs for inputs, _ in held.rest(stream(sizes), torch.device("cpu"))])
    assert rest[:, 0].tolist() == [x for x in range(20) if x not in (7, 15)]
    assert len(held) == 2

    class Right(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert set(x[:, 0].tolist()) <= {7.0, 15.0}
            return F.one_hot(torch.where(x[:, 0] < 10, x[:, 0].long() % 3, 1), 3).float()

    assert held.begin(Right()) == held.whole == held.measure(Right()) == 0.5


def test_held_images_are_bounded_and_needed() -> None:
    held = HeldOut(3, F.cross_entropy)
    rest = list(held.rest(stream([64, 64]), torch.device("cpu")))
    assert (len(held), sum(len(x) for x, _ in rest)) == (3, 125)
    few = HeldOut(3, F.cross_entropy)
    list(few.rest(stream([7]), torch.device("cpu")))
    with pytest.raises(ConfigError, match="one image in 8, and fewer were shown"):
        few.require()


class Says(nn.Module):
    """Gives the same output whatever it sees."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output.expand(len(x), *self.output.shape[1:])


def holding(target: torch.Tensor, loss: Any) -> HeldOut:
    held = HeldOut(9, loss)
    list(held.rest([(torch.zeros(8, 2), target)], torch.device("cpu")))
    return held


LOSSES: dict[str, tuple[Any, list[float], list[float], float, float]] = {
    # loss, targets, the whole network's output, its loss, and that of an output of zeros
    "one number": (F.mse_loss, [2.0], [1.0], 1.0, 4.0),
    "one class": (F.binary_cross_entropy_with_logits, [1.0], [1.0], 0.313262, 0.693147),
    "several classes": (F.binary_cross_entropy_with_logits, [1.0, 1.0, 0.0], [1.0, 1.0, -1.0], 0.313262, 0.693147),
    "probabilities": (F.cross_entropy, [0.5, 0.5], [0.1, 0.1], 0.693147, 0.693147),
}


@pytest.mark.parametrize("name", LOSSES)
def test_without_classes_the_loss_says_what_is_kept(name: str) -> None:
    """The whole network keeps 1, another one its loss over the new: 1 / 4, and 0.313 / 0.693."""
    loss, target, output, before, after = LOSSES[name]
    held = holding(torch.tensor([target]).expand(8, -1), loss)
    assert held.begin(Says(torch.tensor([output]))) == pytest.approx(1.0)
    assert not held.by_accuracy
    assert held.whole == pytest.approx(before, rel=1e-5)
    assert held.measure(Says(torch.zeros(1, len(output)))) == pytest.approx(before / after, rel=1e-5)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_one_score_has_no_largest_class(shape: tuple[int, ...]) -> None:
    """Whole numbers as targets make it no accuracy, which would be that of always saying 0."""

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(output.flatten(), target.flatten().float())

    held = holding(torch.ones(shape, dtype=torch.long), loss)
    assert held.begin(Says(torch.ones(1, 1))) == pytest.approx(1.0)
    assert not held.by_accuracy


def test_numbers_that_are_no_classes_do_not_count() -> None:
    """Of six pixels of one image two are not labelled; three of the others are right."""
    output = torch.zeros(1, 3, 2, 3)
    output[0, 1] = 1.0
    target = torch.tensor([[[1, 1, 255], [1, 2, -100]]]).expand(8, 2, 3)
    assert holding(target, F.cross_entropy).begin(Says(output)) == 0.75


def test_where_nothing_can_be_measured() -> None:
    with pytest.raises(ConfigError, match=r"that is 0: give a loss above zero"):
        holding(torch.ones(8, 1), F.mse_loss).begin(Says(torch.ones(1, 1)))
    with pytest.raises(ConfigError, match="need class numbers as targets, or a loss"):
        holding(torch.ones(8, 2), lambda output, target: output).begin(Says(torch.ones(1, 2)))
    held = HeldOut(9, F.cross_entropy)
    list(held.rest([(torch.zeros(8, 2), None)], torch.device("cpu")))
    with pytest.raises(ConfigError, match="need class numbers as targets, or a loss"):
        held.begin(Says(torch.ones(1, 3)))


def test_a_network_with_one_output_is_searched_by_its_loss() -> None:
    """Accuracy would be 1 whatever is cut, and all units would lose as much."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 1),
    )  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(100)
    x = torch.randn(64, 3, 8, 8)
    y = model(x).detach() + 0.01 * torch.randn(64, 1)
    pruner = method("cap").factory(model, x[:1], budget="flops=0.5")
    pruner.collect([(x, y)], F.mse_loss)
    story = pruner.plan().provenance["search"]
    assert 0 < story["loss"] < story["loss_after"]
    assert "accuracy" not in story
    assert len(set(story["shares"])) > 1
    assert "The search uses loss on 8 images held out of those shown, for outputs" in " ".join(pruner.notes)


# ---------------------------------------------------------------------------------------------------------- families


def test_what_is_read_side_by_side_is_one_family() -> None:
    graph = secateur.trace(Concatenation(), torch.zeros(2, 3, 8, 8))
    (family,) = families(graph)
    assert family.groups == tuple(group.name for group in graph.groups)
    assert family.width == 48
    assert [r.layer for r in family.readings] == ["first.0", "second.0", "head.fc"]
    kept = np.arange(48) % 2 == 0
    assert family.readings[1].columns(kept).sum() == 9 * 16
    first, *_ = families(graph, [graph.groups[0].name])
    assert graph.groups[0].name not in first.groups
    assert len(next(r for r in first.readings if r.layer == "second.0").fixed) == 9 * 16


def test_a_grouped_convolution_reads_group_by_group() -> None:
    graph = secateur.trace(grouped(), torch.zeros(2, 3, 8, 8))
    found = {reading.layer: 0 for family in families(graph) for reading in family.readings}
    for family in families(graph):
        for reading in family.readings:
            found[reading.layer] += 1
            assert len(reading.matrix(graph.model)) == reading.rows.stop - reading.rows.start
    assert found["1.0"] == 4
    assert found["2.0"] == 1


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.fc = nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.up(self.two(self.one(x).relu()).relu()).relu().mean((2, 3)))
        return result


def test_what_nobody_weighs_stays_whole() -> None:
    network = NETWORKS[0]
    assert unread(secateur.trace(Transposed(), network.inputs())) == ["two"]
    pruner = method("cap").factory(Transposed(), network.inputs(), budget="flops=0.8")
    pruner.collect(network.batches(3), F.cross_entropy)
    pruner.finish()
    assert pruner.result is not None
    assert pruner.result.plan.widths["two"] == 8
    assert "Read by something else than convolutions and linear layers, and so kept whole: two." in pruner.notes


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.name != "shuffle"], ids=lambda n: n.name)
def test_what_the_search_measures_is_what_is_cut(network: Any) -> None:
    model = network.make().double().eval()
    graph = secateur.trace(model, network.inputs().double())
    found = families(graph)
    moments = Moments([r.layer for family in found for r in family.readings])
    data = [(x.double(), y) for x, y in network.batches(30)]
    gather(model, data, [moments])
    twin, masks = clone_module(model, lambda tensor: tensor.detach().clone()).eval(), {}
    with torch.no_grad():
        for family in found:
            unit = Ranked(family, model, moments, [1] * len(family.groups))
            gone = int(0.4 * family.width)
            unit.write(twin, model, gone)
            kept = np.zeros(family.width, dtype=np.bool_)
            kept[unit.order[: family.width - gone]] = True
            masks.update(family.split(kept))
    pruner = method("cap").factory(model, network.inputs().double(), budget="flops=0.9")
    pruner._moments = moments  # type: ignore[assignment]
    plain = pruner.plain().eval()
    pruner.repair(plain, Plan(masks))
    x = torch.cat([x for x, _ in data[:2]])
    with torch.no_grad():
        wanted = twin(x)
        torch.testing.assert_close(plain(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert float((wanted - model(x)).abs().max()) > 1e-3 * float(wanted.abs().max())


class Copies(nn.Module):
    """Half of the hidden channels repeat others, so half of them can go without a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(24), nn.Linear(24, 5)
        with torch.no_grad():
            for layer in (self.one, self.two, self.norm):
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        half = len(tensor) // 2
                        tensor[half:] = tensor[:half]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.two(self.one(x).relu())).relu()
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def collected(model: nn.Module, *, size: int = 8, **options: Any) -> Any:
    network = NETWORKS[0]
    pruner = method("cap").factory(model.eval(), network.inputs(), **{"budget": "flops=0.5", **options})
    x, y = (torch.cat(parts) for parts in zip(*network.batches(32, seed=3), strict=True))
    pruner.collect(zip(x.split(size), y.split(size), strict=True), F.cross_entropy)
    return pruner


def test_copies_go_and_nothing_is_lost() -> None:
    torch.manual_seed(0)
    model = Copies()
    pruner = collected(model, budget="flops=0.28", drop=0.0)
    small = pruner.finish().eval()
    for name, half in (("one", 8), ("two", 12)):
        mask = pruner.result.plan.masks[name]
        assert mask.sum() == half
        assert (mask[:half] ^ mask[half:]).all()  # one of each pair
    x, _ = next(NETWORKS[0].batches(1, seed=9))
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


def test_batches_may_be_of_any_size() -> None:
    torch.manual_seed(0)
    model = NETWORKS[0].make()
    one, other = (collected(model, size=size).plan().masks for size in (8, 50))
    for name, mask in one.items():
        np.testing.assert_array_equal(mask, other[name])


def test_repairs_and_rounds_of_the_story() -> None:
    pruner = collected(Copies(), budget="flops=0.6")
    story = pruner.plan().provenance["search"]
    assert story["images"] == 32
    assert len(story["shares"]) == 2
    assert 0 <= story["step"] <= story["accuracy"] <= 1
    assert "The search uses accuracy on 32 images held out of those shown." in pruner.notes


def test_least_widths_of_a_family_come_first() -> None:
    network = NETWORKS[2]
    pruner = method("cap").factory(
        network.make(), network.inputs(), budget="flops=0.6", constraints=Constraints(min_channels=6)
    )
    pruner.collect(network.batches(8), F.cross_entropy)
    assert min(pruner.plan().widths.values()) >= 6


def test_settings_that_cannot_be() -> None:
    network = NETWORKS[0]
    with pytest.raises(BudgetError, match=r"^With max_sparsity=0.1, the budget"):
        method("cap").factory(network.make(), network.inputs(), budget="flops=0.3", max_sparsity=0.1)
    with pytest.raises(ConfigError, match="halvings"):
        method("cap").factory(network.make(), network.inputs(), budget="flops=0.5", halvings=0)
    pruner = method("cap").factory(network.make(), network.inputs(), budget="flops=0.5", normalise="max")
    assert pruner.notes == ["CaP's scores are shares of one loss, so normalise='max' was not applied."]


@pytest.mark.parametrize("allocator", ["uniform", "per_cost"])
def test_other_allocators_take_the_ranking(allocator: str) -> None:
    pruner = collected(NETWORKS[0].make(), allocator=allocator)
    assert "search" not in pruner.plan().provenance
    pruner.finish()
    assert pruner.result.reached("flops") <= 0.5

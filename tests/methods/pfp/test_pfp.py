"""PFP: the worked numbers, properties and traps of its specification, against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur.methods.pfp.sensitivity as room
from secateur.errors import ConfigError, ModelError
from secateur.graph import trace
from secateur.graph.readers import readers
from secateur.methods.pfp.by_error import LEAST, MOST, asked, different, difficulty, draws, needed, wanted
from secateur.methods.pfp.method import PFP, draw, drawn, images
from secateur.methods.pfp.sensitivity import Sensitivities
from secateur.models import create
from secateur.statistics.gather import gather
from secateur.testing.networks import NETWORKS, Network

BY_NAME = {network.name: network for network in NETWORKS}
RESIDUAL = BY_NAME["residual"]
Options = Any


def linear(rows: list[list[float]], *points: list[float], **options: Options) -> list[float]:
    """Sensitivities of the inputs of one linear layer."""
    layer = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=True))
    layer[0].weight.data = torch.tensor(rows)
    return looked(layer, torch.tensor(points), {"0": np.arange(len(rows[0]))}, **options).tolist()


def looked(model: nn.Module, inputs: torch.Tensor, tables: dict[str, np.ndarray], **options: Options) -> np.ndarray:
    found = Sensitivities(tables, **options)
    gather(model, [(inputs, None)], [found])
    return found.channels(max(int(table.max()) for table in tables.values()) + 1)


def by_hand(layer: nn.Module, x: torch.Tensor, table: np.ndarray, kind: str = "sum") -> np.ndarray:
    """The definition, share by share."""
    weight = layer.weight.detach().double()  # type: ignore[union-attr,operator]
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, nn.Linear):
        weight, x = weight[:, :, None, None], x.reshape(-1, x.shape[-1])[:, :, None, None]
    kernel = weight.shape[2:]
    keys = ("dilation", "padding", "stride")
    unfold = {key: getattr(layer, key) for key in keys if hasattr(layer, key)}
    result = np.zeros(int(table.max()) + 1)
    each = len(weight) // groups
    for a_sign, w_sign in itertools.product((1, -1), (1, -1)):
        patches = F.unfold((a_sign * x.double()).clamp(min=0), kernel, **unfold)  # [n, c k k, positions]
        patches = patches.unflatten(1, (len(table), -1))
        for row in range(len(weight)):
            inputs = slice(row // each * weight.shape[1], (row // each + 1) * weight.shape[1])
            products = (w_sign * weight[row]).clamp(min=0).flatten(1)[None, :, :, None] * patches[:, inputs]
            below = products.sum((1, 2))
            inverse = torch.where(below > 1e-7, 1 / below, 0.0)
            for channel in np.unique(table[inputs]):
                own = products[:, np.flatnonzero(table[inputs] == channel)].flatten(1, 2)
                top = own.sum(1) if kind == "sum" else own.amax(1)
                result[channel] = max(result[channel], float((top * inverse).max()))
    return result


# ------------------------------------------------------------------------------------------------ sensitivities


def test_worked_numbers() -> None:
    """Property 1: relative contributions [[.2, .4, .4], [.6, 0, .4]]."""
    assert linear([[1.0, 2, 1], [3, 0, 1]], [1.0, 1, 2]) == pytest.approx([0.6, 0.4, 0.4])


def test_signs_by_themselves() -> None:
    """Property 2: positive and negative weights have sums of their own."""
    assert linear([[1.0, -2, 1], [3, 1, -1]], [1.0, 1, 2]) == pytest.approx([0.75, 1.0, 1.0])


def test_negative_inputs_by_themselves() -> None:
    """Of a = (1, -1, -3) and one filter (1, 1, 1): shares 1, 1/4, 3/4."""
    assert linear([[1.0, 1, 1]], [1.0, -1, -3]) == pytest.approx([1.0, 0.25, 0.75])


@pytest.mark.parametrize("dense", [0, 1 << 40], ids=["pairs", "all"])
@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("case", ["plain", "strided", "dilated", "grouped", "linear", "flattened", "padded", "several"])
def test_against_the_definition(case: str, kind: Any, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every share, whichever way they are looked at and in however small pieces."""
    torch.manual_seed(1)
    x = torch.randn(3, 8, 7, 7)
    layers = {
        "plain": nn.Conv2d(8, 5, 3), "strided": nn.Conv2d(8, 5, 3, stride=2, padding=1), "padded": nn.Conv2d(8, 5, 1),
        "dilated": nn.Conv2d(8, 5, (3, 1), dilation=2), "grouped": nn.Conv2d(8, 6, 3, groups=2),
        "linear": nn.Linear(7, 4), "flattened": nn.Linear(56, 4), "several": nn.Conv2d(8, 5, 1),
    }  # fmt: skip
    layer = layers[case]
    if case == "flattened":
        x = x[:, :, 0].relu().flatten(1)
    elif case == "padded":
        x = x.relu()
    table = {
        "grouped": np.tile(np.arange(4), 2), "linear": np.arange(7), "flattened": np.repeat(np.arange(8), 7),
        "several": np.array([0, 1, 1, 0, 2, 2, 3, 3]),
    }.get(case, np.arange(8))  # fmt: skip
    monkeypatch.setattr(room, "_DENSE", dense)
    monkeypatch.setattr(room, "_LENGTH", {"cpu": 16, "cuda": 16})
    monkeypatch.setattr(room, "_PIECE", {"cpu": 100, "cuda": 100})
    found = looked(nn.Sequential(layer), x, {"0": table}, kernel=kind)
    np.testing.assert_allclose(found, by_hand(layer, x, table, kind), rtol=1e-5)


def test_kernels_add_up_or_not() -> None:
    """Property 3: one output scalar, one point, nonnegative: shares add up to 1; the largest products to less."""
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Conv2d(6, 1, 3)), torch.rand(1, 6, 3, 3)
    layer[0].weight.data.abs_()
    table = {"0": np.arange(6)}
    assert looked(layer, x, table).sum() == pytest.approx(1.0, rel=1e-6)
    assert looked(layer, x, table, kernel="max").sum() < 0.9
    one = nn.Sequential(nn.Conv2d(6, 4, 1))
    np.testing.assert_allclose(looked(one, x, table), looked(one, x, table, kernel="max"))
    total = looked(nn.Sequential(nn.Conv2d(6, 4, 1)), torch.rand(2, 6, 1, 1), table).sum()
    assert 1.0 <= total <= min(6, 2 * 4 * 2)


def test_invariance() -> None:
    """Property 4: rows scaled, channels scaled against their inputs, more points; silence."""
    torch.manual_seed(2)
    rows, points = torch.randn(4, 5), torch.rand(6, 5)
    points[:, 3] = 0.0
    before = np.array(linear(rows.tolist(), *points.tolist()))
    scales = torch.tensor([3.0, 0.1, 1.0, 7.0])
    np.testing.assert_allclose(linear((rows * scales[:, None]).tolist(), *points.tolist()), before, rtol=1e-5)
    other = torch.tensor([2.0, 0.5, 4.0, 1.0, 8.0])
    np.testing.assert_allclose(linear((rows * other).tolist(), *(points / other).tolist()), before, rtol=1e-5)
    more = torch.cat([points, torch.rand(3, 5)])
    assert (np.array(linear(rows.tolist(), *more.tolist())) >= before - 1e-6).all()
    assert before[3] == 0.0
    assert (before[[0, 1, 2, 4]] > 0).all()


def test_sums_of_nothing_give_no_share() -> None:
    """Trap: a denominator near zero would give sensitivities in the thousands."""
    assert linear([[1.0, 1.0]], [1e-9, 1e-10]) == [0.0, 0.0]
    found = linear([[1e-8, 1.0]], [1.0, 0.0], [1.0, 1.0])
    assert found == pytest.approx([1e-8, 1.0], rel=1e-4)


def test_whatever_the_batch_and_its_parts() -> None:
    """Maxima: any batches, and parts of them that are put together, as processes do."""
    model = RESIDUAL.make()
    tables, _ = readers(trace(model, RESIDUAL.inputs()))
    batches = list(RESIDUAL.batches(3))
    x = torch.cat([batch[0] for batch in batches])

    def channels(*parts: torch.Tensor) -> np.ndarray:
        found = Sensitivities(tables)
        gather(model, [(part, None) for part in parts], [found])
        return found.channels(208)

    whole = channels(x)
    np.testing.assert_allclose(channels(*x.split(5)), whole, rtol=1e-5)
    np.testing.assert_allclose(np.maximum(channels(x[:7]), channels(x[7:])), whole, rtol=1e-5)
    assert (whole > 0).any()


def test_positions_are_a_choice() -> None:
    """Fewer positions can only lower the maxima."""
    model = RESIDUAL.make()
    tables, _ = readers(trace(model, RESIDUAL.inputs()))
    batches = list(RESIDUAL.batches(1))
    found = []
    for most in (None, 16):
        found.append(Sensitivities(tables, positions=most))
        gather(model, batches, found[-1:])
    every, some = (each.channels(208) for each in found)
    assert (some <= every * (1 + 1e-5)).all()
    assert some.sum() < every.sum()
    assert found[1].positions["first.0"] == 64


# -------------------------------------------------------------------------------------------------- the allocation


def test_different_channels_of_so_many_draws() -> None:
    """Property 6."""
    shares = np.array([0.5, 0.3, 0.2])
    assert [different(shares, times) for times in (1, 2, 3, 5)] == pytest.approx([1, 1.62, 2.02, 2.473], abs=1e-3)
    assert different(np.append(shares, 0.0), math.inf) == 3
    grown = [different(shares, times) for times in range(40)]
    assert all(a < b for a, b in itertools.pairwise(grown))


def test_draws_for_an_error() -> None:
    """Property 7."""
    alpha = difficulty(64, 9)
    assert 10 * alpha == pytest.approx(2717.54, abs=0.01)
    assert [draws(10, alpha, e) for e in (0.5, 1, 10, 100, 1000)] == [228274, 65222, 2120, 168, 17]
    assert draws(10, alpha, 1e150) == 1
    assert draws(10, alpha, 1e-300) == math.inf


def test_needed_is_the_least() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.random(12) ** 3
        shares = np.append(values / values.sum(), 0.0)
        found = needed(shares, np.arange(13.0))
        assert np.isinf(found[12])
        for count, times in enumerate(found[:12]):
            assert different(shares, times) > count
            assert different(shares, times - 1) <= count + 1e-9


def test_thresholds_are_the_formula() -> None:
    """log ε of the channels says for every ε how many it asks for."""
    rng = np.random.default_rng(1)
    for width in (1, 2, 7, 300):
        values = rng.random(width) ** 4
        values[rng.random(width) < 0.1] = 0.0
        values[0] = 1.0
        found = asked(values, difficulty(100, 9))
        assert (np.diff(found[np.argsort(-values, kind="stable")]) <= 0).all()
        for error in 10.0 ** np.arange(-3, 6):
            assert wanted(values, difficulty(100, 9), error) == int((found >= math.log(error)).sum())
    assert asked(np.zeros(3), 100.0).tolist() == [MOST, LEAST, LEAST]
    assert wanted(np.zeros(3), 100.0, 0.1) == 1


def chain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def shown(model: nn.Module, count: int = 12, **options: Options) -> PFP:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    method = PFP(model, x[:1], **{"budget": "params=0.5", **options})
    method.collect([(x, torch.zeros(count, dtype=torch.long))], F.cross_entropy)
    return method


def test_one_error_for_all_layers() -> None:
    """Property 8: the widths are those of one ε by a search over ε, up to what the next channel would cost."""
    method = shown(chain())
    alphas = {"0": difficulty(64, 9), "2": difficulty(64, 1), "4": difficulty(1, 1)}
    assert [each.alpha for each in method._readers()] == pytest.approx(list(alphas.values()))
    shares = method._shares()

    def widths(error: float) -> np.ndarray:
        return np.array([wanted(shares[name], alphas[name], error) for name in shares])

    def size(error: float) -> float:
        return float(method.graph.costs.evaluate(widths(error))["params"])

    sizes = [size(error) for error in np.geomspace(1e-300, 1e150, 200)]
    assert all(a >= b for a, b in itertools.pairwise(sizes))
    assert widths(1e-300).tolist() == [np.count_nonzero(shares[name]) for name in shares]
    assert widths(1e150).tolist() == [1, 1, 1]
    limit, low, high = 0.5 * method.graph.cost().params, -690.0, 345.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if size(math.exp(middle)) <= limit else (middle, high)
    plan = method.plan()
    found = np.array([plan.widths[name] for name in shares])
    assert (found >= widths(math.exp(high))).all()
    assert (found - widths(math.exp(high))).sum() <= 4  # what was left of the budget
    assert plan.provenance["log_error"] <= high + 1e-6
    assert 0.99 <= method.graph.cost(plan).params / limit <= 1.0


def test_the_most_sensitive_stay() -> None:
    """Property 9: exactly the top of every group, whatever the order of the channels."""
    model = chain()
    method = shown(model)
    plan = method.plan()
    for name, values in method._shares().items():
        mask = plan.masks[name]
        assert values[mask].min() >= values[~mask].max()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor.copy_(tensor[order])
        model[2].weight.copy_(model[2].weight[:, order])
    assert (shown(model).plan().masks["0"] == plan.masks["0"][order.numpy()]).all()


def test_what_never_contributes_goes_without_loss() -> None:
    """Properties 9 and 11: no output on the images of S changes; filters that nobody reads are gone."""
    model = chain()
    with torch.no_grad():
        for k in (1, 4, 7):
            model[0].bias[k] = -100.0  # silent
        model[2].weight[:, 9] = 0.0  # never read
    full = model(torch.zeros(1, 3, 8, 8))
    assert full.shape == (1, 5)
    method = shown(model, budget="params=0.9")
    assert np.flatnonzero(method._shares()["0"] == 0).tolist() == [1, 4, 7, 9]
    plan = method.plan()
    gone = {name: np.flatnonzero(~mask).tolist() for name, mask in plan.masks.items()}
    assert gone["2"] == gone["4"] == []
    assert 2 <= len(gone["0"]) <= 4
    assert set(gone["0"]) <= {1, 4, 7, 9}
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(method.graph.cut(plan).model(x), model(x), rtol=1e-5, atol=1e-6)
    plan.masks["0"][[1, 4, 7, 9]] = False
    narrow = method.graph.cut(plan).model
    torch.testing.assert_close(narrow(x), model(x), rtol=1e-5, atol=1e-6)
    assert narrow[0].out_channels == 16


def test_larger_sums_keep_at_least_as_many() -> None:
    """Property 10: two layers alike but for S, 2 to 1."""
    flat = np.full(40, 0.2)
    for error in 10.0 ** np.arange(0, 5):
        assert wanted(2 * flat, 300.0, error) >= wanted(flat, 300.0, error)
    assert wanted(2 * flat, 300.0, 1e3) > wanted(flat, 300.0, 1e3)


# ------------------------------------------------------------------------------------------------------- drawing


def test_drawing_is_unbiased_and_bounded() -> None:
    """Property 5: with m draws, E[ẑ] = z and Var(ẑ_i) / z_i² <= S / m."""
    rng = np.random.default_rng(0)
    weight, a = rng.random((6, 20)), rng.random(20)
    z = weight @ a
    values = (weight * a / z[:, None]).max(0)
    shares, m = values / values.sum(), 50
    counts = rng.multinomial(m, shares, size=4000)
    estimates = (counts / (m * shares)) @ (weight * a).T
    np.testing.assert_allclose(estimates.mean(0), z, rtol=0.01)
    assert (estimates.var(0) / z**2 <= values.sum() / m).all()


def test_draws_end_with_the_width_that_was_asked_for() -> None:
    """The weights n_j / (m q_j) of a drawing that ends with the last channel needed; in frequency as plain draws."""
    shares = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0])
    frequency, plain = np.zeros(6), np.zeros(6)
    for seed in range(3000):
        found = drawn(shares, 3, np.random.default_rng(seed))
        assert np.count_nonzero(found) == 3
        assert found[5] == 0.0
        counts = found[found > 0] * shares[found > 0]
        assert counts.sum() == pytest.approx(1.0)
        whole = counts / counts.min()  # multiples of 1 / m, if the last one was drawn once
        np.testing.assert_allclose(whole, whole.round(), atol=1e-6)
        frequency += found > 0
        rng, seen = np.random.default_rng(seed + 10_000), set[int]()
        while len(seen) < 3:
            seen.add(int(rng.choice(6, p=shares)))
        plain[list(seen)] += 1
    np.testing.assert_allclose(frequency / 3000, plain / 3000, atol=0.05)


def test_tiny_shares_end_in_time() -> None:
    shares = np.array([1.0 - 3e-12, 1e-12, 1e-12, 1e-12])
    found = drawn(shares, 3, np.random.default_rng(0))
    assert np.count_nonzero(found) == 3
    assert np.isfinite(found).all()


def test_top_keeps_what_is_drawn_anyway() -> None:
    values = np.array([1.0, 0.9, 0.8, *[0.01] * 20])
    found = draw(values, 6, "top", np.random.default_rng(0))
    assert found[:3].tolist() == [1.0, 1.0, 1.0]
    assert np.count_nonzero(found) == 6
    assert (found[3:][found[3:] > 0] > 1.0).all()
    assert draw(values, 23, "rand", np.random.default_rng(0)).tolist() == [1.0] * 23  # no choice is left
    assert draw(np.zeros(4), 2, "rand", np.random.default_rng(0)).tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("variant", ["rand", "top"])
def test_weights_stand_where_channels_are_read(variant: str, network: Network) -> None:
    """The narrow network is the one whose readers get every channel times its weight; det gets weight 1."""
    method = PFP(network.make(), network.inputs(), budget="flops=0.6", variant=variant)
    method.collect(network.batches(2), F.cross_entropy)
    narrow = method.finish().eval()
    plan = method.plan()
    parts = [method._drawn(g.name, int(plan.masks[g.name].sum()))[0] for g in method.graph.groups]
    factors = torch.from_numpy(np.append(np.concatenate(parts), 1.0)).float()
    assert float(factors.max()) > 1.0
    assert all(
        (part > 0).tolist() == plan.masks[g.name].tolist() for g, part in zip(method.graph.groups, parts, strict=True)
    )

    def gate(table: np.ndarray) -> Any:
        def before(layer: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
            return args[0] * factors[table].view(-1, *[1] * (args[0].dim() - 2))

        return before

    model = network.make().eval()
    for name, table in readers(method.graph)[0].items():
        model.get_submodule(name).register_forward_pre_hook(gate(table))
    x, _ = next(network.batches(1))
    torch.testing.assert_close(narrow(x), model(x), rtol=1e-4, atol=1e-4)


def test_seeds_decide_draws() -> None:
    plans = [shown(chain(), variant="rand", seed=seed).plan() for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0].widths == plans[2].widths


# --------------------------------------------------------------------------------------------- images, and refusing


def test_how_many_images() -> None:
    """About 190 for networks on small images, whatever the batch of the trace; only the first are looked at."""
    one = images(trace(create("resnet20"), torch.randn(1, 3, 32, 32)))
    assert 160 <= one <= 200
    assert one == images(trace(create("resnet20"), torch.randn(4, 3, 32, 32)))
    x = torch.randn(12, 3, 8, 8)
    method = PFP(chain(), x[:1], budget="params=0.5", images=5)
    found = []
    for size in (12, 4, 3):
        batches = [(part, torch.zeros(len(part))) for part in x.split(size)]
        method.collect(batches, F.cross_entropy)
        found.append(np.concatenate(list(method._shares().values())))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
    method.collect([(x[:5], None)], F.cross_entropy)
    np.testing.assert_allclose(np.concatenate(list(method._shares().values())), found[0], rtol=1e-5)
    assert method.notes == []
    method.collect([(x[:2], None)], F.cross_entropy)
    assert method.notes == ["PFP was to look at 5 images and was shown 2."]


def test_coupled_channels_take_the_largest() -> None:
    """A residual stream has the largest sensitivity over all layers that read it."""
    model = RESIDUAL.make()
    method = PFP(model, RESIDUAL.inputs(), budget="flops=0.5")
    method.collect(RESIDUAL.batches(2), F.cross_entropy)
    assert method.sensitivities is not None
    of = method.sensitivities.of
    stream = method._shares()[method.graph.groups[0].name]
    each = torch.stack([of[name] for name in ("first.0", "second.0", "neck.0")]).amax(0)
    np.testing.assert_allclose(stream, each.clamp(max=1).numpy(), rtol=1e-6)


def test_transposed_convolutions() -> None:
    """They are not scored: what nothing else reads stays whole, and what is drawn is weighted in them too."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2)
    )
    method = shown(model, budget="params=0.8")
    assert method.plan().masks["2"].all()
    assert "stay whole: 2." in method.notes[0]
    with pytest.raises(ModelError, match="that there are no shares"):
        PFP(model[2:], torch.randn(1, 8, 4, 4), budget="params=0.8")


def test_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="has seen no data"):
        PFP(chain(), torch.randn(1, 3, 8, 8), budget="params=0.5").finish()
    assert "normalise='mean' was not applied" in shown(chain(), normalise="mean").notes[0]

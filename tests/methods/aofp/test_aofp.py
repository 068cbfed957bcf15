"""AOFP: the search of one layer with worked numbers and replayed draws, damage, and what it does in a training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.graph import trace
from secateur.graph.norms import sources
from secateur.methods.aofp.behind import Behind, behind, compared
from secateur.methods.aofp.halving import decide, drawn_half, first_part
from secateur.methods.aofp.method import AOFP
from secateur.testing._subject import train
from secateur.testing.networks import NETWORKS

DAMAGES = np.array([0.1, 0.4, 0.2, 0.05, 0.3, 0.25, 0.15, 0.35])


# ------------------------------------------------------------------------------------------------- one layer's search


def _replayed(damages: np.ndarray, masks: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """T and cnt after these draws, where damages add up."""
    total, count = np.zeros(len(damages)), np.zeros(len(damages))
    for mask in masks:
        total[list(mask)] += damages[list(mask)].sum()
        count[list(mask)] += 1
    return total, count


def test_all_halves_of_eight_filters() -> None:
    """With additive damages E tbar_i = d_i + 3/7 of the others: the order is the true one."""
    total, count = _replayed(DAMAGES, [*itertools.combinations(range(8), 4)])
    wanted = [0.82857, 1.0, 0.88571, 0.8, 0.94286, 0.91429, 0.85714, 0.97143]
    np.testing.assert_allclose(total / count, wanted, atol=1e-5)
    np.testing.assert_allclose(total / count, DAMAGES + 3 / 7 * (DAMAGES.sum() - DAMAGES))
    found = decide(total, count, np.arange(8), 0.01)
    assert (found.act, found.chosen.tolist()) == ("halve", [3, 0, 6, 2])
    assert found.worst == pytest.approx(0.88571, abs=1e-5)


def test_replay_of_explicit_draws_down_to_one_filter() -> None:
    """8 -> 4 -> 2 -> one: what is decided at each stage, worked by hand, and what theta would have made of it."""
    masks = [(0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 4, 6), (1, 3, 5, 7)]
    total, count = _replayed(DAMAGES, masks)
    # steps cost .75, 1.05, .75, 1.05
    np.testing.assert_allclose(total / count, [0.75, 0.9, 0.75, 0.9, 0.9, 1.05, 0.9, 1.05])
    first = decide(total, count, np.arange(8), 0.01)
    assert (first.act, first.chosen.tolist()) == ("halve", [0, 2, 1, 3])  # ties to the lower number
    total, count = _replayed(DAMAGES, [(0, 2), (2, 3), (0, 3), (1, 3), (0, 1)])
    second = decide(total, count, np.sort(first.chosen), 0.01)
    np.testing.assert_allclose(total[:4] / count[:4], [(0.3 + 0.15 + 0.5) / 3, 0.475, 0.275, (0.25 + 0.15 + 0.45) / 3])
    assert (second.act, second.chosen.tolist()) == ("halve", [2, 3])
    total, count = _replayed(DAMAGES, [(2,), (3,), (3,)])
    assert decide(total, count, np.sort(second.chosen), 0.01).act == "give up"
    pruned = decide(total, count, np.sort(second.chosen), 0.051)
    assert (pruned.act, pruned.chosen.tolist(), pruned.worst) == ("prune", [3], pytest.approx(0.05))
    assert decide(total, count, np.sort(second.chosen), 0.05).act == "give up"  # strictly below theta


def test_never_drawn_is_never_chosen_first() -> None:
    total, count = np.array([5.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0, 0.0])
    found = decide(total, count, np.arange(4), 10.0)
    assert (found.act, found.chosen.tolist()) == ("prune", [2, 0])
    total, count = np.array([0.0, 0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 0.0])
    assert decide(total, count, np.arange(4), 10.0).act == "halve"  # one of the two is unknown


def test_odd_spaces_and_powers_of_two() -> None:
    total, count = _replayed(np.arange(7) / 10, [(0, 1, 2), (3, 4, 5), (0, 6, 1)])
    assert len(decide(total, count, np.arange(7), 0.0).chosen) == 3
    table = {3: 2, 6: 4, 12: 8, 20: 8, 24: 16, 48: 32, 96: 64, 100: 64, 200: 128, 300: 128, 512: 256}
    assert {size: first_part(size) for size in table} == table


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 99), st.integers(0, 999))
def test_half_of_the_space_is_drawn(width: int, seed: int, step: int) -> None:
    """Exactly as many as asked, all of the space, and the same for the same key."""
    space = torch.from_numpy(np.random.default_rng(seed).random(width) < 0.7)
    half = drawn_half(space, int(space.sum()) // 2, [seed, step, 0])
    assert int(half.sum()) == int(space.sum()) // 2
    assert not (half & ~space).any()
    assert torch.equal(half, drawn_half(space, int(space.sum()) // 2, [seed, step, 0]))


def test_each_filter_is_drawn_in_half_of_the_steps() -> None:
    space = torch.ones(8, dtype=torch.bool)
    counts = torch.stack([drawn_half(space, 4, [0, step, 0]) for step in range(400)]).float().mean(0)
    assert (counts - 0.5).abs().max() < 0.1


# ------------------------------------------------------------------------------------------------------------ damage


class _Chain(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (8, 8)) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        self.b, self.nb = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False), nn.BatchNorm2d(widths[1])
        self.head = nn.Linear(widths[1], 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.na(self.a(x)))
        return self.head(F.relu(self.nb(self.b(x)), inplace=True).mean((2, 3)))


def _chain(**options: object) -> AOFP:
    torch.manual_seed(0)
    usual = {"budget": "flops=0.3", "steps": 400, "every": 4, "warmup": 0}
    return AOFP(_Chain(), torch.zeros(2, 3, 8, 8), **usual | options)  # type: ignore[arg-type]


def test_what_stands_behind_a_layer() -> None:
    """Norm and functional activation, in place or not; none where the tensor goes elsewhere as well."""
    graph = trace(_Chain(), torch.zeros(2, 3, 8, 8))
    norms = {layer: norm for norm, layer in sources(graph).of.items() if layer}
    found = behind(graph, norms)
    x = torch.randn(4, 8, 5, 5)
    assert (found["b"].norm, found["head"].norm) == ("nb", None)
    wanted = F.batch_norm(x, None, None, graph.model.nb.weight, graph.model.nb.bias, training=True).relu()
    before = x.clone()
    graph.model.train()
    torch.testing.assert_close(compared(graph.model, found["b"], x), wanted)
    assert torch.equal(x, before)
    for name in ("a", "b"):  # one of them works in place, and there need not be a norm in between
        compared(graph.model, Behind(None, found[name].activation), x)
        assert torch.equal(x, before)
    graph.model.eval()
    graph.model.nb.running_mean.fill_(0.5)
    torch.testing.assert_close(compared(graph.model, found["b"], x), graph.model.nb(x).relu())
    torch.testing.assert_close(compared(graph.model, found["head"], x), x)
    residual = next(n for n in NETWORKS if n.name == "residual")
    graph = trace(residual.make(), residual.inputs())
    norms = {layer: norm for norm, layer in sources(graph).of.items() if layer}
    assert (compared(graph.model.eval(), behind(graph, norms)["first.3"], -torch.ones(1, 24, 2, 2)) < 0).any()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_damage_is_the_relative_change_of_what_the_reader_makes(mode: str) -> None:
    """sum (y - y')² / sum y² behind norm and activation, b_s on both; by each batch's own statistics in training."""
    made = _chain()
    made.base[8 + 2] = False  # the reader's own output 2 is masked already
    made.base[1] = False
    made.space[1], made.sizes[0] = False, 7
    made.train()
    model, x = made.model, torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    if mode == "eval":
        model.eval()
    seen = made._half(0)
    made(x)
    with torch.no_grad():
        twin = _chain().model.train(model.training)
        a = F.relu(twin.na(twin.a(x))) * made.base[:8].view(-1, 1, 1)
        y, other = (F.relu(twin.nb(twin.b(part))) for part in (a, a * (~seen).view(-1, 1, 1)))
        kept = made.base[8:].view(-1, 1, 1)
        wanted = ((y - other) * kept).square().sum() / (y * kept).square().sum()
    assert float(made._parts[0, 0] / made._parts[1, 0]) == pytest.approx(float(wanted), rel=1e-4)
    assert not seen[1]
    assert int(seen.sum()) == 3


def test_dead_channels_do_no_damage_and_no_output_is_all_of_it() -> None:
    made = _chain()
    with torch.no_grad():
        made.model.b.weight[:, made._half(0)] = 0.0
    made.train()
    made(torch.randn(4, 3, 8, 8))
    assert float(made._parts[0, 0]) == 0.0
    made = _chain()
    with torch.no_grad():
        made.model.b.weight[:, ~made._half(0)] = 0.0
        made.model.nb.bias.fill_(-1.0)  # what nothing reaches is shut by the activation
    made.train()
    made(torch.randn(4, 3, 8, 8))
    assert float(made._parts[0, 0] / made._parts[1, 0]) == pytest.approx(1.0)


def test_several_readers_and_micro_batches_add_up() -> None:
    """A group that two layers read, and a concatenation: sums over readers and parts of a batch."""
    network = next(n for n in NETWORKS if n.name == "concatenation")
    made = AOFP(network.make(), network.inputs(), budget="flops=0.3", steps=400, warmup=0)
    made.train()
    made.model.eval()  # so that parts of a batch are normalised alike
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    made.step = 100
    made(x)
    whole = made._parts.clone()
    assert (whole[1] > 0).all()
    made._fresh()
    for part in x.split(3):
        made(part)
    torch.testing.assert_close(made._parts, whole, rtol=1e-4, atol=1e-5)
    assert [sorted(k for name, read in made._read.items() for k in read if k == 0)] == [[0, 0, 0]]


# -------------------------------------------------------------------------------------------------------- a training


def test_scoring_changes_nothing_in_the_base_path() -> None:
    """Logits, gradients and running statistics are those without it."""
    x, labels = torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))
    found = []
    for begins in (0, 10**9):
        made = _chain()
        made.begins = dict.fromkeys(made.begins, begins)
        made.base[2] = False
        made.train()
        output = made(x)
        F.cross_entropy(output, labels).backward()
        assert bool(made._drawn) == (begins == 0)
        found.append([output, *(p.grad for p in made.model.parameters()), *made.model.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_theta_without_end_prunes_to_one_filter_and_stops() -> None:
    """8 -> 4 -> 2 -> 1 alive in each group, then nothing; b never gets a zero back."""
    made = _chain(theta=float(10**9), budget="flops=0.046", steps=4000, every=1)
    alive = [made.base.clone()]
    for images, labels in NETWORKS[0].batches(40):
        train(made, [(images, labels)])
        assert not (made.base & ~alive[-1]).any()
        alive.append(made.base.clone())
    counts = [tuple(int(part.sum()) for part in base.split(8)) for base in alive]
    assert {a for a, _ in counts} <= {8, 4, 2, 1}
    assert counts[-1] == (1, 1)
    assert sorted({a for a, _ in counts}, reverse=True)[:3] == [8, 4, 2]


def test_theta_of_nothing_never_prunes() -> None:
    made = _chain(theta=0.0, every=1, steps=4000)
    train(made, NETWORKS[0].batches(30))
    assert made.base.all()
    assert made.clocks != [0, 0] or any(size < 8 for size in made.sizes) or made.last.max() > 0
    plan = made.plan()
    assert any("were not found to damage less than theta=0" in note for note in made.notes)
    assert made.graph.cost(plan).macs <= 0.3 * made.graph.cost().macs


def test_the_last_decision_prunes_no_more_than_the_budget_asks_for() -> None:
    made = _chain(theta=float(10**9), budget="flops=0.8", steps=4000, every=1)
    train(made, NETWORKS[0].batches(20))
    assert made.met
    counts = {name: float(mask.sum()) for name, mask in made._masks().items()}
    fewer = [{**counts, name: counts[name] + 1} for name in counts if counts[name] < 8]
    assert made._aim.met(counts)
    assert any(not made._aim.met(other) for other in fewer)
    before = made.base.clone()
    train(made, NETWORKS[0].batches(5))
    assert torch.equal(made.base, before)
    assert not made._drawn


def test_decisions_of_a_training_follow_what_was_credited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explicit draws in four steps: T, cnt, the halving, the clock that begins anew."""
    made = _chain(every=4, steps=10**4)
    made.begins = {0: 0}
    halves = iter([(0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 4, 6), (1, 3, 5, 7), (0, 1)])

    def explicit(space: torch.Tensor, count: int, key: list[int]) -> torch.Tensor:
        mask = torch.zeros_like(space)
        mask[list(next(halves))] = True
        return mask

    monkeypatch.setattr("secateur.methods.aofp.method.drawn_half", explicit)
    damages = iter([0.75, 1.05, 0.75, 1.05])
    made.train()
    for images, _ in NETWORKS[0].batches(4):
        made(images)
        made._parts = torch.tensor([[next(damages), 0.0], [1.0, 0.0]])
        if made.step == 2:
            assert made.count[:8].tolist() == [1.0] * 8
            np.testing.assert_allclose(made.damage[:8].tolist(), [0.75] * 4 + [1.05] * 4, rtol=1e-6)
        made.after_step()
    assert torch.nonzero(made.space[:8]).flatten().tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(made.last[:8].tolist(), [0.75, 0.9, 0.75, 0.9, 0.9, 1.05, 0.9, 1.05], rtol=1e-6)
    assert (made.sizes[0], made.clocks[0], float(made.count.sum())) == (4, 0, 0.0)
    assert made.base.all()


def test_clocks_begin_one_after_the_other_and_shrink_with_short_trainings() -> None:
    made = _chain(every=100, steps=10**5, warmup=50)
    assert made.begins == {0: 50, 1: 100}
    assert not made.notes
    short = _chain(every=1000, steps=60, warmup=500)
    assert (short.every, short.warmup) == (5, 3)  # 60 / (4 log2 8)
    assert any("not 1000" in note for note in short.notes)


def test_plain_reads_nothing_that_is_masked() -> None:
    """Also in a grouped convolution, whose slices of one group of inputs serve all its outputs."""
    for name in ("residual", "grouped", "no norm"):
        network = next(n for n in NETWORKS if n.name == name)
        made = AOFP(network.make(), network.inputs(), budget="flops=0.5", units="all")
        made.base[::3] = False
        made.eval()
        x = network.inputs()
        torch.testing.assert_close(made.plain().eval()(x), made(x))
        assert not torch.allclose(made.model.eval()(x), made(x), atol=1e-4)


def test_streams_stay_whole_unless_asked_for() -> None:
    network = next(n for n in NETWORKS if n.name == "residual")
    inside = AOFP(network.make(), network.inputs(), budget="flops=0.5")
    whole = AOFP(network.make(), network.inputs(), budget="flops=0.5", units="all")
    assert 0 not in inside.begins
    assert 0 in whole.begins


def test_a_network_in_which_nothing_is_compared_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Conv2d(3, 6, 1), nn.Parameter(torch.ones(6, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x).mean((2, 3)) @ self.out

    with pytest.raises(ModelError, match="choose another method"):
        AOFP(Net(), torch.zeros(2, 3, 4, 4), budget="flops=0.5")

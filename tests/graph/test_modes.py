"""What only training sees: it stays whole; and what is no channel though it looks like one, the bins of a softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur
from secateur.errors import InputError
from secateur.graph.code import Code, names_read

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers and a head of 12 maps that evaluation reduces to 3 numbers each; `run` is the forward."""

    def __init__(self, run: Callable[[Net, torch.Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.last = nn.Conv2d(12, 3, 1)
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def raw(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def early(m: Net, x: torch.Tensor) -> Any:
    y = m.raw(x)
    if m.training:
        return [y]
    return m.last(y)


def pair(m: Net, x: torch.Tensor) -> Any:
    y = m.raw(x)
    return {"out": m.last(y), "raw": y} if getattr(m, "training") else {"out": m.last(y)}  # noqa: B009


def decide(m: nn.Module, y: torch.Tensor, z: torch.Tensor) -> Any:
    return (z, y) if m.training else z


def by_function(m: Net, x: torch.Tensor) -> Any:
    y = m.raw(x)
    return decide(m, y, m.last(y))


class Decode(nn.Module):
    """A leaf without parameters, as the last layer of many detectors."""

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        if not self.training:
            y = y.sigmoid().amax(1)
        return y


class Switched(nn.Module):
    """It never says `training`: switching the mode sets an attribute of its own."""

    raw = False

    def train(self, mode: bool = True) -> Switched:
        super().train(mode)
        self.raw = mode
        return self

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y if self.raw else y.mean((1, 2, 3))


def by_part(m: Net, x: torch.Tensor) -> Any:
    return m.part(m.raw(x))  # type: ignore[operator]


def by_gradients(m: Net, x: torch.Tensor) -> Any:
    y = m.raw(x)
    return (m.last(y), y) if torch.is_grad_enabled() else m.last(y)


def by_their_graph(m: Net, x: torch.Tensor) -> Any:
    y = m.raw(x)
    return [m.last(y), y] if y.requires_grad else [m.last(y)]


def needs_gradients(*tensors: torch.Tensor) -> bool:
    return any(t.requires_grad for t in tensors)


def by_anybody(m: Net, x: torch.Tensor) -> Any:
    y = m.raw(x)
    return {"out": m.last(y), **({"raw": y} if needs_gradients(x, y) else {})}


SPELLINGS: list[Callable[[], Net]] = [
    lambda: Net(by_gradients),
    lambda: Net(by_their_graph),
    lambda: Net(by_anybody),
    lambda: Net(early),
    lambda: Net(pair),
    lambda: Net(by_function),
    lambda: Net(by_part, part=Decode()),
    lambda: Net(by_part, part=Switched()),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", SPELLINGS)
def test_a_width_that_reaches_an_output_in_training_stays_whole(make: Callable[[], Net], training: bool) -> None:
    model = make().train(training)
    result = secateur.prune(model, IMAGE, budget="flops=0.5")
    assert {g.name for g in result.graph.groups} == {"a", "b"}
    assert result.model.head.out_channels == 12  # type: ignore[union-attr]
    whole, cut = (secateur.graph.nests.output_tensors(m.train()(IMAGE)) for m in (model, result.model))
    assert [t.shape for t in whole] == [t.shape for t in cut]
    assert "training mode" in next(f.reason for f in result.graph.frozen if f.name == "head")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_trace_leaves_the_gradient_mode_as_it_was(enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        secateur.trace(Net(by_gradients), IMAGE)
        assert torch.is_grad_enabled() is enabled


def kept_as_attribute(m: Any, x: torch.Tensor) -> Any:
    y = m.raw(x)
    if m.training:
        m.features = y
    return m.last(y)


def kept_in_a_list(m: Any, x: torch.Tensor) -> Any:
    y, m.kept = m.raw(x), []
    if m.training:
        m.kept.append(y)
    return m.last(y)


def kept_by_a_part(m: Any, x: torch.Tensor) -> Any:
    y = m.raw(x)
    m.last.seen = {"raw": y if m.training else y.mean()}
    return m.last(y)


def kept_deep(m: Any, x: torch.Tensor) -> Any:
    y = m.raw(x)
    m.store = {"raw": [y]} if m.training else None
    return m.last(y)


@pytest.mark.parametrize("run", [kept_as_attribute, kept_in_a_list, kept_by_a_part, kept_deep])
def test_what_training_keeps_for_a_loss_stays_whole(run: Callable[[Net, torch.Tensor], Any]) -> None:
    result = secateur.prune(Net(run).eval(), IMAGE, budget="flops=0.5")
    assert {g.name for g in result.graph.groups} == {"a", "b"}
    assert "kept as" in next(f.reason for f in result.graph.frozen if f.name == "head")


def test_what_every_forward_keeps_follows_the_cut() -> None:
    def kept(m: Any, x: torch.Tensor) -> Any:
        m.features = m.raw(x)
        return m.last(m.features) * (2.0 if m.training else 1.0)

    assert {g.name for g in secateur.trace(Net(kept).eval(), IMAGE).groups} == {"a", "b", "head"}


def test_what_training_mode_leaves_as_it_is_can_be_pruned() -> None:
    def dropping(m: Net, x: torch.Tensor) -> Any:
        return m.last(F.dropout(m.raw(x), 0.1, training=m.training))

    graph = secateur.trace(Net(dropping), IMAGE)
    assert {g.name for g in graph.groups} == {"a", "b", "head"}


def test_a_forward_that_needs_targets_in_training_is_told_and_pruned() -> None:
    def needy(m: Net, x: torch.Tensor) -> Any:
        if m.training:
            raise ValueError("targets are missing")
        return m.last(m.raw(x))

    result = secateur.prune(Net(needy), IMAGE, budget="flops=0.5")
    assert len(result.notes) == 1
    assert "training mode failed (ValueError: targets are missing)" in result.notes[0]


class Queries(nn.Module):
    """In training, classes that it is told join the places of the image, as the denoising queries of a detector."""

    def __init__(self, touch: bool) -> None:
        super().__init__()
        self.a, self.classes, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Embedding(5, 12), nn.Linear(12, 4)
        self.touch = touch

    def forward(self, x: torch.Tensor, *, targets: Any = None) -> torch.Tensor:
        y = torch.relu(self.a(x)).flatten(2).mT
        if self.training and targets is not None:
            told = self.classes(targets["classes"])[:, : int(targets["most"].max())]
            y = torch.cat([told, y], 1)
        out: torch.Tensor = self.head(y)
        return out + 0 * self.classes.weight.sum() if self.training and self.touch else out


CLASSES = {"classes": torch.tensor([[1, 2, 0]]), "most": torch.tensor([2])}


@pytest.mark.parametrize("touch", [False, True])
def test_training_is_traced_with_what_it_is_called_with(touch: bool) -> None:
    """Its code asks for a value, so that it runs on real tensors."""
    example = secateur.Inputs(IMAGE).in_training(IMAGE, targets=CLASSES)
    result = secateur.prune(Queries(touch), example, budget="flops=0.5")
    model: Any = result.model
    assert not result.notes
    assert model.classes.embedding_dim == model.classes.weight.shape[1] == model.a.out_channels == 6
    assert model.train()(IMAGE, targets=CLASSES).shape == (1, 66, 4)
    assert ".in_training(tensor(" in repr(example)


@pytest.mark.parametrize("touch", [False, True])
def test_what_no_forward_pass_uses_is_told_with_a_remedy(touch: bool) -> None:
    result = secateur.prune(Queries(touch), IMAGE, budget="flops=0.5")
    assert result.graph.never_ran == ("classes.weight",)
    (note,) = result.notes
    assert "No traced forward pass uses classes.weight" in note
    assert "in_training(images, targets)" in note


def test_inputs_of_training_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"training mode failed on the inputs given for it: .*goals"):
        secateur.trace(Queries(False), secateur.Inputs(IMAGE).in_training(IMAGE, goals=CLASSES))


def test_running_in_training_costs_nothing_and_changes_no_statistics() -> None:
    model = Net(early, norm=nn.BatchNorm2d(12))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = secateur.trace(Net(lambda m, x: m.last(m.raw(x))), IMAGE)
    assert secateur.trace(model, IMAGE).cost().macs == plain.cost().macs
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Bins(nn.Module):
    """8 bins for each of 4 sides, as a distribution over distances whose mean is the output."""

    def __init__(self, read: Callable[[Bins, torch.Tensor], torch.Tensor], project: torch.Tensor, frozen: bool) -> None:
        super().__init__()
        self.a, self.b, self.box = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 32, 1)
        self.read, self.n = read, 8
        if frozen:
            self.project = nn.Parameter(project, requires_grad=False)
        else:
            self.register_buffer("project", project)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.box(torch.relu(self.b(torch.relu(self.a(x)))))
        return self.read(self, y.flatten(2).unflatten(1, (4, self.n)))


READS: list[tuple[Callable[[Bins, torch.Tensor], torch.Tensor], torch.Tensor, bool]] = [
    (lambda m, y: (y.softmax(2) * m.project).sum(2), torch.arange(8.0)[:, None], False),
    (lambda m, y: y.movedim(2, 3).softmax(3) @ m.project, torch.linspace(0.5, 4, 8), True),
    (lambda m, y: F.conv2d(y.transpose(1, 2).softmax(1), m.project), torch.arange(8.0).view(1, 8, 1, 1), True),
    (lambda m, y: torch.einsum("bska,k->bsa", F.softmax(y, 2), m.project), torch.logspace(2, 0, 8), False),
    (lambda m, y: F.linear(y.movedim(2, 3).softmax(-1), m.project).squeeze(-1), torch.arange(8.0)[None], False),
]


@pytest.mark.parametrize(("read", "project", "frozen"), READS)
def test_bins_that_a_fixed_projection_reads_are_no_channels(read: Any, project: torch.Tensor, frozen: bool) -> None:
    result = secateur.prune(Bins(read, project, frozen).eval(), IMAGE, budget="flops=0.6")
    assert {g.name for g in result.graph.groups} == {"a", "b"}
    assert result.model.box.out_channels == 32  # type: ignore[union-attr]


def test_a_softmax_over_channels_that_learned_weights_read_is_pruned() -> None:
    read = READS[0][0]
    model = Bins(read, torch.randn(8, 1, generator=torch.Generator().manual_seed(0)), frozen=True)
    assert "box" in {g.name for g in secateur.trace(model, IMAGE).groups}


class Told(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)


class Helped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(x, 0.1, training=self.training)


def scaled(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    return F.dropout(x, rate, training)


def stopped(x: torch.Tensor, training: bool) -> Any:
    return (x, x) if training else x


class Asks(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return stopped(x, training=self.training)


def test_whether_code_does_more_in_training_is_read_from_it() -> None:
    steady = [nn.Dropout(), nn.BatchNorm2d(3), nn.LSTM(3, 3), Told(), Helped(), nn.Sequential(nn.Conv2d(3, 3, 1))]
    changing = [Asks(), Decode(), Switched(), nn.Sequential(Decode())]
    assert not any(Code(module.modules()).training_differs() for module in steady)
    assert all(Code(module.modules()).training_differs() for module in changing)
    hooked = nn.Conv2d(3, 3, 1)
    hooked.register_forward_hook(lambda m, _, y: (y, y) if m.training else y)
    assert Code(nn.Sequential(hooked).modules()).training_differs()


def test_names_that_a_forward_reads() -> None:
    assert {"raw"} <= names_read(Switched())
    assert "head" in names_read(Net(early))  # by a method that a function among its attributes calls
    assert "last" not in names_read(Decode())

"""What an output shows in training mode only is an output: it stays whole, and the rest is pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _judge import cut_rightly, image, relu_conv, unique
from torch import nn
from torch.nn import functional as F

import secateur


class Trunk(nn.Module):
    """A trunk that may be cut, before a head that differs between the modes."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = nn.Sequential(relu_conv(3, 24), relu_conv(24, 24), relu_conv(24, width))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.trunk(x))

    def head(self, x: torch.Tensor) -> Any:
        raise NotImplementedError


class Distances(Trunk):
    """Distances as expected values over bins, as generalised focal loss has them; training sees the bins."""

    def __init__(self) -> None:
        super().__init__()
        self.bins, self.classes = nn.Conv2d(24, 4 * 6, 1), nn.Conv2d(24, 3, 1)
        self.register_buffer("project", torch.linspace(0, 5, 6))

    def head(self, x: torch.Tensor) -> Any:
        bins, classes = self.bins(x), self.classes(x)
        if self.training:
            return classes, bins
        spread = F.softmax(bins.view(x.shape[0], 4, 6, *x.shape[2:]), dim=2)
        return classes.sigmoid(), torch.einsum("bsnhw,n->bshw", spread, self.project)


class Embedding(Trunk):
    """An embedding for the loss of a face network, classes in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.classes = nn.Linear(24, 20), nn.BatchNorm1d(20), nn.Linear(20, 7)

    def head(self, x: torch.Tensor) -> Any:
        embedding = self.norm(self.embed(x.mean((2, 3))))
        return embedding if self.training else self.classes(embedding)


class Joints(Trunk):
    """A pose network: heat maps in training, in evaluation what a layer makes of their expected places."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.pose = nn.Conv2d(24, 14, 1), nn.Linear(28, 6)

    def head(self, x: torch.Tensor) -> Any:
        maps = self.maps(x)
        if self.training:
            return {"heatmaps": maps}
        weight = maps.flatten(2).softmax(2).view_as(maps)
        rows = (weight.sum(3) * torch.arange(x.shape[2], dtype=x.dtype)).sum(2)
        columns = (weight.sum(2) * torch.arange(x.shape[3], dtype=x.dtype)).sum(2)
        return {"pose": self.pose(torch.stack((rows, columns), 2).flatten(1))}


class Hints(Trunk):
    """Inner features beside the classes, for distillation, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.more, self.classes = relu_conv(24, 24), nn.Linear(24, 5)

    def head(self, x: torch.Tensor) -> Any:
        classes = self.classes(self.more(x).mean((2, 3)))
        return (classes, [x]) if self.training else classes


class Mixture(Trunk):
    """Mixture density: the mean in evaluation, the parameters of the components in training."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.means = nn.Linear(24, 8), nn.Linear(24, 8)

    def head(self, x: torch.Tensor) -> Any:
        x = x.mean((2, 3))
        weights, means = self.weights(x), self.means(x)
        return (weights, means) if self.training else (weights.sigmoid() * means).sum(1)


class Ensemble(Trunk):
    """The mode of a part decides, and evaluation shows a sum over what training shows piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.votes = nn.Conv2d(24, 12, 1)

    def head(self, x: torch.Tensor) -> Any:
        votes = self.votes(x).relu()
        return votes if self.votes.training else votes.sum(1)


class Flagged(Trunk):
    """The first argument of the loss is made by a part of its own, which looks at its own mode."""

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes = nn.Linear(18, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return {"features": x, "logits": self.classes(x)} if self.training else {"logits": self.classes(x)}

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.tail = relu_conv(24, 18, 1), self.Tail()

    def head(self, x: torch.Tensor) -> Any:
        return self.tail(self.squeeze(x).mean((2, 3)))


HEADS: list[Callable[[], nn.Module]] = [Distances, Embedding, Joints, Hints, Mixture, Ensemble, Flagged]


@pytest.mark.parametrize(
    ("build", "training"),
    [*((b, False) for b in HEADS), (Distances, True), (Joints, True)],
    ids=lambda v: getattr(v, "__name__", "train" if v else "eval"),
)
def test_outputs_of_both_modes_stay_whole(build: Callable[[], nn.Module], training: bool) -> None:
    model = unique(build()).train(training)
    result = cut_rightly(model, image(), 0.6)
    for name in ("bins", "classes", "embed", "maps", "weights", "means", "votes", "squeeze"):
        for layer in (m for m in getattr(result.model, name, nn.Identity()).modules() if hasattr(m, "weight")):
            original = dict(model.named_parameters())
            whole = next(p for n, p in original.items() if n.startswith(f"{name}.") and n.endswith("weight"))
            assert layer.weight.shape[0] == whole.shape[0], name


class Demanding(Distances):
    """In training mode it wants targets."""

    def forward(self, x: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        if self.training and targets is None:
            raise ValueError("targets should not be None")
        return super().forward(x)


def test_a_training_forward_that_wants_more_is_no_obstacle() -> None:
    result = cut_rightly(unique(Demanding()).eval(), image(), 0.6, training=False)
    assert "targets should not be None" in result.graph.training_error


class Dropping(Trunk):
    """Random only in training: dropout, and residual branches that are left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.branch, self.classes = nn.Dropout(0.2), relu_conv(24, 24), nn.Linear(24, 5)

    def head(self, x: torch.Tensor) -> Any:
        keep = torch.rand(x.shape[0], 1, 1, 1).ge(0.3).to(x.dtype) / 0.7 if self.training else 1.0
        return self.classes(self.drop((x + keep * self.branch(x)).mean((2, 3))))


class Queue(Trunk):
    """A queue of keys that training fills, of the width of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.classes = nn.Linear(24, 16), nn.Linear(16, 4)
        self.register_buffer("queue", torch.randn(16, 10, generator=torch.Generator().manual_seed(5)))

    def head(self, x: torch.Tensor) -> Any:
        embedding = self.embed(x.mean((2, 3))).relu()
        if self.training:
            with torch.no_grad():
                self.queue[:, : x.shape[0]] = embedding.t()
        return self.classes(embedding)


class Singular(Trunk):
    """A norm that one image cannot be trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.classes = nn.BatchNorm1d(24), nn.Linear(24, 4)

    def head(self, x: torch.Tensor) -> Any:
        return self.classes(self.norm(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("build", "batch", "training"), [(Dropping, 2, False), (Dropping, 2, True), (Queue, 2, False), (Singular, 1, True)]
)
def test_training_that_is_random_or_writes_costs_nothing(
    build: Callable[[], nn.Module], batch: int, training: bool
) -> None:
    model = unique(build()).train(training)
    state = torch.get_rng_state()
    cut_rightly(model, image(batch, 3, 8, 8), 0.4, training=False)
    assert torch.equal(torch.get_rng_state(), state)


#: What only training returns, of the channels `y` of a layer `m`.
EXCERPTS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "half by attribute": lambda m, y: y[:, : m.out_channels // 2],
    "narrow": lambda m, y: y.narrow(1, 0, m.out_channels // 2),
    "a literal": lambda m, y: y[:, :3],
    "second chunk": lambda m, y: y.chunk(2, 1)[1],
    "split": lambda m, y: y.split(4, 1)[1],
    "a stride": lambda m, y: y[:, ::2],
    "one": lambda m, y: y[:, 2],
    "a list": lambda m, y: y[:, [1, 3]],
    "the last": lambda m, y: y[:, -2:],
    "flattened": lambda m, y: y.flatten(1)[:, :10],
    "pooled": lambda m, y: y.mean((2, 3))[:, :4] * 2,
    "summed": lambda m, y: y[:, : m.out_channels // 2].sum(1),
    "the mean of a part": lambda m, y: y.narrow(1, m.out_channels // 2, 2).mean(1),
}


class Excerpt(nn.Module):
    """In training a part of the channels inside is returned as well, perhaps without its channel dimension."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 3)
        self.name = name

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x).relu()
        out = self.c(self.b(y).relu().mean((2, 3)))
        return (out, EXCERPTS[self.name](self.a, y)) if self.training else out


@pytest.mark.parametrize("name", EXCERPTS)
def test_an_excerpt_in_training_is_the_same_afterwards(name: str) -> None:
    torch.manual_seed(0)
    model, images = Excerpt(name).eval(), image(2, 3, 8, 8)
    result = secateur.prune(model, images, budget="flops=0.6")
    assert result.plan.widths["b"] < 10
    with torch.no_grad():
        torch.testing.assert_close(result.model.train()(images)[1], model.train()(images)[1])

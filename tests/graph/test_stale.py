"""Attributes that no forward reads: they follow where it is plain what they meant, and are listed where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Backbone(nn.Module):
    def __init__(self, middle: int = 24, width: int = 40, scaled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, middle, 3, padding=1), nn.Conv2d(middle, width, 3, padding=1)
        self.scale = (lambda m, x: x * m.width**-0.5) if scaled else (lambda m, x: x)
        self.num_features = self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self, self.b(self.a(x).relu()).relu().mean((2, 3)))


class Classifier(nn.Module):
    def __init__(self, classes: int = 5, **options: Any) -> None:
        super().__init__()
        self.body = Backbone(**options)
        self.num_classes = classes
        self.fc = nn.Linear(self.body.num_features, classes)

    def reset_classifier(self, classes: int) -> None:
        self.fc = nn.Linear(self.body.num_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


def test_a_width_nobody_reads_follows_the_cut() -> None:
    result = secateur.prune(Classifier(), IMAGE, budget="flops=0.4")
    body: Any = result.model.body
    assert body.num_features == body.width == body.b.out_channels < 40
    assert result.stale == ()
    result.model.reset_classifier(7)  # type: ignore[operator]
    assert result.model(IMAGE).shape == (2, 7)


def test_one_run_shows_that_a_cut_fits_and_needs_no_stale_number() -> None:
    runs: list[tuple[int, ...]] = []

    class Counted(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            runs.append(tuple(x.shape))
            return super().forward(x)

    graph = secateur.trace(Counted(), IMAGE)
    masks = {group.name: np.arange(group.width) % 2 == 0 for group in graph.groups}
    runs.clear()
    made = graph.cut(secateur.Plan(masks))
    assert {(r.module, r.attribute) for r in made.repairs} >= {("body", "num_features"), ("body", "width")}
    assert runs == [(2, 3, 16, 16)]


class Remembering(Classifier):
    """Keeps what `forward_features` gives, as networks do that compute positions once."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 40
        self.hidden, self.fc = nn.Linear(40, 24), nn.Linear(24, 5)
        self.head_hidden_size = 24
        self.known: torch.Tensor | None = None

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if self.known is None:
            self.known = self.body(x)
        return self.known

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.hidden(self.forward_features(x)).relu())


def test_asking_for_features_leaves_no_trace_in_the_run_that_shows_a_cut_to_fit() -> None:
    graph = secateur.trace(Remembering(), IMAGE)
    masks = {group.name: np.arange(group.width) % 2 == 0 for group in graph.groups}
    made = graph.cut(secateur.Plan(masks))
    assert made.model.num_features == 20
    assert made.model.head_hidden_size == 12
    with torch.no_grad():
        assert made.model(IMAGE).shape == (2, 5)


def test_a_number_that_may_be_either_of_two_widths_is_listed() -> None:
    result = secateur.prune(Classifier(middle=40), IMAGE, budget="flops=0.4", ignore="body.a")
    assert {(s.module, s.attribute, s.size) for s in result.stale} == {
        ("body", "num_features", 40),
        ("body", "width", 40),
    }
    assert "body.num_features = 40 may speak of a width that was cut." in result.notes
    assert result.model.body.num_features == 40  # type: ignore[union-attr]


def test_a_number_that_a_forward_reads_is_left_alone() -> None:
    result = secateur.prune(Classifier(scaled=True), IMAGE, budget="flops=0.4")
    assert result.model.body.width == 40  # type: ignore[union-attr]
    assert [s.attribute for s in result.stale] == ["width"]
    assert result.model.body.num_features < 40  # type: ignore[union-attr]


def test_classes_that_happen_to_equal_a_width_stay() -> None:
    result = secateur.prune(Classifier(classes=24), IMAGE, budget="flops=0.4")
    assert result.model.num_classes == 24


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_builds_a_working_classifier_for_a_pruned_network(name: str) -> None:
    timm = pytest.importorskip("timm")
    options = {"depth": 2, "img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=13, **options).eval()
    image = torch.randn(1, 3, 32, 32)
    result = secateur.prune(model, image, budget="flops=0.5", verify=False)
    assert result.model.num_features < model.num_features
    result.model.reset_classifier(7)  # type: ignore[operator]
    assert result.model(image).shape == (1, 7)


def in_groups(owner: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.stack(x.chunk(owner.parts, 1)).softmax(0).flatten(0, 1)


class Hidden(nn.Module):
    """The number of parts equals the width of one, and the code that reads it is found while running only."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(4, 3)
        self.how, self.parts = how, 4
        self.ways = {"a function in a dict": in_groups}
        if how == "a part that knows its owner":
            self.part = Part(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).relu().mean((2, 3))
        parts = self.part(x) if self.how == "a part that knows its owner" else self._apart(x)
        return self.fc(parts.view(4, -1, parts.shape[1]).sum(0))

    def _apart(self, x: torch.Tensor) -> torch.Tensor:
        way = self.ways.get(self.how)
        return way(self, x) if way is not None else getattr(self, "by_" + self.how)(x)

    def by_name(self, x: torch.Tensor) -> torch.Tensor:
        return in_groups(self, x)


class Part(nn.Module):
    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = (owner,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_groups(self.owner[0], x)


@pytest.mark.parametrize("how", ["name", "a function in a dict", "a part that knows its owner"])
def test_a_number_that_is_read_in_a_hidden_way_is_left_alone(how: str) -> None:
    torch.manual_seed(0)
    model = Hidden(how).eval()
    result = secateur.prune(model, IMAGE, method="random", allocator="ratios", ratios={"*": 0.5})
    assert result.model.b.out_channels == 8  # type: ignore[union-attr]
    assert result.model.parts == 4
    with torch.no_grad():
        assert result.model(IMAGE).shape == model(IMAGE).shape

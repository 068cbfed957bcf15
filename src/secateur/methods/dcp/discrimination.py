"""What both of discrimination-aware pruning's ways have: classifiers inside, the loss behind a layer, a greedy choice.

A layer is emptied and filled again (`greedy`) by a joint loss, of its own answers and of the next classifier behind it
(`heads`), or of the network behind the last; passes begin at the layer (`replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from secateur.errors import ConfigError
from secateur.graph.modules import call_with_copies
from secateur.methods.dcp.greedy import GreedyRules, GreedySelection, Part, Reconstruction
from secateur.methods.dcp.heads import Head, learn, pivots
from secateur.methods.dcp.replay import Replay, cut_points
from secateur.methods.kit.layerwise import Layerwise, LayerwiseSettings, Work


class DiscriminationSettings(LayerwiseSettings):
    """The paper's values where they are not a matter of how long one waits."""

    weight: float = Field(1.0, ge=0, le=1e6, description="lambda, of the classifiers' loss; 0: reconstruction alone")
    heads: int | None = Field(None, ge=0, le=100, description="classifiers inside; null: 2, or 3 from 16 blocks on")
    head_epochs: int = Field(60, ge=1, description="over the features, to learn a classifier")
    epochs: int = Field(1, ge=0, description="of SGD on the joint loss after each round")
    lr: float = Field(0.01, gt=0, le=10, description="of this SGD")
    images: int = Field(2048, ge=1, description="most calibration images used")
    positions: int = Field(64, ge=1, description="random output positions of each, for each layer")
    shortcuts: bool = Field(
        False, description="also make up for what happened to the shortcut added to an answer; not in the paper"
    )


class Discriminating(Layerwise):
    """Empty a layer and fill it again, one after the other; a subclass says with what."""

    settings: DiscriminationSettings
    _heads: list[Head]
    _order: dict[str, int]

    def _survey(self, work: Work) -> None:
        """Learn the classifiers, and note in which order layers and classifiers come."""
        dense, s = work.case.dense, self.settings
        args, keywords = call_with_copies(work.shown[0])
        output = dense(*args, **keywords)
        self._heads = []
        points = cut_points(dense, work.shown[0]) if s.weight else []
        wanted = s.heads if s.heads is not None else (3 if len(points) >= 16 else 2)
        modules: list[str] = []
        if isinstance(output, torch.Tensor) and output.dim() == 2 and len(points) > 1 and wanted:
            modules = [points[k - 1] for k in sorted(set(pivots(wanted, len(points))))]
            pairs = list(zip(work.shown, work.targets, strict=True))
            classes = int(output.shape[1])
            self._heads = learn(dense, pairs, modules, classes, work.loss, epochs=s.head_epochs)
        self._order = _order(dense, work.shown[0], self._tables, modules)

    def _selection(
        self,
        work: Work,
        parts: Sequence[Part],
        units: int,
        goal: Reconstruction,
        norm: Literal["sum", "frobenius"] = "sum",
        *,
        whole: bool = False,
    ) -> GreedySelection:
        """The choice among `units` units of `parts`, the first of which is reconstructed.

        whole: `goal` holds the loss further on already, which is not asked again.
        """
        s, first = self.settings, parts[0].name
        weight = 0.0 if whole else s.weight
        rules = GreedyRules(weight, norm, s.epochs, s.lr, s.ridge, len(work.shown))
        return GreedySelection(
            parts,
            units,
            goal,
            self._further(work, [part.name for part in parts]) if weight else _nothing,
            lambda amount: self._shift(work.case, first, amount),
            rules,
        )

    def _further(self, work: Work, layers: Sequence[str]) -> Callable[[int], torch.Tensor]:
        """The loss of the first classifier behind these layers, or of the network, for one batch."""
        head = self._behind(layers)
        replay = Replay(work.case.model, work.shown, layers[0], head.module if head else None)

        def loss(number: int) -> torch.Tensor:
            output = replay.run(number)
            return finite(work.loss(head(output) if head else output, work.targets[number]))

        return loss

    def _behind(self, layers: Sequence[str]) -> Head | None:
        """The first classifier behind all of these layers, if there is one."""
        place = max(self._order[layer] for layer in layers)
        return next((head for head in self._heads if self._order[head.module] > place), None)


def finite(loss: torch.Tensor) -> torch.Tensor:
    """The loss; ConfigError if it is no number."""
    if not torch.isfinite(loss):
        raise ConfigError(f"The loss is {loss.item()}: check the data and the loss.")
    return loss


def _nothing(_: int) -> torch.Tensor:
    raise AssertionError  # without a weight nobody asks


@torch.no_grad()
def _order(model: nn.Module, inputs: Any, layers: Iterable[str], modules: Iterable[str]) -> dict[str, int]:
    """When layers begin and modules return, as places in one order."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: found.__setitem__(name, len(found))

    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        for name in modules:
            stack.callback(model.get_submodule(name).register_forward_hook(note(name)).remove)
        args, keywords = call_with_copies(inputs)
        model(*args, **keywords)
    return found

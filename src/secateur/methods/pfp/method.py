"""Provable filter pruning: PFP.

Liebenwein, Baykal, Lang, Feldman, Rus: Provable Filter Pruning for Efficient Neural Networks, ICLR 2020
(arXiv:1911.07412). Channel j of what a layer reads has the empirical sensitivity

    s_j = max over images, filters i, positions p, signs of  W_ij a_jp / Σ_k W_ik a_kp ,     S = Σ s_j ,  q_j = s_j / S

on a few hundred images without labels: the largest share it has in any output. Drawn with probabilities q and weighted
by 1 / (m q_j), m(ε) = ⌈K (6 + 2ε) α S / ε²⌉ channels give every output within a relative error ε with high probability.
One ε for all layers, the smallest for which the network is within its budget, says how many channels stay where.

    variant det    the most sensitive ones stay as they are            (the default of the paper's experiments)
    variant rand   channels are drawn; what reads j is multiplied by n_j / (m q_j), n_j times drawn
    variant top    channels with q_j >= 1/m stay, the others of the number are drawn from the rest and weighted

Where this differs from the paper, and why:
    The paper cuts each layer's inputs by themselves, takes a filter away when no layer reads it any more, and assumes
        a chain when it counts weights. Here the graph's groups have one width each: a channel has the largest ε with
        which some layer that reads it asks for it, which is the same union, and the budget is of any cost, by the
        exact cost model. Of equal shares see `secateur.methods.pfp.by_reader`.
    In that union a residual stream stays nearly whole. Here it stays whole, unless the budget is out of reach;
        `units: all` cuts streams like everything else.
    With the widths that budgets ask for the bound itself says nothing: a plan's `log_error` of 7 is a relative error of
        110,000%. What counts is that ε is the same for all layers: it sets their widths in relation to each other.
    S is held out from training in the paper; it is what is shown here, training images in a run.
    What one ε leaves of the budget is used up; a group is spared where that brings the plan within 1% of the budget and
        ε grows by no more than 1%.
    `rand` and `top` draw until as many different channels are drawn as ε asks for, instead of a number of draws fixed
        before, or budgets would be met on average only. This makes the weights slightly biased. A channel is drawn once
        for all its readers.
    A channel's share is that of all its weights in a filter (`kernel: sum`, which the theory needs); the authors' code
        takes the largest single product (`kernel: max`).
    Grouped convolutions, which the authors skip, are treated group by group; depthwise ones are looked through.
        Transposed convolutions are not scored, and groups that nothing else reads stay whole.
    The cascade of prunings and retrainings is out of scope here: this is one step of it. Prune again the network that a
        run has left, with a smaller budget; cut channels cannot come back, so that no masks need to be enforced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ConfigError, ModelError
from secateur.graph import Graph
from secateur.graph.modules import map_tensors
from secateur.graph.readers import readers
from secateur.methods.contract import Loss, Method, Settings
from secateur.methods.kit.aim import CLOSE, Aim
from secateur.methods.kit.floors import keep_streams
from secateur.methods.kit.ranking import Goal, Limits, lower
from secateur.methods.pfp.by_error import DELTA, LEAST, C, difficulty, needed
from secateur.methods.pfp.by_reader import Asking, errors
from secateur.methods.pfp.sensitivity import Sensitivities
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.statistics.gather import count, gather, pair

_UNSEEN = "The method 'pfp' has seen no data: call collect(batches, loss) before finish()."
#: By how much log ε may grow where that uses the budget up.
_GROWTH = 0.01


class PFPSettings(Settings):
    """The paper's values."""

    variant: Literal["det", "rand", "top"] = Field(
        "det", description="keep the most sensitive channels; draw them with weights; keep some and draw the rest"
    )
    units: Literal["all", "inside"] = Field(
        "inside", description="all: residual streams too; inside: those only if the budget is out of reach"
    )
    kernel: Literal["sum", "max"] = Field(
        "sum", description="a channel's share is that of all its weights in a filter, or the largest single product"
    )
    images: int | None = Field(None, ge=1, description="images looked at; null: as the paper's formula has it")
    positions: int | None = Field(None, ge=1, description="output positions of an image looked at; null: all")
    delta: float = Field(DELTA, gt=0, lt=1, description="probability that the bound fails, in the constants of layers")


class PFP(Method):
    """Score once by the largest share in any output; one relative error says how many channels stay where."""

    name = "pfp"
    Config = PFPSettings
    settings: PFPSettings
    comparable = "none"

    def prepare(self) -> None:
        """See which channels have readers whose sums can be looked into."""
        tables, _ = readers(self.graph)
        modules = dict(self.graph.model.named_modules())
        self._tables = {n: table for n, table in tables.items() if not isinstance(modules[n], _ConvTransposeNd)}
        ends = np.cumsum([0, *(group.width for group in self.graph.groups)])
        seen = np.unique(np.concatenate([np.zeros(0, np.int64), *self._tables.values()]))
        whole = [g.name for g, first in zip(self.graph.groups, ends, strict=False) if first not in seen]
        self._ends, self._all_tables = ends[1:], tables
        if set(whole) == {group.name for group in self.graph.groups}:
            raise ModelError(
                f"Nothing that reads channels in {type(self.model).__name__} is a convolution or linear layer, so that "
                "there are no shares: choose another method."
            )
        if whole:
            self.notes.append(
                f"Groups that are not read by convolutions and linear layers alone stay whole: {few(whole)}."
            )
            self.constraints = self.constraints.keeping(whole)
        if self.settings.units == "inside":
            keep_streams(self)
        if self.normalise != "none":
            self.notes.append(f"PFP has one error for all layers, so normalise={self.normalise!r} was not applied.")
        self.sensitivities: Sensitivities | None = None
        self._scores: dict[str, FloatArray] = {}  # once they were asked for

    # --------------------------------------------------------------------------------------------------- the scores

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Sensitivities of the first images; targets and loss are not looked at."""
        s = self.settings
        draw = float(np.random.default_rng(self.seed).random())
        self.sensitivities, self._scores = None, {}
        found = Sensitivities(self._tables, kernel=s.kernel, positions=s.positions, draw=draw)
        wanted = images(self.graph) if s.images is None else s.images
        shown = gather(self.model, _first(batches, wanted, self.device), [found])
        self.sensitivities = found
        note = f"PFP was to look at {wanted} images and was shown {shown}."
        if shown < wanted and note not in self.notes:
            self.notes.append(note)

    def _shares(self) -> dict[str, FloatArray]:
        """s_j by group."""
        if self.sensitivities is None:
            raise ConfigError(_UNSEEN)
        parts = np.split(self.sensitivities.channels(int(self._ends[-1])), self._ends[:-1])
        return {group.name: part for group, part in zip(self.graph.groups, parts, strict=True)}

    def score(self) -> dict[str, FloatArray]:
        """log ε of every channel: the largest error with which a layer that reads it still asks for it."""
        if not self._scores:
            groups = self.graph.groups
            found = errors(self._readers(), [group.width for group in groups])
            self._scores = {group.name: values for group, values in zip(groups, found, strict=True)}
        return dict(self._scores)

    def _readers(self) -> list[Asking]:
        """Every layer that reads channels, with what it says of them."""
        if self.sensitivities is None:
            raise ConfigError(_UNSEEN)
        found = []
        for name, positions in self.sensitivities.positions.items():
            table, layer = self._tables[name], cast(Any, self.model.get_submodule(name))
            channels, place = np.unique(table[table >= 0], return_inverse=True)
            if not len(channels):
                continue
            shares, flow = np.zeros(len(channels)), np.zeros(len(channels))
            np.maximum.at(shares, place, self.sensitivities.of[name].double().cpu().numpy()[table >= 0])
            np.add.at(flow, place, self.sensitivities.flow[name].cpu().numpy()[table >= 0])
            kernel = layer.weight[0, 0].numel() * len(place) // len(channels) // getattr(layer, "groups", 1)
            alpha = difficulty(positions, max(kernel, 1), self.settings.delta)
            found.append(Asking(channels, np.minimum(shares, 1.0), flow, alpha))
        return found

    # ------------------------------------------------------------------------------------------------ the result

    def plan(self) -> Plan:
        """As many channels of every group as one error asks for."""
        masks, said = self._asked_for()
        said |= {"criterion": self.name, "budget": self.budget.as_dict(), "allocator": self.allocator}
        if (error := self._error(masks)) > LEAST:
            said["log_error"] = error
        if self.settings.variant != "det":
            masks = {name: self._drawn(name, int(mask.sum()))[0] > 0 for name, mask in masks.items()}
        return Plan(masks, said)

    def _asked_for(self) -> tuple[dict[str, BoolArray], dict[str, Any]]:
        """Masks for the least ε within the budget; a group is spared to use more of it where ε hardly grows."""
        floors = dict(
            zip((g.name for g in self.graph.groups), self.constraints.floors(self.graph).tolist(), strict=True)
        )
        whole = {group.name: np.ones(group.width, dtype=np.bool_) for group in self.graph.groups}
        goal = Goal.of(self.graph.costs, Aim(self.graph, self.budget))

        def found(close: float) -> dict[str, BoolArray]:
            limits = Limits(floors, steps=self.constraints.steps(self.graph), close=close)
            return lower(self.graph, whole, self.score(), [goal], limits, self.allocator)

        masks = found(0.0)
        used = goal.used(np.array([int(mask.sum()) for mask in masks.values()]))
        if used >= CLOSE:
            return masks, {}
        closer = found(CLOSE)
        if self._error(closer) <= self._error(masks) + _GROWTH:
            return closer, {}
        return masks, {
            "unspent": f"{1 - used:.1%} of the budget is left, for what would use it up asks for an error of all "
            f"layers that is more than {_GROWTH:.0%} larger."
        }

    def _error(self, masks: Mapping[str, BoolArray]) -> float:
        """log ε with which no more than these channels are asked for."""
        scores = self.score()
        return max((float(scores[name][~mask].max()) for name, mask in masks.items() if not mask.all()), default=LEAST)

    def _drawn(self, name: str, width: int) -> tuple[FloatArray, FloatArray]:
        """Weights of one group's channels, `width` of which are not zero, and their sensitivities.

        Draws go along the order of the scores, so that they follow the channels and not their numbers.
        """
        values, order = self._shares()[name], np.argsort(-self.score()[name], kind="stable")
        number = next(k for k, group in enumerate(self.graph.groups) if group.name == name)
        weights = np.zeros(len(values))
        weights[order] = draw(values[order], width, self.settings.variant, np.random.default_rng((self.seed, number)))
        return weights, values

    @torch.no_grad()
    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Multiply what reads a drawn channel by its weight."""
        if self.settings.variant == "det":
            return
        parts = [self._drawn(group.name, int(plan.masks[group.name].sum()))[0] for group in self.graph.groups]
        factors = np.append(np.concatenate(parts), 1.0)  # the last one for inputs that are of no channel
        for name, table in self._all_tables.items():
            layer: Any = model.get_submodule(name)
            factor = torch.from_numpy(factors[table]).to(layer.weight)
            groups = getattr(layer, "groups", 1)
            if isinstance(layer, _ConvTransposeNd):
                layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            else:
                rows = layer.weight.view(groups, -1, *layer.weight.shape[1:])
                rows.mul_(factor.view(groups, 1, -1, *[1] * (layer.weight.dim() - 2)))


def draw(values: FloatArray, width: int, variant: str, generator: np.random.Generator) -> FloatArray:
    """Weights [channels] of which `width` are positive: n_j / (m q_j) of the channels drawn, 1 of those kept for sure.

    values: s_j. variant: "rand", or "top", which keeps what is expected to be drawn anyway. Where no choice is left, or
    no channel that contributes, the weights are 1.
    """
    able = int(np.count_nonzero(values))
    result = np.zeros(len(values))
    order = np.argsort(-values, kind="stable")
    if width >= able:
        result[order[:width]] = 1.0
        return result
    shares = values / values.sum()
    sure = order[:0]
    if variant == "top":
        times = float(needed(shares, np.array([width - 0.5]))[0])  # the draws that give so many different ones
        sure = order[: min(width, int(np.count_nonzero(shares >= 1.0 / times)))]
        result[sure] = 1.0
        shares = shares.copy()
        shares[sure] = 0.0
        if width == len(sure):
            return result
        shares = shares / shares.sum()
    return result + drawn(shares, width - len(sure), generator)


def drawn(shares: FloatArray, different: int, generator: np.random.Generator) -> FloatArray:
    """n_j / (m q_j) after as many draws with probabilities q as it takes for so many different channels.

    The draws are the events of independent Poisson processes with the rates q, and end with the first event of the last
    channel that is needed: the same in distribution, however small q is.
    """
    inside = np.flatnonzero(shares > 0)
    rates = shares[inside]
    first = generator.exponential(size=len(inside)) / rates
    end = np.sort(first)[different - 1]
    counts = np.where(first <= end, 1.0 + generator.poisson(rates * np.maximum(end - first, 0.0)), 0.0)
    result = np.zeros(len(shares))
    result[inside] = counts / (counts.sum() * rates)
    return result


def images(graph: Graph) -> int:
    """⌈c ln(8 η η* / δ)⌉: η outputs of all layers for one image, η* of the largest, δ = 1e-16."""
    first = next(iter(_tensors(graph.example_inputs)))
    outputs = [
        math.prod(shape) / max(len(first), 1)
        for call in graph.recording.calls
        if call.weight is not None
        for shape in call.shapes
    ]
    return math.ceil(C * (math.log(8) + math.log(max(outputs)) + math.log(sum(outputs)) - math.log(DELTA)))


def _tensors(inputs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(inputs, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _shorter(inputs: Any, size: int, left: int) -> Any:
    return map_tensors(inputs, lambda tensor: tensor[:left] if tensor.dim() and len(tensor) == size else tensor)


def _first(batches: Iterable[tuple[Any, Any]], most: int, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The batches, until so many images were shown; the last one may get shorter."""
    left = most
    for batch in batches:
        inputs, target = pair(batch, device)
        size = count(inputs)
        if size > left:
            inputs = _shorter(inputs, size, left)
        yield inputs, target
        left -= size
        if left <= 0:
            return


ROW = MethodRow(
    name="pfp",
    summary="the largest share a channel has in any output, and one relative error for all layers",
    paper="Provable Filter Pruning for Efficient Neural Networks",
    year=2020,
    arxiv="1911.07412",
    needs="calibration",
    acts="after training",
    granularity="channel",
    fidelity="written from the authors' code and the abstract; constants of the theory from memory, unverified (with "
    "a budget only their ratio between layers matters); added here: the union over layers in closed form, residual "
    "streams left whole, costs from the traced graph, and draws until a width is reached; one step of the paper's "
    "cascade",
    factory=PFP,
    settings=PFPSettings,
    variants=({"variant": "rand"}, {"units": "all", "kernel": "max"}),
)

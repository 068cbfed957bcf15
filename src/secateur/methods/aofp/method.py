"""Approximated oracle filter pruning: AOFP.

Ding, Ding, Guo, Han, Yan: Approximated Oracle Filter Pruning for Destructive CNN Width Optimization, ICML 2019
(arXiv:1905.04748). While training goes on, each target has beside the normal, base path a scoring path in which a
random half D of the filters still searched is masked, too. With b the base mask, m = b without D, and phi the layer
that reads the channels with its norm and activation,

    y = b_s phi(b A)     y' = b_s phi(m A)     t = sum (y - y')² / sum y²           (b_s: base mask of what phi makes)

is credited to every filter in D. After B steps the space is halved to the least damaging filters, and so on, until the
worst of those chosen damages less than theta: these are masked in the base path for good (`halving.py`). All targets do
this at once, each with a clock of its own; widths come out by themselves. Only the base path reaches the loss.

Where this differs from the paper, and why:
    The body of the paper was not obtained; the authors' code was read completely.
    A target is a group of channels: t is the sum over all layers that read it, over the sum of their outputs. Masks
        stand where channels are read, which is what the cut does. Residual streams stay whole, as in the code, unless
        the budget is out of reach, or with `units: all`.
    The code moves the reader's running statistics a second time in the scoring path, which is left out; the norm by the
        masked batch's own statistics, to which theta was tuned, is kept. Its first run takes B + 1 steps: here B.
    The budget stands in for its FLOPs target and is looked at after each decision: the last one prunes as many as are
        needed. If training ends above the budget, more channels are removed, those first whose last tbar is smallest
        for the cost they save.
    B and the warm-up shrink with short trainings, so that the largest group can be searched four times over.
    The authors' double learning rate for biases, and no weight decay on biases and norms, are set in the optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateur._distributed import global_sum
from secateur._hints import few
from secateur._protocols import BoolArray, FloatArray
from secateur.errors import ModelError
from secateur.graph.norms import sources
from secateur.graph.readers import readers
from secateur.methods.aofp.behind import behind, compared
from secateur.methods.aofp.halving import Decision, First, decide, drawn_half, first_part
from secateur.methods.contract import Method, Settings
from secateur.methods.kit.aim import Aim
from secateur.methods.kit.floors import keep_streams
from secateur.methods.kit.widths import fitted_plan
from secateur.methods.row import MethodRow
from secateur.plan import Plan

#: Whole searches of the largest group that a training has time for, at least.
_SEARCHES = 4


class AOFPSettings(Settings):
    """Defaults are the authors' for CIFAR-10."""

    every: int = Field(1000, ge=1, description="steps between two decisions of a group, B; fewer in short trainings")
    theta: float = Field(0.01, ge=0, description="damage below which filters go (LeNet: 0.05)")
    warmup: int = Field(500, ge=0, description="steps before anything is scored; fewer in short trainings")
    first: First = Field("half", description="the first halving of a move: to half, or to the nearest power of two")
    units: Literal["inside", "all"] = Field(
        "inside", description="inside: residual streams stay whole unless the budget is out of reach"
    )


class AOFP(Method):
    """Mask halves at random in a path beside the training, and for good what the next layer does not miss."""

    name = "aofp"
    Config = AOFPSettings
    settings: AOFPSettings
    comparable = "none"

    def usual_allocator(self) -> str:
        """Where training ends above the budget: damage over what a channel saves."""
        return "per_cost"

    def prepare(self) -> None:
        """See which layers read which channels and what stands behind them; clocks begin one after the other."""
        self._tables, others = readers(self.graph)
        if len(others) == len(self.graph.groups):
            raise ModelError(
                f"AOFP compares what convolutions and linear layers make of channels, and all those of "
                f"{type(self.model).__name__} are read by something else as well: choose another method."
            )
        if others:
            self.notes.append(f"Groups that something else reads as well stay whole: {few(others)}.")
            self.constraints = self.constraints.keeping(others)
        if self.settings.units == "inside":
            keep_streams(self)
        self._index()
        self._schedule()
        device, total, groups = self.device, int(self._ends[-1]), len(self.graph.groups)
        for name in ("base", "space"):  # b and U of all groups, one behind the other
            self.register_buffer(name, torch.ones(total, dtype=torch.bool, device=device))
        for name in ("damage", "count", "last"):  # T, cnt, and tbar of the last decision (below 0: none)
            self.register_buffer(name, torch.zeros(total, device=device))
        self.last.fill_(-1.0)
        self.clocks, self.moves = [0] * groups, [1] * groups  # steps credited; 1: at the beginning of a move
        self.sizes = [group.width for group in self.graph.groups]  # S of each group
        self._aim = Aim(self.graph, self.budget)
        self.met = self._within()  # whether the base path is within the budget, and nothing more is searched
        self._fresh()

    base: torch.Tensor
    space: torch.Tensor
    damage: torch.Tensor
    count: torch.Tensor
    last: torch.Tensor

    def _index(self) -> None:
        widths = self.graph.widths()
        self._ends = np.cumsum(widths)
        self._spans = [slice(int(end - width), int(end)) for end, width in zip(self._ends, widths, strict=True)]
        self._read = {
            layer: [k for k, span in enumerate(self._spans) if ((table >= span.start) & (table < span.stop)).any()]
            for layer, table in self._tables.items()
        }
        norms = {layer: norm for norm, layer in sources(self.graph).of.items() if layer is not None}
        self._behind = behind(self.graph, norms)
        self._outputs = self._made()

    def _made(self) -> dict[str, torch.Tensor]:
        """The channel at each position of what every reader makes; -1 (the last of a mask) where it is none."""
        found: dict[str, torch.Tensor] = {}
        for span, group in zip(self._spans, self.graph.groups, strict=True):
            for member in group.producers():
                layer, _, kind = member.name.rpartition(".")
                if kind == "weight" and member.dim == 0 and layer in self._tables:
                    rows: Any = self.model.get_submodule(layer)
                    table = found.setdefault(layer, torch.full((len(rows.weight),), -1))
                    table[torch.from_numpy(member.index)] = torch.arange(span.start, span.stop)[:, None]
        return found

    def _schedule(self) -> None:
        s, widest = self.settings, max(group.width for group in self.graph.groups)
        most = max(1, int(self.steps // (_SEARCHES * max(1.0, math.log2(widest)))))
        self.every, self.warmup = min(s.every, most), min(s.warmup, self.steps // 20)
        if self.every < s.every or self.warmup < s.warmup:
            self.notes.append(
                f"In {self.steps} steps groups decide after {self.every} steps each, not {s.every}, and scoring begins "
                f"after {self.warmup}, not {s.warmup}."
            )
        floors = self.constraints.floors(self.graph).tolist()
        free = [k for k, group in enumerate(self.graph.groups) if floors[k] < group.width]
        # the i-th group begins at warmup + i floor(B / targets)
        self.begins = {k: self.warmup + i * (self.every // len(free)) for i, k in enumerate(free)}
        self._floors = floors

    def _fresh(self) -> None:
        """Nothing has been compared in this step."""
        groups = len(self.graph.groups)
        self._parts = torch.zeros(2, groups, device=self.device)  # sums of (y - y')² and of y²
        self._drawn: dict[int, torch.Tensor] = {}

    # ----------------------------------------------------------------------------------------------- both paths

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The base path, and beside it, while training, what the masked halves change."""
        with self._hooked(self.base, score=self.training):
            return self.model(*args, **keywords)

    @contextmanager
    def _hooked(self, mask: torch.Tensor, *, score: bool = False) -> Iterator[None]:
        """Inside, layers read what the mask [channels] lets through."""
        padded = torch.cat([mask, mask.new_ones(1)])
        with ExitStack() as stack:
            for name in self._tables:
                layer = self.model.get_submodule(name)
                hook = partial(self._masked, name, padded)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
                if score and any(self._searches(k) for k in self._read[name]):
                    scoring = partial(self._scored, name, padded)
                    stack.callback(layer.register_forward_hook(scoring, with_kwargs=True).remove)
            yield

    def _masked(self, name: str, mask: torch.Tensor, layer: nn.Module, args: Any, keywords: Any) -> Any:
        x: torch.Tensor = args[0] if args else keywords["input"]
        masked = x * self._shaped(name, mask, layer, x)
        return ((masked, *args[1:]), keywords) if args else (args, keywords | {"input": masked})

    def _shaped(self, name: str, mask: torch.Tensor, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A mask [channels + 1] at the positions of what a layer reads, in the shape of its input."""
        table = torch.from_numpy(self._tables[name]).to(mask.device)
        inner = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[arg-type]
        return mask[table].to(x.dtype).view(-1, *[1] * inner)

    @torch.no_grad()
    def _scored(
        self, name: str, base: torch.Tensor, layer: nn.Module, args: Any, keywords: Any, output: torch.Tensor
    ) -> None:
        """Add to both sums of every group that this layer reads and that is searched."""
        x: torch.Tensor = args[0] if args else keywords["input"]
        follows = self._behind[name]
        y = compared(self.model, follows, output).float()
        if name in self._outputs:
            made = base[self._outputs[name].to(base.device)].float()  # b_s
            made = made.view(-1, *[1] * (y.dim() - 2)) if not isinstance(layer, nn.Linear) else made
        else:
            made = torch.ones((), device=y.device)
        for k in filter(self._searches, self._read[name]):
            kept = torch.ones_like(base)
            kept[self._spans[k]] = ~self._half(k)
            ablated = type(layer).forward(layer, x * self._shaped(name, kept, layer, x))
            other = compared(self.model, follows, ablated).float()
            self._parts[0, k] += ((y - other) * made).square().sum()
            self._parts[1, k] += (y * made).square().sum()

    def _searches(self, k: int) -> bool:
        """Whether a group is scored in this step: it has begun, has two filters to choose from, and may lose one."""
        return not self.met and self.step >= self.begins.get(k, self.steps + 1) and self.sizes[k] > 1

    def _half(self, k: int) -> torch.Tensor:
        """D of a group in this step, for all micro-batches and processes the same."""
        if k not in self._drawn:
            self._drawn[k] = drawn_half(self.space[self._spans[k]], self.sizes[k] // 2, [self.seed, self.step, k])
        return self._drawn[k]

    # ------------------------------------------------------------------------------------------------- decisions

    @torch.no_grad()
    def after_step(self) -> None:
        """Credit this step's damage to what was masked; decide where a clock has run out."""
        if self._drawn:
            changed, whole = global_sum(self._parts)
            damages = torch.where(whole > 0, changed / torch.where(whole > 0, whole, 1.0), 0.0)  # t
            for k, half in self._drawn.items():
                self.damage[self._spans[k]] += torch.where(half, damages[k], 0.0)
                self.count[self._spans[k]] += half.float()
                self.clocks[k] += 1
            for k in sorted(self._drawn):
                if self.clocks[k] >= self.every:
                    self._decide(k)
        self._fresh()
        super().after_step()

    def _decide(self, k: int) -> None:
        span = self._spans[k]
        damage, count = (part[span].double().cpu().numpy() for part in (self.damage, self.count))
        space = np.flatnonzero(self.space[span].cpu().numpy())
        part = first_part(len(space)) if self.settings.first == "power" and self.moves[k] else None
        found = decide(damage, count, space, self.settings.theta, part)
        seen = torch.from_numpy(count > 0)
        self.last[span] = torch.where(seen.to(self.device), self.damage[span] / self.count[span], self.last[span])
        if found.act == "prune":
            self._prune(k, found)
            self.met = self._within()
        following = self.base[span].clone()  # a new move
        if found.act == "halve":
            following = torch.zeros_like(following)
            following[torch.from_numpy(found.chosen).to(following.device)] = True
        self.space[span] = following
        self.sizes[k], self.moves[k] = int(following.sum()), int(found.act != "halve")
        if found.act != "halve" and self.sizes[k] <= self._floors[k]:
            self.sizes[k] = 0  # nothing more may go
        self.damage[span], self.count[span], self.clocks[k] = 0.0, 0.0, 0

    def _prune(self, k: int, found: Decision) -> None:
        """Mask what was chosen in the base path, least damage first, no more than the budget and the floor ask for."""
        begin = self._spans[k].start
        for channel in found.chosen.tolist():
            if self._within() or int(self.base[self._spans[k]].sum()) <= self._floors[k]:
                return
            self.base[begin + channel] = False

    def _within(self) -> bool:
        return self._aim.met({name: float(mask.sum()) for name, mask in self._masks().items()})

    def _masks(self) -> dict[str, BoolArray]:
        parts = np.split(self.base.cpu().numpy().astype(np.bool_), self._ends[:-1])
        return {group.name: part.copy() for group, part in zip(self.graph.groups, parts, strict=True)}

    # -------------------------------------------------------------------------------------------------- the result

    def score(self) -> dict[str, FloatArray]:
        """The last mean damage of every filter, its group's mean where none is known; -1 for what is masked already."""
        now = torch.where(self.count > 0, self.damage / self.count.clamp_min(1.0), self.last).double().cpu().numpy()
        found = {}
        for values, (name, alive) in zip(np.split(now, self._ends[:-1]), self._masks().items(), strict=True):
            known = values[alive & (values >= 0)]
            filled = np.where(values < 0, known.mean() if len(known) else 1.0, values)
            found[name] = np.where(alive, filled, -1.0)
        return found

    def plan(self) -> Plan:
        """What is left of the base path; where that is above the budget, less of it, by damage over saving."""
        masks, (floors, steps) = self._masks(), self.constraints.grid(self.graph)
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        widths = np.array([*counts.values()])
        legal = ((widths - floors) % steps == 0) | (widths == self.graph.widths())
        if legal.all() and self.met and self._aim.close({name: float(n) for name, n in counts.items()}):
            return Plan(masks, {"criterion": self.name, "budget": self.budget.as_dict()})
        scores = self.score()
        found = self._allocate(scores)
        wanted = {name: float(width) for name, width in found.widths.items()}
        plan = fitted_plan(self.graph, self.budget, self.constraints, wanted, scores)  # to use the budget up
        plan.provenance = found.provenance | plan.provenance | {"criterion": self.name}
        forced = [scores[name][masks[name] & ~mask] for name, mask in plan.masks.items()]
        count = sum(len(part) for part in forced)
        if count:
            worst = max(float(part.max()) for part in forced if len(part))
            self._note([
                f"{count} of the channels that go were not found to damage less than theta={self.settings.theta:g} in "
                f"training; the worst damages {worst:.3g}."
            ])  # fmt: skip
        return plan

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """A copy in which nobody reads what is masked."""
        copy = super().plain()
        padded = torch.cat([self.base, self.base.new_ones(1)])
        for name, table in self._tables.items():
            layer: Any = copy.get_submodule(name)
            kept = padded[torch.from_numpy(table).to(padded.device)]
            if kept.all():
                continue
            weight = layer.weight
            dim = 0 if getattr(layer, "transposed", False) else 1
            if getattr(layer, "groups", 1) > 1 and dim == 1:  # the slices of one group of inputs serve all its outputs
                rows = kept.view(layer.groups, -1).repeat_interleave(len(weight) // layer.groups, 0)
                weight.mul_(rows.view(*rows.shape, *[1] * (weight.dim() - 2)))
            else:
                weight.mul_(kept.view([-1 if d == dim else 1 for d in range(weight.dim())]))
        return copy

    @contextmanager
    def _planned(self) -> Iterator[None]:
        before, masks = self.base, self.plan().masks
        kept = np.concatenate([masks[group.name] for group in self.graph.groups])
        self.base = before & torch.from_numpy(kept).to(before.device)
        try:
            yield
        finally:
            self.base = before

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The masks of the plan."""
        return {"hard": self._planned()}

    def metrics(self) -> dict[str, float]:
        """What is left of channels, and how many groups are searched."""
        searched = sum(self._searches(k) for k in range(len(self.sizes)))
        return {"channels": float(self.base.float().mean()), "searched": float(searched)}

    def state(self) -> dict[str, Any]:
        """Clocks and sizes of the searches."""
        return super().state() | {
            "clocks": [*self.clocks],
            "moves": [*self.moves],
            "sizes": [*self.sizes],
            "met": self.met,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().load_state(state)
        self.clocks, self.moves, self.sizes = ([*map(int, state[name])] for name in ("clocks", "moves", "sizes"))
        self.met = bool(state["met"])
        self._fresh()


ROW = MethodRow(
    name="aofp",
    summary="random halves of the filters masked in training; those that the next layer needs least are removed",
    paper="Approximated Oracle Filter Pruning for Destructive CNN Width Optimization",
    year=2019,
    arxiv="1905.04748",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="written from the authors' code, without the paper's text: damage, halving, theta, intervals and masks "
    "are theirs; added here: groups that several layers read, a budget in place of their target, what follows where "
    "training ends above it, and shorter intervals in short trainings",
    factory=AOFP,
    settings=AOFPSettings,
    acting_rate=0.1,
    variants=({"theta": 10.0, "units": "all", "first": "power"},),
    chance="which filters are masked in a step is drawn by their number",
)

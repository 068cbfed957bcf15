"""`trace` and `Graph`: a network's groups, costs and what was not understood; from a plan to a smaller network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from secateur._defaults import own_defaults
from secateur.errors import ConfigError, CutError, ModelError, PlanError
from secateur.graph.capture import capture
from secateur.graph.channels import Bools, Frozen, Group, Seen, Solution, solve
from secateur.graph.cost import Cost, CostModel, Floats
from secateur.graph.cut import Cut, alive_slots, check, cut, slices_of
from secateur.graph.following import follow_in_place
from secateur.graph.labels import Ids
from secateur.graph.mixing import mixed_weights
from secateur.graph.modules import is_parameter, modules_of, named_tensors, own_ancestor, tensors_of, unwrap
from secateur.graph.recorder import Recording, Unsupported
from secateur.graph.settling import Remedy, concerned, remedies, trial_masks
from secateur.graph.sides import Sides, sides_of
from secateur.graph.sizes import Done, SizeConflict
from secateur.graph.summary import summary
from secateur.graph.verify import Verification, verify

#: Cuts on which a remedy for a size in code is tried.
_TRIALS = 2
#: A remedy takes little where the MACs of the narrowest network grow by less than this share of all.
_SPARED = 0.02


class Masks(Protocol):
    """Anything with masks by group name: a `Plan`."""

    @property
    def masks(self) -> Mapping[str, Bools]: ...


class Timing(Protocol):
    """Something that predicts latencies: a `secateur.latency.Prediction`."""

    def about(self, graph: Graph, plan: Masks) -> dict[str, Any]:
        """What a plan should say about the predictions it was made with, as JSON; "note": what to tell, if any."""

    def bind(self, graph: Graph) -> Callable[[Floats], Floats]:
        """The function from widths [..., groups] of this graph to microseconds [...], monotone in every width."""


class Graph:
    """The structure of one network: its groups of coupled channels, and what they cost. `trace` makes it.

    model: the network. example_inputs: what it ran with. recording: what the trace saw.
    attention: "heads" or "head_dim".
    """

    def __init__(self, model: nn.Module, example_inputs: Any, recording: Recording, attention: str = "heads") -> None:
        self.model, self.example_inputs, self.recording = model, example_inputs, recording
        self.attention = attention
        self.settled: list[SizeConflict] = []
        self.timings: dict[str, float] = {}
        self.timing: Timing | None = None
        self._never: list[tuple[Ids, str]] = []
        self._together: list[tuple[Ids, Ids]] = []
        self._solve()

    def _solve(self) -> None:
        started = time.perf_counter()
        self.solution: Solution = solve(self.recording, self._never, self._together, self.attention)
        sizes = {name: t.numel() for name, t in self.tensors().items() if is_parameter(t)}
        self.costs = CostModel(self.recording, self.solution, sizes)
        if self.timing is not None:
            self.costs.latency = self.timing.bind(self)
        self._sides: Sides | None = None
        self.timings["solve"] = time.perf_counter() - started

    def sides(self) -> Sides:
        """The widths of all layers, made of groups."""
        if self._sides is None:
            self._sides = sides_of(self.recording, self.solution)
        return self._sides

    def attach(self, timing: Timing) -> None:
        """Make latency one of the costs, whatever becomes of the groups."""
        self.timing = timing
        self.costs.latency = timing.bind(self)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The prunable groups, in order of execution."""
        return self.solution.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """Widths that cannot be pruned, with the reason."""
        return self.solution.frozen

    @property
    def unsupported(self) -> tuple[Unsupported, ...]:
        """Operators without a rule; what they touch is frozen."""
        return tuple(dict.fromkeys(self.recording.unsupported))

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Parameters no traced forward pass uses; they stay whole, so a branch with them may not fit after a cut."""
        used = self.recording.first_use.keys() - self.recording.touched
        return tuple(n for n, t in self.tensors().items() if is_parameter(t) and n not in used)

    @property
    def training_error(self) -> str:
        """Why branches that only run in training mode could not be traced; empty where they could or there are none."""
        return self.recording.training_error

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the trace could not see, or saw otherwise than the model runs."""
        from secateur.graph.explain import shorten

        notes = []
        if self.training_error:
            notes.append(
                f"The forward pass in training mode failed ({self.training_error}), so a width that reaches an output "
                "only there may be cut; keep such layers with `ignore`, or give what training is called with: "
                "secateur.Inputs(...).in_training(images, targets)."
            )
        elif unseen := shorten(self.never_ran):
            notes.append(
                f"No traced forward pass uses {', '.join(unseen)}: whole after a cut, and maybe too wide for their "
                "neighbours. Where training does, with targets say, give what it is called with: "
                "secateur.Inputs(...).in_training(images, targets)."
            )
        if self.recording.compiled:
            names = ", ".join(repr(name) if name else "the model" for name in self.recording.compiled[:3])
            more = f" and {len(self.recording.compiled) - 3} more" if len(self.recording.compiled) > 3 else ""
            notes.append(
                f"Compiled in place: {names}{more}; traced uncompiled, and a cut copy is plain: call compile() on it."
            )
        return tuple(notes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the original model, by name."""
        return named_tensors(self.model)

    def taps(self, group: Group) -> tuple[Seen, ...]:
        """Where a group shows in the forward pass: outputs of modules, in order of execution."""
        return tuple(self.solution.seen(self.groups.index(group), self.recording.taps))

    def widths(self, plan: Masks | None = None) -> Ids:
        """Alive channels of every group, in order."""
        masks = plan.masks if plan is not None else {}
        return np.array([int(masks[g.name].sum()) if g.name in masks else g.width for g in self.groups], dtype=np.int64)

    def cost(self, plan: Masks | None = None) -> Cost:
        """Cost of one forward pass of the example input, after `plan` (default: of the original)."""
        return self.costs.cost(self.widths(plan))

    @own_defaults
    @torch.inference_mode(False)
    def cut(self, plan: Masks, *, inplace: bool = False) -> Cut:
        """The network with only the channels `plan` keeps.

        Raises:
            PlanError: the plan does not fit. SizeConflict: a size written in the model's code cannot follow;
                `settle` makes such channels stay (or move together) and `prune` then plans again.
        """
        widths = {group.name: group.width for group in self.groups}
        for name, mask in plan.masks.items():
            if name not in widths or mask.shape != (widths[name],):
                raise PlanError(
                    f"The plan's group {name!r} does not fit this network; make the plan again from its graph."
                )
        alive = alive_slots(self.solution, plan.masks)
        tensors = self.tensors() if inplace else {}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        made = cut(self.model, self.example_inputs, self.recording, self.solution, alive, inplace=inplace)
        if inplace:
            follow_in_place(tensors, shapes, made.slices)
        return made

    def slices(self, plan: Masks) -> dict[str, tuple[Ids | None, ...]]:
        """Kept indices of every tensor that `plan` narrows."""
        return slices_of(self.recording, alive_slots(self.solution, plan.masks))

    @own_defaults
    def verify(self, made: Cut, plan: Masks, *, seed: int = 0, dtype: torch.dtype | None = None) -> Verification:
        """Compare a cut with the masked original; see `secateur.graph.verify`."""
        pruned = [g for g in self.groups if g.name in plan.masks and not plan.masks[g.name].all()]
        reasons = tuple(dict.fromkeys(r for g in pruned for r in g.inexact))
        options: dict[str, Any] = {
            "seed": seed,
            "dtype": dtype,
            "random": self.recording.random,
            "used": self.recording.first_use,
            "mixed": mixed_weights(self.recording),
        }
        return verify(self.model, made.model, self.example_inputs, made.slices, reasons=reasons, **options)

    def settle(self, conflict: SizeConflict) -> str:
        """Make the network follow a size in code, in every module of that class; returns a line for the report.

        Channels are tied to each other, or stay: the least that helps (`secateur.graph.settling`). The graph is solved
        again.

        Raises:
            CutError: nothing there can be tied or frozen, so the code does not run twice alike.
        """
        at = min(conflict.call, len(self.recording.calls) - 1)
        calls = concerned(self.recording, dict(self.model.named_modules()), at)
        # a plan says what was done
        choice = self._choose(calls, conflict.detail) if conflict.done is None else conflict.done
        if isinstance(choice, SizeConflict):
            return self.settle(choice)
        found = (
            None if choice is None else next(islice(self._remedies(calls, conflict.detail), choice.number, None), None)
        )
        if choice is None or found is None:
            raise CutError(f"{conflict} Nothing can be done about it here; please report this network.")
        remedy = found.without(choice.without)
        self._together += remedy.ties
        self._never += remedy.fixes
        self._solve()
        self.settled.append(conflict.settled(replace(choice, name=remedy.name)))
        return str(self.settled[-1])

    def _remedies(self, calls: list[int], conflict: str) -> Iterator[Remedy]:
        return remedies(self.recording, self.solution, calls, conflict)

    def _choose(self, calls: list[int], conflict: str) -> Done | SizeConflict | None:
        """The first remedy that helps and takes little from what can go; else the one of those that leaves most.

        One of which nothing is known, as every cut met another size before this one, is taken if none else helps; where
        it would leave more, that other size comes first.
        """
        best, least, seen = None, float("inf"), set[tuple[float, ...]]()
        unknown, unknown_least, other = None, float("inf"), None
        enough = self._floor(self.solution) + _SPARED * self.costs.cost(self.widths()).macs
        for number, remedy in enumerate(self._remedies(calls, conflict)):
            without: list[int] = []
            while (tried := remedy.without(without)).changes(self.solution):
                solution = self._solved(tried)
                floor = self._floor(solution)
                alike = (floor, *(group.width for group in solution.groups))
                known = alike in seen and not without
                if floor >= least or known or not tried.spares(self.solution, solution):
                    break
                seen.add(alike)
                failed, reached, before = self._conflict(solution, list(tried.of), once=bool(tried.fixes))
                helps = failed is None or (bool(tried.fixes) and failed != calls[0])
                if helps and reached:
                    best, least = Done(number, tuple(without)), floor
                elif helps and floor < unknown_least:
                    unknown, unknown_least, other = Done(number, tuple(without)), floor, before
                if helps or failed is None or failed == calls[0]:
                    break
                without.append(failed)  # there the size is another matter
            # what is frozen later is more
            if least <= enough or (best is not None and best.number == number and remedy.fixes):
                break
        return other if other is not None and unknown_least < least else best or unknown

    def _solved(self, remedy: Remedy) -> Solution:
        never, together = [*self._never, *remedy.fixes], [*self._together, *remedy.ties]
        return solve(self.recording, never, together, self.attention)

    def _floor(self, solution: Solution) -> float:
        """MACs of the network with one channel in every group."""
        costs = CostModel(self.recording, solution, {})
        return float(costs.evaluate(np.ones(len(solution.groups)))["macs"])

    def _conflict(
        self, solution: Solution, calls: list[int], *, once: bool
    ) -> tuple[int | None, bool, SizeConflict | None]:
        """Which of these calls meets a conflict in cuts to several widths, whether a cut came to the first at all, and
        what was met before it.

        once: one cut that comes so far is enough.
        """
        reached, before = False, None
        for seed in range(_TRIALS):
            masks = trial_masks(solution, self.recording, calls, seed)
            try:
                alive = alive_slots(solution, masks)
                check(self.model, self.example_inputs, self.recording, solution, alive, calls)
            except SizeConflict as other:
                if other.call in calls:
                    return other.call, True, before
                if other.call < calls[0]:
                    before = other
                    continue
            reached = True
            if once:
                break
        return None, reached, before

    def __str__(self) -> str:
        """The groups and costs at a glance."""
        return summary(self).text()

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return summary(self).html()

    def explain(self, name: str) -> str:
        """What is known of a layer (or a group): its groups, members, cost, and why it can or cannot be pruned."""
        from secateur.graph.explain import explain

        return explain(self, name)


@own_defaults
@torch.inference_mode(False)
def trace(model: nn.Module, example_inputs: Any, *, attention: Literal["heads", "head_dim"] = "heads") -> Graph:
    """Trace `model` once on `example_inputs` and return its `Graph`; the model itself is not touched.

    Args:
        model: any `torch.nn.Module`; DataParallel, DistributedDataParallel and compiled wrappers are taken off.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords with which `model` runs.
        attention: what is prunable in attention layers, whole "heads" or the features of every head ("head_dim").

    Raises:
        ModelError: not a module, without parameters, on the meta device, or its forward fails.
        InputError: the inputs hold no tensor.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("TorchScript modules cannot be pruned; pass the original torch.nn.Module.")
    inner = unwrap(model)
    own = own_ancestor(inner)
    if own is not None:
        raise ModelError(
            f"{own} in {type(inner).__name__} contains itself, and such a network PyTorch can neither switch to "
            "evaluation nor save; take the inner reference out (in a tuple it does no harm)."
        )
    modules = modules_of(inner)
    tensors = tensors_of(modules)
    if not any(map(is_parameter, tensors.values())):
        raise ModelError(f"{type(inner).__name__} has no parameters, so there is nothing to prune.")
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device and has no values; load the weights (model.to_empty) first."
            )
        if tensor.layout is not torch.strided:
            raise ModelError(f"{name} is a sparse tensor, in which no channel can be cut; make it dense (to_dense()).")
        # whose class takes its time to say that a tensor is none of it
        if type(tensor) not in (nn.Parameter, torch.Tensor) and isinstance(tensor, nn.parameter.UninitializedParameter):
            raise ModelError(f"{name} is not initialised yet; run the model once before pruning it.")
    if attention not in ("heads", "head_dim"):
        raise ConfigError(f"attention={attention!r} is unknown; choose 'heads' or 'head_dim'.")
    started = time.perf_counter()
    graph = Graph(inner, example_inputs, capture(inner, example_inputs, modules), attention)
    graph.timings["trace"] = time.perf_counter() - started - graph.timings["solve"]
    return graph

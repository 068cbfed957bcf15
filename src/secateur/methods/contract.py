"""The contract every pruning method keeps, and nothing about any one of them.

A method wraps a model, may watch and change its training, and in the end says which channels stay. The training
engine drives it, and so can any loop of one's own:

    pruner = SomeMethod(model, example_inputs, budget="flops=0.5", steps=len(loader) * epochs)
    for x, y in loader:
        pruner.before_forward(y)
        output = pruner(x)
        pruner.after_forward(output, y)
        loss = criterion(output, y) + pruner.loss()
        loss.backward(); pruner.after_backward(); optimizer.step(); pruner.after_step()
    small = pruner.finish()

The model is trained in place, with what the method has inserted into it, also after `finish`, which may be asked at any
time; `pruner.plain()` is an ordinary copy of it as it stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from secateur._defaults import own_defaults
from secateur._hints import checked_seed, choose
from secateur._protocols import IntArray
from secateur._settings import Section, validated
from secateur.allocate import NORMALISATIONS, Constraints, allocate
from secateur.allocate.ties import undecided
from secateur.budget import Budget
from secateur.errors import ConfigError, ModelError
from secateur.forms import LayerForm
from secateur.graph import SizeConflict, trace
from secateur.graph.modules import clone_module, map_tensors
from secateur.latency import Watcher, price
from secateur.methods.allocators import Allocator, allocator_of
from secateur.methods.hands import Loss as Loss
from secateur.methods.hands import (
    check_loop,
    checked_steps,
    counting,
    inserted,
    reading,
    reduced,
    require_free,
    require_reducer,
    restoring,
    take,
    without_decay,
)
from secateur.methods.replanning import Replanner, trial_widths
from secateur.methods.trials import Shown, Trials
from secateur.plan import Plan, fingerprint
from secateur.repair.base import Repair, mend, require_repairs
from secateur.surgery import Result, apply, check_weights, nothing_to_prune, remember

#: Told that tensors got narrower: indices kept along every dimension (None: all), by name in the method's state_dict.
Follower = Callable[[Mapping[str, tuple[IntArray | None, ...]]], None]

#: Steps a method plans for when nobody says how many there will be.
STEPS = 10_000


class Settings(Section):
    """Base of every method's settings: unknown names and impossible values are refused; defaults are the paper's."""

    def model_arguments(self, reference: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a recipe's arguments of the model's factory become, where the method begins with another network."""
        return dict(given)


class Method(nn.Module):
    """One method at work on one model; a subclass overrides the hooks it has a use for.

    The method trains `model` itself: its parameters are the model's. `finish` gives a narrower copy and leaves the
    method as it is, so that it may be asked at any time.
    """

    name: ClassVar[str]  # the class's own in small letters, if nobody says
    _says_its_name: ClassVar[bool] = False
    Config: ClassVar[type[Settings]] = Settings
    #: Whether the model gets narrower while it is trained, as with `secateur.methods.dcpcac.narrowing.NarrowingMethod`.
    narrows: ClassVar[bool] = False
    #: How scores of different groups are made comparable if nobody says; "none" where they are in one unit.
    comparable: ClassVar[str] = "mean"
    #: Whether `finish` compares the narrow network with the masked one.
    verify_cut: bool = True
    #: What the loss was multiplied by before its backward pass, in half precision: `after_backward` sees gradients of
    #: that. Whoever scales the loss sets it before `after_backward`.
    loss_scale: float | torch.Tensor = 1.0

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        budget: str | Mapping[str, float | str] | Budget,
        steps: int | None = None,
        seed: int = 0,
        constraints: Constraints | None = None,
        allocator: str | Allocator | None = None,
        normalise: str | None = None,
        attention: Literal["heads", "head_dim"] = "heads",
        watch: Watcher | None = None,
        **settings: Any,
    ) -> None:
        """Trace the model and prepare it.

        Args:
            model: any `torch.nn.Module`. example_inputs: what it runs with; see `secateur.trace`.
            budget: what may remain, such as "flops=0.5" or "latency=0.6@onnxruntime".
            steps: optimiser steps there will be with the method at work. seed: of everything random.
            constraints: what no plan may do. allocator, normalise: from scores to plan; None: as the method has it.
                An `Allocator` serves methods whose plan follows from their scores alone.
            attention: prune whole "heads" or the features of every head. settings: the method's own.
            watch: told (done, total, runtime) while layer shapes are measured for a latency budget.

        Raises:
            SecateurError: one sentence: the model cannot be pruned, the budget cannot be met, a setting is wrong.
        """
        super().__init__()
        self.settings = validated(self.Config, settings, "method")
        self.budget = Budget.parse(budget)
        self.steps = STEPS if steps is None else checked_steps(steps)
        self.seed = checked_seed(seed)
        self.constraints = Constraints() if constraints is None else constraints
        if not isinstance(self.constraints, Constraints):
            raise ConfigError(f"constraints={constraints!r:.60} is none: write such as secateur.Constraints(align=8).")
        self.allocator, self._own_allocator = allocator_of(
            allocator or self.usual_allocator(), self.name, follows=self.follows_scores()
        )
        self.normalise = choose(normalise or self.comparable, NORMALISATIONS, "normalisation")
        self.example_inputs = example_inputs
        self.graph = trace(model, example_inputs, attention=attention)
        self.model: nn.Module = self.graph.model
        self.step = 0  # optimiser steps taken so far
        self.notes: list[str] = []  # sentences for the report
        self.followers: list[Follower] = []  # whoever holds tensors of the parameters' shapes, save optimisers
        self.result: Result | None = None
        self._forwards = self._steps_seen = self._losses = 0  # in this process, while training
        self._reduced = reduced(model)
        check_weights(self.graph)
        require_free(self.model, self.name)
        self._settle()
        self.constraints = self._given = price(self.graph, self.budget, self.constraints, watch)
        self._architecture = fingerprint(self.graph)  # before anything is inserted
        self._check_reach()  # and while a refusal leaves the model as it was
        before = inserted(self.model)
        self.prepare()
        if inserted(self.model) != before:
            take(self.model, self)
        self._check_reach()  # of what the method's own constraints leave

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse a setting that the constructor would take for itself, and count what an own loop calls."""
        super().__init_subclass__(**keywords)
        cls._says_its_name = cls._says_its_name or "name" in cls.__dict__
        cls.name = cls.name if cls._says_its_name else cls.__name__.lower()
        taken = set(cls.Config.model_fields) & {"name", *inspect.signature(Method.__init__).parameters}
        if taken:
            raise ConfigError(
                f"The setting {min(taken)!r} of {cls.__name__} is named like an argument of every method's constructor "
                "and could not be set: give it another name."
            )
        for hook, watched in (("loss", counting), ("collect", reading), ("load_state", restoring)):
            if hook in cls.__dict__:
                setattr(cls, hook, watched(cls.__dict__[hook]))

    # ------------------------------------------------------------------------------------------------- hooks

    def usual_allocator(self) -> str:
        """How scores become widths within `self.budget` if nobody says."""
        return "global"

    def prepare(self) -> None:
        """Insert gates, hooks and collectors into `self.model`; `self.graph` is there."""

    def before_forward(self, target: Any) -> None:
        """Know what will be asked for in the next forward pass in training, for gates that depend on it.

        target: as in `after_forward`, save that class probabilities are of the classes of the data.
        """

    def after_forward(self, output: Any, target: Any) -> None:
        """See what the model answered to one micro-batch in training, and what was asked for, before `backward`.

        target: as a loss function of PyTorch's takes it: class numbers, or class probabilities of mixed images.
        """

    def loss(self) -> torch.Tensor:
        """What is added to the task's loss in this step."""
        return torch.zeros((), device=self.device)

    def after_backward(self) -> None:
        """Change gradients, after those of one micro-batch are there."""

    def after_step(self) -> None:
        """Follow one optimiser step; a subclass that overrides this calls it."""
        self.step += 1
        self._steps_seen += 1

    def after_epoch(self) -> None:
        """Follow one epoch."""

    def collect(self, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
        """Learn what the scores need from batches (inputs, target) and loss(output, target).

        The user's batches may have any form that `secateur.batches.Batches` reads; a subclass gets pairs, the target
        None where there is none. They may be read once only, unless they come through
        `secateur.statistics.replayable`. By default, where there is a `search`: it searches on what is shown.
        """
        if self.searches():
            _search_shown(self, batches, loss)

    def search(self, trials: Trials) -> None:
        """Try networks; what is found goes into attributes, as with `collect`.

        The same questions are asked in the same order whenever it begins, for a search that was interrupted is begun
        again and gets from memory what it had found: what is random is drawn from (`seed`, `trials.number`) alone.
        """
        raise ConfigError(f"The method {self.name!r} does not search.")

    def score(self) -> Mapping[str, Any]:
        """Importance of every channel, {group: [width]}, higher = keep."""
        raise ConfigError(f"The method {self.name!r} gives no scores and no plan of its own: override one of them.")

    def plan(self) -> Plan:
        """Which channels stay, within the budget."""
        return self._allocate(self.score())

    def forms(self, plan: Plan) -> Mapping[str, LayerForm]:
        """Layers of the network cut by `plan` that are computed another way, by name; see `secateur.forms`.

        Their data speak of the layers as they are after the cut; asked again for every plan that is made anew.
        """
        return {}

    def repair(self, model: nn.Module, plan: Plan) -> None:
        """Change the weights of `model` (a plain copy, not yet cut) so that the cut hurts less."""

    def plain(self) -> nn.Module:
        """An ordinary copy of the model as it stands, whatever was inserted taken out or folded away."""
        return clone_module(self.model, lambda tensor: tensor.detach().clone())

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Parameters of the method's own that weight decay must not pull on: gates, say."""
        return ()

    def metrics(self) -> dict[str, float]:
        """What is worth watching in this moment, cheap to say."""
        return {}

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """Ways of evaluating the model that are worth comparing: "soft" gates with "hard" ones."""
        return {}

    def state(self) -> dict[str, Any]:
        """What must be saved besides parameters and buffers; JSON values."""
        return {"step": self.step}

    @restoring
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; ConfigError where that is of another method."""
        self.step = int(state["step"])

    def check_repairs(self, repairs: Sequence[Repair]) -> None:
        """Raise ConfigError where a repair would undo what this method makes; asked before training, too."""

    def check(self, result: Result) -> None:
        """Raise VerificationError unless the narrow network computes what this method's own model computes."""

    # -------------------------------------------------------------------------------------------- for everybody

    @classmethod
    def searches(cls) -> bool:
        """Whether it tries networks: there is a `search`."""
        return cls.search is not Method.search

    @classmethod
    def follows_scores(cls) -> bool:
        """Whether its widths are an allocator's, which goes by its scores."""
        return cls.plan is Method.plan

    @classmethod
    def looks(cls) -> bool:
        """Whether it learns from batches before the cut: there is a `collect`, or a `search`."""
        return cls.collect is not Method.collect or cls.searches()

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The model's output, with the method at work."""
        return self.model(*args, **keywords)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """`forward` with PyTorch's hooks, counted while training."""
        if self.training and self._reduced:
            require_reducer(self.name, narrows=self.narrows)
        self._forwards += self.training
        return super().__call__(*args, **keywords)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """All trained parameters for an optimiser of PyTorch's, those of `undecayed` without weight decay."""
        return without_decay(self.undecayed(), [{"params": [*self.parameters()], "weight_decay": weight_decay}])

    @own_defaults
    @torch.no_grad()
    def finish(self, repairs: Sequence[Repair] = (), batches: Iterable[tuple[Any, Any]] = ()) -> nn.Module:
        """A narrower network of the same class, cut and verified; `result` then holds plan, costs and proof.

        Args:
            repairs: applied one after the other behind the method's own, before the cut; see `secateur.repair`.
            batches: what they learn from, (inputs, target); targets are not looked at.
        """
        require_repairs(repairs)
        self.check_repairs(repairs)
        self._check_loop()
        plan = self.plan()
        plan.architecture = self._architecture
        settings = self.settings.model_dump(mode="json")
        plan.provenance.update({"method": self.name, "seed": self.seed, "settings": settings})
        self._note([plan.provenance[key] for key in ("undecided",) if key in plan.provenance])
        self._note(remember(self.graph, plan))
        inputs = map_tensors(self.example_inputs, lambda tensor: tensor.to(self.device))
        plain, own, result = self._cut(plan, inputs)
        self.check(replace(result, plan=own))  # before anything is repaired, for then the two should differ
        if repairs:
            self._note(mend(plain, self.plain, self.graph, own, repairs, batches))
            result = apply(plain, inputs, result.plan, verify=self.verify_cut, timing=self.graph.timing)
        self.result = result
        self.result.model.train(self.model.training)
        return self.result.model

    def _cut(self, plan: Plan, inputs: Any) -> tuple[nn.Module, Plan, Result]:
        """A plain copy with the method's own repair, the plan in its groups, and the cut, around sizes in the code."""
        replanner, own = Replanner(self.graph, plan, self.budget, (self.constraints, self._given)), plan
        while True:
            plain = self.plain()
            self.repair(plain, own)
            plan.forms = own.forms = dict(self.forms(own))
            try:
                return plain, own, apply(plain, inputs, plan, verify=self.verify_cut, timing=self.graph.timing)
            except SizeConflict as conflict:
                plan, own, said = replanner.around(conflict, self.plain(), inputs)
                self._note([said])

    def _note(self, sentences: Iterable[str]) -> None:
        """Keep sentences for the report, each once, however often `finish` is asked."""
        self.notes += [said for said in sentences if said not in self.notes]

    def _check_loop(self) -> None:
        check_loop(self, adds=type(self).loss is not Method.loss)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    @property
    def progress(self) -> float:
        """The share of the planned steps that has been taken, from 0 to 1."""
        return min(self.step / self.steps, 1.0)

    def _allocate(self, scores: Mapping[str, Any]) -> Plan:
        if self._own_allocator is not None:
            plan = self._own_allocator.plan(self.graph, scores, self.budget, self.constraints)
        else:
            plan = allocate(
                scores, self.graph, self.budget, self.constraints, allocator=self.allocator, normalise=self.normalise
            )
        plan.provenance |= {"undecided": said} if (said := undecided(scores, plan.masks)) else {}
        return plan

    def _check_reach(self) -> None:
        """BudgetError where not even the narrowest network meets the budget."""
        even = {group.name: np.ones(group.width) for group in self.graph.groups}
        plain = self.allocator if self._own_allocator is None else "per_cost"
        allocate(even, self.graph, self.budget, self.constraints, allocator=plain, normalise=self.normalise)

    def _settle(self) -> None:
        """Find sizes written in the model's code now, with trial cuts, and not after hours of training."""
        while True:
            if not self.graph.groups:
                raise ModelError(nothing_to_prune(self.graph))
            try:
                for masks in trial_widths(self.graph, self.seed):
                    self.graph.cut(Plan(masks))
                return
            except SizeConflict as conflict:
                self.notes.append(self.graph.settle(conflict))


@reading
def _search_shown(method: Method, batches: Iterable[tuple[Any, Any]], loss: Loss) -> None:
    method.search(Shown(batches, loss, method.model, method.seed))

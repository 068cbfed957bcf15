"""One method on one toy network: made, trained a little, and cut, as the checks need it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ModelError
from secateur.forms import cost, expected
from secateur.graph import Cost
from secateur.methods.contract import Method
from secateur.methods.row import MethodRow
from secateur.plan import Plan
from secateur.surgery import Result
from secateur.testing._promises import Broken, require, require_sentence
from secateur.testing._snapshots import Snapshot
from secateur.testing.networks import Network

STEPS = 6  # of a whole training: enough for whatever a method does at its beginning, midway and near its end
BUDGET = "flops=0.5"
RATE = 0.02


class Subject:
    """What is under test on one network.

    `trained`, `narrow` and `result` are made once; only checks that leave them as they are may use them.
    """

    def __init__(
        self, factory: Callable[..., Method], row: MethodRow | None, settings: Mapping[str, Any], network: Network
    ) -> None:
        self.factory, self.row, self.settings, self.network = factory, row, dict(settings), network

    def make(self, model: nn.Module | None = None, **options: Any) -> Method:
        """The method, new, on a new network or the one given; options stand in for those of every test."""
        options = {"budget": BUDGET, "steps": STEPS, "seed": 0, **self.settings, **options}
        inputs = options.pop("example_inputs", None)
        made = self.factory(
            self.network.make() if model is None else model,
            self.network.inputs() if inputs is None else inputs,
            **options,
        )
        require(isinstance(made, Method), f"its factory makes {type(made).__name__}, which is no secateur Method")
        return made

    @cached_property
    def refused(self) -> bool:
        """Whether the method does without this network, which it may say in one sentence before it touches it."""
        model = self.network.make()
        before = Snapshot.of(model)
        try:
            self.make(model)
        except ModelError as error:
            require_sentence(f"the network {self.network.name}", error)
            touched = before.difference(model)
            require(touched is None, f"it refuses the network {self.network.name} and leaves a trace in it: {touched}")
            return True
        return False

    @cached_property
    def trained(self) -> Method:
        """The method at the end of its work, just before it is asked for the result."""
        return self.work(self.make())

    def work(self, method: Method) -> Method:
        """Train with the method as the engine would, and show it the images it needs; the method, ready for the cut."""
        if self.trains:
            train(method, self.network.batches(STEPS))
        self.collect(method)
        return method

    @cached_property
    def narrow(self) -> nn.Module:
        """What `trained` ends in."""
        return self.trained.finish()

    @property
    def result(self) -> Result:
        """The proof of the cut."""
        assert self.narrow is not None
        result = self.trained.result
        if not isinstance(result, Result):
            raise Broken(f"finish() leaves {type(result).__name__} in `result`, and not a secateur.Result")
        return result

    @property
    def trains(self) -> bool:
        """Whether the engine would train with the method at work before the cut."""
        return self.row is None or self.row.acts == "while training"

    def needs_data(self, method: Method) -> bool:
        """Whether batches are to be shown before the cut."""
        if self.row is None:
            return method.looks()
        return self.row.collects

    def collect(self, method: Method) -> None:
        """Show the method the batches it needs, which can be gone through once only."""
        if self.needs_data(method):
            method.collect(self.network.batches(2, seed=5), F.cross_entropy)


def train(
    method: Method, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], optimiser: torch.optim.Optimizer | None = None
) -> list[float]:
    """Train as every loop does; the losses with what the method adds."""
    optimiser = optimiser or torch.optim.SGD(method.parameters(), RATE, momentum=0.9)
    method.train()
    losses = []
    for images, labels in batches:
        optimiser.zero_grad()
        method.before_forward(labels)
        output = method(images)
        method.after_forward(output, labels)
        loss = F.cross_entropy(output, labels) + method.loss()
        loss.backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
        losses.append(loss.item())
    method.after_epoch()
    return losses


def planned(method: Method) -> tuple[Plan, Cost]:
    """The plan, with the layers that it has computed another way, and what the network costs then on average."""
    plan = method.plan()
    plan.forms = dict(method.forms(plan))
    found, mean = cost(method.graph, plan), expected(plan, method.example_inputs)
    return plan, found if mean is None else replace(found, macs=mean.macs)


class Moment:
    """A method as it is now, to see later whether anything changed that decides how it goes on."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.model, self.tensors = Snapshot.of(method.model), Snapshot.of(method)
        self.state, self.training = copy.deepcopy(method.state()), method.training

    def require_unchanged(self, what: str) -> None:
        """Require that it is still so."""
        difference = self.model.difference(self.method.model) or self.tensors.other_tensors(self.method)
        require(difference is None, f"{what} the method: {difference}")
        require(self.method.training == self.training, f"{what} the method's training mode")
        now = self.method.state()
        other = [key for key in {**self.state, **now} if self.state.get(key) != now.get(key)]
        require(not other, f"{what} the method's state(): {other[0] if other else ''}")


@torch.no_grad()
def output(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a module gives in evaluation, which it is brought into."""
    result: torch.Tensor = module.eval()(images)
    return result


def require_same_plan(what: str, a: Plan, b: Plan) -> None:
    """Require that two plans keep the same channels."""
    other = [name for name in a.masks if a != b and (a.masks.get(name) != b.masks.get(name)).any()]  # type: ignore[union-attr]
    require(a == b, f"{what}: they differ at {other[0] if other else 'their groups'}")

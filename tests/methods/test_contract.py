"""The contract: every method of the registry keeps it, and the suite catches methods that do not, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

import secateur.testing
from secateur.errors import ConfigError, ModelError
from secateur.methods import METHODS, Method, MethodRow, Settings
from secateur.plan import Plan
from secateur.surgery import Result, apply
from secateur.testing import NETWORKS, Check, Network, check_method, checks

#: All that `make test` asks of most methods.
BRIEFLY = (
    "row_is_complete", "settings_are_data", "scores_cover_every_channel", "plan_is_sound", "plan_meets_the_budget",
    "plan_follows_its_channels", "result_is_ordinary", "result_follows_its_images", "result_is_the_masked_network",
    "result_is_saved", "structure_is_cut[concatenation]",
)  # fmt: skip
#: Of which it asks everything: one of each way to act.
WHOLE = ("l1", "bwcp")


def every_check() -> Iterator[Any]:
    """For all methods; most is left to `make long`."""
    for row in METHODS:
        for check in checks(row):
            asked = row.name in WHOLE and "=" not in check.name
            marks = [] if asked or check.name in BRIEFLY else [pytest.mark.long]
            yield pytest.param(check, marks=marks, id=f"{check.method}-{check}")


CHECKS = list(every_check())


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check) -> None:
    check()


# ------------------------------------------------------------------------------------------------ a method of one's own


class GoodSettings(Settings):
    strength: float = Field(1e-3, ge=0, description="of the penalty")
    momentum: float = Field(0.5, ge=0, le=1, description="of the running norms")


class Good(Method):
    """A penalty on weights with random factors, and the running norm of every channel as its score."""

    name = "good"
    Config = GoodSettings
    settings: GoodSettings

    def prepare(self) -> None:
        self.draws = 0
        for number, norms in enumerate(self._norms()):
            self.register_buffer(f"norms{number}", norms)

    def _norms(self) -> list[torch.Tensor]:
        tensors = self.graph.tensors()
        found = []
        for group in self.graph.groups:
            member = group.members[0]
            weight = tensors[member.name].detach().abs().movedim(member.dim, 0).flatten(1).sum(1)
            found.append(weight[torch.from_numpy(member.index)].sum(1))
        return found

    def loss(self) -> torch.Tensor:
        noise = float(np.random.default_rng([self.seed, self.draws]).random())
        self.draws += self.training
        strength = self.settings.strength * noise
        return strength * torch.stack([p.abs().mean() for p in self.model.parameters()]).sum()

    def after_step(self) -> None:
        super().after_step()
        for number, norms in enumerate(self._norms()):
            self.get_buffer(f"norms{number}").lerp_(norms, self.settings.momentum)

    def score(self) -> Mapping[str, Any]:
        return {g.name: self.get_buffer(f"norms{n}").double().numpy() for n, g in enumerate(self.graph.groups)}

    def metrics(self) -> dict[str, float]:
        return {"norm": float(self.get_buffer("norms0").sum())}

    def state(self) -> dict[str, Any]:
        return super().state() | {"draws": self.draws}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.draws = state["draws"]

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        return {"soft": self._as_it_is()}

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        yield


ROW = MethodRow(
    name="good",
    summary="running norms",
    paper="none",
    year=2026,
    arxiv="",
    needs="training",
    acts="while training",
    granularity="channel",
    fidelity="made for this test",
    factory=Good,
    settings=GoodSettings,
)
FIRST = NETWORKS[:1]


def test_a_method_of_ones_own() -> None:
    check_method(Good)


@pytest.mark.parametrize("method", [ROW, lambda *a, **k: Good(*a, **k)], ids=["row", "function"])
def test_rows_and_functions_that_make_one(method: Any) -> None:
    for check in checks(method, networks=FIRST):
        if "export" not in check.name:
            check()


def test_settings_and_networks_of_ones_own() -> None:
    class Mine(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3))

    network = Network("mine", Mine, shape=(1, 6, 6), classes=3)
    check_method(Good, settings={"strength": 0.0}, networks=[network])
    with pytest.raises(AssertionError, match=r"'good' breaks its contract .*ConfigError: method.strength is -1"):
        check_method(Good, settings={"strength": -1.0}, networks=[network])


def test_every_check_has_a_name_and_a_promise() -> None:
    found = list(checks(Good))
    assert len({check.name for check in found}) == len(found) > 30
    assert all(len(check.promise.split()) > 3 and "  " not in check.promise for check in found)
    assert {check.method for check in found} == {"good"}
    assert [str(check) for check in found if "[" in check.name] == [f"structure_is_cut[{n.name}]" for n in NETWORKS]


def test_what_is_no_method() -> None:
    with pytest.raises(ConfigError, match="int is no method: give a MethodRow, a subclass"):
        check_method(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no network to check"):
        check_method(Good, networks=[])
    with pytest.raises(AssertionError, match="makes Linear, which is no secateur Method"):
        check_method(lambda *a, **k: nn.Linear(1, 1), networks=FIRST)  # type: ignore[arg-type,return-value]


def test_what_cannot_be_checked_here_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check = next(c for c in checks(Good, networks=FIRST) if c.name == "result_is_exported")
    with pytest.raises(SkipTest, match="onnx is not installed"):
        check()


# ------------------------------------------------------------------------------------------------------- broken methods


class OtherParameters(Good):
    def prepare(self) -> None:
        super().prepare()
        self.model.stem[0].weight = nn.Parameter(self.model.stem[0].weight.detach().clone())


class OtherShape(Good):
    def forward(self, *args: Any, **keywords: Any) -> Any:
        return super().forward(*args, **keywords)[:, :-1]


class EvaluatesOtherwise(Good):
    def forward(self, *args: Any, **keywords: Any) -> Any:
        self.draws += 1
        return super().forward(*args, **keywords)


class NumberAsLoss(Good):
    def loss(self) -> Any:
        return 0.5


class VectorAsLoss(Good):
    def loss(self) -> torch.Tensor:
        return super().loss()[None]


class LossWithoutNumber(Good):
    def loss(self) -> torch.Tensor:
        return super().loss() * (float("nan") if self.step >= 2 else 1.0)


class InfiniteGradient(Good):
    def loss(self) -> torch.Tensor:
        return super().loss() + (0 * self.model.head.fc.bias).sqrt().sum()


class RaisesInAHook(Good):
    def after_backward(self) -> None:
        raise RuntimeError("no such gradient")


class CountsNoSteps(Good):
    def after_step(self) -> None:
        pass


class TensorsAsMetrics(Good):
    def metrics(self) -> Any:
        return {"norm": self.get_buffer("norms0").sum()}


class ModeStaysOn(Good):
    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        with torch.no_grad():
            self.model.head.fc.bias.add_(1)
        yield


class ModeSurvivesAnError(Good):
    added = 0.0

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return super().forward(*args, **keywords) + self.added

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        self.added = 1.0
        yield
        self.added = 0.0


class TensorsInState(Good):
    def state(self) -> dict[str, Any]:
        return super().state() | {"norms": self._norms()[0]}


class TuplesInState(Good):
    def state(self) -> dict[str, Any]:
        return super().state() | {"draws": (self.draws,)}


class ForgetsOnReload(Good):
    def load_state(self, state: Mapping[str, Any]) -> None:
        Method.load_state(self, state)


class HiddenState(Good):
    """What decides about the penalty is neither in the state nor in a buffer."""

    hidden = 0

    def after_step(self) -> None:
        super().after_step()
        self.hidden += 1

    def loss(self) -> torch.Tensor:
        return super().loss() * (1 + self.hidden)


class GlobalRandomness(Good):
    def loss(self) -> torch.Tensor:
        return super().loss() * torch.rand(())


class ScoresLackAGroup(Good):
    def score(self) -> Mapping[str, Any]:
        return dict(list(super().score().items())[1:])


class ScoresOfWrongWidth(Good):
    def score(self) -> Mapping[str, Any]:
        return {name: values[:-1] for name, values in super().score().items()}


class InfiniteScores(Good):
    def score(self) -> Mapping[str, Any]:
        return {name: values * np.inf for name, values in super().score().items()}


class PlansAnew(Good):
    """Every question gets another plan."""

    def score(self) -> Mapping[str, Any]:
        self.draws += 1
        return {g.name: np.random.default_rng(self.draws).random(g.width) for g in self.graph.groups}


class OverBudget(Good):
    def plan(self) -> Plan:
        return Plan.full(self.graph)


class WastesBudget(Good):
    def plan(self) -> Plan:
        plan = super().plan()
        for mask in plan.masks.values():
            mask[np.flatnonzero(mask)[len(np.flatnonzero(mask)) // 2 :]] = False
        return plan


class ForgetsConstraints(Good):
    def prepare(self) -> None:
        super().prepare()
        self.constraints = secateur.Constraints()


class LeavesAHook(Good):
    def plain(self) -> nn.Module:
        twin = super().plain()
        twin.stem.register_forward_hook(lambda *_: None)
        return twin


class LeavesABuffer(Good):
    def plain(self) -> nn.Module:
        twin = super().plain()
        twin.stem[0].register_buffer("gate", torch.ones(1))
        return twin


class LeavesAnAttribute(Good):
    def plain(self) -> nn.Module:
        twin: Any = super().plain()
        twin.neck.gate = 1
        return twin


class OtherClass(Good):
    def finish(self) -> nn.Module:
        return nn.Sequential(super().finish())


class NoProof(Good):
    def finish(self) -> nn.Module:
        small = super().finish()
        assert self.result is not None
        self.result = replace(self.result, verification=None)
        return small


class NoResult(Good):
    def finish(self) -> nn.Module:
        small = super().finish()
        self.result = None
        return small


class FalseCosts(Good):
    def finish(self) -> nn.Module:
        small = super().finish()
        assert isinstance(self.result, Result)
        self.result = replace(self.result, after=replace(self.result.after, macs=self.result.after.macs - 1))
        return small


class CutsNothing(Good):
    """Says what it would remove, and does not."""

    def finish(self) -> nn.Module:
        super().finish()
        assert self.result is not None
        full = Plan.full(self.graph)
        full.provenance = {**self.result.plan.provenance}
        self.result = apply(self.plain(), self.example_inputs, full)
        return self.result.model


class CutsItself(Good):
    """The repair is done on the model and not on the copy."""

    def repair(self, model: nn.Module, plan: Plan) -> None:
        self.model.stem[0].weight.data *= 0.5


class StepsInFinish(Good):
    def finish(self) -> nn.Module:
        self.draws += 1
        return super().finish()


class HardIsNotCut(Good):
    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        return {"hard": self._as_it_is()}


class TakesAnything(Good):
    def __init__(self, *args: Any, no_such_setting: Any = None, **keywords: Any) -> None:
        super().__init__(*args, **keywords)


class ForeignErrors(Good):
    def __init__(self, *args: Any, budget: Any, **keywords: Any) -> None:
        if not isinstance(budget, str):
            raise TypeError("budget must be a string")
        super().__init__(*args, budget=budget, **keywords)


class TwoLines(Good):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        try:
            super().__init__(*args, **keywords)
        except ConfigError as error:
            raise ConfigError(f"Bad options:\n{error}") from error


class RefusesTooLate(Good):
    def prepare(self) -> None:
        super().prepare()
        self.model.stem[0].register_forward_hook(lambda *_: None)
        if self.steps == 6:
            raise ModelError("This network is not one of those that are taken here.")


class RefusesAll(Good):
    def prepare(self) -> None:
        raise ModelError("This network is not one of those that are taken here.")


class NoMeaning(Good):
    class Config(Settings):
        strength: float = 1e-3


class FreesTheModel(Good):
    def undecayed(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


class FreesStrangers(Good):
    def undecayed(self) -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(1))]


class ByNumber(Method):
    """All scores are alike, and the first channels stay because they are the first."""

    name = "good"

    def score(self) -> Mapping[str, Any]:
        return {g.name: np.ones(g.width) for g in self.graph.groups}


class TooManyWeights(Good):
    """Says of single weights that half are zero, and sets none to zero."""

    def finish(self, *args: Any, **keywords: Any) -> nn.Module:
        model = super().finish(*args, **keywords)
        weight = model.get_parameter("neck.0.weight")
        said = {"names": ["neck.0.weight"], "nonzero": int(weight.count_nonzero())}
        self.result.plan.provenance["sparse"] = said
        return model


BROKEN: tuple[tuple[type[Good], str], ...] = (
    (OtherParameters, "the parameter stem.0.weight is another object: optimisers made before would be lost"),
    (OtherShape, "after the constructor, in training, the output is 8x4, and the model's 8x5"),
    (EvaluatesOtherwise, "a forward pass in evaluation changes the method's state(): draws"),
    (NumberAsLoss, "loss() before step 1 is float and not a tensor"),
    (VectorAsLoss, "loss() before step 1 has the shape (1,) and is not a scalar"),
    (LossWithoutNumber, "loss() before step 3 has values that are not finite"),
    (InfiniteGradient, "the gradient of loss() before step 1 has values that are not finite"),
    (RaisesInAHook, "depends on parameters): RuntimeError: no such gradient"),
    (CountsNoSteps, "its `step` is 0 after step 1: call super().after_step()"),
    (TensorsAsMetrics, "the metric 'norm' is tensor("),
    (ModeStaysOn, "the evaluation mode 'soft' changes the method: head.fc.bias has other values"),
    (ModeSurvivesAnError, "an error inside the evaluation mode 'soft' leaves it switched on"),
    (TensorsInState, "state() is not JSON (Object of type Tensor is not JSON serializable); tensors belong into"),
    (TuplesInState, "state() holds something at 'draws' that JSON gives back otherwise"),
    (ForgetsOnReload, "load_state() does not bring back what state() gave"),
    (HiddenState, "after load_state() training takes another way"),
    (GlobalRandomness, "the same seed gives other weights after training"),
    (ScoresLackAGroup, "score() says nothing about the group stem.0"),
    (ScoresOfWrongWidth, "score() gives stem.0 the shape (23,), and it has 24 channels"),
    (InfiniteScores, "score() gives stem.0 values that are not finite"),
    (PlansAnew, "plan() gives another plan when asked again"),
    (OverBudget, "for flops=0.5 the plan costs 200.0% of the macs allowed"),
    (WastesBudget, "of what is allowed, and not 99%"),
    (ForgetsConstraints, "the plan cuts stem.0, which constraints.ignore names"),
    (LeavesAHook, "finish() leaves something in the narrow network: 1 hooks instead of 0 on stem"),
    (LeavesABuffer, "is left but the forms of its plan): PlanError: The plan was made for another architecture"),
    (LeavesAnAttribute, "the attribute 'gate' that came or went on neck"),
    (OtherClass, "finish() gives Sequential, and the model is Residual"),
    (NoProof, "the cut was not verified: leave verification on"),
    (NoResult, "finish() leaves NoneType in `result`, and not a secateur.Result"),
    (FalseCosts, "MACs, and PyTorch counts"),
    (CutsNothing, "finish() removes nothing"),
    (CutsItself, "finish() changes the method: stem.0.weight has other values"),
    (StepsInFinish, "finish() changes the method's state(): draws"),
    (HardIsNotCut, "from the one with hard masks"),
    (TakesAnything, "an unknown setting is not refused"),
    (
        ForeignErrors,
        "a negative budget ends in TypeError: budget must be a string, where a SecateurError should say so",
    ),
    (TwoLines, "the message for a plan of no steps is not a sentence"),
    (RefusesTooLate, "it refuses the network residual and leaves a trace in it: 1 hooks instead of 0 on stem.0"),
    (RefusesAll, "it refuses every network (residual)"),
    (NoMeaning, "the setting 'strength' has no description"),
    (FreesTheModel, "undecayed() gives parameters of the model, which are not its own"),
    (FreesStrangers, "undecayed() gives parameters that are not among its parameters()"),
)


@pytest.mark.parametrize(("method", "sentence"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_is_named(method: type[Good], sentence: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(method, networks=FIRST)
    said = str(caught.value)
    assert said.startswith("The method 'good' breaks its contract")
    assert sentence in said
    assert said.endswith(".")
    assert "\n" not in said


def test_channels_that_are_chosen_by_their_number_are_named() -> None:
    row = replace(ROW, factory=ByNumber, settings=Settings, needs="nothing", acts="after training")
    with pytest.raises(AssertionError, match="put into another order, and the plan keeps others of them"):
        _one(row, "plan_follows_its_channels")
    _one(replace(row, chance="scores are alike"), "plan_follows_its_channels")


def test_single_weights_beyond_the_budget_are_named() -> None:
    row = replace(ROW, factory=TooManyWeights)
    with pytest.raises(AssertionError, match=r"weights are not zero, and the budget allows"):
        _one(row, "weights_meet_the_budget", budget="params=0.5")


def test_variants_are_checked_too() -> None:
    row = replace(ROW, variants=({"strength": 0.0}, {"momentum": -1.0}))
    found = {check.name: check for check in checks(row, networks=NETWORKS[:2]) if "=" in check.name}
    assert {name.partition("[")[2] for name in found} >= {
        "strength=0.0]",
        "momentum=-1.0]",
        "strength=0.0, projection]",
    }
    found["plan_is_sound[strength=0.0]"]()
    with pytest.raises(AssertionError, match=r"momentum is -1\.0"):
        found["plan_is_sound[momentum=-1.0]"]()


def _one(row: MethodRow, promise: str, **settings: Any) -> None:
    next(check for check in checks(row, settings=settings, networks=FIRST) if check.name == promise)()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"acting": 1.5}, "the row's acting is 1.5 and no share of the epochs"),
        ({"acts": "after training", "acting": 0.5}, "the row has acting, and the method acts after training"),
        ({"variants": ({"no_such": 1},)}, "the row's variants name 'no_such', which is none of its settings"),
        ({"fidelity": ""}, "the row's fidelity is empty"),
        ({"fidelity": "close."}, "the row's fidelity ends with a full stop"),
        ({"name": "Good One"}, "the row's name 'Good One' is not made of small letters"),
        ({"name": "better"}, "the row's name 'better' is not that of its class, 'good'"),
        ({"year": 21}, "the row's year is 21"),
        ({"arxiv": "arXiv:2106"}, "the row's arxiv 'arXiv:2106' is no number of a preprint"),
        ({"acts": "sometimes"}, "the row's acts 'sometimes' is none of before training, while training"),
        ({"settings": Settings}, "the row's settings are not the Config of its class"),
    ],
)
def test_a_row_that_says_too_little(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(replace(ROW, **change), networks=FIRST)
    assert sentence in str(caught.value)


class TouchesTheModel(Good):
    def prepare(self) -> None:
        super().prepare()
        self.model.stem[1].bias.data += 0.25


class HooksStay(Good):
    def collect(self, batches: Any, loss: Any) -> None:
        self.model.stem.register_forward_hook(lambda *_: None)
        list(batches)


class NeedsNoData(Good):
    def collect(self, batches: Any, loss: Any) -> None:
        list(batches)


@pytest.mark.parametrize(
    ("method", "needs", "sentence"),
    [
        (TouchesTheModel, "nothing", "but the constructor leaves a trace in the model: stem.1.bias has other values"),
        (HooksStay, "calibration", "a result without the data it needs is not refused"),
        (NeedsNoData, "calibration", "a result without the data it needs is not refused"),
    ],
)
def test_a_method_that_should_leave_the_model_alone(method: type[Good], needs: Any, sentence: str) -> None:
    row = replace(ROW, factory=method, acts="after training", needs=needs)
    with pytest.raises(AssertionError) as caught:
        check_method(row, networks=FIRST)
    assert sentence in str(caught.value)

"""The ways to ask for a repair: `secateur.prune`, `Method.finish`, a recipe."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))

from _small import recipe

import secateur
from secateur import runs
from secateur.errors import ConfigError, SecateurError
from secateur.methods import METHODS, method
from secateur.plan import Plan
from secateur.recipe import Recipe
from secateur.repair import Case, Repair, repairs
from secateur.repair.base import Pairs
from secateur.repair.batchnorm import BatchNorm
from secateur.testing import NETWORKS
from secateur.testing._subject import train

NETWORK = NETWORKS[0]
DATA = list(NETWORK.batches(2, seed=3))


def model() -> nn.Module:
    return NETWORK.make().eval()


def prune(net: nn.Module, **options: Any) -> Any:
    return secateur.prune(net, NETWORK.inputs(), **{"budget": "flops=0.6", "data": DATA, **options})


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    found = a.state_dict()
    return found.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in found.items())


class Doubling(Repair):
    """Twice what the last layer answers: easy to see."""

    name = "doubling"

    def apply(self, case: Case, batches: Pairs) -> None:
        for part in ("weight", "bias"):
            case.model.get_parameter(f"head.fc.{part}").mul_(2)
        case.notes.append("Answers are doubled.")


# --------------------------------------------------------------------------------------------------------- prune


def test_pruning_with_a_repair() -> None:
    net, kept = model(), model()
    bare, found = prune(net), prune(net, repair=Doubling())
    assert same(net, kept)
    assert {n: m.tolist() for n, m in found.plan.masks.items()} == {n: m.tolist() for n, m in bare.plan.masks.items()}
    assert (found.before, found.after) == (bare.before, bare.after)
    with torch.no_grad():
        torch.testing.assert_close(found.model(DATA[0][0]), 2 * bare.model(DATA[0][0]))
    assert found.verification is not None
    assert found.verification.exact
    assert found.plan.provenance["repairs"] == [{"name": "doubling"}]
    assert found.plan.provenance["notes"] == ["Answers are doubled."]
    assert found.plan.provenance["criterion"] == "l1"
    assert type(found.model) is type(net)


@pytest.mark.parametrize("verify", [True, False])
def test_in_place_is_the_same_in_the_model_itself(verify: bool) -> None:
    net = model()
    last = net.get_parameter("head.fc.bias")
    wanted = prune(model(), repair=["batchnorm", Doubling()])
    found = prune(net, repair=["batchnorm", Doubling()], inplace=True, verify=verify)
    assert found.model is net
    assert net.get_parameter("head.fc.bias") is last
    assert same(net, wanted.model)
    assert (found.verification is not None) == verify
    assert found.reached("flops") <= 0.6
    assert NETWORK.make().state_dict()["stem.0.weight"].shape != net.state_dict()["stem.0.weight"].shape


class Raising(Repair):
    name = "raising"

    def apply(self, case: Case, batches: Pairs) -> None:
        for parameter in case.model.parameters():
            parameter.fill_(3.0)
        raise ConfigError("It does not work.")


class Poison(Repair):
    name = "poison"

    def apply(self, case: Case, batches: Pairs) -> None:
        case.model.get_parameter("head.fc.bias").fill_(float("nan"))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("repair", [Raising(), Poison()], ids=lambda repair: repair.name)
def test_a_repair_that_fails_leaves_the_model_as_it_was(repair: Repair, inplace: bool) -> None:
    net, kept = model(), model()
    with pytest.raises(SecateurError, match=r"does not work|NaN"):
        prune(net, repair=repair, inplace=inplace)
    assert same(net, kept)


def test_data_are_asked_for_and_may_come_once() -> None:
    with pytest.raises(ConfigError, match="'batchnorm' learns from data and none are given"):
        prune(model(), repair="batchnorm", data=None)
    once = prune(model(), repair="batchnorm", data=iter(DATA))
    assert same(once.model, prune(model(), repair="batchnorm").model)
    with pytest.raises(ConfigError, match="did you mean 'batchnorm'"):
        prune(model(), repair="batchnom")
    assert "repairs" not in prune(model(), repair=()).plan.provenance


def test_one_pass_of_data_serves_criterion_and_repair() -> None:
    options: dict[str, Any] = {"method": "taylor", "loss": F.cross_entropy, "repair": "batchnorm"}
    assert same(prune(model(), data=iter(DATA), **options).model, prune(model(), **options).model)


def test_the_plan_of_a_repaired_network_is_saved_with_it(tmp_path: Path) -> None:
    found = prune(model(), repair=[{"name": "batchnorm", "batches": 1}, Doubling()])
    found.plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.provenance["repairs"] == [{"name": "batchnorm", "batches": 1}, {"name": "doubling"}]
    small = secateur.apply(model(), NETWORK.inputs(), again).model
    small.load_state_dict(found.model.state_dict())


# --------------------------------------------------------------------------------------------------------- finish


def pruner(name: str = "l1", **options: Any) -> secateur.methods.Method:
    return method(name).factory(model(), NETWORK.inputs(), budget="flops=0.6", **options)


def test_finishing_with_repairs() -> None:
    made = pruner()
    bare = made.finish()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    found = [made.finish([Doubling()]) for _ in range(2)]
    assert same(*found)
    assert made.notes == ["Answers are doubled."]  # once, although it was asked twice
    assert made.result is not None
    assert made.result.plan.provenance["repairs"] == [{"name": "doubling"}]
    with torch.no_grad():
        torch.testing.assert_close(found[0](DATA[0][0]), 2 * bare(DATA[0][0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert same(made.finish(), bare)
    with pytest.raises(ConfigError, match="learns from data"):
        made.finish([BatchNorm()])


def test_finishing_is_pruning() -> None:
    repaired = pruner().finish(repairs("batchnorm"), iter(DATA))
    assert same(repaired, prune(model(), repair="batchnorm").model)


#: Not those that look at data after training, nor those whose zeros a repair may not fill, as they say.
TRAINED = [
    row for row in METHODS if row.acts == "while training" and row.needs == "training" and row.result == "ordinary"
]


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_after_every_method_that_trains(row: Any) -> None:
    """What a repair gets is what the method would cut, gates folded and rounds ended; own checks come before it."""
    made = row.factory(NETWORK.make(), NETWORK.inputs(), budget="flops=0.6", steps=4)
    train(made, NETWORK.batches(4))
    made.eval()
    bare = copy.deepcopy(made.finish())
    doubled = made.finish([Doubling()])
    assert made.result.verification.passed
    with torch.no_grad():
        images = DATA[0][0]
        torch.testing.assert_close(doubled.eval()(images), 2 * bare.eval()(images))
    repaired = made.finish(repairs("batchnorm"), DATA)
    assert made.result.verification.passed
    assert not same(repaired, bare)


# --------------------------------------------------------------------------------------------------------- recipe


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("batchnorm", [{"name": "batchnorm"}]),
        ("{name: batchnorm, batches: 2}", [{"name": "batchnorm", "batches": 2}]),
        ("[batchnorm, {name: batchnorm, batches: 2}]", [{"name": "batchnorm"}, {"name": "batchnorm", "batches": 2}]),
        ("[]", []),
    ],
)
def test_repairs_in_a_recipe(given: str, meant: list[dict[str, Any]]) -> None:
    read = recipe(f"repair={given}")
    assert [each.model_dump() for each in read.repair] == meant
    assert Recipe.parse(read.to_yaml()) == read
    assert repairs(meant)[:1] == [] or repairs(meant)[0].name == "batchnorm"


REFUSED = {
    "repair=batchnrom": "Unknown repair 'batchnrom': did you mean 'batchnorm'?",
    "repair={name: batchnorm, batches: 0}": "repair batchnorm.batches is 0, but must be a whole number of at least 1",
    "repair={name: batchnorm, batchs: 1}": "did you mean 'repair batchnorm.batches'?",
    "repair={batches: 1}": "'repair.name' is missing",
    "repair=3": "repair is 3",
    "repair=[3]": "repair holds 3",
    "repair=null": "repair is null",
    "repair=''": "repair.name",
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused_before_anything_is_written(override: str, tmp_path: Path) -> None:
    with pytest.raises(SecateurError) as caught:
        runs.start(recipe(override), tmp_path / "run")
    assert REFUSED[override] in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_repair(tmp_path: Path) -> None:
    overrides = ("train.epochs=1", "finetune=null", "data.calibration_images=120")
    bare = runs.start(recipe(*overrides), tmp_path / "bare").folder
    found = runs.start(recipe(*overrides, "repair={name: batchnorm, batches: 2}"), tmp_path / "found").folder
    plans = [Plan.load(folder / "plan.json") for folder in (bare, found)]
    assert all(np.array_equal(mask, plans[1].masks[name]) for name, mask in plans[0].masks.items())
    assert plans[1].provenance["repairs"] == [{"name": "batchnorm", "batches": 2}]
    assert "repairs" not in plans[0].provenance
    secateur.runtime.check_folder(found)
    one, other = secateur.load(bare).state_dict(), secateur.load(found).state_dict()
    changed = {name.rpartition(".")[2] for name, tensor in one.items() if not torch.equal(tensor, other[name])}
    assert {"running_mean", "running_var"} <= changed <= {"running_mean", "running_var", "num_batches_tracked"}
    assert "repair" in (found / "recipe.yaml").read_text()
    assert json.loads((found / "results.json").read_text())["verification"]["exact"]

"""The contract of repairs: what a case tells about the network, and what `mend` does around every one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import secateur
from secateur.errors import ConfigError, SecateurError
from secateur.graph.modules import clone_module
from secateur.plan import Plan
from secateur.repair import METHOD_OF, REPAIRS, Case, Repair, mend, repair, repairs
from secateur.repair.base import Pairs
from secateur.repair.batchnorm import BatchNorm

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = [(IMAGES, torch.zeros(4, dtype=torch.int64))]


def network() -> nn.Sequential:
    """Readers with a batch norm behind them, with a bias, with neither, behind a flattening; a grouped one."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 5, 1, bias=False), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def copied(net: nn.Module) -> nn.Module:
    return clone_module(net, lambda tensor: tensor.detach().clone())


def case_of(net: nn.Module, **removed: list[int]) -> Case:
    """A case in which channels of some groups go, by name (`g3` for the group 3)."""
    graph = secateur.trace(net, IMAGES)
    masks = {group.name: np.ones(group.width, dtype=np.bool_) for group in graph.groups}
    for name, channels in removed.items():
        masks[name.removeprefix("g")][channels] = False
    return Case(copied(net), lambda: copied(net), graph, Plan(masks))


def test_a_case_computes_what_the_cut_network_will() -> None:
    net = network()
    case = case_of(net, g0=[1, 4], g3=[0], g7=[2])
    small = secateur.apply(net, IMAGES, case.plan).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(case.model(IMAGES), small(IMAGES))
        assert not torch.allclose(net(IMAGES), small(IMAGES))
    assert small[0].out_channels == 4


def test_readers_are_what_loses_inputs() -> None:
    case = case_of(network(), g0=[1, 4], g7=[2])
    assert [(reader.name, reader.norm) for reader in case.readers] == [("3", "4"), ("9", None)]
    conv, linear = case.readers
    assert conv.inputs.tolist() == [True, False, True, True, False, True]
    columns = conv.columns(case.model[3].weight)  # type: ignore[index]
    assert columns.view(6, 9).all(1).tolist() == conv.inputs.tolist()
    assert int(columns.sum()) == 36
    assert linear.inputs.reshape(5, 4).all(1).tolist() == [True, True, False, True, True]
    assert torch.equal(linear.columns(case.model[9].weight), torch.from_numpy(linear.inputs))  # type: ignore[index]


def test_grouped_layers_are_no_readers() -> None:
    case = case_of(network(), g3=[0], g6=[1])
    assert case.slices["6.weight"][1] is not None
    assert [reader.name for reader in case.readers] == ["7"]
    assert case_of(network()).readers == ()


def test_the_network_before_the_cut_stays_as_it_was() -> None:
    net = network()
    case = case_of(net, g0=[1])
    with torch.no_grad():
        case.model[3].weight.fill_(7.0)  # type: ignore[index]
        case.dense[3].weight.mul_(2.0)  # type: ignore[index]
        assert not torch.equal(net[3].weight, case.dense[3].weight)  # type: ignore[index]
        assert float(net[3].weight.max()) < 1.0
    assert case.dense is case.dense
    assert not case.dense.training


def test_clearing_takes_away_what_was_written_into_places_that_go() -> None:
    case = case_of(network(), g0=[1, 4])
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    with torch.no_grad():
        case.model[0].weight[1] = 5.0  # type: ignore[index]
        case.model[3].weight[:, 4] = 5.0  # type: ignore[index]
        case.model[3].weight[:, 0] += 1.0  # type: ignore[index]
        before["3.weight"][:, 0] += 1.0
    case.clear()
    after = case.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(("name", "removed", "behind"), [("3", {"g0": [1]}, "4"), ("9", {"g7": [2]}, "9")])
def test_a_constant_goes_to_the_norm_or_to_the_bias(name: str, removed: dict[str, list[int]], behind: str) -> None:
    case = case_of(network(), **removed)
    (reader,) = (reader for reader in case.readers if reader.name == name)
    seen: list[torch.Tensor] = []
    case.model.get_submodule(behind).register_forward_hook(lambda _m, _i, output: seen.append(output))
    norm: Any = case.model[4]  # type: ignore[index]
    amount = torch.arange(1.0, 1.0 + len(case.model.get_submodule(name).weight))  # type: ignore[arg-type]
    with torch.no_grad():
        case.model(IMAGES)
        assert case.add_constant(reader, amount)
        case.model(IMAGES)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt() if behind == "4" else 1.0
    shape = (-1, 1, 1) if behind == "4" else (-1,)
    torch.testing.assert_close(seen[1] - seen[0], (amount * scale).view(shape).expand_as(seen[0]), atol=1e-5, rtol=1e-4)


def test_a_constant_without_a_place_is_refused() -> None:
    case = case_of(network(), g6=[1])
    (reader,) = case.readers
    before = case.model.state_dict()["7.weight"].clone()
    assert (reader.norm, case.add_constant(reader, torch.ones(5))) == (None, False)
    assert torch.equal(case.model.state_dict()["7.weight"], before)


# ------------------------------------------------------------------------------------------------------------ mend


class Watching(Repair):
    """Notes what it finds, and writes into a place that goes."""

    name = "watching"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.shown: list[int] = []
        self.modes: list[bool] = []
        self.lost: list[float] = []

    def apply(self, case: Case, batches: Pairs) -> None:
        self.modes.append(any(module.training for module in case.model.modules()))
        weight = case.model.get_parameter("0.weight")
        self.lost.append(float(weight[1].abs().max()))
        self.shown += [len(x) for x, _ in batches] + [len(x) for x, _ in batches]
        weight[1] = 9.0
        case.model.train()
        case.notes.append(f"Repair {len(self.lost)} was here.")


def mended(*given: Repair, batches: Any = DATA) -> tuple[nn.Module, Case, list[str]]:
    net = network()
    case = case_of(net, g0=[1])
    plain = copy.deepcopy(net)
    plain[3].train()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    return plain, case, mend(plain, lambda: copy.deepcopy(net), case.graph, case.plan, given, batches)


def test_repairs_follow_each_other_and_leave_no_trace_but_weights() -> None:
    watching = Watching()
    plain, case, notes = mended(watching, watching)
    assert watching.modes == [False, False]
    assert watching.lost == [0.0, 0.0]  # the second does not find what the first wrote where nothing will be
    assert notes == ["Repair 1 was here.", "Repair 2 was here."]
    assert [name for name, module in plain.named_modules() if module.training] == ["3"]
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert float(plain[0].weight[1].abs().max()) == 0.0
    assert case.plan.provenance["repairs"] == [{"name": "watching"}] * 2


def test_no_repair_changes_nothing() -> None:
    net = network()
    plain, case, notes = mended()
    assert (notes, case.plan.provenance) == ([], {})
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in plain.state_dict().items())


def test_batches_that_come_once_are_kept() -> None:
    watching = Watching()
    mended(watching, BatchNorm(), watching, batches=iter(DATA * 2))
    assert watching.shown == [4] * 8


class Once:
    """Batches of any other kind, without any in it."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize("batches", [(), [], iter(()), Once()], ids=["tuple", "list", "iterator", "iterable"])
def test_no_data_are_missed_by_the_repair_that_looks(batches: Any) -> None:
    sentence = "The repair 'batchnorm' learns from data and none are given: pass batches of .inputs, target., which "
    with pytest.raises(ConfigError, match=f"^{sentence}are data= of prune, and --data KIND:PATH on the command line.$"):
        mended(BatchNorm(), batches=batches)


class Silent(Repair):
    """Needs no data."""

    name = "silent"

    def apply(self, case: Case, batches: Pairs) -> None:
        case.model.get_parameter("0.weight")[0] *= 2


def test_a_repair_that_does_not_look_needs_none() -> None:
    plain, _, _ = mended(Silent(), batches=())
    torch.testing.assert_close(plain[0].weight[0], 2 * network()[0].weight[0])


class Raising(Repair):
    name = "raising"

    def apply(self, case: Case, batches: Pairs) -> None:
        raise ConfigError("It does not work.")


def test_modes_come_back_after_an_error() -> None:
    net = network()
    case = case_of(net, g0=[1])
    plain = copy.deepcopy(net).train()
    with pytest.raises(ConfigError, match="It does not work"):
        mend(plain, lambda: copy.deepcopy(net), case.graph, case.plan, [Raising()], DATA)
    assert all(module.training for module in plain.modules())
    assert "repairs" not in case.plan.provenance


@pytest.mark.parametrize("batch", ["text", (), IMAGES[0]], ids=["text", "nothing", "one sample"])
def test_what_is_no_batch_is_refused(batch: Any) -> None:
    with pytest.raises(SecateurError, match=r"[Bb]atch"):
        mended(BatchNorm(), batches=[batch])


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), (IMAGES, 0, "name"), {"image": IMAGES, "label": 0}])
def test_labels_are_not_asked_for(batch: Any) -> None:
    wanted, found = mended(BatchNorm(), batches=[(IMAGES, 0)]), mended(BatchNorm(), batches=[batch])
    tensors = wanted[0].state_dict() if isinstance(wanted, tuple) else wanted.state_dict()
    others = found[0].state_dict() if isinstance(found, tuple) else found.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


# ------------------------------------------------------------------------------------------------- as people write them


def test_names_settings_and_objects() -> None:
    own = Silent()
    found = repairs(["batchnorm", {"name": "batchnorm", "batches": 3}, own])
    assert [each.settings.model_dump() for each in found[:2]] == [{"batches": None}, {"batches": 3}]
    assert found[2] is own
    for one in ("batchnorm", {"name": "batchnorm"}, BatchNorm()):
        assert [type(each) for each in repairs(one)] == [BatchNorm]
    assert repairs(()) == []


@pytest.mark.parametrize("row", REPAIRS, ids=lambda row: row.name)
def test_rows_are_complete(row: Any) -> None:
    made = repair(row.name)
    assert type(made) is row.factory
    assert made.name == row.name
    assert all(getattr(row, field).strip() for field in ("summary", "paper", "fidelity"))
    assert not row.summary.endswith(".")
    assert 1990 <= row.year <= 2100
    assert all(field.description for field in row.factory.Config.model_fields.values())
    with pytest.raises(ConfigError, match="no_such"):
        repair(row.name, no_such=1)


def test_methods_whose_last_step_is_a_repair_may_stand_for_it() -> None:
    there = {row.name for row in REPAIRS}
    assert len(there) == len(REPAIRS)
    assert not there & set(METHOD_OF)
    for alias, name in METHOD_OF.items():
        if name in there:
            assert repair(alias).name == name


_MEANT = "Unknown key 'repair batchnorm.batchs': did you mean 'repair batchnorm.batches'"
WRONG: dict[str, Any] = {
    "did you mean 'batchnorm'": "batchnrom",
    "Unknown repair ''": {"batches": 3},
    "repair batchnorm.batches is 0": {"name": "batchnorm", "batches": 0},
    _MEANT: {"name": "batchnorm", "batchs": 1},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_there_is_not(sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        repairs([WRONG[sentence]])
    assert sentence in str(caught.value)


@pytest.mark.parametrize("given", [3, None, [3], [None]], ids=str)
def test_what_is_no_repair_at_all(given: Any) -> None:
    with pytest.raises(ConfigError, match="is no repair"):
        repairs(given)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


COMPUTED: dict[str, Callable[[int, int], nn.Module]] = {
    "standardised": lambda a, b: Standardised(a, b, 3),
    "weight norm": lambda a, b: parametrizations.weight_norm(nn.Conv2d(a, b, 3)),
    "weight norm, older": lambda a, b: nn.utils.weight_norm(nn.Conv2d(a, b, 3)),
    "spectral norm": lambda a, b: parametrizations.spectral_norm(nn.Conv2d(a, b, 3)),
}


def computed(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    make = COMPUTED[kind]
    net = nn.Sequential(
        make(3, 8), nn.BatchNorm2d(8), nn.ReLU(), make(8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    )
    return net.append(nn.Linear(8 * 4, 4)).eval()


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("name", ["compensation", "least_squares", "variance"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weights_that_are_computed_anew_are_left_alone_and_named(kind: str, name: str) -> None:
    net = computed(kind)
    given: Any = {"budget": "flops=0.5", "method": "l2", "data": DATA}
    plain, mended = (secateur.prune(net, IMAGES, **given, repair=each) for each in ((), name))
    said = "Layers whose weights are computed anew (standardised, normalised) were not repaired: 3."
    assert [note for note in mended.remarks if "computed anew" in note] == [said]
    assert not any("computed anew" in note for note in plain.remarks)
    for (key, before), after in zip(
        plain.model[3].state_dict().items(), mended.model[3].state_dict().values(), strict=True
    ):
        assert key == "bias" or torch.equal(before, after)
    assert mended.model(IMAGES).isfinite().all()
    assert not torch.equal(plain.model[7].weight, mended.model[7].weight)


@pytest.mark.parametrize("kind", [kind for kind in COMPUTED if kind.startswith("weight")])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_what_weight_norm_gives_no_magnitude_is_zero(kind: str) -> None:
    case = case_of(computed(kind), g0=[1, 4])
    made = case.model[0](IMAGES)
    assert not made[:, [1, 4]].any()
    assert made.isfinite().all()
    assert made[:, 0].any()


class Normalising(nn.Module):
    """Normalises its images first, in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.net, self.inplace = network(), inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sub_(5).div_(3) if self.inplace else (x - 5) / 3
        answer: torch.Tensor = self.net(x)
        return answer


@pytest.mark.parametrize("name", [row.name for row in REPAIRS])
def test_a_network_that_writes_over_its_images_sees_the_same_ones(name: str) -> None:
    images = [IMAGES * 3 + 5, IMAGES.flip(0) * 2 + 5]
    before = [x.clone() for x in images]
    found = [
        secateur.prune(Normalising(inplace), IMAGES, budget="flops=0.6", method="l1", data=images, repair=name).model
        for inplace in (True, False)
    ]
    one, other = (net.state_dict().values() for net in found)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(images, before, strict=True))

"""Everything that is refused, as data: what is given, which error comes, and what its one sentence must name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from _harness import assert_same_state, assert_sound, halve, state
from structures._case import Net, conv, head
from torch import nn

import secateur
from secateur import (
    BudgetError,
    ConfigError,
    InputError,
    ModelError,
    Plan,
    PlanError,
    Result,
    SecateurError,
    VerificationError,
    WeightsError,
    trace,
)

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Net(lambda m, x: m.head(m.c(m.stem(x).relu()).relu()), stem=conv(3, 8), c=conv(8, 6), head=head(6))


def with_value(name: str, value: float) -> nn.Module:
    model = Net(
        lambda m, x: m.head(m.n(m.c(m.stem(x).relu()))), stem=conv(3, 8), c=conv(8, 6), n=nn.BatchNorm2d(6),
        head=head(6)
    )  # fmt: skip
    (dict(model.named_parameters()) | dict(model.named_buffers()))[name].data.view(-1)[1] = value
    return model


def one() -> nn.Module:
    return nn.Sequential(conv(3, 8))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(4, 3))


def raising(error: Exception) -> nn.Module:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        m.stem(x)
        raise error

    return Net(run, stem=conv(3, 8))


def drawing(noise: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    return Net(lambda m, x: m.head(noise(m.c(m.stem(x).relu()))), stem=conv(3, 8), c=conv(8, 6), head=head(6))


def within_itself() -> nn.Module:
    model = small()
    model.me = nn.ModuleList([model])
    return model


def exported() -> nn.Module:
    part = torch.export.unflatten(torch.export.export(nn.Sequential(conv(3, 3)), (IMAGE,)))
    return nn.Sequential(part, conv(3, 8), conv(8, 4))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return small()


@dataclass(frozen=True)
class Bad:
    """One thing that must be refused."""

    name: str
    error: type[SecateurError]
    says: tuple[str, ...]
    model: Callable[[], Any] = small
    inputs: Callable[[], Any] = lambda: IMAGE
    options: dict[str, Any] = field(default_factory=lambda: {"budget": "flops=0.5"})

    def __str__(self) -> str:
        return self.name


def option(name: str, error: type[SecateurError], says: tuple[str, ...], **options: Any) -> Bad:
    """A sound model with a bad option."""
    return Bad(name, error, says, options={"budget": "flops=0.5"} | options)


REFUSED = [
    # the model
    Bad("a string", ModelError, ("torch.nn.Module", "str"), model=lambda: "resnet50"),
    Bad("a class instead of an object", ModelError, ("torch.nn.Module", "type"), model=lambda: nn.Conv2d),
    Bad("a function", ModelError, ("torch.nn.Module", "function"), model=lambda: small),
    Bad("a state dict", ModelError, ("torch.nn.Module", "OrderedDict"), model=lambda: small().state_dict()),
    Bad("nothing", ModelError, ("torch.nn.Module", "NoneType"), model=lambda: None),
    Bad("no parameters", ModelError, ("Sequential", "no parameters"), model=lambda: nn.Sequential(nn.ReLU())),
    Bad("TorchScript, scripted", ModelError, ("TorchScript",), model=lambda: torch.jit.script(one())),
    Bad("TorchScript, traced", ModelError, ("TorchScript",), model=lambda: torch.jit.trace(one(), IMAGE)),
    Bad("meta device", ModelError, ("stem.weight", "meta"), model=on_meta),
    Bad("lazy", ModelError, ("0.weight", "not initialised"), model=lazy),
    Bad("nothing to prune", ModelError, ("Nothing", "output"), model=one),
    Bad(
        "nothing to prune, one linear layer", ModelError, ("Nothing",), model=lambda: nn.Sequential(nn.Linear(8, 4)),
        inputs=lambda: torch.randn(2, 8),
    ),
    Bad("forward raises", ModelError, ("Net", "ValueError", "purpose"), model=lambda: raising(ValueError("purpose"))),
    Bad("forward asserts", ModelError, ("Net", "AssertionError"), model=lambda: raising(AssertionError())),
    Bad("forward not written", ModelError, ("Module", "NotImplementedError"), model=lambda: plain()),
    Bad("forward stops an iteration", ModelError, ("Net", "StopIteration"), model=lambda: raising(StopIteration())),
    Bad("a module in itself", ModelError, ("me.0", "contains itself"), model=lambda: within_itself()),
    Bad(
        "numpy's noise", VerificationError, ("random", "two runs"),
        model=lambda: drawing(lambda x: x + torch.from_numpy(np.random.rand(*x.shape)).to(x.dtype)),
    ),
    Bad("an exported part", ModelError, ("torch.export", "original"), model=lambda: exported()),
    # the example inputs
    Bad("wrong channels", ModelError, ("(2, 4, 8, 8)", "shape"), inputs=lambda: torch.randn(2, 4, 8, 8)),
    Bad("wrong rank", ModelError, ("(3, 8)",), inputs=lambda: torch.randn(3, 8)),
    Bad("wrong dtype", ModelError, ("dtype",), inputs=lambda: IMAGE.double()),
    Bad("integers", ModelError, ("dtype",), inputs=lambda: torch.zeros(2, 3, 8, 8, dtype=torch.int64)),
    Bad("too many", ModelError, ("(2, 3, 8, 8)", "number"), inputs=lambda: (IMAGE, IMAGE)),
    Bad("unknown keyword", ModelError, ("picture",), inputs=lambda: {"picture": IMAGE}),
    Bad("none", InputError, ("no tensor",), inputs=lambda: None),
    Bad("empty tuple", InputError, ("no tensor",), inputs=lambda: ()),
    Bad("a shape", InputError, ("no tensor",), inputs=lambda: (2, 3, 8, 8)),
    Bad("an array", InputError, ("no tensor",), inputs=lambda: np.zeros((2, 3, 8, 8), np.float32)),
    Bad("an empty batch", SecateurError, (), inputs=lambda: torch.randn(0, 3, 8, 8)),
    # the weights
    *(
        Bad(f"{value} in {name}", WeightsError, (name, "NaN or infinite"), model=partial(with_value, name, value))
        for value in (float("nan"), float("inf"), -float("inf"))
        for name in ("stem.weight", "c.bias", "n.running_var")
    ),
    # the budget
    option("budget 0", BudgetError, ("0",), budget="flops=0"),
    option("budget negative", BudgetError, ("-0.5",), budget="flops=-0.5"),
    option("budget NaN", BudgetError, ("nan",), budget="flops=nan"),
    option("budget above the original", BudgetError, ("1.5",), budget="flops=1.5"),
    option("budget nonsense", BudgetError, ("half please",), budget="half please"),
    option("budget of an unknown kind", BudgetError, ("flop", "flops"), budget="flop=0.5"),
    option("budget empty", BudgetError, (), budget=""),
    option("budget of another type", BudgetError, (), budget=object()),
    option("budget in a dict", BudgetError, ("0",), budget={"flops": 0}),
    option("budget that cannot be met", BudgetError, ("smallest",), budget="flops=0.0001"),
    option("no budget", BudgetError, ("budget",), budget=None),
    # options
    option("pattern that matches nothing", ConfigError, ("stom", "stem"), ignore=("stom",)),
    option("everything ignored", BudgetError, ("ignore",), ignore=("*",)),
    option("unknown criterion", ConfigError, ("l11", "l1"), method="l11"),
    option("unknown allocator", ConfigError, ("globe",), allocator="globe"),
    option("unknown normalisation", ConfigError, ("avg",), normalise="avg"),
    option("unknown reduction", ConfigError, ("total",), reduce="total"),
    option("unknown attention", ConfigError, ("tails", "heads"), attention="tails"),
    option("align 0", ConfigError, ("align",), align=0),
    option("min_channels 0", ConfigError, ("min_channels",), min_channels=0),
    option("max_ratio above 1", ConfigError, ("max_ratio",), max_ratio=1.5),
    option("Taylor without data", ConfigError, ("data",), method="taylor"),
]  # fmt: skip


def plain() -> nn.Module:
    model = nn.Module()
    model.c = conv(3, 8)
    return model


@pytest.mark.parametrize("bad", REFUSED, ids=str)
def test_refused_in_one_sentence(bad: Bad) -> None:
    model, inputs = bad.model(), bad.inputs()
    untouched = (
        isinstance(model, nn.Module) and bad.name not in ("lazy", "meta device") and "TorchScript" not in bad.name
    )
    before = state(model) if untouched else None
    with pytest.raises(SecateurError) as caught:
        secateur.prune(model, inputs, **bad.options)
    error = caught.value
    assert type(error) is bad.error or bad.error is SecateurError, error
    assert error.exit_code == 2
    message = str(error)
    for word in bad.says:
        assert word in message, message
    assert "\n" not in message
    assert "  " not in message
    assert 20 < len(message) < 600
    assert message.rstrip().endswith((".", ")", "?", "'"))
    if before is not None:
        assert_same_state(before, model)


def test_every_error_is_one_family() -> None:
    for name in secateur.__all__:
        thing = getattr(secateur, name)
        if isinstance(thing, type) and issubclass(thing, Exception) and not issubclass(thing, Warning):
            assert issubclass(thing, SecateurError)


# ------------------------------------------------------------------------------------------- plans of another network


def test_a_plan_of_another_network() -> None:
    plan = halve(small(), IMAGE).plan
    other = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), head(6))
    with pytest.raises(PlanError, match="stem"):
        secateur.apply(other, IMAGE, plan)


def test_a_plan_of_other_widths() -> None:
    plan = halve(small(), IMAGE).plan
    wider = Net(lambda m, x: m.head(m.c(m.stem(x))), stem=conv(3, 9), c=conv(9, 6), head=head(6))
    with pytest.raises(PlanError, match="stem"):
        secateur.apply(wider, IMAGE, plan)


def test_a_plan_applied_twice() -> None:
    result = halve(small(), IMAGE)
    again = secateur.apply(result.model, IMAGE, result.plan)
    assert "The network was cut by this plan before: nothing was left to do." in again.notes
    assert again.after == again.before
    plain = copy.deepcopy(result.model)
    del plain._secateur_plan  # as of a network that does not know what it was cut by
    with pytest.raises(PlanError, match="stem"):
        secateur.apply(plain, IMAGE, result.plan)


def test_a_plan_that_leaves_nothing() -> None:
    graph = trace(small(), IMAGE)
    plan = Plan.full(graph)
    plan.masks["stem"][:] = False
    with pytest.raises(PlanError, match="stem"):
        secateur.apply(small(), IMAGE, plan)


def test_cut_refuses_an_unknown_group_and_a_wrong_mask() -> None:
    graph = trace(small(), IMAGE)
    for masks in ({"nowhere": np.ones(8, bool)}, {"stem": np.ones(7, bool)}):
        with pytest.raises(PlanError, match=next(iter(masks))):
            graph.cut(type("Masks", (), {"masks": masks})())


# ------------------------------------------------------------------------------------------- control flow and values


def sound_or_refused(model: nn.Module, seed: int) -> Result | None:
    """A verified result, or one sentence."""
    try:
        result = halve(model, IMAGE, seed)
    except SecateurError as error:
        said = str(error)
    else:
        assert result.verification.passed
        return result
    assert "\n" not in said
    return None


def test_control_flow_that_depends_on_data_runs_on_real_tensors() -> None:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x).relu()
        if x.sum() > 0:
            x = m.c(x).relu()
        return m.head(x * float(x.abs().max() + 1))

    model = Net(run, stem=conv(3, 8), c=conv(8, 8), head=head(8))
    nn.init.uniform_(model.stem.bias, 1, 2)
    result = halve(model, IMAGE)
    assert not result.graph.recording.on_meta
    assert result.verification.passed
    assert sum(g.width for g in result.graph.groups) > 0
    assert_sound(result, IMAGE)


def test_a_loop_as_long_as_the_data_says() -> None:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x).relu()
        for _ in range(int((x.mean() > -1).item()) + 1):
            x = m.c(x).relu()
        return m.head(x)

    result = halve(Net(run, stem=conv(3, 8), c=conv(8, 8), head=head(8)), IMAGE)
    assert result.verification.passed


def test_branches_that_flip_are_one_sentence_or_sound() -> None:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        x = m.c(x) if x.mean() > 0 else m.d(x).relu()
        return m.head(x.relu())

    model = Net(run, stem=conv(3, 8), c=conv(8, 6), d=conv(8, 6), head=head(6))
    for seed in range(6):
        sound_or_refused(model, seed)


def test_boolean_masks_and_positions() -> None:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x).relu()
        rows = x.mean((1, 2, 3)) > -1
        return m.head(m.c(x[rows]).relu())

    result = halve(Net(run, stem=conv(3, 8), c=conv(8, 6), head=head(6)), IMAGE)
    assert {g.name for g in result.graph.groups} == {"stem", "c"}
    assert result.verification.passed


def test_numpy_inside_forward() -> None:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        return m.head(m.c(x).relu() * float(np.sqrt(x.shape[-1])))

    result = halve(Net(run, stem=conv(3, 8), c=conv(8, 6), head=head(6)), IMAGE)
    assert {g.name for g in result.graph.groups} == {"stem", "c"}


def test_leaving_torch_inside_forward_is_refused_or_frozen() -> None:
    def run(m: Net, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        x = torch.from_numpy(np.ascontiguousarray(x.detach().numpy())) * 2
        return m.head(m.c(x).relu())

    model = Net(run, stem=conv(3, 8), c=conv(8, 6), head=head(6))
    result = sound_or_refused(model, 0)
    assert result is None or "stem" not in {g.name for g in result.graph.groups}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("parameter", [False, True])
def test_numbers_of_eight_bits_beside_the_weights_do_no_harm(kind: torch.dtype, parameter: bool) -> None:
    """PyTorch has no norm of them to tell whether they are finite."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 1)).eval()
    scale = torch.ones(4).to(kind)
    if parameter:
        net[0].register_parameter("scale", nn.Parameter(scale, requires_grad=False))
    else:
        net[0].register_buffer("scale", scale)
    small = secateur.prune(net, torch.randn(1, 3, 8, 8), budget="flops=0.5").model
    assert small.get_submodule("0").scale.dtype == kind

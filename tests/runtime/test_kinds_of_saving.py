"""What `save_model` writes, `load` gives back as it was; what it could not give back is refused when it is saved.

Either is right. A folder that is written and cannot be loaded, or that loads as another network, is not.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import assert_sentence
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, prune

import secateur
from secateur import references
from secateur.errors import SecateurError
from secateur.runtime import save_model

INPUTS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def dense(seed: int = 1) -> nn.Module:
    return references.load("zoo:tiny", seed=seed).model


def narrow(budget: str = "flops=0.6") -> tuple[nn.Module, secateur.Plan]:
    result = secateur.prune(dense(), INPUTS, budget=budget)
    return result.model.eval(), result.plan


def classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    return next((n, m) for n, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear))


def half(model: nn.Module) -> nn.Module:
    return model.half()


def brain(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


def double(model: nn.Module) -> nn.Module:
    return model.double()


def half_but_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.half()
    return model


def new_head(model: nn.Module) -> nn.Module:
    name, old = classifier(model)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Linear(old.in_features, 7))
    return model


def deeper_head(model: nn.Module) -> nn.Module:
    name, old = classifier(model)
    parent, _, own = name.rpartition(".")
    head = nn.Sequential(nn.Linear(old.in_features, 12), nn.ReLU(), nn.Linear(12, old.out_features))
    setattr(model.get_submodule(parent), own, head)
    return model


def no_head(model: nn.Module) -> nn.Module:
    name, _ = classifier(model)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Identity())
    return model


def counted(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return model


def averaged(model: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(model)


def one_buffer(model: nn.Module) -> nn.Module:
    model.register_buffer("epochs_seen", torch.tensor(3))
    return model


def passing_buffer(model: nn.Module) -> nn.Module:
    model.register_buffer("grid", torch.zeros(4), persistent=False)
    return model


def one_parameter(model: nn.Module) -> nn.Module:
    model.temperature = nn.Parameter(torch.ones(1))
    return model


def fused(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (first, conv), (second, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, nn.Identity())
    return model


def frozen_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
    return model


def weight_masks(model: nn.Module) -> nn.Module:
    prune.random_unstructured(classifier(model)[1], "weight", 0.5)
    return model


def normalised(model: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(next(m for m in model.modules() if isinstance(m, nn.Conv2d)))
    return model


def adapted(model: nn.Module) -> nn.Module:
    """A low-rank addition beside the classifier."""
    _, head = classifier(model)
    head.register_parameter("down", nn.Parameter(torch.randn(2, head.in_features)))
    return model


def shared(model: nn.Module) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    one = norms[0]
    other = next((m for m in norms[1:] if m.num_features == one.num_features), None)
    if other is not None:
        other.weight = one.weight
    return model


def in_channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def with_a_hook(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda _m, _i, out: out)
    return model.train()


def cut_again(model: nn.Module) -> nn.Module:
    return secateur.prune(model, INPUTS, budget="flops=0.7").model.eval()


def cut_by_hand(model: nn.Module) -> nn.Module:
    """Classes taken out of the classifier."""
    _, head = classifier(model)
    head.weight, head.out_features = nn.Parameter(head.weight[:3].clone()), 3
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[:3].clone())
    return model


CHANGES: list[Callable[[nn.Module], nn.Module]] = [
    half, brain, double, half_but_norms, new_head, deeper_head, no_head, counted, averaged, one_buffer, passing_buffer,
    one_parameter, fused, frozen_norms, weight_masks, normalised, adapted, shared, in_channels_last, with_a_hook,
    cut_again, cut_by_hand,
]  # fmt: skip


def given(model: nn.Module, inputs: torch.Tensor) -> Any:
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(1))
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        module._forward_hooks.clear()
    with torch.no_grad():
        if len({p.dtype for p in twin.parameters() if p.is_floating_point()}) > 1:  # runs under autocast only
            return twin.float()(inputs)
        return twin(inputs.to(weight.dtype)).float()


def assert_loads_as(folder: Path, wanted: nn.Module, model: nn.Module | None = None) -> None:
    loaded = secateur.load(folder, model)
    found, expected = (dict(m.named_parameters(remove_duplicate=False)) for m in (loaded, wanted))
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in expected.items()}
    torch.testing.assert_close(given(loaded, INPUTS), given(wanted, INPUTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_is_saved_loads_as_it_was_or_is_refused_when_saved(
    change: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, plan = narrow()
    model = change(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    folder = tmp_path / "saved"
    try:
        save_model(folder, model, reference="zoo:tiny", inputs=INPUTS, plan=plan)
    except SecateurError as refusal:
        assert_sentence(refusal)
        assert not folder.exists()
    else:
        assert_loads_as(folder, model)
        if change in (in_channels_last, with_a_hook, passing_buffer, shared):  # still an original, narrowed
            assert_loads_as(folder, model, dense(seed=4))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("change", [new_head, counted, fused, cut_again], ids=lambda c: c.__name__)
def test_a_refused_save_leaves_what_was_there(change: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, plan = narrow()
    save_model(tmp_path / "a", model, reference="zoo:tiny", inputs=INPUTS, plan=plan)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    wanted = copy.deepcopy(model)
    try:
        save_model(tmp_path / "a", change(model), reference="zoo:tiny", inputs=INPUTS, plan=plan)
    except SecateurError:
        assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == files
        assert_loads_as(tmp_path / "a", wanted)
    else:
        assert_loads_as(tmp_path / "a", model)


def foreign_plan() -> secateur.Plan:
    other = references.load("zoo:lenet5")
    return secateur.prune(other.model, other.inputs, budget="flops=0.6").plan


def second_plan() -> secateur.Plan:
    return secateur.prune(narrow()[0], INPUTS, budget="flops=0.7").plan


def other_plan() -> secateur.Plan:
    return secateur.prune(dense(), INPUTS, budget="flops=0.3").plan


@pytest.mark.parametrize("plan", [foreign_plan, second_plan, other_plan], ids=lambda p: p.__name__)
def test_a_plan_of_another_cut_is_refused_when_saved(plan: Callable[[], secateur.Plan], tmp_path: Path) -> None:
    model, _ = narrow()
    with pytest.raises(SecateurError) as refused:
        save_model(tmp_path / "a", model, reference="zoo:tiny", inputs=INPUTS, plan=plan())
    assert_sentence(refused.value)
    assert not (tmp_path / "a").exists()


def test_twice_pruned_with_the_second_plan_loads_or_is_refused(tmp_path: Path) -> None:
    """What the user of iterative pruning does: cut, train, cut again, save with the plan at hand."""
    once, _ = narrow()
    again = secateur.prune(once, INPUTS, budget="flops=0.7")
    folder = tmp_path / "again"
    try:
        save_model(folder, again.model, reference="zoo:tiny", inputs=INPUTS, plan=again.plan)
    except SecateurError as refusal:
        assert_sentence(refusal)
        assert not folder.exists()
        return
    assert_loads_as(folder, again.model)


def test_the_whole_network_with_a_plan_that_keeps_all(tmp_path: Path) -> None:
    result = secateur.prune(dense(), INPUTS, budget="flops=1")
    save_model(tmp_path / "a", result.model, reference="zoo:tiny", inputs=INPUTS, plan=result.plan)
    assert_loads_as(tmp_path / "a", result.model)

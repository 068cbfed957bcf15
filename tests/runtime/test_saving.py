"""What `save_model` writes `load` reads; what could not be read again is refused before anything is there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import DIGIT, assert_sentence
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import secateur
from secateur.errors import RunError
from secateur.models import create
from secateur.runtime import export_pt2, save_model
from secateur.runtime.inputs import Signature


def save(folder: Path, network: nn.Module, plan: Any, **more: Any) -> dict[str, str]:
    given = {"reference": "zoo:tiny", "arguments": {"in_channels": 1}, "inputs": DIGIT, **more}
    return save_model(folder, network, plan=plan, **given)


def head_of(network: nn.Module) -> tuple[nn.Module, str, nn.Linear]:
    """The last linear layer, and where it is."""
    name, layer = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    owner, _, last = name.rpartition(".")
    return network.get_submodule(owner), last, layer


def longer(network: nn.Module) -> nn.Module:
    owner, last, layer = head_of(network)
    setattr(owner, last, nn.Linear(layer.in_features, 23))
    return network


def counted(network: nn.Module) -> nn.Module:
    for module in network.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
    return network


def watched(network: nn.Module) -> nn.Module:
    network.register_buffer("seen", torch.zeros(3))
    return network


def training(network: nn.Module) -> nn.Module:
    return network.train()


READABLE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half precision": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double precision": lambda m: m.double(),
    "a longer head": longer,
    "a head in half precision": lambda m: longer(m).half(),
    "a profiler's buffers": counted,
    "a buffer of one's own": watched,
    "in training": training,
    "wrapped": lambda m: nn.DataParallel(m),
}


@pytest.mark.parametrize("kind", READABLE)
def test_what_can_be_read_again(pruned: secateur.Result, tmp_path: Path, kind: str) -> None:
    network = READABLE[kind](copy.deepcopy(pruned.model))
    header = save(tmp_path / "a", network, pruned.plan)
    loaded = secateur.load(tmp_path / "a")
    first = next(network.parameters())
    assert next(loaded.parameters()).dtype == first.dtype
    x = torch.randn(3, 1, 8, 8).to(first.dtype)
    inner = network.module if isinstance(network, nn.DataParallel) else network
    assert torch.equal(loaded(x), inner.eval()(x))
    given = secateur.load(tmp_path / "a", model=create("tiny", in_channels=1))
    assert torch.equal(given(x), inner(x))
    left_out = json.loads(header.get("left_out", "[]"))
    assert bool(left_out) == ("buffer" in kind)
    assert all(name.rpartition(".")[2] in ("total_ops", "seen") for name in left_out)
    assert {name for name, _ in inner.named_buffers()} >= set(left_out)  # the user's own stays as it is


def fused(network: nn.Module) -> nn.Module:
    owner = next(m for m in network.modules() if isinstance(m, nn.Sequential) and isinstance(m[0], nn.Conv2d))
    owner[0], owner[1] = fuse_conv_bn_eval(owner[0], owner[1]), nn.Identity()
    return network


def wrapped_head(network: nn.Module) -> nn.Module:
    owner, last, layer = head_of(network)
    setattr(owner, last, nn.Sequential(nn.Dropout(), layer))
    return network


def without_bias(network: nn.Module) -> nn.Module:
    owner, last, layer = head_of(network)
    setattr(owner, last, nn.Linear(layer.in_features, layer.out_features, bias=False))
    return network


def reparametrised(network: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(head_of(network)[2])
    return network


@pytest.mark.parametrize("change", [fused, wrapped_head, without_bias, reparametrised])
def test_what_could_not_be_read_again_is_refused_and_nothing_written(
    pruned: secateur.Result, tmp_path: Path, change: Callable[[nn.Module], nn.Module]
) -> None:
    network = change(copy.deepcopy(pruned.model)).eval()
    with pytest.raises(RunError, match=r"has other layers than 'zoo:tiny' cut by this plan, .* do that after loading"):
        save(tmp_path / "a", network, pruned.plan)
    assert not (tmp_path / "a").exists()
    save(tmp_path / "b", network, pruned.plan, reference="net.py:f")  # whose code is not run: it is the user's word
    export_pt2(network, DIGIT, tmp_path / "b" / "model.pt2")
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(secateur.load(tmp_path / "b")(x), network(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["another network", "other arguments", "another plan"])
def test_a_plan_of_another_network_is_refused(pruned: secateur.Result, tmp_path: Path, kind: str) -> None:
    network, plan, more = pruned.model, pruned.plan, {}
    match kind:
        case "another network":
            more = {"reference": "zoo:resnet8"}
        case "other arguments":
            more = {"arguments": {}}
        case _:
            plan = secateur.prune(create("tiny", in_channels=1), DIGIT, budget="flops=0.3").plan
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "plan.json").write_text("before")
    with pytest.raises(RunError, match="could not be loaded again") as caught:
        save(tmp_path / "a", network, plan, **more)
    assert_sentence(caught.value)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["plan.json"]
    assert (tmp_path / "a" / "plan.json").read_text() == "before"


def test_a_shorter_head_in_a_damaged_folder_is_still_found(pruned: secateur.Result, tmp_path: Path) -> None:
    """Lengthening a head does not make the weights of another run fit."""
    save(tmp_path / "a", pruned.model, pruned.plan)
    other = secateur.prune(create("tiny", in_channels=1), DIGIT, budget="flops=0.3")
    save(tmp_path / "b", other.model, other.plan)
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(RunError, match="different runs"):
        secateur.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["a" * 300, "b" * 5000, "c/" * 10 + "d" * 400])
def test_a_name_that_is_too_long_is_one_sentence(pruned: secateur.Result, tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError):
        save(tmp_path / name, pruned.model, pruned.plan)
    with pytest.raises(RunError, match="There is no folder"):
        secateur.load(tmp_path / name)


class Described(nn.Module):
    """Called with an image, a dict of tensors, a number and a text."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(
        self, x: torch.Tensor, more: dict[str, torch.Tensor], *, scale: float, mode: str = "mean"
    ) -> torch.Tensor:
        x = self.b(self.a(x) * scale).relu() * more["mask"]
        return x.mean((2, 3)) if mode == "mean" else x.amax((2, 3))


DESCRIBED = secateur.Inputs(torch.randn(2, 3, 8, 8), {"mask": torch.ones(2, 1, 8, 8)}, scale=0.5, mode="max")


def test_dicts_and_plain_numbers_are_saved_with_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = secateur.prune(Described(), DESCRIBED, budget="flops=0.6")
    save_model(tmp_path / "out", result.model, reference="mine.py:Described", inputs=DESCRIBED, plan=result.plan)
    again = secateur.load(tmp_path / "out", model=Described()).eval()
    wanted = result.model.eval()(*DESCRIBED.args, **DESCRIBED.kwargs)
    assert torch.equal(again(*DESCRIBED.args, **DESCRIBED.kwargs), wanted)


@pytest.mark.parametrize(
    "form",
    [
        {"args": [{"tensor": 0}]},
        {"args": [{"tensor": 0}, {"tensor": 0}], "kwargs": {}},
        {"args": [{"tensor": 1}], "kwargs": {}},
        {"args": [{"tensor": True}], "kwargs": {}},
        {"args": [{"tensor": 0, "value": 1}], "kwargs": {}},
        {"args": [{"code": "1"}, {"tensor": 0}], "kwargs": {}},
        {"args": [{"value": [1]}, {"tensor": 0}], "kwargs": {}},
        [1],
    ],
)
def test_a_forged_call_is_refused(form: object) -> None:
    with pytest.raises(RunError, match="malformed"):
        Signature.read([[1, 2]], ["float32"], None, form)


def test_every_call_comes_back() -> None:
    x, y = torch.zeros(1, 2), torch.zeros(3, dtype=torch.int64)
    for inputs in (x, (x, y), {"a": x, "b": y}, secateur.Inputs(x, b=y), (x, [y, (1, None)]), ({"k": x}, 2.5, True)):
        noted = Signature.of(inputs)
        again = Signature.read(*map(_json, (noted.shapes, noted.types, noted.names, noted.form)))
        assert again == noted
        assert Signature.of(again.make()) == noted


def _json(value: object) -> object:
    return json.loads(json.dumps(value))

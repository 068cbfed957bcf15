"""Checkpoints as people have them: found in the file, or one sentence about why not."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _runs import assert_sentence
from safetensors.torch import save_file
from torch import nn

from secateur.errors import ConfigError, SecateurError, WeightsError
from secateur.models import create
from secateur.runtime import read_weights


class Lit(nn.Module):
    """As a LightningModule holds a network, with a loss that has weights of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))


def trained(seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return create("tiny")


NETWORK, AVERAGE = trained(), trained(8)
STATE: dict[str, Any] = NETWORK.state_dict()
MEAN: dict[str, Any] = AVERAGE.state_dict()


def prefixed(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def optimiser() -> dict[str, Any]:
    model = trained()
    made = torch.optim.Adam(model.parameters())
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    made.step()
    return dict(made.state_dict())


def counted() -> dict[str, Any]:
    return {**STATE, "total_ops": torch.zeros(1), "stem.0.total_params": torch.zeros(1)}


#: What the file holds, and whether it is the moving average that is expected of it.
KINDS: dict[str, Callable[[], Any]] = {
    "bare": lambda: STATE,
    "state_dict and epoch": lambda: {"state_dict": STATE, "epoch": 3, "arch": "tiny", "best_acc1": torch.tensor(0.9)},
    "model": lambda: {"model": STATE, "optimizer": optimiser(), "args": argparse.Namespace(lr=0.1)},
    "model_state_dict": lambda: {"model_state_dict": STATE, "loss": np.float64(0.3), "optim_state": optimiser()},
    "net, of a list of three": lambda: {"net": STATE, "acc": 91.0, "epoch": 200},
    "params, with params_ema": lambda: {"params": STATE, "params_ema": MEAN},
    "data parallel": lambda: {"state_dict": prefixed("module.")},
    "compiled": lambda: prefixed("_orig_mod."),
    "compiled in data parallel": lambda: {"model": prefixed("module._orig_mod.")},
    "lightning": lambda: {"state_dict": Lit(NETWORK).state_dict(), "hyper_parameters": {"lr": 0.1}, "loops": {}},
    "lightning with its average": lambda: {"state_dict": prefixed("net.") | prefixed("ema_net.", MEAN)},
    "averaged beside it": lambda: {
        "model": STATE, "model_ema": torch.optim.swa_utils.AveragedModel(AVERAGE).state_dict(),
    },
    "deeper": lambda: {"checkpoint": {"model": {"state_dict": STATE}}},
    "half": lambda: {name: t.half() if t.is_floating_point() else t for name, t in STATE.items()},
    "counted": counted,
    "without counters": lambda: {n: t for n, t in STATE.items() if not n.endswith("num_batches_tracked")},
}  # fmt: skip


def read(path: Path, **options: Any) -> tuple[nn.Module, tuple[str, ...]]:
    torch.manual_seed(99)
    model = create("tiny")
    return model, read_weights(model, path, **options)


def same(model: nn.Module, state: dict[str, Any]) -> bool:
    own = model.state_dict()
    return all(torch.allclose(own[n].float(), t.float(), atol=1e-2 * (t.dtype == torch.half)) for n, t in state.items())


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_state_is_found(tmp_path: Path, kind: str) -> None:
    torch.save(KINDS[kind](), tmp_path / "w.pth")
    model, notes = read(tmp_path / "w.pth")
    assert same(model, {n: t.half() if kind == "half" and t.is_floating_point() else t for n, t in STATE.items()})
    assert bool(notes) == (kind not in ("bare", "compiled", "half", "without counters"))
    assert all(note.endswith(".") for note in notes)


def test_safetensors_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.weights"):
        save_file(prefixed("module."), tmp_path / name)
        model, notes = read(tmp_path / name)
        assert same(model, STATE)
        assert notes == ("The weights are those under 'module' in the file.",)


@pytest.mark.parametrize("kind", ["params, with params_ema", "lightning with its average", "averaged beside it"])
def test_the_moving_average_on_request(tmp_path: Path, kind: str) -> None:
    torch.save(KINDS[kind](), tmp_path / "w.ckpt")
    model, notes = read(tmp_path / "w.ckpt", ema=True)
    assert same(model, MEAN)
    assert "ema" in notes[0]


def test_an_average_alone_is_taken_and_said(tmp_path: Path) -> None:
    torch.save({"params_ema": MEAN}, tmp_path / "w.pth")
    model, notes = read(tmp_path / "w.pth")
    assert same(model, MEAN)
    assert "They are a moving average, the only weights there that fit." in notes


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    torch.save(KINDS["params, with params_ema"](), tmp_path / "a.pth")
    assert read(tmp_path / "a.pth")[1] == ("The weights are those under 'params' in the file.",)
    torch.save({"model": STATE, "teacher": MEAN}, tmp_path / "b.pth")
    assert read(tmp_path / "b.pth")[1][1] == "Others that would fit were left: 'teacher'."


def refused(path: Path, **options: Any) -> str:
    torch.manual_seed(99)
    model = create("tiny")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SecateurError) as caught:
        read_weights(model, path, **options)
    assert_sentence(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("content", [NETWORK, {"model": NETWORK, "epoch": 1}, {"ema": NETWORK}])
def test_whole_networks_are_refused_with_the_remedy(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    said = refused(tmp_path / "w.pt")
    assert "a pickled object of secateur.models.small.Tiny, which can run code" in said
    assert "torch.save(model.state_dict()" in said


def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint at all")
    torch.save(STATE, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    (tmp_path / "folder.pth").mkdir()
    for name, part in {
        "list": "no tensors by name",
        "text": "damaged",
        "cut": "cannot be read",
        "folder": "no weights file",
    }.items():
        assert part in refused(tmp_path / f"{name}.pth")


def test_missing_and_unexpected_names_the_first_few(tmp_path: Path) -> None:
    names = list(STATE)
    torch.save(
        {"model": {n: t for n, t in STATE.items() if n not in names[:5]} | {"extra": torch.ones(1)}}, tmp_path / "w.pth"
    )
    said = refused(tmp_path / "w.pth")
    missing = [n for n in names[:5] if not n.endswith("num_batches_tracked")]
    assert f"{', '.join(missing[:3])} and {len(missing) - 3} more are missing from the file" in said
    assert "extra is not in the model" in said


def test_another_number_of_classes_says_so(tmp_path: Path) -> None:
    torch.save(create("tiny", num_classes=7).state_dict(), tmp_path / "w.pth")
    assert "build the model with 7 outputs there, such as num_classes=7." in refused(tmp_path / "w.pth")


def test_several_states_are_not_guessed_at(tmp_path: Path) -> None:
    torch.save({"student": STATE, "teacher": MEAN}, tmp_path / "w.pth")
    assert "several states that fit ('student', 'teacher')" in refused(tmp_path / "w.pth")
    assert "no moving average (there is 'student', 'teacher')" in refused(tmp_path / "w.pth", ema=True)


def test_the_kinds_of_refusal(tmp_path: Path) -> None:
    torch.save({"model": create("resnet8").state_dict()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        read_weights(create("tiny"), tmp_path / "w.pth")
    with pytest.raises(ConfigError):
        read_weights(create("tiny"), tmp_path / "none.pth")


@pytest.mark.parametrize("name", ["w", "w.pth", "w.BIN", "w.ckpt", "w.pth.tar", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_file_is_what_it_holds_whatever_it_is_called(tmp_path: Path, name: str, kind: str) -> None:
    trained, found = create("tiny"), create("tiny")
    if kind == "safetensors":
        save_file(trained.state_dict(), tmp_path / name)
    else:
        torch.save(trained.state_dict(), tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    read_weights(found, tmp_path / name)
    assert torch.equal(found.fc.bias, trained.fc.bias)

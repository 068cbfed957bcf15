"""Checkpoints: exact, whole or not there, and a damaged one is known as one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _toy import ToyMethod, make_engine, short, toy_net
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import ModelError, RunError
from secateur.recipe import EngineConfig
from secateur.training import checkpoints, stage
from secateur.training.checkpoints import STATE, TENSORS, Store
from secateur.training.metrics import Metrics
from secateur.training.packing import pack, unpack
from secateur.training.randomness import capture, derive, preserved, restore, seed_all

CPU = torch.device("cpu")
KEYS = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.text(max_size=2))
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@settings(max_examples=100)
@given(TREES)
def test_packing_is_exact(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    through = json.loads(json.dumps(pack(tree, "x", tensors), allow_nan=False))
    back = unpack(through, tensors)
    assert back == tree
    assert repr(back) == repr(tree)  # 1 and 1.0, True and 1, -0.0 and 0.0 are told apart


def test_packing_keeps_tensors_and_refuses_objects() -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = {0: {"momentum": torch.ones(2), "none": None, "nan": math.nan}, "groups": [{"betas": (0.9, 0.99)}]}
    back = unpack(json.loads(json.dumps(pack(tree, "o", tensors))), tensors)
    assert back[0]["momentum"] is tensors["o.0.momentum"]
    assert math.isnan(back[0]["nan"])
    assert back["groups"] == [{"betas": (0.9, 0.99)}]
    with pytest.raises(RunError, match=r"x\.a, a set"):
        pack({"a": {1}}, "x", {})
    with pytest.raises(RunError, match="float64"):
        pack({"a": np.float64(1)}, "x", {})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimiser_comes_back_exactly(name: str, tmp_path: Path) -> None:
    net = toy_net()
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "sgd" else {})}
    optimiser = kinds[name](net.parameters(), **options)
    net(torch.randn(4, 2, 6, 6)).sum().backward()
    optimiser.step()
    tensors: dict[str, torch.Tensor] = {}
    state = {"optimiser": pack(optimiser.state_dict(), "optimiser", tensors)}
    store = Store(tmp_path, 1, print)
    store.write("train", 1, tensors, state)
    found = store.newest("train")
    assert found is not None
    other = kinds[name](net.parameters(), **options)
    other.load_state_dict(unpack(found.state["optimiser"], found.tensors()))
    mine, true = other.state_dict(), optimiser.state_dict()
    assert mine["param_groups"] == true["param_groups"]
    for index, values in true["state"].items():
        for key, value in values.items():
            assert torch.equal(mine["state"][index][key], value)


def test_generators_come_back_exactly() -> None:
    seed_all(5)
    np.random.normal(), random.gauss(0, 1)  # both keep a second number for later
    state = capture(CPU)

    def draw() -> list[Any]:
        return [random.gauss(0, 1), random.random(), *np.random.normal(size=3), *torch.rand(3).tolist()]

    first = draw()
    restore(state, CPU)
    with preserved(CPU):
        draw()
    assert draw() == first
    assert derive(1, "train") != derive(1, "finetune") != derive(2, "finetune")
    assert 0 <= derive(0) < 2**31


def write(store: Store, step: int, stage: str = "train") -> str:
    return store.write(stage, step, {"a": torch.arange(float(step))}, {"position": {"step": step}})


def test_shared_and_sliced_memory_is_written_apart(tmp_path: Path) -> None:
    store, base = Store(tmp_path, 1, print), torch.arange(12.0)
    tensors = {
        "a": base,
        "b": base,
        "c": base[2:4],
        "d": base.view(3, 4).t(),
        "e": torch.tensor(3),
        "f": torch.zeros(0),
    }
    store.write("train", 1, tensors, {})
    found = store.open("train-000000001").tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_only_data_is_written(tmp_path: Path) -> None:
    make_engine(tmp_path).fit("train", toy_net(), short(epochs=1))
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {TENSORS, STATE, "metrics.jsonl"}


def test_the_newest_the_best_and_the_finished_stay(tmp_path: Path) -> None:
    store = Store(tmp_path, 2, print)
    for step in range(1, 6):
        write(store, step)
        write(store, step, "finetune")
        store.tidy("train", "train-000000002" if step >= 2 else None)
    store.write("train", 5, {}, {}, done=True)
    store.tidy("train", "train-000000002")
    names = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("train"))
    assert names == ["train-000000002", "train-000000004", "train-000000005", "train-done"]
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("finetune")]) == 5
    store.forget("train", 4)
    assert store.newest("train").name == "train-000000004"
    store.forget("train", -1)
    assert store.newest("train") is None


@pytest.mark.parametrize("file", [TENSORS, STATE])
def test_no_damage_goes_unnoticed(tmp_path: Path, file: str) -> None:
    said: list[str] = []
    store = Store(tmp_path, 2, said.append)
    write(store, 3)
    path = tmp_path / write(store, 40) / file
    whole, chance = path.read_bytes(), random.Random(0)
    for trial in range(60):
        place = chance.randrange(len(whole))
        bit = bytes([whole[place] ^ 1 << chance.randrange(8)])
        path.write_bytes(whole[:place] if trial % 3 == 0 else whole[:place] + bit + whole[place + 1 :])
        said.clear()
        found = store.newest("train")
        assert found is not None
        if found.name == "train-000000040":  # only what means the same may pass: a space in the JSON
            assert file == STATE
            assert found.state == json.loads(whole)
        else:
            assert len(said) == 1
            assert "train-000000003, is used instead" in said[0]
    path.unlink()
    assert store.newest("train").name == "train-000000003"


def test_a_damaged_newest_falls_back_and_the_run_ends_the_same(tmp_path: Path) -> None:
    whole = toy_net()
    make_engine().fit("train", whole, short())
    make_engine(tmp_path).fit("train", toy_net(), short())
    for name in ("train-done", "train-000000015"):
        path = tmp_path / "checkpoints" / name / TENSORS
        path.write_bytes(path.read_bytes()[:-7])
    engine, net = make_engine(tmp_path), toy_net()
    fitted = engine.fit("train", net, short())
    assert fitted.resumed == 10
    assert len(fitted.notes) == 2
    assert all("does not have the hash" in note and "train-000000010, is used" in note for note in fitted.notes)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in net.state_dict().items())
    assert [row["step"] for row in rows(tmp_path)] == [5, 10, 15]


def test_with_nothing_whole_the_stage_begins_again(tmp_path: Path) -> None:
    make_engine(tmp_path).fit("train", toy_net(), short(epochs=1))
    for path in (tmp_path / "checkpoints").iterdir():
        (path / STATE).write_text("{}")
    engine, net = make_engine(tmp_path), toy_net()
    assert engine.fit("train", net, short(epochs=1)).resumed is None
    assert "begins again" in engine.notes[0]
    assert make_engine(tmp_path).fit("train", net, short(epochs=1)).resumed == 5


def test_damaged_best_weights_are_looked_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.9, 0.1, 0.2, 0.3])
    validate = stage.Stage._validate

    def told(self: Any) -> tuple[float | None, float | None]:
        return validate(self)[0], next(accuracies)

    monkeypatch.setattr(stage.Stage, "_validate", told)
    options = short(epochs=4, select="best")
    with monkeypatch.context() as patch:
        patch.setattr(stage.Stage, "_finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_engine(tmp_path).fit("train", toy_net(), options)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["train-000000005", "train-000000015", "train-000000020"]  # the best one stays
    (tmp_path / "checkpoints" / names[0] / TENSORS).write_bytes(b"")
    (tmp_path / "checkpoints" / names[2] / TENSORS).write_bytes(b"")
    accuracies = iter([0.3])
    fitted = make_engine(tmp_path).fit("train", toy_net(), options)
    assert fitted.best_epoch == 4
    assert any("best weights are looked for" in note for note in fitted.notes)


def test_another_recipe_network_or_method_is_refused(tmp_path: Path) -> None:
    make_engine(tmp_path).fit("train", toy_net(), short(epochs=1))
    with pytest.raises(RunError, match=r"train\.lr 0\.05, and now it is 0\.1"):
        make_engine(tmp_path).fit("train", toy_net(), short(epochs=1, lr=0.1))
    with pytest.raises(RunError, match=r"data\.batch_size 16, and now it is 8"):
        make_engine(tmp_path, batch_size=8).fit("train", toy_net(), short(epochs=1))
    with pytest.raises(RunError, match="of another network, as"):
        make_engine(tmp_path).fit("train", torch.nn.Sequential(toy_net()), short(epochs=1))
    method = ToyMethod(toy_net())
    with pytest.raises(RunError, match="of another network"):
        make_engine(tmp_path).fit("train", method, short(epochs=1), method=method)


def test_a_full_disk_is_a_sentence_and_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = checkpoints.save_file, []

    def full(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            Path(args[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(*args)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device; the one before it is whole"):
        make_engine(tmp_path).fit("train", toy_net(), short())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["train-000000005"]
    assert make_engine(tmp_path).fit("train", toy_net(), short()).resumed == 5


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Odd(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            raise NotImplementedError

    net = torch.nn.Sequential(torch.nn.Flatten(), Odd(72, 4))
    with pytest.raises(ModelError, match="_extra_state"):
        make_engine(tmp_path).fit("train", net, short(epochs=1))


def test_metrics_are_cut_back_to_what_is_known(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.rewind("train", 0)
    for stage_name in ("pretrain", "train"):
        for step in (5, 10, 15):
            metrics.append({"stage": stage_name, "step": step, "loss": math.nan})
    whole = metrics.path.read_bytes()
    metrics.rewind("train", 15)
    assert metrics.path.read_bytes() == whole
    metrics.path.write_bytes(whole + b'{"stage": "train", "st')
    metrics.rewind("train", 15)
    assert metrics.path.read_bytes() == whole
    metrics.rewind("train", 9)
    assert [(row["stage"], row["step"], row["loss"]) for row in lines(metrics.path)][3:] == [("train", 5, None)]
    metrics.rewind("pretrain", 5)
    assert [row["step"] for row in lines(metrics.path)] == [5]


def rows(folder: Path) -> list[dict[str, Any]]:
    return lines(folder / "metrics.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_accumulated_seconds_survive(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, EngineConfig(device="cpu", precision="fp32"))
    engine.wind(1000.0)
    engine.fit("train", toy_net(), short(epochs=1))
    again = make_engine(tmp_path)
    assert again.seconds < 500
    again.fit("train", toy_net(), short(epochs=1))
    assert again.seconds >= 1000
    assert rows(tmp_path)[0]["seconds"] >= 1000

"""Saving and loading a narrow network: both ways give it back, and nothing else is accepted."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from _runs import Run, assert_sentence, computes_the_same, without_code
from torch import nn
from torch.nn import functional as F

import secateur
from secateur import models, references
from secateur.errors import ConfigError, InputError, ModelError, PlanError, RunError, SecateurError, WeightsError
from secateur.runtime import export_folder, export_pt2, save_model
from secateur.runtime.program import Program

Copy = Callable[..., Path]


def saved(
    folder: Path, model: nn.Module, inputs: object, budget: str = "params=0.6", reference: str = "m.py:f"
) -> nn.Module:
    """Prune, save and export; the narrow network."""
    result = secateur.prune(model, inputs, budget=budget)
    save_model(folder, result.model, reference=reference, inputs=inputs, plan=result.plan)
    export_pt2(result.model, inputs, folder / "model.pt2")
    return result.model.eval()


class Keywords(nn.Module):
    """Two inputs by name, one of them whole numbers; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.mix = nn.Linear(12, 16)
        self.out = nn.Linear(16, 4)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
        self.shift = torch.arange(4.0)  # a plain tensor: a constant of the exported graph

    def forward(self, *, tokens: torch.Tensor, offset: torch.Tensor) -> dict[str, object]:
        hidden = F.relu(self.mix(self.embed(tokens).mean(1) + offset))
        scores = self.out(hidden) * self.scale + self.shift
        return {
            "scores": scores,
            "more": collections.OrderedDict(best=scores.amax(1)),
            "pair": (scores, [hidden.sum(1)]),
        }


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.three = nn.Conv2d(8, 8, 3, padding=1)
        self.three.weight = self.two.weight
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.three(self.act(self.two(self.act(self.one(x))))))
        a, b = x.chunk(2, dim=0) if x.shape[0] == -1 else (x, x)
        logits: torch.Tensor = self.fc((a + b).mean((2, 3)))
        return logits


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv(x).mean((2, 3)).view(2, -1))
        return logits


def test_without_the_code_the_network_comes_from_the_exported_file(run: Run) -> None:
    with without_code(), pytest.warns(UserWarning, match=r"run from model\.pt2, for inference only"):
        network = secateur.load(run.folder)
    assert isinstance(network, Program)
    assert not network.training
    assert "any batch size" in repr(network)
    for size in (1, 2, 7):
        assert computes_the_same(network, run.narrow, size)
    stored, own = network.state_dict(), run.narrow.state_dict()
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[name], own[name]) for name in own)


def test_where_the_code_is_known_the_class_itself_comes(run: Run) -> None:
    network = secateur.load(run.folder)
    assert type(network) is type(run.narrow)
    assert computes_the_same(network, run.narrow)
    network.train()(torch.zeros(2, 3, 32, 32)).sum().backward()


def test_with_the_code_the_original_class_comes_narrowed(run: Run) -> None:
    dense = run.fresh().train()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    network = secateur.load(run.folder, model=dense)
    assert type(network) is type(dense)
    assert not network.training
    assert computes_the_same(network, run.narrow)
    assert network.stem[0].out_channels < dense.stem[0].out_channels or network.branch[0].out_channels < 16
    assert dense.training  # untouched
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize("missing", ["model.pt2", "results.json", "model.onnx", "verification.json"])
def test_what_is_not_needed_may_be_missing(run: Run, copied: Copy, missing: str) -> None:
    folder = copied()
    (folder / missing).unlink()
    (folder / "recipe.yaml").unlink()
    assert computes_the_same(secateur.load(folder), run.narrow)
    assert computes_the_same(secateur.load(folder, model=run.fresh()), run.narrow)


def test_links_to_the_files_serve_as_the_files(run: Run, tmp_path: Path) -> None:
    for path in run.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert computes_the_same(secateur.load(tmp_path), run.narrow)


@pytest.mark.parametrize("missing", ["plan.json", "model.safetensors"])
def test_what_is_needed_is_missed(copied: Copy, run: Run, missing: str) -> None:
    folder = copied()
    (folder / missing).unlink()
    for model in (None, run.fresh()):
        with pytest.raises(RunError, match=missing) as caught:
            secateur.load(folder, model=model)
        assert_sentence(caught.value)


def test_an_unfinished_run_says_how_to_go_on(copied: Copy) -> None:
    folder = copied()
    (folder / "results.json").unlink()
    with pytest.raises(RunError, match=r"not finished.*secateur run --resume"):
        secateur.load(folder)


@pytest.mark.parametrize("folder", ["nowhere", "recipe.yaml"])
def test_no_folder_is_one_sentence(run: Run, folder: str) -> None:
    with pytest.raises(RunError, match="There is no folder"):
        secateur.load(run.folder / folder)


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
def test_another_architecture_is_refused(run: Run, name: str) -> None:
    with pytest.raises(PlanError) as caught:
        secateur.load(run.folder, model=models.create(name))
    assert_sentence(caught.value)


def test_another_width_is_refused_and_another_precision_gives_way(run: Run) -> None:
    with pytest.raises(SecateurError, match="group") as caught:
        secateur.load(run.folder, model=models.create("tiny", width=2.0))
    assert_sentence(caught.value)
    loaded = secateur.load(run.folder, model=run.fresh().double())
    assert next(loaded.parameters()).dtype is torch.float32
    assert computes_the_same(loaded, run.narrow)


def test_a_program_is_for_inference_and_says_what_it_takes(run: Run) -> None:
    with without_code():
        network = secateur.load(run.folder)
    with pytest.raises(ModelError, match="inference"):
        network.train()
    for wrong in (torch.zeros(1, 3, 16, 16), torch.zeros(3, 32, 32), "picture", torch.zeros(1, 3, 32, 32).long()):
        with pytest.raises(InputError, match=r"takes .*32|type"):
            network(wrong)
    with pytest.raises(InputError, match="2 positional"):
        network(torch.zeros(1, 3, 32, 32), 1)


def test_a_program_can_be_copied_moved_to_another_type_and_given_gradients(run: Run) -> None:
    import copy

    with without_code():
        network = copy.deepcopy(secateur.load(run.folder))
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert network.fc.weight.grad is not None
    assert network.double()(torch.zeros(2, 3, 32, 32).double()).dtype is torch.float64


def test_a_python_file_is_never_run_from_a_folder(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef factory():\n    raise SystemExit\n")
    narrow = saved(tmp_path / "run", models.create("tiny"), torch.randn(1, 3, 32, 32), reference=f"{evil}:factory")
    assert computes_the_same(secateur.load(tmp_path / "run"), narrow)
    (tmp_path / "run" / "model.pt2").unlink()
    with pytest.raises(RunError, match=r"give a fresh copy of it as model=\."):
        secateur.load(tmp_path / "run")
    assert computes_the_same(secateur.load(tmp_path / "run", model=models.create("tiny")), narrow)
    assert not (tmp_path / "ran").exists()


def test_arguments_that_fetch_weights_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    dense = models.create("tiny", num_classes=7)
    inputs = torch.randn(1, 3, 32, 32)
    result = secateur.prune(dense, inputs, budget="flops=0.5")
    arguments = {"num_classes": 7, "pretrained": True, "checkpoint_path": "evil.pth", "weights": "DEFAULT"}
    library = dict(references._LIBRARIES)
    library["timm"] = lambda name, keywords: (given.update(keywords) or models.create(name, **keywords), lambda: inputs)
    monkeypatch.setattr(references, "_LIBRARIES", library)
    save_model(tmp_path, result.model, reference="timm:tiny", inputs=inputs, plan=result.plan, arguments=arguments)
    assert given == {"num_classes": 7}
    assert computes_the_same(secateur.load(tmp_path), result.model.eval())
    assert given == {"num_classes": 7}


def test_inputs_by_name_whole_numbers_constants_and_nested_outputs(tmp_path: Path) -> None:
    inputs = {"tokens": torch.randint(20, (2, 5)), "offset": torch.randn(2, 1)}
    dense = Keywords()
    narrow = saved(tmp_path, dense, inputs)
    network = secateur.load(tmp_path)
    assert isinstance(network, Program)
    more = {"tokens": torch.randint(20, (3, 5)), "offset": torch.randn(3, 1)}
    want, got = narrow(**more), network(**more)
    assert want.keys() == got.keys()
    assert isinstance(got["more"], collections.OrderedDict)
    assert torch.equal(want["scores"], got["scores"])
    assert torch.equal(want["more"]["best"], got["more"]["best"])
    assert torch.equal(want["pair"][1][0], got["pair"][1][0])
    assert torch.equal(secateur.load(tmp_path, model=dense)(**more)["scores"], want["scores"])


def test_tied_weights_stay_tied_and_inputs_are_not_written_to(tmp_path: Path) -> None:
    narrow = saved(tmp_path, Tied(), torch.randn(1, 3, 8, 8))
    network = secateur.load(tmp_path)
    assert network.three.weight is network.two.weight
    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    assert torch.equal(network(x), narrow(x))
    assert torch.equal(network(x), narrow(x))  # in-place operators left nothing behind
    assert torch.equal(x, before)
    again = secateur.load(tmp_path, model=Tied())
    assert again.three.weight is again.two.weight


def test_one_batch_size_is_better_than_none(tmp_path: Path) -> None:
    narrow = saved(tmp_path, FixedBatch(), torch.randn(2, 3, 8, 8))
    network = secateur.load(tmp_path)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(network(x), narrow(x))
    assert "one batch size" in repr(network)
    with pytest.raises(InputError, match="2x3x8x8"):
        network(torch.randn(4, 3, 8, 8))


def test_sizes_in_code_are_settled_again(tmp_path: Path) -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
            self.fc = nn.Linear(24, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            x = x.view(-1, 16, x.shape[2] * x.shape[3]).view(-1, 16, x.shape[2], x.shape[3])
            logits: torch.Tensor = self.fc(self.b(x).mean((2, 3)))
            return logits

    inputs = torch.randn(1, 3, 8, 8)
    result = secateur.prune(Literal(), inputs, budget="flops=0.7")
    assert result.settled
    save_model(tmp_path, result.model, reference="m.py:Literal", inputs=inputs, plan=result.plan)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(secateur.load(tmp_path, model=Literal())(x), result.model.eval()(x))


def test_files_of_two_runs_do_not_mix(run: Run, other_run: Run, copied: Copy) -> None:
    for name in ("plan.json", "model.safetensors", "model.pt2"):
        for finished in (True, False):
            folder = copied()
            shutil.copy(other_run.folder / name, folder / name)
            if not finished:
                (folder / "results.json").unlink()
                (folder / "recipe.yaml").unlink()
            with pytest.raises(RunError) as caught, without_code():
                secateur.load(folder)
            assert_sentence(caught.value)


def test_a_file_the_results_do_not_list_is_foreign(copied: Copy) -> None:
    folder = copied()
    results = json.loads((folder / "results.json").read_text())
    del results["files"]["model.pt2"]
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(RunError, match="not listed"):
        secateur.load(folder)


@pytest.mark.parametrize(
    "files",
    [None, [], {"../x": {"bytes": 1, "sha256": ""}}, {"model.safetensors": {"bytes": "1", "sha256": ""}}, {"a": 1},
     {"/etc/passwd": {"bytes": 1, "sha256": ""}}],
)  # fmt: skip
def test_lists_of_files_that_no_run_wrote_are_refused(copied: Copy, files: object) -> None:
    folder = copied()
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "files": files}))
    with pytest.raises(RunError) as caught:
        secateur.load(folder)
    assert_sentence(caught.value)


def test_what_cannot_be_noted_is_refused_when_saving(run: Run, tmp_path: Path) -> None:
    given = {"model": run.narrow, "reference": "zoo:tiny", "inputs": run.inputs, "plan": run.result.plan}
    for wrong, error in [
        ({"metadata": {"plan": "x"}}, ConfigError),
        ({"metadata": {"mean": float("nan")}}, ConfigError),
        ({"arguments": {"a": object()}}, ConfigError),
        ({"inputs": (object(),)}, InputError),
    ]:
        with pytest.raises(error) as caught:
            save_model(tmp_path, **{**given, **wrong})
        assert_sentence(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        save_model(tmp_path / "file", **given)


def test_saving_again_replaces_and_shapes_will_do_for_inputs(run: Run, tmp_path: Path) -> None:
    given = {"reference": "zoo:tiny", "inputs": [[1, 3, 32, 32]], "plan": run.result.plan}
    header = save_model(tmp_path, run.narrow, metadata={"mean": [0.5], "classes": 10, "note": "text"}, **given)
    assert header["mean"] == "[0.5]"
    assert header["note"] == "text"
    assert header["inputs"] == "[[1, 3, 32, 32]]"
    save_model(tmp_path, run.narrow, **given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "plan.json"]
    assert computes_the_same(secateur.load(tmp_path), run.narrow)  # from the reference
    assert type(secateur.load(tmp_path)) is type(run.narrow)


def test_weights_that_are_not_tensors_are_refused(run: Run, tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> str:
            return "state"

        def set_extra_state(self, state: str) -> None:
            pass

    model = nn.Sequential(Odd(4, 8), nn.Linear(8, 2))
    result = secateur.prune(model, torch.randn(2, 4), budget="params=0.6")
    with pytest.raises(WeightsError, match="safetensors cannot hold"):
        save_model(tmp_path, result.model, reference="m.py:f", inputs=torch.randn(2, 4), plan=result.plan)


def test_exporting_again_keeps_the_hashes_true(run: Run, copied: Copy, tmp_path: Path) -> None:
    folder = copied()
    (folder / "model.pt2").unlink()
    found = export_folder(folder, "pt2")
    assert found["loads"]
    secateur.runtime.check_folder(folder)
    elsewhere = export_folder(folder, "pt2", tmp_path / "there.pt2")
    assert Path(elsewhere["path"]).is_file()
    for other in ("results.json", "state.json", "recipe.yaml"):
        with pytest.raises(RunError, match="another file of the run"):
            export_folder(folder, "pt2", folder / other)
    with pytest.raises(ConfigError, match="pt2"):
        export_folder(folder, "pt3")


def test_the_two_runs_differ_in_weights_alone(run: Run, other_run: Run) -> None:
    assert not computes_the_same(run.narrow, other_run.narrow)


def test_a_network_for_inference_only_can_be_pruned(run: Run) -> None:
    with without_code():
        loaded = secateur.load(run.folder)
    result = secateur.prune(loaded, run.inputs, budget="flops=0.9")
    assert result.verification is not None
    assert result.verification.passed

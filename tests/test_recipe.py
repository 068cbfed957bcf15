"""Recipes: what is read is what is meant, and every mistake is one sentence that names the key and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from secateur import _yaml
from secateur._settings import Section, settings, validated
from secateur.allocate import ALLOCATORS, MEASURED, NORMALISATIONS
from secateur.errors import ConfigError, SecateurError
from secateur.recipe import Distil, LatencyConfig, Recipe, Runtime, Training
from secateur.runtime.engines import ENGINES
from secateur.runtime.latency import RUNTIMES

GOOD = """
name: a recipe
model: zoo:resnet8
data: digits
method: {name: l1, reduce: mean}
budget: flops=0.5
train: {epochs: 3, lr: 5e-2}
"""


def read(*overrides: str) -> Recipe:
    return Recipe.parse(GOOD, overrides)


def refused(text: str, *overrides: str) -> str:
    """The one sentence with which a recipe is refused."""
    with pytest.raises(SecateurError) as caught:
        Recipe.parse(text, overrides)
    said = str(caught.value)
    assert "\n" not in said
    assert not any(word in said for word in ("pydantic", "Input should", "validation error", "type=", "yaml.", "!!"))
    assert said.endswith((".", "?"))
    return said


# ------------------------------------------------------------------------------------------------------------- reading


def test_short_forms_and_defaults() -> None:
    recipe = read()
    assert recipe.model.reference == "zoo:resnet8"
    assert recipe.data.name == "digits"
    assert recipe.data.batch_size == 128
    assert (recipe.method.name, recipe.method.settings) == ("l1", {"reduce": "mean"})
    assert recipe.train == Training(epochs=3, lr=0.05)
    assert recipe.pretrain is None
    assert recipe.latency is not None
    assert recipe.export.onnx
    assert Recipe.parse(GOOD.replace("{name: l1, reduce: mean}", "l1")).method.settings == {}


def test_the_whole_schema_can_be_written() -> None:
    recipe = Recipe.parse(recipe_with_everything())
    assert recipe.finetune is not None
    assert recipe.finetune.distill == Distil(weight=0.5, temperature=2.0)
    assert recipe.constraints.ignore == ("layer4.*", "fc:in")
    assert recipe.model.input_size == (1, 8, 8)
    assert recipe.data.augment == ()
    assert recipe.train is not None
    assert recipe.train.milestones == (0.3, 0.6)


def recipe_with_everything() -> str:
    return """
name: everything
seed: 7
model: {reference: zoo:resnet8, arguments: {in_channels: 1}, weights: null, input_size: [1, 8, 8]}
data: {name: npz, path: x.npz, train_images: 100, validation: 0, batch_size: 64, augment: [], workers: 1, options: {}}
method: {name: bwcp, strength: 1e-4}
budget: {flops: 0.5, params: 2M}
constraints: {ignore: ['layer4.*', 'fc:in'], min_channels: 2, max_ratio: 0.9, align: 8}
allocator: per_cost
normalise: max
pretrain: {epochs: 1}
train: {epochs: 2, schedule: step, milestones: [0.3, 0.6], gamma: 0.2, warmup: 0.5, nesterov: true, clip: 1}
finetune: {epochs: 1, optimiser: adamw, lr: 1e-3, distill: {weight: 0.5, temperature: 2}, ema: 0.99, select: best}
export: {onnx: false, pt2: true}
latency: null
engine: {precision: fp32, accumulate: 2, device: cpu}
"""


@pytest.mark.parametrize("text", [GOOD, recipe_with_everything()])
def test_what_is_written_is_read_back(text: str) -> None:
    recipe = Recipe.parse(text)
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert Recipe.parse(recipe.to_yaml()).to_yaml() == recipe.to_yaml()


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read().seed = 3  # type: ignore[misc]


def test_choices_are_those_of_the_allocators() -> None:
    fields = Recipe.model_fields
    for name, wanted in (("allocator", {*ALLOCATORS, MEASURED} - {"ratios"}), ("normalise", set(NORMALISATIONS))):
        choices, null = get_args(fields[name].annotation)
        assert set(get_args(choices)) == wanted
        assert null is type(None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.e3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        (".nan", ".nan"),
        ("'5'", "5"),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_words_are_read_as_meant(text: str, value: object) -> None:
    read_ = _yaml.parse(f"a: {text}", "x")["a"]
    assert read_ == value
    assert type(read_) is type(value)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@settings_(max_examples=60)
@given(
    st.dictionaries(
        st.text(), st.recursive(_SCALARS, lambda s: st.lists(s) | st.dictionaries(st.text(), s), max_leaves=5)
    )
)
def test_any_data_survives_writing_and_reading(data: dict[str, Any]) -> None:
    assert _yaml.parse(_yaml.dump(data), "x") == data


@settings_(max_examples=60)
@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Recipe.parse(text)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- overrides


def test_overrides() -> None:
    recipe = read(
        "budget=flops=0.25,params=2M",
        "finetune.epochs=3",
        "finetune.distill.weight=0.5",
        "model.arguments.width=2",
        "data.batch_size=16",
        "constraints.ignore=layer4.*",
        "data.augment=[flip, crop]",
        "train.clip=null",
        "latency=null",
        "seed=5",
        "seed=6",
    )
    assert recipe.budget == "flops=0.25,params=2000000.0"
    assert recipe.finetune is not None
    assert (recipe.finetune.epochs, recipe.finetune.distill.weight) == (3, 0.5)
    assert recipe.model.reference == "zoo:resnet8"
    assert recipe.model.arguments == {"width": 2}
    assert (recipe.data.name, recipe.data.batch_size) == ("digits", 16)
    assert recipe.constraints.ignore == ("layer4.*",)
    assert recipe.data.augment == ("flip", "crop")
    assert recipe.latency is None
    assert recipe.seed == 6


def test_a_section_set_to_a_value_is_replaced_whole() -> None:
    assert read("method=random").method.settings == {}
    assert read("method.reduce=max").method.settings == {"reduce": "max"}
    assert read("train={epochs: 9}").train == Training(epochs=9)


OVERRIDES = {
    "x": "a.b=value",
    "=3": "a.b=value",
    "train.=3": "a.b=value",
    "train..epochs=3": "a.b=value",
    "seed.x=3": "seed",
    "name.first=3": "which has no keys in it",
    "train.epochs.more=3": "train.epochs is 3",
    "constraints.ignore=*x": "quote",
    "train.lr=[1": "--set",
    "trian.epochs=5": "did you mean 'train'?",
    "train.epoch=5": "did you mean 'train.epochs'?",
    "budget=flop=0.5": "did you mean 'flops'?",
    "budget=": "budget",
    "train={epochs: 1, epochs: 2}": "twice",
    "finetune.distill.temperature=5": "temperature does nothing without a teacher",
    "repair=[{nme: batchnorm}]": "A name of `secateur repairs`",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_refused_overrides(override: str) -> None:
    assert OVERRIDES[override] in refused(GOOD, override)


# -------------------------------------------------------------------------------------------------------- bad recipes

#: line to append to a good recipe, replacing the same key in it -> what the sentence must hold
BAD = {
    "nam: x": "did you mean 'name'?",
    "colour: red": "Unknown key 'colour'",
    "train: {epoch: 3}": "Unknown key 'train.epoch': did you mean 'train.epochs'?",
    "train: {lr_rate: 3}": "train.lr_rate",
    "train: {distill: {temprature: 3}}": "did you mean 'train.distill.temperature'?",
    "train: {distill: {weight: 0.5}}": "finetune.distill",
    "train: {epochs: 0}": "train.epochs is 0, but must be a whole number from 1 to 1000000.",
    "train: {epochs: 1.5}": "train.epochs is 1.5, but must be a whole number",
    "train: {epochs: ten}": "train.epochs is 'ten'",
    "train: {epochs: '10'}": "train.epochs is '10', but must be a whole number",
    "train: {epochs: true}": "train.epochs is true",
    "train: {epochs: null}": "train.epochs is null",
    "train: {epochs: [3]}": "train.epochs is [3]",
    "train: {epochs: 99999999999999999999999}": "train.epochs is a huge number",
    "train: {lr: -0.1}": "train.lr is -0.1, but must be a number above 0",
    "train: {lr: .nan}": "train.lr",
    "train: {lr: 1e999}": "train.lr",
    "train: {schedule: cosin}": "did you mean 'cosine'?",
    "train: {optimiser: SGD}": "did you mean 'sgd'?",
    "train: {nesterov: yes}": "true or false",
    "train: {nesterov: true, momentum: 0}": "nesterov needs a momentum",
    "train: {optimiser: adamw, momentum: 0.5}": "train: momentum does nothing with optimiser adamw",
    "train: {milestones: [0.2]}": "milestones does nothing with schedule cosine",
    "train: {schedule: step, milestones: [0.7, 0.2]}": "rising",
    "train: {schedule: step, milestones: [3]}": "fractions",
    "train: {schedule: step, milestones: [a]}": "train.milestones holds 'a', but must be a list of numbers",
    "train: {schedule: step, milestones: 0.5}": "train.milestones is 0.5",
    "train: {warmup: 10}": "warmup of 10 epochs",
    "train: {label_smoothing: 1}": "below 1",
    "train: {ema: 1.0}": "train.ema",
    "train: {clip: 0}": "train.clip is 0, but must be a number above 0 or null",
    "train: {select: first}": "one of last, best",
    "train: 5": "train is 5, but must be a section",
    "train: null": "train is missing and model.weights names no trained network",
    "seed: -1": "seed is -1",
    "seed: 4294967296": "seed",
    "name: null": "name is null, but must be text",
    "name: ''": "name",
    "name: 3": "name is 3, but must be text",
    "model: null": "model is null",
    "model: 3": "model is 3",
    "model: {arguments: {}}": "'model.reference' is missing",
    "model: {reference: zoo:resnet8, input_size: [3, 32]}": "a list of 3 whole numbers",
    "model: {reference: zoo:resnet8, input_size: 3x32x32}": "model.input_size is '3x32x32'",
    "model: {reference: zoo:resnet8, weight: x}": "did you mean 'model.weights'?",
    "model: {reference: zoo:resnet8, arguments: [3]}": "model.arguments is [3]",
    "data: digit": "did you mean 'digits'?",
    "data: {name: cifar10, batchsize: 3}": "did you mean 'data.batch_size'?",
    "data: {name: cifar10, validation: 1.0}": "data.validation is 1.0",
    "data: {name: cifar10, augment: [3]}": "data.augment: [3] is no list of names",
    "data: {name: cifar10, workers: -1}": "data.workers",
    "data: [cifar10]": "data is ['cifar10']",
    "method: {reduce: mean}": "'method.name' is missing",
    "method: 3": "method is 3",
    "budget: half": "key=value",
    "budget: flops=2x": "flops=2x",
    "budget: 0.5": "budget",
    "budget: {flop: 0.5}": "did you mean 'flops'?",
    "budget: null": "budget",
    "constraints: {align: 0}": "constraints.align: 0 is no alignment",
    "constraints: {align: x86}": "one of arm, x86-avx2",
    "constraints: {ignore: 3}": "constraints.ignore",
    "allocator: globl": "did you mean 'global'?",
    "allocator: ratios": "allocator is 'ratios'",
    "normalise: median": "one of",
    "latency: {repeats: 1}": "latency.repeats",
    "latency: true": "latency is true",
    "latency: {runtimes: [tensorrt]}": "latency.runtimes",
    "latency: {runtimes: []}": "latency.runtimes",
    "latency: {runtimes: [pytorch, pytorch]}": "each once",
    "export: [onnx]": "export is ['onnx']",
    "export: {onnx: 1}": "export.onnx is 1, but must be true or false",
    "engine: {precision: fp8}": "one of auto, fp32, bf16, fp16",
    "engine: {device: tpu}": "engine.device is 'tpu'",
    "finetune: {epochs: 3, distill: 0.5}": "finetune.distill is 0.5",
    "seed: 1\nseed: 2": "the key 'seed' occurs twice",
    "3: x": "keys are words",
    "[a]: x": "keys are words",
    "train: &a {epochs: 3}\nfinetune: *a": "alias",
    "seed: !!python/object/apply:os.system [ls]": "the tag",
    "seed: [1": "not understood in line",
    "seed: 'x": "not understood in line",
    "\tseed: 1": "not understood in line",
}


@pytest.mark.parametrize("lines", BAD)
def test_bad_recipes(lines: str) -> None:
    key = lines.partition(":")[0]
    kept = [line for line in GOOD.strip().splitlines() if not line.startswith(f"{key}:")]
    assert BAD[lines] in refused("\n".join([*kept, lines]))


@pytest.mark.parametrize("key", ["name", "model", "data", "method", "budget"])
def test_what_must_be_given(key: str) -> None:
    kept = [line for line in GOOD.strip().splitlines() if not line.startswith(f"{key}:")]
    said = refused("\n".join(kept))
    assert said.startswith(f"The key {key!r} is missing: give ")


@pytest.mark.parametrize("text", ["", "a", "[]", "3", "- name: x", "# nothing", "null"])
def test_what_is_no_recipe(text: str) -> None:
    assert "keys and values" in refused(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    (tmp_path / "nul.yaml").write_bytes(b"name: \x00")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000)
    (tmp_path / "long.yaml").write_text("# " + "x" * (1 << 20))
    for name, part in {
        "nowhere.yaml": "No such file",
        ".": "cannot be read",
        "latin.yaml": "UTF-8",
        "nul.yaml": "not understood",
        "deep.yaml": "nested too deeply",
        "long.yaml": "longer",
    }.items():
        with pytest.raises(ConfigError, match=part) as caught:
            Recipe.read(tmp_path / name)
        assert name in str(caught.value) or name == "."


def test_without_pyyaml_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    _yaml._classes.cache_clear()
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r'pip install "secateur\[train\]"'):
        Recipe.parse(GOOD)
    monkeypatch.undo()
    _yaml._classes.cache_clear()


# ------------------------------------------------------------------------------------------------- settings of anything


class _Config(Section):
    share: float = Field(default=0.5, gt=0, le=1, description="How much.")
    names: tuple[str, ...] = Field(default=("a",), description="Which.")


def test_the_same_sentences_for_a_methods_settings() -> None:
    with pytest.raises(ConfigError, match=r"method\.share is 2, but must be a number above 0, at most 1\."):
        validated(_Config, {"share": 2}, "method")
    with pytest.raises(ConfigError, match=r"Unknown key 'method\.shar': did you mean 'method\.share'\?"):
        validated(_Config, {"shar": 2}, "method")


def test_rows_of_settings() -> None:
    rows = {row.path: row for row in settings(_Config, "method")}
    assert rows["method.share"].allowed == "a number above 0, at most 1"
    assert rows["method.names"].default == "['a']"
    assert all(row.meaning for row in settings(Recipe))


def test_where_latency_is_measured() -> None:
    assert get_args(Runtime) == tuple(ENGINES)
    assert LatencyConfig().names(onnx=True) == RUNTIMES
    assert LatencyConfig().names(onnx=False) == ("pytorch",)
    assert LatencyConfig.model_validate({"runtimes": ["openvino", "compiled"]}).names(onnx=False) == (
        "openvino",
        "compiled",
    )
    assert LatencyConfig.model_validate({"runtimes": "openvino"}).names(onnx=True) == ("openvino",)

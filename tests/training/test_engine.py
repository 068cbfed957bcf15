"""The engine: the loop it runs, what it refuses, what it leaves alone."""

from __future__ import annotations

import copy
import itertools
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _toy import CPU, ToyData, ToyMethod, ToyNet, ToySplit, ctrl_c, make_engine, short, toy_net
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import ConfigError, DataError, ModelError, RunError
from secateur.recipe import Distil, EngineConfig, Training
from secateur.training import Engine, Silent, learning_rate
from secateur.training.randomness import derive


class Heard(Silent):
    """Remembers what it is told, and may do something at a step."""

    def __init__(self, at: dict[int, Any] | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self.rows: list[Any] = []
        self.sentences: list[str] = []
        self.stages: list[tuple[Any, ...]] = []
        self.at = at or {}

    def start_stage(self, name: str, epochs: int, steps: int, done: int = 0) -> None:
        self.stages.append((name, epochs, steps, done))

    def step(self, loss: float, accuracy: float, images_per_second: float, extra: Any) -> None:
        self.steps.append({"loss": loss, "accuracy": accuracy, **extra})
        self.at.get(extra["step"], lambda: None)()

    def epoch(self, row: Any) -> None:
        self.rows.append(row)

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def same(net: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def close(net: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    for name, value in other.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name)


# ------------------------------------------------------------------------------------------------------------ the loop


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_as_a_loop_written_by_hand(name: str) -> None:
    data, net, hand = ToyData(), toy_net(dropout=0.0), toy_net(dropout=0.0)
    training = short(optimiser=name, weight_decay=0.01, warmup=0.7, clip=0.5, label_smoothing=0.1)
    make_engine(data=data).fit("train", net, training)
    optimiser = (
        torch.optim.SGD(hand.parameters(), lr=1, momentum=0.9, weight_decay=0.01)
        if name == "sgd"
        else torch.optim.AdamW(hand.parameters(), lr=1, weight_decay=0.01)
    )
    step = 0
    for epoch in range(3):
        batches = data.train.batches(16, epoch=epoch, shuffle=True, augment=True, seed=derive(3, "train"))
        for images, labels in batches:
            optimiser.param_groups[0]["lr"] = learning_rate(training, step, 5)
            optimiser.zero_grad()
            F.cross_entropy(hand(images), labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(hand.parameters(), 0.5)
            optimiser.step()
            step += 1
    close(net, hand)


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    heard, net = Heard(), toy_net()
    engine = make_engine(tmp_path, progress=heard)
    fitted = engine.fit("train", net, short(epochs=8, lr=0.2))
    assert (fitted.epochs, fitted.steps, fitted.selected, fitted.resumed) == (8, 40, "last", None)
    assert engine.steps(short(epochs=8)) == 40
    found = engine.evaluate(net, engine.data.test)
    assert found.headline > 0.7
    assert found.images == 40
    assert heard.stages == [("train", 8, 5, 0)]
    assert [told["step"] for told in heard.steps] == list(range(1, 41))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == heard.rows
    assert list(rows[0]) == [
        "stage", "epoch", "step", "seconds", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
        "headline", "unit", "learning_rate", "images_per_second", "method",
    ]  # fmt: skip
    assert [(row["stage"], row["epoch"], row["step"]) for row in rows] == [("train", e, 5 * e) for e in range(1, 9)]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert fitted.best_headline == max(row["validation_accuracy"] for row in rows)


def test_micro_batches_add_up_to_the_batch() -> None:
    class Plain(ToyNet):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.norm = nn.GroupNorm(2, 6)

    torch.manual_seed(0)
    nets = [Plain()]
    nets += [copy.deepcopy(nets[0]) for _ in range(2)]
    for parts, net in zip((1, 3, 5), nets, strict=True):
        config = EngineConfig(device="cpu", precision="fp32", accumulate=parts)
        method = ToyMethod(net)
        make_engine(config=config).fit("train", method, short(mixup=0.3, clip=1.0), method=method)
        assert method.calls["backward"] >= (parts - 1) * method.calls["step"]
    close(nets[1], nets[0])
    close(nets[2], nets[0])


def test_the_hooks_of_a_method_are_called(tmp_path: Path) -> None:
    method, heard = ToyMethod(toy_net()), Heard()
    make_engine(tmp_path, progress=heard).fit("train", method, short(epochs=2), method=method)
    assert method.calls == {"backward": 10, "step": 10, "epoch": 2}
    assert heard.rows[-1]["method"] == {"strength": pytest.approx(method.strength), "flops": 0.5}
    assert heard.steps[0]["flops"] == 0.5
    again = ToyMethod(toy_net())
    make_engine(tmp_path).fit("train", again, short(epochs=2), method=again)  # the stage has ended
    assert again.state() == method.state()
    assert same(again, method)


def test_the_penalty_of_a_method_is_part_of_the_loss() -> None:
    heavy, light = ToyMethod(toy_net(dropout=0.0)), ToyMethod(toy_net(dropout=0.0))
    heavy.strength, light.strength = 1.0, 0.0
    for method in (heavy, light):
        make_engine().fit("train", method, short(), method=method)
    assert heavy.model.norm.weight.abs().sum() < 0.7 * light.model.norm.weight.abs().sum()


def test_distillation_follows_the_teacher_and_leaves_it_alone() -> None:
    teacher = toy_net()
    make_engine().fit("train", teacher, short(epochs=4, lr=0.1))
    before, student = copy.deepcopy(teacher), toy_net()
    teacher.train()
    training = short(epochs=6, lr=0.1, distill=Distil(weight=1.0, temperature=2.0))
    make_engine().fit("finetune", student, training, teacher=teacher)
    assert same(teacher, before)
    assert teacher.training
    images = ToyData().test.images
    agree = student.eval()(images).argmax(1) == teacher.eval()(images).argmax(1)
    assert agree.float().mean() > 0.8


def test_the_average_is_what_is_validated_and_kept() -> None:
    engine, net = make_engine(), toy_net()
    heard = Heard()
    engine.progress = heard
    engine.fit("train", net, short(ema=0.9, schedule="constant"))
    found = engine.evaluate(net, engine.data.validation)
    assert found.loss == pytest.approx(heard.rows[-1]["validation_loss"])


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    heard, net = Heard(), toy_net()
    engine = make_engine(tmp_path, progress=heard)
    fitted = engine.fit("train", net, short(epochs=6, lr=0.8, schedule="constant", select="best"))
    best = max(heard.rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert (fitted.selected, fitted.best_epoch) == ("best", best["epoch"])
    assert engine.evaluate(net, engine.data.validation).loss == pytest.approx(best["validation_loss"])


def test_with_a_method_the_best_is_one_of_the_last_epochs() -> None:
    method = ToyMethod(toy_net())
    fitted = make_engine().fit("train", method, short(epochs=8, select="best"), method=method)
    assert fitted.best_epoch in (7, 8)
    assert len(method.history) == fitted.best_epoch  # its state is that of the weights


def test_a_last_batch_of_one_image_is_left_out() -> None:
    engine = make_engine(data=ToyData(ToySplit(33)))
    assert engine.steps_per_epoch == 2
    assert engine.fit("train", toy_net(), short()).steps == 6
    assert make_engine(data=ToyData(ToySplit(34))).steps_per_epoch == 3


def test_mixed_precision_trains() -> None:
    net = toy_net()
    engine = make_engine(config=EngineConfig(device="cpu", precision="bf16"))
    engine.fit("train", net, short(epochs=8, lr=0.2))
    assert engine.evaluate(net, engine.data.test).headline > 0.7
    assert all(value.dtype in (torch.float32, torch.int64) for value in net.state_dict().values())


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_precision_is_what_the_processor_computes_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, avx512: bool, amx: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    engine = make_engine(config=EngineConfig(device="cpu"))
    expected = "bf16" if avx512 or amx else "fp32"
    assert engine.described == f"cpu, {expected}, channels_last"
    fixed = make_engine(config=EngineConfig(device="cpu", precision="fp32", memory_format="contiguous", compile=True))
    assert fixed.described == "cpu, fp32, contiguous, compiled"


class Looks(ToyNet):
    """Notes how images and kernels lie in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, self.conv.weight)]
        return super().forward(x)


@pytest.mark.parametrize("layout", ["auto", "channels_last", "contiguous"])
def test_images_and_kernels_lie_as_asked_for(layout: Any) -> None:
    net, other = Looks(0.0), Looks(0.0)
    net.load_state_dict(other.state_dict())
    engine = make_engine(config=EngineConfig(device="cpu", precision="fp32", memory_format=layout))
    engine.fit("train", net, short())
    assert net.seen == [layout != "contiguous"] * 2
    assert net.conv.weight.is_contiguous()  # as it was found
    engine.evaluate(net, engine.data.test)
    assert net.seen[0] is (layout != "contiguous")
    contiguous = EngineConfig(device="cpu", precision="fp32", memory_format="contiguous")
    make_engine(config=contiguous).fit("train", other, short())
    close(net, other)


def test_a_network_that_needs_channels_apart_gets_them() -> None:
    class Views(ToyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.view(len(x), -1).view(x.shape))

    engine = make_engine()
    engine.fit("train", Views(), short())
    (note,) = engine.notes
    assert "engine.memory_format auto is contiguous here" in note
    assert engine.described == "cpu, fp32, contiguous"
    other = make_engine()
    assert other.evaluate(Views(), other.data.test).images == 40
    assert other.notes == [note]
    asked = make_engine(config=EngineConfig(device="cpu", memory_format="channels_last"))
    with pytest.raises(ModelError, match="does not run on images of 2x6x6"):
        asked.fit("train", Views(), short())


def test_compiling_is_for_stages_without_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    monkeypatch.setattr("torch.compile", lambda module: made.append(module) or module)
    config = EngineConfig(device="cpu", precision="fp32", compile=True)
    net, plain = toy_net(), toy_net()
    make_engine(config=config).fit("train", net, short())
    assert made == [net]
    make_engine().fit("train", plain, short())
    assert same(net, plain)
    method = ToyMethod(toy_net())
    engine = make_engine(config=config)
    engine.fit("train", method, short(), method=method)
    assert made == [net]
    assert any("not compiled" in note for note in engine.notes)

    def fails(images: torch.Tensor) -> torch.Tensor:
        from torch._dynamo.exc import Unsupported

        raise Unsupported("no compiler")

    monkeypatch.setattr("torch.compile", lambda module: fails)
    with pytest.raises(ConfigError, match=r"cannot be compiled here \(no compiler\S*\): set engine.compile to false"):
        make_engine(config=config).fit("train", toy_net(), short())


@pytest.mark.long
def test_a_compiled_network_learns_the_same() -> None:
    nets = [toy_net(dropout=0.0) for _ in range(2)]
    for net, compile in zip(nets, (True, False), strict=True):
        config = EngineConfig(device="cpu", precision="fp32", compile=compile)
        make_engine(config=config).fit("train", net, short())
    close(*nets)


def test_loss_scaling_changes_nothing_but_the_overflows(tmp_path: Path) -> None:
    """The scaler of fp16, which Accelerate makes on a GPU only, put in by hand."""
    nets = [toy_net() for _ in range(3)]
    make_engine().fit("train", nets[0], short(clip=1.0))
    for number, folder in ((1, None), (2, tmp_path)):
        engine = make_engine(folder)
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=4)
        if folder is not None:
            engine.progress = Heard({7: ctrl_c})
            with pytest.raises(KeyboardInterrupt):
                engine.fit("train", toy_net(), short(clip=1.0))
            engine = make_engine(folder)
            engine.scaler = torch.amp.GradScaler("cpu")
        engine.fit("train", nets[number], short(clip=1.0))
        assert engine.scaler.get_scale() == 2.0**7  # grown three times in 15 steps
    close(nets[1], nets[0])
    assert same(nets[1], nets[2])
    engine, before = make_engine(), copy.deepcopy(nets[0])
    nets[0].head.weight.data.mul_(100)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    engine.fit("train", nets[0], short(lr=0.01))
    assert engine.scaler.get_scale() < 2.0**127  # steps that overflowed were left out
    assert all(torch.isfinite(value).all() for value in nets[0].state_dict().values())
    assert not same(nets[0], before)


def test_a_method_is_told_the_scale_of_its_gradients() -> None:
    """So that what it sums over steps does not depend on how the scale goes up and down."""

    class Told(ToyMethod):
        def after_backward(self) -> None:
            super().after_backward()
            scales.append(float(self.loss_scale))

    scales: list[float] = []
    method, engine = Told(toy_net()), make_engine()
    engine.fit("train", method, short(epochs=1), method=method)
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
    engine.fit("train", method, short(epochs=1), method=method)
    assert scales == [1.0] * 5 + [16.0, 16.0, 32.0, 32.0, 64.0]


def test_batches_made_ahead_are_the_same() -> None:
    nets = [toy_net(), toy_net()]
    for workers, net in enumerate(nets):
        make_engine(workers=workers).fit("train", net, short(epochs=2))
    assert same(*nets)


def test_a_real_method_trains_resumes_and_finishes(tmp_path: Path) -> None:
    def method() -> Any:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        return secateur.methods.create("bwcp", net, torch.zeros(1, 2, 6, 6), budget="flops=0.6", steps=30, seed=1)

    whole, halves = method(), method()
    make_engine().fit("train", whole, short(epochs=6), method=whole)
    heard = Heard({17: ctrl_c})
    with pytest.raises(KeyboardInterrupt):
        make_engine(tmp_path, progress=heard).fit("train", halves, short(epochs=6), method=halves)
    halves = method()
    assert (
        make_engine(tmp_path).fit("train", halves, short(epochs=6), method=halves).resumed == 18
    )  # the step after the one that was told
    assert same(whole, halves)
    assert whole.state() == halves.state()
    assert whole.finish()(torch.zeros(3, 2, 6, 6)).shape == (3, 4)


# ------------------------------------------------------------------------------------------------------- left alone


def test_the_callers_generators_and_modes_are_left_alone() -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    net = toy_net().eval()
    torch.manual_seed(1)
    engine = make_engine()
    engine.fit("train", net, short(epochs=1))
    engine.evaluate(net.train(), engine.data.test)
    assert draw() == wanted
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_test_images_are_not_touched() -> None:
    class Forbidden:
        classes, train, validation = 4, ToySplit(40), None

        @property
        def test(self) -> Any:
            raise AssertionError("the engine looked at the test images")

    heard = Heard()
    make_engine(data=Forbidden(), progress=heard).fit("train", toy_net(), short(epochs=1))
    assert heard.rows[0]["validation_loss"] is None
    assert heard.rows[0]["validation_accuracy"] is None


def test_evaluation_counts_and_transforms() -> None:
    engine, net = make_engine(), toy_net().eval()
    found = engine.evaluate(net, engine.data.test, transform=lambda images: images * 0)
    with torch.no_grad():
        scores = net(torch.zeros(40, 2, 6, 6))
    labels = engine.data.test.labels
    assert found.loss == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-5)
    assert found.headline == pytest.approx(float((scores.argmax(1) == labels).float().mean()))
    frozen = nn.Sequential(net)
    frozen.train()
    net.norm.eval()  # a part in another mode stays in it
    engine.evaluate(frozen, engine.data.test)
    assert frozen.training
    assert not net.norm.training


# ------------------------------------------------------------------------------------------------- stops and refusals


def test_ctrl_c_stops_after_the_step(tmp_path: Path) -> None:
    whole = toy_net()
    make_engine().fit("train", whole, short())
    for step in (3, 5, 8, 15):
        folder = tmp_path / str(step)
        heard = Heard({step: ctrl_c})
        net = toy_net()
        with pytest.raises(KeyboardInterrupt):
            make_engine(folder, progress=heard).fit("train", net, short())
        assert heard.steps[-1]["step"] == min(step + 1, 15) if step % 5 else step
        assert "press Ctrl-C again" in heard.sentences[-1]
        net = toy_net()
        assert make_engine(folder).fit("train", net, short()).resumed
        assert same(net, whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        make_engine(tmp_path, progress=Heard({3: twice})).fit("train", toy_net(), short())
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Breaks(ToyNet):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            return super().forward(x) * (math_inf if self.calls == 8 else 1.0)

    math_inf = float("inf")
    with pytest.raises(
        RunError, match=r"stage train, epoch 2, step 8, the loss is not finite: lower train\.lr \(it is 0\.05\)"
    ):
        make_engine(tmp_path).fit("train", Breaks(), short())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["train-000000005"]
    assert make_engine(tmp_path).fit("train", toy_net(), short()).resumed == 5


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    method = ToyMethod(toy_net())

    def poison() -> None:
        method.model.head.bias.data[0] = float("nan")

    method.after_epoch = poison
    with pytest.raises(RunError, match="the weights are not finite"):
        make_engine(tmp_path).fit("train", method, short(), method=method)
    assert not (tmp_path / "checkpoints").exists()


class Crowd(nn.Module):
    """Gives whatever a test asks for."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.weight, self.give = nn.Parameter(torch.ones(1)), give

    def forward(self, x: torch.Tensor) -> Any:
        return self.give(x, self.weight)


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda x, w: (x,), "gives a tuple"),
        (lambda x, w: x * w, "8x2x6x6"),
        (lambda x, w: x.mean((2, 3)) * w, "the model tells 2 classes apart"),
        (lambda x, w: w.view(7), "does not run on images of 2x6x6"),
        (lambda x, w: x.flatten(1) * w * float("nan"), "not finite"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, give: Any, words: str) -> None:
    with pytest.raises((ModelError, DataError), match=words):
        make_engine(tmp_path / "run").fit("train", Crowd(give), short())
    assert not (tmp_path / "run").exists()


def test_another_output_in_training_is_refused() -> None:
    net = Crowd(None)
    net.give = lambda x, w: (x,) if net.training else x.flatten(1) * w
    with pytest.raises(ModelError, match="gives a tuple"):
        make_engine().fit("train", net, short())


@pytest.mark.parametrize("spoil", ["label", "image", "count"])
def test_data_that_do_not_fit_are_refused(tmp_path: Path, spoil: str) -> None:
    data = ToyData()
    if spoil == "label":
        data.train.labels[:] = 4
    elif spoil == "image":
        data.train.images[:] = float("nan")
    else:
        batches = data.train.batches
        data.train.batches = lambda *a, **k: itertools.islice(batches(*a, **k), 3)
    words = {"label": "Labels go from 4 to 4", "image": "NaN", "count": "3 batches in an epoch and had promised 5"}
    with pytest.raises(DataError, match=words[spoil]):
        make_engine(tmp_path / "run", data=data).fit("train", toy_net(), short())
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, net = make_engine(), toy_net()
    with pytest.raises(ConfigError, match="pass it as the module too"):
        engine.fit("train", net, short(), method=ToyMethod(net))
    with pytest.raises(ConfigError, match="no teacher"):
        engine.fit("finetune", net, short(distill=Distil(weight=0.5)))
    with pytest.raises(ConfigError, match="lower-case"):
        engine.fit("../x", net, short())
    with pytest.raises(ConfigError, match="select is best, but no images are held out"):
        make_engine(data=ToyData(validation=None)).fit("train", net, short(select="best"))
    with pytest.raises(ConfigError, match="no images to train on"):
        make_engine(data=ToyData(ToySplit(0))).fit("train", net, short())
    with pytest.raises(ConfigError, match="there is none"):
        make_engine(config=EngineConfig(device="cpu", trackers=("tensorboard",)))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no GPU"):
            make_engine(config=EngineConfig(device="cuda"))
        with pytest.raises(ConfigError, match="fp16"):
            make_engine(config=EngineConfig(device="cpu", precision="fp16"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.state.PartialState.num_processes", 1, raising=False)
    with pytest.raises(ConfigError, match="The launcher started 2 processes"):
        make_engine()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r'pip install "secateur\[train\]"'):
        make_engine()


def test_an_engine_after_another_may_use_another_precision() -> None:
    for precision in ("bf16", "fp32", "bf16"):
        engine = make_engine(config=EngineConfig(device="cpu", precision=precision))
        assert engine.precision == precision
        assert engine.accelerator.mixed_precision == precision.replace("fp32", "no")
        engine.fit("train", toy_net(), short(epochs=1))


def test_defaults_need_no_folder_and_no_progress() -> None:
    engine = Engine(ToyData(), CPU)
    assert engine.fit("train", toy_net(), Training(epochs=1)).steps == 1
    assert engine.notes == []

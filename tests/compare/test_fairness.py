"""How a cell becomes a recipe: every method has the same epochs in all, with the same two schedules."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _contest import recipe

from secateur.compare.cells import Cell, arrange, base_recipe, check_settings, split
from secateur.errors import ConfigError, SecateurError
from secateur.methods import METHODS, MethodRow, method

BASE = "bases/0/weights.safetensors"


def cell(label: str) -> Cell:
    return Cell.parse(label, 3, "flops=0.6")


def kinds() -> dict[tuple[str, str], str]:
    """One method of every kind."""
    return {(row.acts, row.begins): row.name for row in reversed(METHODS)}


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
@pytest.mark.parametrize("last", [1, 2, 3, 7])
def test_the_epochs_of_every_method_sum_to_the_same(row: object, last: int) -> None:
    whole = recipe(f"finetune.epochs={last}", "finetune.warmup=0.5")
    made = arrange(whole, cell(row.name), {}, BASE)  # type: ignore[attr-defined]
    trained = sum(stage.epochs for stage in (made.pretrain, made.train, made.finetune) if stage is not None)
    base = 2 if row.begins == "weights" else 0  # type: ignore[attr-defined]
    assert trained + base == 2 + last
    assert made.model.weights == (BASE if base else None)
    assert (made.latency, made.export.onnx, made.export.pt2, made.seed) == (None, False, False, 3)


def test_there_is_a_method_of_every_kind() -> None:
    assert set(kinds()) == {
        ("after training", "weights"),
        ("while training", "weights"),
        ("while training", "new"),
        ("before training", "narrow"),
    }


def test_after_training_fine_tunes_as_the_recipe_says() -> None:
    made = arrange(recipe(), cell("l1"), {}, BASE)
    assert made.train is None
    assert made.finetune == recipe().finetune


@pytest.mark.parametrize("name", ["csgd", "nap"])
def test_without_fine_tuning_in_the_paper_there_is_none(name: str) -> None:
    made = arrange(recipe("finetune.epochs=3"), cell(name), {}, BASE)
    assert made.train is not None
    assert (made.train.epochs, made.finetune) == (3, None)


def test_while_training_from_weights_shares_the_fine_tuning() -> None:
    """Two thirds, rounded up, where the paper's share is not known."""
    whole = recipe()
    made = arrange(whole, cell("aofp"), {}, BASE)
    assert method("aofp").acting is None
    assert made.train is not None
    assert made.finetune is not None
    assert whole.finetune is not None
    assert (made.train.epochs, made.finetune.epochs) == (2, 1)
    assert (made.train.warmup, made.finetune.warmup) == (0.0, 0.0)  # two epochs of it do not fit
    assert made.finetune.model_copy(update={"epochs": 3, "warmup": 2.0}) == whole.finetune
    short = arrange(recipe("finetune.epochs=1", "finetune.warmup=0"), cell("aofp"), {}, BASE)
    assert short.finetune is None
    assert short.train is not None
    assert short.train.epochs == 1


def test_what_fine_tunes_before_the_cut_has_all_epochs() -> None:
    """NAP, from weights: one training with one schedule, in which its last round leaves time to fine-tune."""
    whole = recipe()
    made = arrange(whole, cell("nap"), {}, BASE)
    assert made.train is not None
    assert made.train.epochs == 3
    assert (made.train, made.finetune) == (whole.finetune, None)


def test_the_papers_share_of_the_epochs_from_weights() -> None:
    """Group Fisher: a quarter of what follows the base, at a constant 0.04 of the base's rate, then `finetune`."""
    whole = recipe("finetune.epochs=8")
    made = arrange(whole, cell("group_fisher"), {}, BASE)
    assert made.train is not None
    assert made.finetune is not None
    assert whole.finetune is not None
    assert (made.train.epochs, made.finetune.epochs) == (2, 6)
    assert (made.train.schedule, made.train.lr, made.train.warmup) == ("constant", pytest.approx(0.04 * 0.05), 0.0)
    assert made.finetune == whole.finetune.model_copy(update={"epochs": 6})
    three = arrange(recipe(), cell("group_fisher"), {}, BASE)
    assert (three.train and three.train.epochs, three.finetune and three.finetune.epochs) == (1, 2)
    given = arrange(recipe("train=null", "model.weights=mine.safetensors"), cell("group_fisher"), {}, None)
    assert given.train is not None  # the rate of the given weights' training is not known
    assert (given.train.schedule, given.train.lr) == ("cosine", 0.02)


def test_the_papers_share_of_the_epochs_from_new() -> None:
    """White Box: 30 of 330 at `train`'s rate, constant; then the narrow network has the whole schedule of `train`."""
    whole = recipe("train.epochs=20", "finetune.epochs=13")
    made = arrange(whole, cell("cwb"), {}, BASE)
    assert whole.train is not None
    assert made.train is not None
    assert (made.train.epochs, made.train.schedule, made.train.lr, made.train.warmup) == (3, "constant", 0.05, 0.0)
    assert made.finetune == whole.train.model_copy(update={"epochs": 30})
    short = arrange(recipe(), cell("cwb"), {}, BASE)
    assert (short.train and short.train.epochs, short.finetune and short.finetune.epochs) == (1, 4)


def test_shares_are_split_like_this() -> None:
    """Never no epoch, never all of them, unless the paper trains no more after the cut."""

    def row(begins: str, acting: float | None, *, finetunes: bool = True) -> MethodRow:
        return replace(method("nap"), begins=begins, acting=acting, finetunes=finetunes)  # type: ignore[arg-type]

    assert split(row("weights", None), 0, 3) == (2, 1)
    assert split(row("weights", 0.9), 0, 3) == (2, 1)
    assert split(row("weights", 0.01), 0, 3) == (1, 2)
    assert split(row("weights", 0.5), 0, 1) == (1, 0)
    assert split(row("weights", None, finetunes=False), 0, 3) == (3, 0)
    assert split(row("new", None), 10, 3) == (10, 3)
    assert split(row("new", 30 / 330), 10, 3) == (1, 12)
    assert split(row("new", 0.3, finetunes=False), 10, 3) == (13, 0)


def test_without_fine_tuning_in_the_paper_the_method_has_all_epochs() -> None:
    whole = recipe()
    made = arrange(whole, cell("bwcp"), {}, BASE)
    assert whole.train is not None
    assert made.train == whole.train.model_copy(update={"epochs": 5})
    assert made.finetune is None


def test_before_training_has_all_epochs_with_the_schedule_of_train() -> None:
    whole = recipe()
    made = arrange(whole, cell(kinds()["before training", "narrow"]), {}, BASE)
    assert whole.train is not None
    assert made.train == whole.train.model_copy(update={"epochs": 5})
    assert made.finetune is None


def test_all_have_the_same_of_everything_else() -> None:
    whole = recipe("constraints.min_channels=2", "allocator=uniform", "data.batch_size=60")
    for name in kinds().values():
        made = arrange(whole, cell(name), {}, BASE)
        for key in ("data", "constraints", "allocator", "normalise", "engine"):
            assert getattr(made, key) == getattr(whole, key)
        assert made.model.model_copy(update={"weights": None}) == whole.model


def test_given_weights_are_the_base_of_all_seeds() -> None:
    made = arrange(recipe("train=null", "model.weights=mine.safetensors"), cell("l1"), {}, None)
    assert made.model.weights == "mine.safetensors"


def test_a_label_names_a_method_and_repairs() -> None:
    made = cell("l1+batchnorm")
    assert (made.method, made.repair, made.label) == ("l1", ("batchnorm",), "l1+batchnorm")
    whole = arrange(recipe(), made, {"l1": {"reduce": "mean"}}, BASE)
    assert [each.name for each in whole.repair] == ["batchnorm"]
    assert whole.method.settings == {"reduce": "mean"}
    assert made.name == "l1+batchnorm-3-flops=0.6"
    assert Cell.parse("l1", 0, "flops=0.6,params=0.5").name == "l1-0-flops=0.6_params=0.5"


def test_the_base_network_has_no_method() -> None:
    made = base_recipe(recipe("budget=flops=0.1", "method=bwcp"), 4)
    assert (made.seed, made.train, made.finetune) == (4, recipe().train, None)


REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "no fine-tuning": ("l1", ("finetune=null",), "finetune is missing"),
    "pretraining": ("bwcp", ("pretrain.epochs=1",), "pretrain is given"),
    "a dense network as long": ("l1", ("longer=true",), "the row dense is trained as long"),
    "a repair for all": ("l1", ("repair=batchnorm",), "it is named with a method"),
    "nothing to train": ("bwcp", ("train=null", "model.weights=x"), "train is missing, and bwcp"),
    "a teacher for some": ("nap", ("finetune.distill.weight=0.5",), "more than nap"),
    "an unknown method": ("bwpc", (), "did you mean 'bwcp'?"),
    "an unknown repair": ("l1+batchnrm", (), "did you mean 'batchnorm'?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fair_is_refused(name: str) -> None:
    label, overrides, part = REFUSED[name]
    with pytest.raises(SecateurError) as caught:
        arrange(recipe(*overrides), cell(label), {}, BASE)
    assert part in str(caught.value)


def test_settings_are_checked_before_anything_runs() -> None:
    check_settings([cell("l1+batchnorm")], {"l1": {"reduce": "mean"}})
    for settings, part in (
        ({"l1": {"redcue": "mean"}}, "did you mean 'l1.reduce'?"),
        ({"nap": {}}, "which is not compared"),
        ({"batchnorm": {"imagse": 1}}, "imagse"),
    ):
        with pytest.raises(ConfigError, match=part.replace("?", r"\?")):
            check_settings([cell("l1+batchnorm")], settings)

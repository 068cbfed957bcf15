"""Kinds of answers, their likelihoods and what is drawn from them; what share of a loss went backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from secateur.allocate.ties import undecided
from secateur.errors import ConfigError
from secateur.methods.kit.answers import agreement, kind_of, losses, right, sample_count, sampled_loss
from secateur.methods.kit.loss_share import LossShare

G = torch.Generator().manual_seed(0)
SCORES = torch.randn(4, 3, generator=G)
MAPS = torch.randn(4, 3, 2, 2, generator=G)
LABELS = torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize(
    ("output", "target", "kind"),
    [
        (SCORES, LABELS, "classes"), (SCORES, LABELS.float(), "classes"), (MAPS, torch.full((4, 2, 2), 255), "classes"),
        (SCORES, F.one_hot(LABELS, 3).float(), "classes"), (SCORES, SCORES.softmax(1), "classes"),
        (SCORES, torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), "binary"),
        (SCORES[:, :1], torch.tensor([0, 1, 1, 0]), "binary"), (SCORES[:, 0], torch.tensor([0.0, 1, 1, 0]), "binary"),
        (MAPS[:, :1], torch.ones(4, 2, 2), "binary"), (SCORES[:, :1], torch.rand(4), "numbers"),
        (SCORES[:, 0], torch.tensor([3, 1, 4, 1]), "numbers"), (SCORES, torch.randn(4, 3), "numbers"),
        (SCORES, torch.randn(4), None), (SCORES, {"labels": LABELS}, None), (SCORES, LABELS[:3], None),
        (SCORES.sum(), LABELS, None),
    ],
)  # fmt: skip
def test_targets_tell_what_kind_of_answer_is_asked_for(output: torch.Tensor, target: object, kind: str | None) -> None:
    assert kind_of(output, target) == kind


def test_the_loss_of_every_sample() -> None:
    y = torch.tensor([0.5, 0.0, -1.0, 2.0])
    torch.testing.assert_close(losses(SCORES, LABELS, "classes"), F.cross_entropy(SCORES, LABELS, reduction="none"))
    shares = F.one_hot(LABELS, 3).float()
    torch.testing.assert_close(losses(SCORES, shares, "classes"), losses(SCORES, LABELS, "classes"))
    torch.testing.assert_close(losses(SCORES[:, :1], y, "numbers"), (SCORES[:, 0] - y).square() / 2)
    hit = torch.tensor([0, 1, 1, 0])
    wanted = F.binary_cross_entropy_with_logits(SCORES[:, 0], hit.float(), reduction="none")
    torch.testing.assert_close(losses(SCORES[:, :1], hit, "binary"), wanted)
    labels = torch.randint(0, 3, (4, 2, 2), generator=torch.Generator().manual_seed(1))
    assert losses(MAPS, labels, "classes").mean().item() == pytest.approx(
        F.cross_entropy(MAPS, labels).item(), rel=1e-5
    )


@pytest.mark.parametrize("nowhere", [255, -100, 3])
def test_labels_that_are_no_class_count_for_nothing(nowhere: int) -> None:
    labels = torch.randint(0, 3, (4, 2, 2), generator=torch.Generator().manual_seed(1))
    labels[:, 0, 0] = nowhere
    wanted = F.cross_entropy(MAPS, labels, reduction="none", ignore_index=nowhere).flatten(1).mean(1)
    torch.testing.assert_close(losses(MAPS, labels, "classes"), wanted)
    assert right(MAPS, labels, "classes").max() <= 0.75
    gaps = torch.tensor([[float("nan")], [1.0], [2.0], [float("inf")]])
    assert losses(SCORES[:, :1], gaps, "numbers")[[0, 3]].tolist() == [0.0, 0.0]


def test_right_answers() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert right(logits, torch.tensor([0, 0]), "classes").tolist() == [1.0, 0.0]
    assert right(logits, torch.tensor([[1.0, 0], [1, 0]]), "classes").tolist() == [1.0, 0.0]
    assert right(logits - 0.5, torch.tensor([[1.0, 0], [1, 1]]), "binary").tolist() == [1.0, 0.5]


@pytest.mark.parametrize(("kind", "columns"), [("classes", 3), ("binary", 2), ("numbers", 2)])
def test_drawn_targets_have_the_fisher_matrix_as_second_moment(kind: str, columns: int) -> None:
    """diag(p) - p p' of classes, p (1 - p) of yes or no, 1 of numbers."""
    x = torch.tensor([[0.5, -1.0, 0.3]])[:, :columns].double()
    many = x.expand(40_000, columns).clone().requires_grad_()
    count = sample_count(many, kind)  # type: ignore[arg-type]
    chance = torch.from_numpy(np.random.default_rng(0).random(count))
    (slope,) = torch.autograd.grad(sampled_loss(many, kind, chance), many)  # type: ignore[arg-type]
    p = x[0].softmax(0) if kind == "classes" else x[0].sigmoid()
    exact = {"classes": p.diag() - p.outer(p), "binary": (p * (1 - p)).diag(), "numbers": torch.eye(columns).double()}
    torch.testing.assert_close(slope.T @ slope / len(many), exact[kind], atol=0.02, rtol=0)
    assert float(slope.mean(0).abs().max()) < 0.02


def test_a_loss_of_another_kind_is_seen() -> None:
    for loss, near in (
        (lambda o: F.cross_entropy(o, LABELS, label_smoothing=0.1), True),
        (lambda o: (o @ o.T).sum(), False),
    ):
        output = SCORES.clone().requires_grad_()
        loss(output).backward()
        assert (agreement(output, LABELS, "classes") > 0.9) == near
    assert np.isnan(agreement(SCORES, LABELS, "classes"))


@pytest.mark.parametrize("factor", [1.0, 0.125, 65536.0])
def test_the_share_of_the_loss_is_found(factor: float) -> None:
    share, weight = LossShare(), torch.ones((), requires_grad=True)
    (factor * (weight + share.zero(torch.device("cpu")))).backward()
    assert share.taken("me").item() == factor
    with pytest.raises(ConfigError, match=r"me finds no gradient of its loss\(\)"):
        share.taken("me")  # it is of one micro-batch


def test_scores_that_say_nothing_are_told() -> None:
    half, whole = np.array([True, False]), np.array([True, True])
    assert undecided({"a": [1.0, 2.0], "b": [0.0, 0.0]}, {"a": half, "b": whole}) is None
    said = undecided({"a": [1.0, 2.0], "b": [0.0, 0.0]}, {"a": half, "b": half})
    assert said == "All channels of b have the same score, so that their numbers decide which of them stay."
    assert "the same score (0), so that nothing but" in str(undecided({"a": [0.0, 0.0]}, {"a": half}))

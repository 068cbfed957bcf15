"""Every method on a detector: it works, or says in one sentence why not; and the loop with those that train with it."""

from __future__ import annotations

import copy
import importlib.util
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("the detectors are torchvision's", allow_module_level=True)

from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from secateur.errors import ConfigError, SecateurError
from secateur.methods import METHODS, MethodRow
from secateur.methods.csgd.method import CSGD
from secateur.methods.nap.method import NAP

IMAGES = ([torch.rand(3, 320, 320, generator=torch.Generator().manual_seed(0))],)
#: What a method says that cannot prune a detector; all others can.
REFUSED = {
    "feature_relevance": "cannot start at a class",
    "functionality": "does not take one tensor",
    "manidp": "puts gates onto convolutions inside a network",
    "nap": "draws targets from the network's own answers, and SSD does not give one tensor",
    "swp": "are in convolutions that have several",
}


@cache
def made() -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 20}
    model: nn.Module = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4, **options)
    return model.eval()


def detector() -> nn.Module:
    return copy.deepcopy(made())


def batch() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    found = {"boxes": torch.tensor([[40.0, 40.0, 200.0, 200.0]]), "labels": torch.tensor([1])}
    return [torch.rand(3, 320, 320) for _ in range(2)], [found, found]


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_a_method_begins_or_says_why_not(row: MethodRow) -> None:
    settings = {"clustering": "even"} if row.name == "csgd" else {}  # k-means takes its time
    said = ""
    try:
        method = row.factory(
            detector(), IMAGES, budget=row.example_budget.replace("flops=0.5", "flops=0.8"), steps=2, **settings
        )
        assert method.graph.groups
    except SecateurError as error:
        said = str(error)
    assert bool(said) == (row.name in REFUSED), said
    assert REFUSED.get(row.name, "") in said
    assert ". " not in said


def test_csgd_trains_and_merges_a_detector() -> None:
    method = CSGD(detector(), IMAGES, budget="flops=0.6", steps=2, clustering="even")
    assert method.notes == []  # all groups merge
    optimiser = torch.optim.SGD(method.parameters(), 0.005)
    method.train()
    for _ in range(2):
        losses = method(*batch())
        optimiser.zero_grad()
        (sum(losses.values()) + method.loss()).backward()
        method.after_backward()
        optimiser.step()
        method.after_step()
    method.finish()
    assert method.result is not None
    assert method.result.reached("flops") <= 0.6
    assert method.result.verification is not None
    assert method.result.verification.exact
    assert method.merging <= 1e-6


def test_labels_are_no_help_to_nap() -> None:
    """With `fisher: empirical` it may begin, for a loss may be given; the labels' own needs class scores too."""
    method = NAP(detector(), IMAGES, budget="flops=0.6", steps=1, rounds=1, fisher="empirical")
    method.train()
    images, target = batch()
    losses = method(images, target)
    method.after_forward(losses, target)
    sum(losses.values()).backward()
    with pytest.raises(ConfigError, match=r"one tensor .* is needed; choose a method that asks for none\.$"):
        method.after_step()

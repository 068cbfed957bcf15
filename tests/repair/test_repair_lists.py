"""Networks that take a list of images, as detectors do: repairs that work with one, and those that refuse it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.errors import InputError

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Boxes(nn.Module):
    """As a detector: a list of images, of different sizes perhaps, and what is found in each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1),
        )  # fmt: skip

    def forward(self, images: Any) -> Any:
        found = self.body(torch.stack(list(images)))
        return [{"scores": each} for each in found]


class Stacked(Boxes):
    """The same for one tensor."""

    def forward(self, images: torch.Tensor) -> Any:
        return self.body(images)


def pruned(model: nn.Module, example: Any, data: Any, repair: Any) -> Any:
    return secateur.prune(model.eval(), example, budget="flops=0.6", repair=repair, data=data)


def listed(*sizes: int, kind: type = list) -> list[Any]:
    """Batches of the images, each a call with one list."""
    return [((kind(part),), [{"labels": torch.ones(1)}] * len(part)) for part in IMAGES.split(sizes)]


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("repair", ["batchnorm", "compensation"])
def test_a_list_of_images_repairs_as_a_tensor_of_them_does(repair: str, kind: type) -> None:
    found = pruned(Boxes(), ([IMAGES[0]],), listed(4, 2, kind=kind), repair)
    wanted = pruned(Stacked(), IMAGES[:1], [(part, 0) for part in IMAGES.split((4, 2))], repair)
    bare = pruned(Boxes(), ([IMAGES[0]],), None, ())
    assert found.verification.exact
    tensors = found.model.state_dict()
    for name, tensor in wanted.model.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor)
    assert any(not torch.equal(tensors[name], tensor) for name, tensor in bare.model.state_dict().items())


def test_one_image_that_is_left_over_is_left_out() -> None:
    result = pruned(Boxes(), ([IMAGES[0]],), listed(5, 1), "batchnorm")
    assert result.plan.provenance["notes"] == ["A batch of one image was left out when norms were measured anew."]


def test_a_keyword_takes_a_list_too() -> None:
    found = pruned(Boxes(), {"images": [IMAGES[0]]}, [({"images": list(IMAGES)}, 0)], "batchnorm")
    wanted = pruned(Boxes(), ([IMAGES[0]],), listed(6), "batchnorm")
    assert torch.equal(found.model.body[1].running_mean, wanted.model.body[1].running_mean)


def test_least_squares_follows_single_samples() -> None:
    with pytest.raises(InputError, match=r"followed one by one.*a list of tensors: .* compensation and batchnorm\.$"):
        pruned(Boxes(), ([IMAGES[0]],), listed(4, 2), "least_squares")


@pytest.mark.parametrize("repair", ["batchnorm", "compensation"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_bare_list_is_one_list_of_images(repair: str, count: int) -> None:
    bare = pruned(Boxes(), ([IMAGES[0]],), [(list(IMAGES[:count]), 0), list(IMAGES)], repair)
    wanted = pruned(Boxes(), ([IMAGES[0]],), listed(count, 6 - count)[:1] + listed(6), repair)
    tensors = bare.model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in wanted.model.state_dict().items())


def test_a_tensor_may_stand_for_the_list() -> None:
    found = pruned(Boxes(), ([IMAGES[0]],), [((IMAGES,), 0)], "batchnorm")
    wanted = pruned(Boxes(), ([IMAGES[0]],), listed(6), "batchnorm")
    assert torch.equal(found.model.body[1].running_mean, wanted.model.body[1].running_mean)

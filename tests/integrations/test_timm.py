"""timm's own ways with a network go on working right after the cut."""

from __future__ import annotations

import pytest
import torch

import secateur
from secateur import references

pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_the_classifier_is_reset_at_the_width_that_is_left(name: str) -> None:
    loaded = references.load(f"timm:{name}", arguments={"num_classes": 10}, input_size="3x32x32")
    narrow = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5", verify=False).model.eval()
    features = narrow.forward_features(loaded.inputs)
    assert narrow.num_features == features.shape[1] < loaded.model.num_features
    narrow.reset_classifier(5)
    assert narrow(loaded.inputs).shape == (1, 5)
    assert narrow.get_classifier().in_features == narrow.head_hidden_size
    narrow.train()(torch.cat([loaded.inputs, loaded.inputs])).sum().backward()

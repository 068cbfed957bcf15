"""A sample of the census: 40 networks of torchvision and timm traced, halved, cut and verified."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("timm") is None:
    pytest.skip("the census needs torchvision and timm", allow_module_level=True)

import census

# one of each kind that a random sample of small networks may miss, then a seeded sample
KINDS = (
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:raft_small",
    "torchvision:vit_b_16",
)
SAMPLE = [name for name in census.sample(36, seed=0, max_params=25e6, max_macs=0.6e9) if name not in KINDS]


@pytest.mark.parametrize(
    "name", [*KINDS, *SAMPLE[:6], *(pytest.param(name, marks=pytest.mark.long) for name in SAMPLE[6:])]
)
def test_half_of_every_group_goes_and_the_rest_computes_the_same(name: str) -> None:
    row = census.measure(name)
    assert row["status"] in ("exact", "inexact"), row.get("error")
    assert row["macs_after"] < 0.9 * row["macs"]
    if row["macs"] == row["macs_counted"]:  # where the independent counter sees the same operators
        assert row["macs_after"] == row["macs_after_counted"]

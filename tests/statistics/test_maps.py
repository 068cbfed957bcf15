"""Moments from whole maps are those from their patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from secateur.repair.least_squares import patch_sums
from secateur.statistics import maps
from secateur.statistics.lockstep import together
from secateur.statistics.maps import MapSums, map_sums
from secateur.statistics.samples import PatchSums, Sampler, patches_at

#: Layers, the size of their maps, and whether maps are less work.
LAYERS: dict[str, tuple[Any, tuple[int, ...], bool]] = {
    "4 x 4": (nn.Conv2d(120, 8, 3, padding=1), (4, 4), True),
    "dilated, uneven": (nn.Conv2d(120, 8, 3, 1, (2, 1), dilation=2), (5, 4), True),
    "one row of the kernel": (nn.Conv2d(400, 8, (3, 1), padding=(1, 0)), (4, 3), False),
    "strided": (nn.Conv2d(120, 8, 3, 2, 1), (8, 8), False),
    "one axis": (nn.Conv1d(220, 8, 5, padding=2), (9,), True),
    "few columns": (nn.Conv2d(20, 8, 3, padding=1), (4, 4), False),
}


def blocks(layer: Any, batches: list[torch.Tensor], *, whole: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    sampler = Sampler([len(x) for x in batches], 1000, 0)
    for number, x in enumerate(batches):
        for part, places in sampler.places(layer, number, x).parts(2**21):
            wanted = places.values(layer(x[part]), channels_last=False)
            yield (x[part] if whole else patches_at(layer, x[part], places)), wanted


def alike(found: PatchSums, wanted: PatchSums) -> None:
    for name in ("xx", "xy", "x", "y"):
        a, b = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(b.abs().max()))
    assert found.yy == pytest.approx(wanted.yy)
    assert found.count == wanted.count


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("halves", [False, True])
@torch.no_grad()
def test_they_are_those_of_patches(name: str, halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, sizes, pays = LAYERS[name]
    monkeypatch.setattr(maps, "BLOCK", 3 * layer.weight.shape[1] * sizes[0])  # several rounds
    x = torch.randn(9, layer.weight.shape[1], *sizes)
    assert (MapSums.may_pay(layer, x[:1]) and MapSums(layer, x[:1]).pays) is pays
    batches = list(x.split([4, 3, 2]))
    places = int(layer(x)[0, 0].numel())
    wanted = PatchSums.of(blocks(layer, batches, whole=False), places if halves else 0)
    found = map_sums(layer, blocks(layer, batches, whole=True), x[:1], halves=halves)
    alike(found, wanted)
    assert (found.halves is None) is (wanted.halves is None) is (not halves)
    for one, other in zip(found.halves or (), wanted.halves or (), strict=True):
        alike(one, other)


@torch.no_grad()
def test_a_single_image_has_no_halves() -> None:
    layer = LAYERS["4 x 4"][0]
    x = torch.randn(1, 120, 4, 4)
    found = map_sums(layer, blocks(layer, [x], whole=True), x, halves=True)
    assert found.halves is None
    alike(found, PatchSums.of(blocks(layer, [x], whole=False)))


@pytest.mark.parametrize("positions", [16, 15])
@torch.no_grad()
def test_they_are_taken_where_all_places_are_looked_at(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(120, 8, 3, padding=1))
    x, true = torch.randn(6, 120, 4, 4), maps.MapSums.add
    taken: list[int] = []

    def add(self: MapSums, *args: torch.Tensor) -> None:
        taken.append(1)
        true(self, *args)

    monkeypatch.setattr(maps.MapSums, "add", add)
    sampler, passes = Sampler([4, 2], positions, 0), together((net,), x.split([4, 2]), ["0"])
    stop = next(passes)
    for inputs in (None, torch.arange(120) % 40 != 0):
        taken.clear()
        found = patch_sums(net, stop, sampler, None, inputs)
        assert bool(taken) is (positions == 16)
        with monkeypatch.context() as patch:
            patch.setattr("secateur.repair.least_squares._like", lambda *_: None)
            alike(found, patch_sums(net, stop, sampler, None, inputs))


def test_large_maps_are_not_asked() -> None:
    layer = nn.Conv2d(64, 1, 7, padding=3)
    assert MapSums.may_pay(layer, torch.zeros(1, 64, 32, 32))
    assert not MapSums.may_pay(layer, torch.zeros(1, 64, 33, 32))
    assert not MapSums.may_pay(layer, torch.zeros(1, 16, 8, 8))

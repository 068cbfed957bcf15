"""Sampled patches and answers, and least squares on their moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import InputError
from secateur.statistics import samples
from secateur.statistics.lockstep import together, visits
from secateur.statistics.patches import BLOCK
from secateur.statistics.samples import PatchSums, Sampler, answers, least_squares, patches_at, ridge_for
from secateur.statistics.shortcuts import shortcuts

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (3, 7, 6)),
    "strided, dilated": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2), (4, 9, 8)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 6, 6)),
    "same": (nn.Conv2d(3, 4, 4, padding="same"), (3, 6, 6)),
    "one axis": (nn.Conv1d(3, 4, 5, stride=2, padding=1), (3, 11)),
    "three axes": (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 5)),
    "linear": (nn.Linear(5, 3), (5,)),
    "tokens": (nn.Linear(5, 3), (6, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("positions", [3, 1000])
def test_patches_give_what_the_layer_answers(name: str, positions: int) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    x = torch.randn(4, *shape)
    places = Sampler([4], positions, 0).places(layer, 0, x)
    seen = patches_at(layer, x, places)
    last = isinstance(layer, nn.Linear)
    wanted = places.values(layer(x), channels_last=last)
    torch.testing.assert_close(answers(layer, seen, layer.weight, layer.bias), wanted)
    count = layer(x)[0].numel() // layer(x).shape[-1 if last else 1]
    assert len(seen) == 4 * min(positions, count)  # a small map is seen whole


def test_batches_do_not_matter_and_seeds_do() -> None:
    layer, x = nn.Conv2d(2, 3, 3), torch.randn(6, 2, 9, 9, generator=torch.Generator().manual_seed(1))

    def drawn(sizes: list[int], seed: int) -> torch.Tensor:
        sampler, parts = Sampler(sizes, 4, seed), x.split(sizes)
        found = [patches_at(layer, part, sampler.places(layer, k, part)) for k, part in enumerate(parts)]
        return torch.cat(found)

    assert torch.equal(drawn([6], 3), drawn([1, 3, 2], 3))
    assert not torch.equal(drawn([6], 3), drawn([6], 4))


def _moments(x: torch.Tensor, y: torch.Tensor) -> PatchSums:
    return PatchSums.of((a[:, None], b) for a, b in zip(x.split(7), y.split(7), strict=True))


def test_least_squares_is_the_textbooks() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(60, 2, dtype=torch.float64)
    kept = torch.tensor([True, False, True, True, False])
    weight = torch.randn(2, 5, dtype=torch.float64)
    moments = _moments(x, y)
    fitted, constant = least_squares(moments, weight, kept, ridge=0.0, constant=True)
    wanted = torch.linalg.lstsq(torch.cat([x[:, kept], torch.ones(60, 1, dtype=torch.float64)], 1), y).solution
    torch.testing.assert_close(fitted[:, kept].T, wanted[:-1])
    torch.testing.assert_close(constant, wanted[-1])
    assert not fitted[:, ~kept].any()
    residual = y - x @ fitted.T - constant
    assert moments.error(fitted, constant) == pytest.approx(float(residual.square().sum()) / 60)
    plain, nothing = least_squares(moments, weight, kept, ridge=0.0, constant=False)
    torch.testing.assert_close(plain[:, kept].T, torch.linalg.lstsq(x[:, kept], y).solution)
    assert not nothing.any()


def test_a_duplicate_takes_over_what_the_dropped_one_did() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3, 4, dtype=torch.float64)
    x[:, 1] = x[:, 0]
    x = x.flatten(1)
    weight = torch.randn(6, 12, dtype=torch.float64)
    kept = torch.ones(12, dtype=torch.bool)
    kept[4:8] = False
    moments = _moments(x, x @ weight.T)
    fitted, _ = least_squares(moments, weight, kept, ridge=0.0, constant=False)
    torch.testing.assert_close(fitted[:, :4], weight[:, :4] + weight[:, 4:8], rtol=0, atol=1e-12)
    assert moments.error(fitted) < 1e-12


def test_refitting_helps_and_more_inputs_never_hurt() -> None:
    torch.manual_seed(0)
    x = torch.randn(80, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    weight = torch.randn(3, 8, dtype=torch.float64)
    moments, last = _moments(x, x @ weight.T), float("inf")
    for width in range(1, 9):
        kept = torch.arange(8) < width
        fitted, _ = least_squares(moments, weight, kept, ridge=0.0, constant=False)
        error = moments.error(fitted)
        assert error <= moments.error(weight * kept) + 1e-9
        assert error <= last + 1e-9
        last = error
    assert last == pytest.approx(0, abs=1e-9)


def test_images_that_are_not_numbers() -> None:
    x = torch.ones(4, 2)
    x[1, 1] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        PatchSums.of([(x[:, None], torch.ones(4, 1))])


def test_what_the_data_say_nothing_about_stays() -> None:
    x = torch.zeros(20, 4)
    x[:, 0] = torch.linspace(-1, 1, 20)  # the others are dead
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    fitted, _ = least_squares(
        _moments(x, x @ weight.T), weight, torch.ones(4, dtype=torch.bool), ridge=1e-6, constant=True
    )
    torch.testing.assert_close(fitted.float(), weight)
    nothing, constant = least_squares(
        _moments(0 * x, torch.ones(20, 1)), weight, torch.ones(4, dtype=torch.bool), ridge=1e-6, constant=True
    )
    torch.testing.assert_close(nothing.float(), weight)
    assert constant.item() == pytest.approx(1)


class Net(nn.Module):
    """Two branches and a shortcut that each meet in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.side = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.fc, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x, inplace=True)
        x = x + self.norm(self.one(x))  # the shortcut is there before
        y = self.two(x)
        x = y.add_(self.side(x))  # only when `side` runs is `two` there
        x = x.mean((2, 3))
        return self.fc(self.fc(x))  # runs twice


def test_passes_stop_in_order_and_see_changed_weights() -> None:
    torch.manual_seed(0)
    dense, model = Net().eval(), Net().eval()
    model.load_state_dict(dense.state_dict())
    batches = [torch.randn(3, 2, 4, 4), torch.randn(2, 2, 4, 4)]
    seen = []
    for stop in together((dense, model), batches, ["one", "two", "fc"]):
        seen.append(stop.layer)
        standing = list(stop.batches())
        assert [[len(x) for x in batch.inputs] for batch in standing] == [[3, 3], [2, 2]]
        same = all(torch.equal(*batch.inputs) for batch in standing)
        assert same == (stop.layer == "one")
        if stop.layer == "one":
            with torch.no_grad():
                model.one.weight.mul_(2)
    assert seen == ["one", "two", "fc", "fc"]
    assert visits(dense, batches[0], ["one", "fc", "unused"]) == {"one": 1, "fc": 2}
    assert not dense.one._forward_pre_hooks


def test_leaving_early_and_errors_end_all_passes() -> None:
    net = Net().eval()
    for stop in together((net,), [torch.randn(2, 2, 4, 4)] * 3, ["one", "two"]):
        assert stop.layer == "one"
        break
    assert not net.one._forward_pre_hooks
    with pytest.raises(RuntimeError, match="to have 2 channels"):
        list(together((net,), [torch.randn(2, 3, 4, 4)], ["one"]))
    assert not net.one._forward_pre_hooks


def test_shortcuts_that_are_there_before_their_branch() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(3, 2, 4, 4)
    found = shortcuts(net, x, ["stem", "one", "two", "side", "fc"], {"one": "norm"})
    assert set(found) == {"one", "side"}
    for stop in together((net,), [x], ["one", "side"], found):
        (batch,) = stop.batches()
        held = batch.held[0]
        assert held is not None
        wanted = F.relu(net.stem(x)) if stop.layer == "one" else net.two(batch.inputs[0])
        torch.testing.assert_close(held, wanted)


class Remembers(nn.Module):
    """Its passes are not all of as many operators: detectors make their anchors in the first one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.known: torch.Tensor | None = None
        self.size: torch.Size | None = None
        self.stem, self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "anchors" and self.known is None:
            self.known = torch.arange(4.0).reshape(1, 1, 1, 4).repeat(1, 1, 4, 1) * 0.1
        if self.how == "size" and self.size != x.shape[2:]:
            self.size, self.known = x.shape[2:], torch.linspace(0, 1, x.shape[3]) + 1
        if self.how == "flag" and not hasattr(self, "begun"):
            self.begun = bool((x.abs().sum() + 1).log() > -1)
        if self.how == "counts":  # PyTorch detaches the result where something else holds it
            self.known = torch.arange(4).to(x.dtype) / torch.arange(1, 5)
        x = self.stem(x) + (0 if self.known is None else self.known)
        x = x + self.one(x).relu()
        y = self.two(x)
        added: torch.Tensor = x + y
        return added


@pytest.mark.parametrize("how", ["anchors", "size", "flag", "counts"])
def test_passes_of_other_lengths_move_no_shortcut(how: str) -> None:
    torch.manual_seed(0)
    net, twin, x = Remembers(how).eval(), Remembers(how).eval(), torch.randn(3, 2, 4, 4)
    twin.load_state_dict(net.state_dict())
    found = shortcuts(net, x, ["stem", "one", "two"], {})
    assert set(found) == {"two"}
    for stop in together((net, twin), [x], ["two"], found):
        (batch,) = stop.batches()
        for held, read in zip(batch.held, batch.inputs, strict=True):
            assert held is not None
            torch.testing.assert_close(held, read)  # the shortcut is what `two` reads


def test_a_result_that_another_operator_has_made_is_not_held() -> None:
    net, x = Net().eval(), torch.randn(3, 2, 4, 4)
    found = shortcuts(net, x, ["side"], {})
    shifted = {name: replace(made, number=made.number + 1) for name, made in found.items()}
    for stop in together((net,), [x], ["side"], shifted):
        (batch,) = stop.batches()
        assert batch.held == (None,)


# ------------------------------------------------------------------------------------------------------- few samples


def test_few_samples_are_looked_at_in_more_places() -> None:
    layer, small = nn.Conv2d(2, 3, 3), nn.Conv2d(1, 3, 1)  # 18 columns and one
    x = torch.randn(6, 2, 9, 9)
    sampler = Sampler([4, 2], 3, 0, per_column=10, layers=[layer, small])
    assert sampler.few(layer, x) == 30  # of 49
    assert sampler.few(small, x[:, :1]) == 0
    assert sampler.places(layer, 0, x[:4]).axes[0].shape == (4, 30)
    assert sampler.places(small, 0, x[:4, :1]).axes[0].shape == (4, 3)
    assert Sampler([4, 2], 3, 0, per_column=20, layers=[layer]).few(layer, x) == 49  # all there are
    plain = Sampler([6], 30, 0)
    assert plain.few(layer, x) == 0
    assert torch.equal(sampler.places(layer, 0, x[:4]).axes[0], plain.places(layer, 0, x).axes[0][:4])


@pytest.mark.parametrize("sizes", [[6], [1, 3, 2]])
def test_halves_are_every_other_sample_however_batched(sizes: list[int]) -> None:
    layer = nn.Conv2d(2, 3, 3).double()
    x = torch.randn(6, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(sizes, 3, 0, per_column=10, layers=[layer])

    def blocks(images: torch.Tensor, batches: list[int], drawn: Sampler) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, part in enumerate(images.split(batches)):
            seen = patches_at(layer, part, drawn.places(layer, number, part))
            yield seen, answers(layer, seen, layer.weight, layer.bias)

    found = PatchSums.of(blocks(x, sizes, sampler), sampler.few(layer, x))
    assert found.halves is not None
    all_at_once = next(blocks(x, [6], Sampler([6], 3, 0, per_column=10, layers=[layer])))
    for parity, half in enumerate(found.halves):
        mine = (torch.arange(180) // 30) % 2 == parity
        wanted = PatchSums.of([(all_at_once[0][mine], all_at_once[1][mine])])
        assert half.count == 90
        torch.testing.assert_close(half.xx, wanted.xx)
        torch.testing.assert_close(half.xy, wanted.xy)
    torch.testing.assert_close(found.xx, found.halves[0].xx + found.halves[1].xx)
    assert PatchSums.of(blocks(x, sizes, sampler)).halves is None


def test_the_pull_is_strong_where_halves_disagree() -> None:
    torch.manual_seed(0)
    weight, kept = torch.randn(2, 8, dtype=torch.float64), torch.ones(8, dtype=torch.bool)
    x = torch.randn(40, 8, dtype=torch.float64)
    noise = 10 * torch.randn(40, 2, dtype=torch.float64)

    def chosen(wanted: torch.Tensor, each: int = 1) -> float:
        moments = PatchSums.of([(x[:, None], wanted)], each)
        return ridge_for(moments, weight, kept, ridge=1e-6, constant=False)

    assert chosen(x @ weight.T + noise) == 1.0
    assert chosen(x @ weight.T + noise, 0) == 1e-6  # samples are not few
    assert chosen(x @ torch.randn(8, 2, dtype=torch.float64)) == 1e-6  # far from the weights as they are, and certain


def test_parts_are_the_whole() -> None:
    layer = nn.Conv2d(2, 3, 3)
    x = torch.randn(5, 2, 9, 9)
    places = Sampler([5], 7, 0).places(layer, 0, x)
    each = BLOCK // 7 // 2 + 1  # a patch of so many numbers: one row at a time
    assert [(part.start, part.stop, some.rows) for part, some in places.parts(each)] == [
        (k, k + 1, 1) for k in range(5)
    ]
    assert [part for part, _ in places.parts(1)] == [slice(0, 5)]
    found = torch.cat([patches_at(layer, x[part], some) for part, some in places.parts(each)])
    assert torch.equal(found, patches_at(layer, x, places))


def test_a_weak_pull_is_solved_for_in_double_precision() -> None:
    """Single precision has seven digits: with a share of 1e-6 of the mean, small directions would be lost."""
    torch.manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))
    square = (directions * torch.logspace(0, -7, 60, dtype=torch.float64)) @ directions.T
    right = torch.randn(60, 3, dtype=torch.float64)
    single, answer = square.float(), right.float()
    wanted = samples._solved(single.double(), answer.double(), 1e-6)
    found = samples._solved(single, answer, 1e-6)
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5

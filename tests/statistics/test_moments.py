"""Moments of what layers read: equal to those of all unfolded patches, for any batches, layers and processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.statistics import gather, moments
from secateur.statistics.moments import Moments


def images(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def batches(x: torch.Tensor, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(part, torch.zeros(len(part))) for part in x.split(sizes)]


def watched(model: nn.Module, names: list[str], data: list[Any], **options: Any) -> Moments:
    found = Moments(names, **options)
    gather(model, data, [found])
    return found


def reference(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of rows."""
    patches = patches.double()
    mean = patches.mean(0)
    return mean, (patches - mean).T @ (patches - mean) / len(patches)


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"kernel_size": 1}],
)
def test_a_convolution_is_its_unfolded_patches(options: dict[str, Any]) -> None:
    options = {"kernel_size": 3} | options
    x = images(6, 4, 7, 7) + 3
    found = watched(nn.Sequential(nn.Conv2d(4, 5, **options)), ["0"], batches(x, [3, 1, 2]))["0"]
    kernel = options.pop("kernel_size")
    mean, covariance = reference(F.unfold(x, kernel, **options).transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.covariance[0], covariance)
    assert found.count == 6 * F.unfold(x, kernel, **options).shape[2]


#: Convolutions whose maps are multiplied pixel by pixel, and the sizes of their maps.
MAPS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(33, 5, 3, padding=1), (5, 6)),
    "bare": (nn.Conv2d(33, 5, 3), (7, 6)),
    "dilated, uneven": (nn.Conv2d(33, 5, 3, 1, (2, 1), dilation=2), (6, 5)),
    "one axis": (nn.Conv1d(33, 5, 5, padding=2), (9,)),
    "three axes": (nn.Conv3d(33, 5, (1, 3, 3), padding=(0, 1, 1)), (2, 4, 4)),
    "padding as wide as the map": (nn.Conv2d(33, 5, 5, padding=4), (3, 3)),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MAPS)
def test_products_of_pixels_come_to_the_same_as_patches(
    name: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, sizes = MAPS[name]
    columns = layer.weight[0].numel()
    model = nn.Sequential(layer).to(precision)
    x = (images(7, 33, *sizes) * torch.linspace(0.1, 2, 33).view(-1, *[1] * len(sizes)) + 3).to(precision)
    x[:, 4] = 0.7
    data = batches(x, [3, 3, 1])
    wide = precision == torch.float32
    monkeypatch.setattr(moments, "EXACT", columns if wide else 10_000)
    monkeypatch.setattr(moments, "BLOCK", 4 * x[0].numel())  # what waits is multiplied twice
    by_pixel = watched(model, ["0"], data)
    assert by_pixel._maps["0"] is not None
    monkeypatch.setattr(moments, "EXACT", 10_000)
    monkeypatch.setattr(moments, "_FEW_CHANNELS", 34)
    by_patch = watched(model, ["0"], data)
    assert by_patch._maps["0"] is None
    found, wanted = by_pixel["0"], by_patch["0"]
    assert found.count == wanted.count
    exactness = 1e-5 if wide else 1e-12
    torch.testing.assert_close(found.mean, wanted.mean, rtol=exactness, atol=exactness)
    size = float(wanted.covariance.abs().max())
    torch.testing.assert_close(found.covariance, wanted.covariance, rtol=0, atol=exactness * size)
    deviation = found.covariance[0].diagonal().unflatten(0, (33, -1))
    never = torch.from_numpy(by_pixel._maps["0"].always)
    assert float(deviation[4][never].abs().sum()) == 0.0  # what never changes has no variance at all


def test_maps_of_other_sizes_are_added_as_patches() -> None:
    model = nn.Sequential(nn.Conv2d(33, 5, 3, padding=1))
    x = [images(3, 33, side, side, seed=side).double() + 1 for side in (5, 6, 5)]
    found = watched(model.double(), ["0"], [(part, torch.zeros(len(part))) for part in x])["0"]
    patches = torch.cat([F.unfold(part, 3, padding=1).transpose(1, 2).flatten(0, 1) for part in x])
    mean, covariance = reference(patches)
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.covariance[0], covariance)
    assert found.count == len(patches)


def test_batches_of_which_a_layer_reads_nothing() -> None:
    """As a head on boxes does where there are none; before the first that it reads, and behind it."""
    model = nn.Sequential(nn.Conv2d(33, 5, 3, padding=1))
    x = images(4, 33, 5, 5).double()
    found = watched(model.double(), ["0"], [(part, torch.zeros(len(part))) for part in (x[:0], x, x[:0])])["0"]
    once = watched(model, ["0"], [(x, torch.zeros(4))])["0"]
    assert torch.equal(found.covariance, once.covariance)
    assert found.count == once.count
    assert "0" not in watched(model, ["0"], [(x[:0], torch.zeros(0))])


def test_large_batches_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Conv2d(33, 5, 3, padding=1)).double(), images(7, 33, 5, 5).double()
    whole = watched(model, ["0"], [(x, torch.zeros(7))])["0"]
    monkeypatch.setattr("secateur.statistics.moments.BLOCK", 2 * x[0].numel())
    sizes: list[int] = []
    waits = Moments._wait
    monkeypatch.setattr(Moments, "_wait", lambda self, name, p: (sizes.append(p.shape[1]), waits(self, name, p)))
    parts = watched(model, ["0"], [(x, torch.zeros(7))])["0"]
    assert sizes == [2, 2, 2, 1]
    torch.testing.assert_close(parts.covariance, whole.covariance)


@pytest.mark.parametrize("side", [32, 33])
def test_pairs_of_pixels_are_listed_for_small_maps_only(side: int) -> None:
    model = nn.Sequential(nn.Conv2d(32, 4, 3, padding=1))
    found = watched(model, ["0"], batches(images(1, 32, 32, side), [1]))
    assert (found._maps["0"] is not None) is (side == 32)


class PadsItself(nn.Conv2d):
    """Puts zeros around its input that its `padding` does not tell of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def test_a_layer_that_pads_by_itself() -> None:
    model, x = nn.Sequential(PadsItself(33, 5, 3)).double(), images(5, 33, 6, 6).double() + 1
    found = watched(model, ["0"], batches(x, [2, 3]))["0"]
    mean, covariance = reference(F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.covariance[0], covariance)
    assert found.count == 5 * 36


class Convolutions(nn.Module):
    """Two layers read one map; the first, or the second, reads another one, too."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(32, 4, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.a(x) + self.b(x)
        return first + (getattr(self, self.again)(2 * x + 1) if self.again else 0)


@pytest.mark.parametrize("again", ["", "a", "b"])
def test_maps_of_a_layer_that_runs_again(again: str) -> None:
    model, x = Convolutions(again).double(), images(8, 32, 4, 4).double() + 2
    found = watched(model, ["a", "b"], batches(x, [3, 5]))
    assert all(found._maps[name] is not None for name in ("a", "b") if again or name == "a")
    assert (found["a"] is found["b"]) is (not again)
    for name in ("a", "b"):
        read = torch.cat([x, 2 * x + 1]) if name == again else x
        mean, covariance = reference(F.unfold(read, 3, padding=1).transpose(1, 2).flatten(0, 1))
        torch.testing.assert_close(found[name].mean[0], mean)
        torch.testing.assert_close(found[name].covariance[0], covariance)


def test_linear_grouped_and_one_dimensional_layers() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(2), nn.Conv1d(4, 6, 5), nn.Linear(5, 3))
    x = images(5, 4, 5, 5)
    found = watched(model, ["0", "2", "3"], batches(x, [2, 3]))
    for group in range(2):
        part = F.unfold(x[:, 2 * group : 2 * group + 2], 3).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(found["0"].covariance[group], reference(part)[1])
    with torch.no_grad():
        inner = model[1](model[0](x))
        rows = inner.unfold(2, 5, 1).transpose(1, 2).flatten(2).flatten(0, 1)
        torch.testing.assert_close(found["2"].covariance[0], reference(rows)[1])
        torch.testing.assert_close(found["3"].mean[0], reference(model[2](inner).flatten(0, 1))[0])


def test_unequal_batches_come_to_the_same() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)), images(12, 3, 6, 6)
    whole = watched(model, ["0", "2"], batches(x, [12]), positions=9)
    parts = watched(model, ["0", "2"], batches(x, [1, 4, 5, 2]), positions=9)
    for name in ("0", "2"):
        torch.testing.assert_close(whole[name].mean, parts[name].mean)
        torch.testing.assert_close(whole[name].covariance, parts[name].covariance)


def test_what_never_changes_has_no_variance_at_all() -> None:
    x = images(64, 3) * 1e-3 + 0.1
    x[:, 1] = 1 / 3
    found = watched(nn.Sequential(nn.Linear(3, 2)), ["0"], batches(x, [60, 4]))["0"]
    assert float(found.covariance[0, 1].abs().max()) == 0.0
    assert float(found.mean[0, 1]) == float(x[0, 1])
    torch.testing.assert_close(found.covariance[0, 0, 0], reference(x)[1][0, 0], rtol=1e-9, atol=0)


def test_positions_are_a_lattice() -> None:
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), images(5, 2, 8, 8)
    patches = F.unfold(x, 3, padding=1).unflatten(2, (8, 8))
    lattices = [patches[:, :, a::2, b::2].flatten(2).transpose(1, 2).flatten(0, 1) for a in (0, 1) for b in (0, 1)]
    used = set()
    for seed in range(12):
        found = watched(model, ["0"], batches(x, [2, 3]), positions=16, seed=seed)["0"]
        assert found.count == 5 * 16
        near = [float((found.covariance[0] - reference(rows)[1]).abs().max()) for rows in lattices]
        assert min(near) < 1e-6
        used.add(near.index(min(near)))
    assert len(used) > 1  # the seed decides which


class Shared(nn.Module):
    """Two layers read one tensor; one of them, or a third, also reads another."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.a(x) + self.b(x)
        if self.again == "between":
            return self.a(x + 1) + self.c(x)
        return first + (getattr(self, self.again)(x + 1) if self.again else 0)


def test_layers_that_read_the_same_are_measured_once() -> None:
    x = images(10, 4)
    found = watched(Shared(""), ["a", "b"], batches(x, [5, 5]))
    assert found["a"] is found["b"]


@pytest.mark.parametrize("again", ["a", "b", "between"])
def test_a_layer_that_runs_again_has_its_own(again: str) -> None:
    x = images(10, 4)
    found = watched(Shared(again), ["a", "b", "c"] if again == "between" else ["a", "b"], batches(x, [4, 6]))
    both = torch.cat([x, x + 1])
    twice = "a" if again == "between" else again
    for name in ("a", "b", "c") if again == "between" else ("a", "b"):
        mean, covariance = reference(both if name == twice else x)
        torch.testing.assert_close(found[name].mean[0], mean)
        torch.testing.assert_close(found[name].covariance[0], covariance)


def test_a_layer_that_never_ran() -> None:
    model = Shared("")
    found = watched(model, ["a", "c"], batches(images(3, 4), [3]))
    assert "a" in found
    assert "c" not in found
    with pytest.raises(ConfigError, match="The layer 'c' did not run"):
        found["c"]


def test_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, of which the last has seen nothing; each gives all the others its tensors in turn."""
    model, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(18, 2)), images(9, 3, 5, 5) + 2
    wanted = watched(model, ["0", "2"], batches(x, [9]))
    monkeypatch.setattr(moments, "world", lambda: 3)
    parts = [Moments(["0", "2"]) for _ in range(3)]
    for part, own in zip(
        parts,
        (
            [x[:4]],
            [
                x[4:],
            ],
            [],
        ),
        strict=True,
    ):
        handles = list(part.watch(model))
        for batch in own:
            model(batch)
            part.see(None, None)
        for handle in handles:
            handle.remove()
    sent: list[list[torch.Tensor]] = []
    for number, part in enumerate(parts):  # what each would send; the common shift is the first's
        monkeypatch.setattr(moments, "rank", lambda number=number: number)
        own_sent: list[torch.Tensor] = []

        def send(tensor: torch.Tensor, own_sent: list[torch.Tensor] = own_sent) -> torch.Tensor:
            own_sent.append(tensor.clone())
            return sent[0][len(own_sent) - 1] if sent and len(own_sent) % 2 else tensor

        monkeypatch.setattr(moments, "global_sum", send)
        part.total()
        sent.append(own_sent)
    totals = [sum(each[k] for each in sent) for k in (1, 3)]
    for name, total, shift in zip(("0", "2"), totals, sent[0][::2], strict=True):
        found = moments._moment(total, shift)
        torch.testing.assert_close(found.mean, wanted[name].mean)
        torch.testing.assert_close(found.covariance, wanted[name].covariance)
        assert found.count == wanted[name].count

"""Kronecker factors against their definition, whatever the layer, the batches and the blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError, InputError, ModelError
from secateur.methods.nap import kfac
from secateur.methods.nap.kfac import Batch, Factors, Layer
from secateur.statistics import patches
from secateur.statistics.patches import Lattice, add_square, mirrored

IMAGES = torch.randn(6, 3, 9, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def network() -> nn.Sequential:
    """A linear layer and convolutions of every kind: strided, grouped, depthwise, dilated, in-place activations."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, (3, 2), padding=1, groups=8, dilation=(1, 2)), nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3, padding="same", padding_mode="circular"), nn.Conv2d(6, 4, 1, bias=False),
        nn.Flatten(), nn.Linear(80, 5),
    )  # fmt: skip
    with torch.no_grad():
        net[3].running_mean.uniform_(-0.2, 0.2)
        net[3].running_var.uniform_(0.5, 2)
    return net.double()


def watched(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """What layers read and the gradients of what they give, of the mean loss in evaluation; gradients in `.grad`."""
    seen: dict[str, Any] = {}
    slopes: dict[str, Any] = {}
    handles = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def note(module: nn.Module, args: Any, output: torch.Tensor, name: str = name) -> None:
                seen[name] = args[0].detach().clone()
                output.register_hook(lambda g: slopes.__setitem__(name, g.clone()))

            handles.append(module.register_forward_hook(note))
    net.eval()
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    for handle in handles:
        handle.remove()
    return seen, slopes


def definition(module: Any, layer: Layer, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [N, groups, columns + 1, T] and per-sample gradients [N, groups, outputs, T]."""
    n = len(x)
    if isinstance(module, nn.Linear):
        a, g = x[:, None, :, None], g[:, None, :, None]
    else:
        x = F.pad(
            x, module._reversed_padding_repeated_twice, "circular" if module.padding_mode != "zeros" else "constant"
        )
        a = F.unfold(x, module.kernel_size, module.dilation, 0, module.stride).view(n, layer.groups, layer.columns, -1)
        g = g.flatten(2).view(n, layer.groups, layer.outputs, -1)
    return torch.cat([a, torch.ones_like(a[:, :, :1])], 2), n * g


def factors(net: nn.Module, x: torch.Tensor = IMAGES, y: torch.Tensor = LABELS, **options: Any) -> Factors:
    found = Factors(net, x.double(), **options)
    found.update(net, [Batch.of(x.double(), y)])
    return found


def same(a: Factors, b: Factors) -> None:
    for name in a.layers:
        torch.testing.assert_close(a.inputs(name), b.inputs(name), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.gradients(name), b.gradients(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", [1 << 23, 400])
def test_factors_are_their_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "BLOCK", block)
    net = network()
    seen, slopes = watched(net, IMAGES.double(), LABELS)
    found = factors(net)
    assert list(found.layers) == ["0", "2", "5", "7", "8", "10"]
    for name, layer in found.layers.items():
        module: Any = net.get_submodule(name)
        a, g = definition(module, layer, seen[name], slopes[name])
        positions = a.shape[-1]
        torch.testing.assert_close(found.inputs(name), torch.einsum("ngat,ngbt->gab", a, a) / 6)
        torch.testing.assert_close(found.gradients(name), torch.einsum("ngat,ngbt->gab", g, g) / (6 * positions))
        torch.testing.assert_close(found.means(name), a.mean((0, 3))[:, :-1])
        # the plumbing: Σ_t g aᵀ / N is the gradient of weight and bias
        gradient = torch.einsum("ngit,ngjt->gij", g, a).flatten(0, 1) / 6
        torch.testing.assert_close(gradient[:, :-1], module.weight.grad.flatten(1))
        if module.bias is not None:
            torch.testing.assert_close(gradient[:, -1], module.bias.grad)


def test_factors_are_symmetric_and_positive_and_the_bias_counts_positions() -> None:
    found = factors(network())
    for name in found.layers:
        for matrix in (found.inputs(name), found.gradients(name)):
            assert torch.equal(matrix, matrix.mT)
            eigenvalues = torch.linalg.eigvalsh(matrix)
            assert bool((eigenvalues >= -1e-9 * eigenvalues.max()).all())
    positions = {name: float(found.inputs(name)[0, -1, -1]) for name in found.layers}
    assert positions["0"] == pytest.approx(20)
    assert positions["10"] == pytest.approx(1)


@pytest.mark.parametrize("sizes", [(1, 5), (2, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize("sampled", [True, False])
def test_any_division_into_batches_gives_the_same(sizes: tuple[int, ...], sampled: bool) -> None:
    net, whole = network(), Factors(network(), IMAGES.double())
    parts, together = Factors(net, IMAGES.double()), Factors(net, IMAGES.double())
    labels = None if sampled else LABELS
    whole.update(net, [Batch.of(IMAGES.double(), labels)])
    chunks = [
        Batch.of(x.double(), None if sampled else y)
        for x, y in zip(IMAGES.split(sizes), LABELS.split(sizes), strict=True)
    ]
    for chunk in chunks:
        parts.update(net, [chunk])
    together.update(net, chunks)  # the micro-batches of one step
    same(parts, whole)
    same(together, whole)


def test_the_loss_given_is_a_mean_over_the_batch() -> None:
    """The factor N: with gradients of the mean a batch of other size would weigh otherwise."""
    net = network()
    found = Factors(net, IMAGES.double())
    found.update(net, [Batch.of(IMAGES[:2].double(), LABELS[:2])], F.cross_entropy)
    found.update(net, [Batch.of(IMAGES[2:].double(), LABELS[2:])], F.cross_entropy)
    same(found, factors(net))


def test_running_averages_have_their_bias_corrected() -> None:
    net = network()
    constant = Factors(net, IMAGES.double())
    for _ in range(3):
        constant.update(net, [Batch.of(IMAGES.double(), LABELS)], decay=0.95)
    same(constant, factors(net))
    moving = Factors(net, IMAGES.double())
    halves = [factors(net, IMAGES[:3], LABELS[:3]), factors(net, IMAGES[3:], LABELS[3:])]
    for x, y in zip(IMAGES.split(3), LABELS.split(3), strict=True):
        moving.update(net, [Batch.of(x.double(), y)], decay=0.5)
    for name in moving.layers:  # (ρ A₁ + A₂) / (ρ + 1)
        wanted = (0.5 * halves[0].inputs(name) + halves[1].inputs(name)) / 1.5
        torch.testing.assert_close(moving.inputs(name), wanted)


def test_the_model_is_left_as_it_was() -> None:
    net = network().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    generator = torch.get_rng_state()
    found = Factors(net, IMAGES.double())
    found.update(net, [Batch.of(IMAGES.double())])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert torch.equal(generator, torch.get_rng_state())


def test_statistics_are_of_evaluation_mode() -> None:
    """With norms in training mode the loss is blind to the scale of rows, whose curvature along themselves vanishes."""
    net = network()
    quiet, busy = factors(net.eval()), factors(net.train())
    same(quiet, busy)


def test_targets_drawn_converge_to_the_fisher_matrix() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4)).double()
    x = torch.randn(1, 3).double()
    p = net(x).softmax(1)[0].detach()
    wanted = torch.diag(p) - torch.outer(p, p)
    found = Factors(net, x)
    found.update(net, [Batch.of(x.expand(20000, 3))])
    torch.testing.assert_close(found.gradients("0")[0], wanted, atol=0.01, rtol=0)
    one = torch.cat([x[0], torch.ones(1).double()])
    torch.testing.assert_close(found.inputs("0")[0], torch.outer(one, one))
    again = Factors(net, x, seed=1)
    again.update(net, [Batch.of(x.expand(20000, 3))])
    assert not torch.equal(again.gradients("0"), found.gradients("0"))


def test_the_empirical_fisher_fades_where_the_fit_is_perfect_and_the_true_one_does_not() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2) * 6.0)
    x, y = torch.eye(2).double(), torch.tensor([0, 1])
    empirical, true = Factors(net, x), Factors(net, x)
    x, y = x.repeat(4000, 1), y.repeat(4000)
    empirical.update(net, [Batch.of(x, y)])
    true.update(net, [Batch.of(x)])
    assert float(empirical.gradients("0").diagonal(dim1=1, dim2=2).sum()) < 1e-4
    assert float(true.gradients("0").diagonal(dim1=1, dim2=2).sum()) > 1e-3


class Branches(nn.Module):
    """Three readers of one tensor, two of them alike, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.c, self.twice = nn.Conv2d(3, 4, 3, padding=1, stride=1, dilation=1, groups=1), nn.Conv2d(4, 4, 1)
        self.small, self.unused = nn.Conv2d(3, 4, 1), nn.Linear(2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) + self.b(x) + self.c(x * 2) + self.small(x)
        y = self.twice(F.relu_(self.twice(y)))
        result: torch.Tensor = self.head(y.mean((2, 3)))
        return result


def test_one_factor_for_a_shared_input_and_sums_over_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Branches().double()
    products = []
    found = Factors(net, IMAGES.double())
    sources = {name: layer.source for name, layer in found.layers.items()}
    assert sources == {name: name for name in ("a", "c", "small", "twice", "head")} | {"b": "a"}
    assert "unused" not in found.layers

    def counted(total: torch.Tensor, block: torch.Tensor, scale: float) -> None:
        products.append(block.shape[1])
        add_square(total, block, scale)

    monkeypatch.setattr(kfac, "add_square", counted)
    found.update(net, [Batch.of(IMAGES.double(), LABELS)])
    assert products.count(28) == 2  # a and b together, and c
    assert float(found.inputs("twice")[0, -1, -1]) == pytest.approx(2 * 72)
    torch.testing.assert_close(found.inputs("b"), found.inputs("a"))


def test_block_diagonal_factors_of_a_wide_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 5)).double()
    x = torch.randn(7, 12).double()
    whole, blocks = Factors(net, x), Factors(net, x, largest=5)
    for each in (whole, blocks):
        each.update(net, [Batch.of(x, torch.tensor([0, 1, 2, 3, 4, 0, 1]))])
    assert blocks.layers["0"].splits == 3
    parts = blocks.inputs("0")
    for k in range(3):
        columns = [*range(4 * k, 4 * k + 4), 12]
        torch.testing.assert_close(parts[k], whole.inputs("0")[0][columns][:, columns])
    torch.testing.assert_close(blocks.means("0"), whole.means("0"))


def test_sampled_positions_are_unbiased() -> None:
    net = network()
    exact = factors(net)
    sampled = Factors(net, IMAGES.double(), positions=5)
    for _ in range(60):
        sampled.update(net, [Batch.of(IMAGES.double(), LABELS)])
    for name in ("0", "2", "5", "8"):
        for a, b in ((sampled.inputs, exact.inputs), (sampled.gradients, exact.gradients)):
            assert float((a(name) - b(name)).norm() / b(name).norm()) < 0.15


@pytest.mark.parametrize(("sizes", "most"), [((7, 5), 6), ((1, 40), 10), ((9,), 2), ((), 1), ((4, 4, 4), 8)])
def test_a_lattice_is_sparse_and_counts_for_all(sizes: tuple[int, ...], most: int) -> None:
    seen = torch.zeros(sizes)
    total = 0.0
    starts = [torch.rand(3, generator=torch.Generator().manual_seed(k)).tolist() for k in range(3000)]
    for start in starts:
        lattice = Lattice(sizes, most, start)
        assert seen[lattice.slices()].shape == lattice.seen
        seen[lattice.slices()] += lattice.scale
        total += lattice.scale * seen[lattice.slices()].numel()
    assert float(seen.min() / len(starts)) == pytest.approx(1, abs=0.25)
    assert total / len(starts) == pytest.approx(seen.numel(), rel=0.1)


@pytest.mark.parametrize("shape", [(1, 300, 50), (4, 9, 30), (2, 130, 20)])
def test_the_symmetric_product(shape: tuple[int, ...]) -> None:
    block = torch.randn(shape).double()
    total = torch.zeros(shape[0], shape[1], shape[1]).double()
    add_square(total, block, 0.5)
    add_square(total, block, 0.5)
    torch.testing.assert_close(mirrored(total), block @ block.mT)


def test_no_block_of_patches_is_larger_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "BLOCK", 2000)
    layer: Any = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(5, 3, 20, 20)
    sizes = [block.numel() for block in patches.patches(layer, x, Lattice((20, 20), None, [0.0]), 1)]
    assert max(sizes) <= 2000
    assert sum(sizes) == 5 * 28 * 400


def test_networks_without_layers_and_losses_without_numbers() -> None:
    with pytest.raises(ModelError, match="no linear or convolution layer"):
        Factors(nn.BatchNorm1d(3), torch.randn(4, 3))
    net = network()
    found = Factors(net, IMAGES.double())
    with pytest.raises(ConfigError, match="nan"):
        found.update(net, [Batch.of(IMAGES.double() * float("nan"))])
    with pytest.raises(ConfigError, match="one number"):
        found.update(net, [Batch.of(IMAGES.double(), LABELS)], lambda output, target: output)
    pair = Pair(net[0])
    found = Factors(pair, IMAGES.double())
    for target in (None, LABELS):
        with pytest.raises(ConfigError, match=r"drawn from a tuple.*one tensor \[samples, \.\.\.\] is needed; choose"):
            found.update(pair, [Batch.of(IMAGES.double(), target)])
    assert not found.draws


class Stacking(nn.Module):
    """Takes a list of images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Any) -> Any:
        return self.inner(torch.stack(images))


def test_images_may_come_as_a_list() -> None:
    images = IMAGES.double()
    net = network()
    wanted, found = Factors(net, images), Factors(Stacking(net), (list(images),))
    wanted.update(net, [Batch.of(images, LABELS)])
    found.update(Stacking(net), [Batch.of((list(images),), LABELS)])
    assert found.draws
    assert Batch.of((list(images),)).images == found.weight == len(images)
    for name in wanted.layers:
        torch.testing.assert_close(found.gradients(f"inner.{name}"), wanted.gradients(name))
    with pytest.raises(InputError, match="no tensor among its inputs"):
        found.update(Stacking(net), [Batch.of(("an image",))])


class Pair(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return (self.inner(x),)


def test_state_goes_on_where_it_was() -> None:
    net = network()
    first, second = Factors(net, IMAGES.double()), Factors(net, IMAGES.double())
    first.update(net, [Batch.of(IMAGES.double())], decay=0.9)
    second.load_state_dict(first.state_dict())
    second.load_state(first.state())
    for each in (first, second):
        each.update(net, [Batch.of(IMAGES.double())], decay=0.9)
    for a, b in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.equal(a, b)

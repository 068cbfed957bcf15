"""One pass for all collectors: the same whatever the batches, gradients of every sample, and no trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from secateur.errors import ConfigError, InputError, SecateurError
from secateur.statistics import Collector, gather, replayable

IMAGES = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 1, 0, 2])


def network() -> nn.Sequential:
    """With norms, dropout and an activation in place, to be evaluated."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(80, 4)
    ).double()  # fmt: skip


def batches(size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(IMAGES.split(size), LABELS.split(size), strict=True))


class Seen(Collector):
    """Sums of a layer's outputs, over samples."""

    def __init__(self, layer: str = "1") -> None:
        self.layer, self.sums, self.outputs, self.targets = layer, torch.zeros(()), 0, list[int]()
        self.totals = 0

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        return [model.get_submodule(self.layer).register_forward_hook(self.add)]

    def add(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.sums = self.sums + output.detach().sum(0)

    def see(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.outputs += len(output)
        self.targets += target.tolist()

    def total(self) -> None:
        self.totals += 1


class Slopes(Collector):
    """Gradients at a layer's output, sample by sample."""

    gradients = True

    def __init__(self, layer: str = "0") -> None:
        self.layer, self.found = layer, list[torch.Tensor]()

    def watch(self, model: nn.Module) -> Iterable[RemovableHandle]:
        return [model.get_submodule(self.layer).register_forward_hook(self.add)]

    def add(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: self.found.append(gradient.clone()))


class Labels(Collector):
    """Sees the gradients of a batch only once they are there."""

    def __init__(self, slopes: Slopes) -> None:
        self.slopes, self.counts = slopes, list[int]()

    def see(self, output: Any, target: Any) -> None:
        self.counts.append(len(self.slopes.found))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_batch_sizes_make_no_difference(size: int) -> None:
    net, seen, slopes = network(), Seen(), Slopes()
    assert gather(net, batches(size), [seen, slopes], F.cross_entropy) == 7
    whole, all_slopes = Seen(), Slopes()
    gather(net, batches(7), [whole, all_slopes], F.cross_entropy)
    torch.testing.assert_close(seen.sums, whole.sums)
    torch.testing.assert_close(torch.cat(slopes.found), all_slopes.found[0])
    assert (seen.outputs, seen.targets, seen.totals) == (7, LABELS.tolist(), 1)


def test_every_sample_has_its_own_gradient() -> None:
    net, slopes = network(), Slopes()
    labels = Labels(slopes)
    gather(net, batches(4), [slopes, labels], F.cross_entropy)
    assert labels.counts == [1, 2]
    found = torch.cat(slopes.found)
    net.eval()
    for image, label, gradient in zip(IMAGES, LABELS, found, strict=True):
        middle = net[0](image[None]).detach().requires_grad_()
        F.cross_entropy(net[1:](middle.clone()), label[None]).backward()
        torch.testing.assert_close(gradient, middle.grad[0])


def test_without_a_wish_for_gradients_there_are_none() -> None:
    class Graphless(Seen):
        def see(self, output: torch.Tensor, target: torch.Tensor) -> None:
            assert not output.requires_grad

    gather(network(), batches(3), [Graphless()], F.cross_entropy)


@pytest.mark.parametrize("loss", [None, F.cross_entropy], ids=["forward", "backward"])
def test_the_model_is_left_as_it_was(loss: Any) -> None:
    net = network().train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    generator = torch.get_rng_state()
    images = IMAGES.clone()
    gather(net, [(images, LABELS)], [Slopes() if loss else Seen()], loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["5.weight"]
    assert bool((net[5].weight.grad == 1).all())
    assert not any(module._forward_hooks for module in net)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    net = network().train()

    class Breaks(Seen):
        def see(self, output: torch.Tensor, target: torch.Tensor) -> None:
            raise ConfigError("It does not work.")

    with pytest.raises(ConfigError, match="does not work"):
        gather(net, batches(3), [Seen("0"), Breaks()])
    assert all(module.training and not module._forward_hooks for module in net)
    assert all(p.requires_grad for p in net.parameters())


class InPlace(nn.Module):
    """Changes what it is given before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.sub_(1.0))


@pytest.mark.parametrize("loss", [None, F.cross_entropy], ids=["forward", "backward"])
def test_a_model_that_changes_its_input_in_place(loss: Any) -> None:
    data = [(torch.ones(2, 3, dtype=torch.float64), torch.tensor([0, 1]))]
    slopes = Slopes("fc") if loss else Seen("fc")
    for _ in range(2):  # the data are there for others too
        gather(InPlace(), data, [slopes], loss)
    assert bool((data[0][0] == 1).all())


class Two(nn.Module):
    """A picture and a flag of whole numbers, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.words = nn.Linear(3, 2).double(), nn.Embedding(4, 3).double()

    def forward(self, x: torch.Tensor, word: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"answer": self.fc(x + self.words(word))}


def test_inputs_and_outputs_of_any_form() -> None:
    labels = torch.tensor([0, 1, 1])
    data = [({"x": IMAGES[:3, 0, 0, :3], "word": torch.tensor([0, 1, 2])}, {"class": labels})]
    slopes, net = Slopes("fc"), Two()
    assert gather(net, data, [slopes], lambda output, target: F.cross_entropy(output["answer"], target["class"])) == 3
    probability = net(**data[0][0])["answer"].softmax(1)
    torch.testing.assert_close(slopes.found[0], (probability - F.one_hot(labels, 2)).detach())
    assert gather(net, [((data[0][0]["x"], data[0][0]["word"]), labels)], []) == 3


def _nan(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target) * float("nan")


WRONG: dict[str, tuple[type[SecateurError], Callable[[], Any]]] = {
    "The data are empty: give at least one batch": (ConfigError, lambda: gather(network(), [], [Seen()])),
    "needed and no loss is given: pass loss": (ConfigError, lambda: gather(network(), batches(3), [Slopes()])),
    "The loss is nan": (ConfigError, lambda: gather(network(), batches(3), [Slopes()], _nan)),
    "does not give one number": (ConfigError, lambda: gather(network(), batches(3), [Slopes()], lambda o, t: o)),
    "depends on the model's output": (
        ConfigError,
        lambda: gather(network(), batches(3), [Slopes()], lambda o, t: torch.ones(())),
    ),
    "return a scalar tensor": (ConfigError, lambda: gather(network(), batches(3), [Slopes()], lambda o, t: 0.5)),
    "A batch is Tensor: every batch must be a pair": (InputError, lambda: gather(network(), [IMAGES], [Seen()])),
    "A batch is tuple": (InputError, lambda: gather(network(), [(IMAGES, LABELS, 1)], [Seen()])),
    "A batch has no tensor among its inputs": (InputError, lambda: gather(network(), [("a", 1)], [Seen()])),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_cannot_be_gathered(sentence: str) -> None:
    kind, action = WRONG[sentence]
    with pytest.raises(kind) as caught:
        action()
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert said.endswith(".")


def test_batches_that_can_be_gone_through_again() -> None:
    def once() -> Iterator[Any]:
        yield from batches(3)

    kept = replayable(once())
    assert [len(list(kept)) for _ in range(2)] == [3, 3]
    given = batches(3)
    assert replayable(given) is given

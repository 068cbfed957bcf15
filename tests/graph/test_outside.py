"""What a program does around a network while that is traced: hooks on all modules, tensors left in its variables."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import secateur

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TEACHER = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 7))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


class Busy:
    """Whether a hook is at work, which its own network's modules call again."""

    now = False


def once(work: Callable[[Any], Any]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, *_: Any) -> None:
        if not Busy.now:
            Busy.now = True
            try:
                work(inputs)
            finally:
                Busy.now = False

    return hook


def own_images(_: Any) -> None:
    TEACHER(torch.ones(2, 3, 8, 8))


def same_images(inputs: Any) -> None:
    if inputs[0].shape[1] == 3:
        TEACHER(inputs[0])


def statistics(inputs: Any) -> None:
    (inputs[0] * inputs[0]).mean()
    torch.linalg.slogdet(torch.eye(4) * 2)  # of which no rule is known


HOOKS: dict[str, Callable[[], Any]] = {
    "after every module": lambda: torch_module.register_module_forward_hook(once(own_images)),
    "before every module": lambda: torch_module.register_module_forward_pre_hook(once(own_images)),
    "on the same images": lambda: torch_module.register_module_forward_hook(once(same_images)),
    "before, on the same images": lambda: torch_module.register_module_forward_pre_hook(once(same_images)),
    "whatever happens": lambda: torch_module.register_module_forward_hook(once(own_images), always_call=True),
    "statistics": lambda: torch_module.register_module_forward_hook(once(statistics)),
}


def described(graph: secateur.Graph) -> Any:
    taps = [[(seen.module, seen.dim) for seen in graph.taps(group)] for group in graph.groups]
    groups = [(group.name, group.width) for group in graph.groups]
    return graph.cost().as_dict(), groups, taps, graph.unsupported, [frozen.name for frozen in graph.frozen]


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_the_program_cost_nothing(kind: str) -> None:
    model = network()
    wanted = described(secateur.trace(model, X))
    handle = HOOKS[kind]()
    try:
        before = dict(torch_module._global_forward_hooks), dict(torch_module._global_forward_pre_hooks)
        found = described(secateur.trace(model, X))
        result = secateur.prune(model, X, budget="flops=0.6")
        after = dict(torch_module._global_forward_hooks), dict(torch_module._global_forward_pre_hooks)
    finally:
        handle.remove()
    assert found == wanted
    assert result.after == secateur.prune(model, X, budget="flops=0.6").after
    assert after == before


def test_a_hook_of_the_program_may_change_what_modules_give() -> None:
    model = network()
    handle = torch_module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if isinstance(module, nn.ReLU) else None
    )
    try:
        result = secateur.prune(model, X, budget="flops=0.6")
        assert result.verification is not None
        assert result.verification.exact
    finally:
        handle.remove()


def test_a_hook_that_fails_leaves_the_others_as_they_were() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("not today")

    handle = torch_module.register_module_forward_hook(fail)
    before = dict(torch_module._global_forward_hooks)
    try:
        with pytest.raises(secateur.SecateurError, match="not today"):
            secateur.trace(network(), X)
        assert dict(torch_module._global_forward_hooks) == before
    finally:
        handle.remove()
    secateur.trace(network(), X)


# ------------------------------------------------------------------------------------------------ left in variables

FEATURES: list[torch.Tensor] = []
BY_NAME: dict[str, Any] = {}
LATEST: Any = None
RECENT: deque[torch.Tensor] = deque(maxlen=2)
ROOM = SimpleNamespace(features=None)


class Store:
    features: ClassVar[list[torch.Tensor]] = []


class Net(nn.Module):
    """The first convolution's channels are left somewhere, the second's are not."""

    kept: ClassVar[list[torch.Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1), nn.Linear(16, 4)

    def leave(self, y: torch.Tensor) -> None:
        """Leave it nowhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        self.leave(y)
        found: torch.Tensor = self.fc(self.b(y).relu().mean((2, 3)))
        return found


class InList(Net):
    def leave(self, y: torch.Tensor) -> None:
        FEATURES.append(y)


class InDict(Net):
    def leave(self, y: torch.Tensor) -> None:
        BY_NAME["a"] = {"maps": [y]}


class InDeque(Net):
    def leave(self, y: torch.Tensor) -> None:
        RECENT.append(y)


class InVariable(Net):
    def leave(self, y: torch.Tensor) -> None:
        global LATEST
        LATEST = y


class InObject(Net):
    def leave(self, y: torch.Tensor) -> None:
        ROOM.features = y


class InOtherClass(Net):
    def leave(self, y: torch.Tensor) -> None:
        Store.features.append(y)


class InClass(Net):
    def leave(self, y: torch.Tensor) -> None:
        self.kept.append(y)


class InClassByName(Net):
    last: Any = None

    def leave(self, y: torch.Tensor) -> None:
        type(self).last = y


class InTraining(Net):
    def leave(self, y: torch.Tensor) -> None:
        if self.training:
            FEATURES.append(y)


@pytest.fixture(autouse=True)
def empty() -> None:
    global LATEST
    LATEST = ROOM.features = InClassByName.last = None
    for held in (FEATURES, BY_NAME, RECENT, Store.features, Net.kept):
        held.clear()


@pytest.mark.parametrize(
    "kind", [InList, InDict, InDeque, InVariable, InObject, InOtherClass, InClass, InClassByName, InTraining]
)
@pytest.mark.parametrize("often", [1, 2])
def test_what_is_left_outside_stays_whole(kind: type[nn.Module], often: int) -> None:
    for _ in range(often):  # what an earlier trace left is none of this one's
        graph = secateur.trace(kind(), X)
    assert [group.width for group in graph.groups] == [16]
    assert any("is kept outside the network" in frozen.reason for frozen in graph.frozen)


def test_what_is_left_nowhere_is_pruned() -> None:
    assert [group.width for group in secateur.trace(Net(), X).groups] == [12, 16]

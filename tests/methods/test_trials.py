"""Trials on images shown: what is held out, what is remembered, what an interrupted search does not ask again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent))

from _searching import ROW, Tiny

import secateur
from secateur.errors import ConfigError
from secateur.methods.trials import Shown
from secateur.repair import fresh, renew
from secateur.testing import NETWORKS, checks

NETWORK = NETWORKS[0]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))


def shown(**options: Any) -> Shown:
    return Shown(NETWORK.batches(4), cross_entropy, network(), 3, **options)


def made(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return network()


def test_one_image_in_eight_is_held_out_and_the_others_are_shown() -> None:
    trials = shown()
    assert [len(y) for _, y in trials.images(10)] == [7, 7]
    assert [len(y) for _, y in trials.images(1)] == [7, 7]  # two batches at least
    assert sum(len(y) for _, y in trials.images(1000)) == 28
    held = torch.cat([x for x, _ in trials._held._batches])
    assert torch.equal(held, torch.stack([x[7] for x, _ in NETWORK.batches(4)]))


def test_answers_are_remembered_by_number_and_question() -> None:
    kept: list[Any] = []
    first = shown(kept=kept.append)
    found = [first.accuracy(lambda k=k: made(k), {"k": k}, epochs=k) for k in range(3)]
    assert [answer["trial"] for answer in kept] == [0, 1, 2]
    assert [answer["accuracy"] for answer in kept] == found

    def never() -> nn.Module:
        raise AssertionError("it was asked again")

    second = shown(known=kept)
    assert [second.accuracy(never, {"k": k}, epochs=k) for k in range(3)] == found
    assert second.best == max(found)
    other = shown(known=kept, kept=kept.append)  # another question: from there on nothing is known
    assert other.accuracy(never, {"k": 0}) == found[0]
    other.accuracy(lambda: made(7), {"k": 9}, epochs=1)
    other.accuracy(lambda: made(2), {"k": 2}, epochs=2)
    assert [(answer["trial"], answer["about"]["k"]) for answer in kept[3:]] == [(1, 9), (2, 2)]


def test_weights_are_those_measured_or_trained_again_to_the_bit() -> None:
    kept: list[Any] = []
    first = shown(kept=kept.append)
    for k in range(3):
        first.accuracy(lambda k=k: made(k), {"k": k}, epochs=2)
    wanted = {k: first.weights(k) for k in (2, 0, 1)}
    torch.manual_seed(99)
    second = shown(known=kept)
    for k in range(3):
        second.accuracy(lambda k=k: made(k), {"k": k}, epochs=2)
    for k in range(3):
        assert all(torch.equal(tensor, wanted[k][name]) for name, tensor in second.weights(k).items())
    assert not torch.equal(wanted[0]["1.weight"], made(0)[1].weight)  # they were trained


def test_training_draws_from_generators_of_its_own() -> None:
    trials, nets = shown(), [nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 5)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, noise in zip(nets, (1, 2), strict=True):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        trials._train(net, 1, 5)
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(nets[0][2].weight, nets[1][2].weight)


def test_too_few_images_and_missing_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match="measured on one image in 8, and fewer were shown"):
        Shown([(torch.zeros(3, 3, 8, 8), torch.zeros(3, dtype=torch.long))], cross_entropy, network(), 0)
    with pytest.raises(ConfigError, match="a batch has no target"):
        Shown([(torch.zeros(16, 3, 8, 8), None)], cross_entropy, network(), 0)


def test_the_suite_takes_a_method_that_searches() -> None:
    wanted = {"search_goes_on", "data_are_asked_for", "seed_decides_everything", "result_is_narrower"}
    found = [check for check in checks(ROW, networks=NETWORKS[:1]) if check.name in wanted]
    assert len(found) == len(wanted)
    for check in found:
        check()


def test_prune_searches_on_the_data_given() -> None:
    result = secateur.prune(
        NETWORK.make(), NETWORK.inputs(), method=Tiny, budget="flops=0.5", data=list(NETWORK.batches(3))
    )
    assert result.reached("flops") <= 0.5


class Forgets(Tiny):
    """Goes by how often it was asked in this process."""

    calls = 0

    def search(self, trials: Any) -> None:
        Forgets.calls += 1
        trials.accuracy(self.plain, {"call": Forgets.calls})
        super().search(trials)


class AsksTwice(Tiny):
    """Asks for one network at the beginning and at the end."""

    def search(self, trials: Any) -> None:
        super().search(trials)
        trials.accuracy(lambda: self.cut(self.best[1]), {"draw": 0}, epochs=1)


class NeverAsks(Tiny):
    """Has its answer ready."""

    def search(self, trials: Any) -> None:
        self.best = (0.0, self._allocate({g.name: torch.arange(g.width) for g in self.graph.groups}))


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Forgets, "a search cut off after 3 trials tries"),
        (AsksTwice, r'search\(\) asks \[\{"draw": 0\}, 1\] more than once'),
        (NeverAsks, r"search\(\) tries no network"),
    ],
)
def test_the_suite_names_a_search_that_cannot_go_on(method: type[Tiny], sentence: str) -> None:
    found = checks(replace(ROW, factory=method), networks=NETWORKS[:1])
    with pytest.raises(AssertionError, match=sentence):
        next(check for check in found if check.name == "search_goes_on")()


def test_new_weights_go_where_the_kept_ones_are() -> None:
    wide, small = NETWORK.make(), Tiny(NETWORK.make(), NETWORK.inputs(), budget="flops=0.5")
    plan = small._allocate({g.name: torch.arange(g.width) for g in small.graph.groups})
    narrow = small.graph.cut(plan).model
    assert fresh(narrow, 5) == []
    renew(wide, small.graph, plan, narrow.state_dict())
    again = secateur.apply(wide, NETWORK.inputs(), plan).model
    assert all(
        torch.equal(a, b) for a, b in zip(narrow.state_dict().values(), again.state_dict().values(), strict=True)
    )
    twin = small.graph.cut(plan).model
    fresh(twin, 5)
    assert torch.equal(twin.stem[0].weight, narrow.stem[0].weight)

"""What holds of methods that try networks: an interrupted search goes on, and nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.nn import functional as F

from secateur.methods.contract import Method
from secateur.methods.trials import Answer, Shown
from secateur.testing._promises import require
from secateur.testing._snapshots import first_difference
from secateur.testing._subject import STEPS, Subject, require_same_plan, train


class _CutOff(Exception):
    """The process is gone."""


def search_goes_on(subject: Subject) -> None:
    """A search cut off after some trials and begun again gives the same plan and asks nothing twice"""
    if not subject.make().searches():
        return
    asked: list[Answer] = []
    whole = _searched(subject, (), asked.append)
    require(asked, "search() tries no network")
    words = [json.dumps([answer["about"], answer["epochs"]]) for answer in asked]
    require(len(set(words)) == len(words), f"search() asks {max(words, key=words.count)[:200]} more than once")
    before: list[Answer] = []
    middle = (len(asked) + 1) // 2

    def dying(answer: Answer) -> None:
        before.append(answer)
        if len(before) == middle:
            raise _CutOff

    with suppress(_CutOff):
        _searched(subject, (), dying)
    after: list[Answer] = []
    resumed = _searched(subject, before, after.append)
    numbers = [answer["trial"] for answer in (*before, *after)]
    require(numbers == [*range(len(asked))], f"a search cut off after {middle} trials tries {len(after)} more, and not "
            f"the {len(asked) - middle} that were left")  # fmt: skip
    require_same_plan("a search that was cut off ends in another plan", whole.plan(), resumed.plan())
    difference = first_difference(whole.finish(), resumed.finish())
    require(difference is None, f"a search that was cut off ends in another network: {difference}")


def _searched(subject: Subject, known: Any, kept: Callable[[Answer], None]) -> Method:
    method = subject.make()
    if subject.trains:
        train(method, subject.network.batches(STEPS))
    batches = subject.network.batches(2, seed=5)
    method.search(Shown(batches, F.cross_entropy, method.model, method.seed, known=known, kept=kept))
    return method

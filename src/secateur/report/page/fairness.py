"""What a comparison keeps the same for which of its methods, in sentences: how far its figures may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.page.words import number_of, several


def fairness(document: Mapping[str, Any]) -> list[str]:
    """One sentence for all methods, one for every way of sharing the epochs, and what was chosen by what."""
    recipe = document["recipe"]
    train, finetune = recipe["train"], recipe["finetune"]
    first, last = (train["epochs"] if train else 0), finetune["epochs"]
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for method in document["methods"]:
        groups.setdefault((method["acts"], method["begins"], method["finetunes"]), []).append(method["label"])
    found = [_all(first, last)]
    for (acts, begins, finetunes), labels in groups.items():
        found.append(f"{several(labels, 30)}: {_group(acts, begins, finetunes, first, last)}")
    return [*found, _chosen(train, finetune)]


def _all(first: int, last: int) -> str:
    total = number_of(first + last, "epoch") if first else f"the given weights and {number_of(last, 'epoch')}"
    return (
        "All methods: same data and split, same network, same budget, same batch size, and the same number of epochs "
        f"in total ({total}). What an epoch costs differs; the seconds are listed."
    )


def _group(acts: str, begins: str, finetunes: bool, first: int, last: int) -> str:
    if acts == "after training":
        return (
            "same base weights for each seed, and the same fine-tuning epochs and learning rates "
            f"({number_of(last, 'epoch')}), so that a difference comes from the pruning."
        )
    if acts == "while training" and begins == "weights":
        acting = -(-2 * last // 3)
        after = f"and the other {last - acting} follow the cut" if last > acting else "and none follow the cut"
        return (
            "same base weights for each seed and the same total epochs; of the fine-tuning epochs the method is at "
            f"work in the first {acting}, with a learning rate schedule of their own, {after}."
        )
    if acts == "while training" and not finetunes:
        return (
            "no base weights, and no fine-tuning, as in their papers: the method is at work while a new network, with "
            f"the initial weights of the seed's base network, is trained for {number_of(first + last, 'epoch')}, with "
            "the schedule of the base network's training over all of them. Same total epochs."
        )
    if acts == "while training":
        return (
            "no base weights: the method is at work while a new network, with the initial weights of the seed's base "
            f"network, is trained for {number_of(first, 'epoch')}; then the same fine-tuning epochs and learning "
            "rates. Same total epochs."
        )
    return (
        f"no base weights: the narrow network is trained from new weights for {number_of(first + last, 'epoch')}, with "
        "the schedule of the base network's training over all of them. Same total epochs."
    )


def _chosen(train: Mapping[str, Any] | None, finetune: Mapping[str, Any]) -> str:
    kinds: Sequence[str] = list(dict.fromkeys([train["select"] if train else finetune["select"], finetune["select"]]))
    how = {"last": "those of the last step", "best": "those of the epoch that is best on the validation images"}
    return (
        f"Weights a stage gives on: {' (train) and '.join(how[kind] for kind in kinds)}"
        f"{' (fine-tuning)' if len(kinds) > 1 else ''}. Accuracies are of the test images, measured once at the end of "
        "each stage; nothing is chosen by them."
    )

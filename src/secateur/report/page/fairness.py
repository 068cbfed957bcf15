"""What a comparison keeps the same for which of its methods, in sentences: how far its figures may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from secateur.report.page.words import number_of, several


def fairness(document: Mapping[str, Any]) -> list[str]:
    """One sentence for all methods, one for every way of sharing the epochs, and what was chosen by what."""
    recipe = document["recipe"]
    train, finetune = recipe["train"], recipe["finetune"]
    first, last = (train["epochs"] if train else 0), finetune["epochs"]
    epochs = {row["label"]: (row["epochs"]["train"] or 0, row["epochs"]["finetune"] or 0) for row in document["rows"]}
    groups: dict[_Kind, list[str]] = {}
    for method in (method for method in document["methods"] if method["label"] in epochs.keys() - {"dense"}):
        own, (acting, after) = {key: method.get(key) for key in _Kind._fields}, epochs[method["label"]]
        kind = _Kind(**own | {"train": acting, "after": after})
        groups.setdefault(kind, []).append(method["label"])
    found = [_all(first, last)]
    for kind, labels in groups.items():
        found.append(f"{several(labels, 30)}: {_group(kind, train)}")
    if "dense" in epochs:
        found.append(
            f"dense: nothing is cut; same base weights, and {number_of(last, 'epoch')} of fine-tuning like them."
        )
    return [*found, _chosen(train, finetune)]


class _Kind(NamedTuple):
    """How a method shares its epochs. train, after: epochs before and after the cut. The others are its row's."""

    acts: str
    begins: str
    finetunes: bool
    train: int
    after: int
    acting: float | None
    acting_rate: float | None


def _all(first: int, last: int) -> str:
    total = number_of(first + last, "epoch") if first else f"the given weights and {number_of(last, 'epoch')}"
    return (
        "All methods: same data and split, same network, same budget, same batch size, and the same number of epochs "
        f"in total ({total}). What an epoch costs differs; the seconds are listed."
    )


def _group(kind: _Kind, train: Mapping[str, Any] | None) -> str:
    acting, after = number_of(kind.train, "epoch"), number_of(kind.after, "epoch")
    if kind.acts == "after training":
        return (
            f"same base weights for each seed, and the same fine-tuning epochs and learning rates ({after}), so that a "
            "difference comes from the pruning."
        )
    rate = f"a constant learning rate of {kind.acting_rate * train['lr']:g}" if kind.acting_rate and train else ""
    if kind.acts == "while training" and kind.begins == "weights":
        cut = f"and the other {kind.after} follow the cut" if kind.after else "and none follow the cut"
        return (
            "same base weights for each seed and the same total epochs; of the fine-tuning epochs the method is at "
            f"work in the first {kind.train}, with {rate or 'a learning rate schedule of their own'}, {cut}."
        )
    new = "while a new network, with the initial weights of the seed's base network, is trained for"
    if kind.acts == "while training" and not kind.after:
        return (
            f"no base weights, and no fine-tuning, as in their papers: the method is at work {new} {acting}, with "
            "the schedule of the base network's training over all of them. Same total epochs."
        )
    if kind.acts == "while training":
        begun = f"no base weights: the method is at work {new} {acting}"
        if kind.acting is None:
            return f"{begun}; then the same fine-tuning epochs and learning rates. Same total epochs."
        return (
            f"{begun}, with {rate or 'the schedule of the base network'}; then the narrow network for {after}, with "
            "the schedule of the base network's training. Same total epochs."
        )
    return (
        f"no base weights: the narrow network is trained from new weights for {acting}, with the schedule of the base "
        "network's training over all of them. Same total epochs."
    )


def _chosen(train: Mapping[str, Any] | None, finetune: Mapping[str, Any]) -> str:
    kinds: Sequence[str] = list(dict.fromkeys([train["select"] if train else finetune["select"], finetune["select"]]))
    how = {"last": "those of the last step", "best": "those of the epoch that is best on the validation images"}
    return (
        f"Weights that a stage passes to the next: {' (train) and '.join(how[kind] for kind in kinds)}"
        f"{' (fine-tuning)' if len(kinds) > 1 else ''}. Accuracies are of the test images, measured once at the end of "
        "each stage; nothing is chosen by them."
    )

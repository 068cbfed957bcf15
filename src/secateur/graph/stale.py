"""Sizes that modules keep as attributes and that no forward pass reads: they would be wrong after a cut.

`num_features` of a backbone is of no use until somebody builds a new classifier from it. Where it is plain which width
such a number meant, it follows the cut; else it is listed.
"""

from __future__ import annotations

from bisect import insort
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from torch import nn

from secateur.graph.code import names_read
from secateur.graph.modules import as_call, map_tensors, modules_of, output_tensors, plain_kernels, to_meta
from secateur.graph.shape_run import Disagreement, check_sizes, forgetting
from secateur.graph.sizes import Repair, Sizes, numbers_of

_OF_CLASSIFIER = (
    "num_features",
    "head_hidden_size",
    "embed_dim",
)  # what goes into `get_classifier()`, by timm's convention


@dataclass(frozen=True)
class Stale:
    """Attribute `attribute` of `module` still holds `size`, the width of something that was cut."""

    module: str
    attribute: str
    size: int

    def __str__(self) -> str:
        return f"{self.module or 'the model'}.{self.attribute} = {self.size} may speak of a width that was cut"


def stale_sizes(
    model: nn.Module, inputs: object, sizes: Sizes, repaired: set[tuple[str, str]]
) -> tuple[list[Repair], list[Stale]]:
    """What of a cut network's attributes can safely follow, and what else still equals an old width.

    A number follows if it is one of `outdated`, and a forward pass does without it.

    model: narrowed, in evaluation mode. inputs: for it, as for `trace`. repaired: (module, attribute) that are right.
    """
    repairs, stale = outdated(model, inputs, sizes, repaired)
    missed = _missed(model, inputs, sizes, repairs)
    stale += [Stale(r.module, r.attribute, r.old) for r in missed]
    return [r for r in repairs if r not in missed], list(dict.fromkeys(stale))


def outdated(
    model: nn.Module, inputs: object, sizes: Sizes, repaired: set[tuple[str, str]]
) -> tuple[list[Repair], list[Stale]]:
    """Attributes that hold an old width: those that can follow unless code reads them unseen, and the others.

    A number can follow if every width of that size in its module became one and the same (or timm's convention tells
    which is meant), and no forward of its module or of one around it names it. Arguments as of `stale_sizes`.
    """
    widths = _widths(sizes)
    modules = dict(modules_of(model))
    read: dict[str, frozenset[str]] = {}  # by module, names in its code
    repairs, stale = [], []
    for name, module in modules.items():
        changed = {old: new for old, new in widths.get(name, {}).items() if new != {old}}
        if not changed or type(module).__module__.startswith("torch.nn."):
            continue
        told: dict[str, set[int]] | None = None
        for attribute, path, number in numbers_of(module):
            if number not in changed or (name, attribute) in repaired:
                continue
            new = changed[number]
            if attribute in _OF_CLASSIFIER and hasattr(module, "get_classifier"):
                told = _told_by_timm(module, inputs if not name else None, changed, sizes) if told is None else told
                new = told.get(attribute, new)
            if path == () and len(new) == 1 and not _is_read(attribute, name, modules, read):
                repairs.append(Repair(name, attribute, path, number, *new))
            else:
                stale.append(Stale(name, attribute, number))
    return [r for r in repairs if r.old != r.new], list(dict.fromkeys(stale))


def _missed(model: nn.Module, inputs: object, sizes: Sizes, repairs: list[Repair]) -> list[Repair]:
    """Those of attributes that code reads in a way that is not written down: without them a forward pass fails."""
    if not repairs or not wrong_without(model, inputs, sizes, repairs):
        return []
    return [repair for repair in repairs if wrong_without(model, inputs, sizes, [repair])]


def wrong_without(model: nn.Module, inputs: object, sizes: Sizes, repairs: list[Repair]) -> list[Disagreement]:
    """What is wrong (`check_sizes`) with the narrowed model while it has none of the attributes of `repairs`."""
    modules = dict(modules_of(model))
    held = {repair.module: dict(vars(modules[repair.module])) for repair in repairs}
    try:
        for repair in repairs:
            del vars(modules[repair.module])[repair.attribute]
        return check_sizes(model, inputs, sizes)
    finally:
        for name, before in held.items():
            vars(modules[name]).clear()
            vars(modules[name]).update(before)


def _is_read(attribute: str, name: str, modules: dict[str, nn.Module], read: dict[str, frozenset[str]]) -> bool:
    while True:
        if name not in read:
            read[name] = names_read(modules[name])
        if attribute in read[name] or not name:
            return attribute in read[name]
        name = name.rpartition(".")[0]


def _widths(sizes: Sizes) -> dict[str, dict[int, set[int]]]:
    """For every module the widths in it (and below) before the cut, and what became of each."""
    own: dict[str, dict[int, set[int]]] = {}
    seen: dict[str, set[int]] = {}  # by module, the axes that were looked at: those of its calls are mostly the same
    for call in sizes.recording.calls:
        done = seen.setdefault(call.module, set())
        for axis in chain(call.weight or (), *call.labels):
            if axis is not None and id(axis) not in done and len(axis) > 1:
                done.add(id(axis))
                own.setdefault(call.module, {}).setdefault(len(axis), set()).add(sizes.count(axis, 0))
    waiting = sorted(own, key=_depth)
    while waiting[-1:] > [""]:  # what is in a module is in the one around it: the deepest first
        name = waiting.pop()
        around = name.rpartition(".")[0]
        if around not in own:
            own[around] = {}
            insort(waiting, around, key=_depth)
        for old, new in own[name].items():
            own[around].setdefault(old, set()).update(new)
    return own


def _depth(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _told_by_timm(module: nn.Module, inputs: object, changed: dict[int, set[int]], sizes: Sizes) -> dict[str, set[int]]:
    """What became of the two widths by which timm's networks build a new classifier, as far as it can be told.

    `head_hidden_size` is what the classifier reads, `num_features` the channels of what `forward_features` returns; the
    same, if there is nothing in between.
    """
    found: dict[str, set[int]] = {}
    layers = module.get_classifier()  # type: ignore[operator]
    first = layers[0] if isinstance(layers, tuple) else layers
    weights = [p for p in first.parameters() if p.dim() > 1] if isinstance(first, nn.Module) else []
    for attribute in _OF_CLASSIFIER:
        held = getattr(module, attribute, 0)
        if weights and isinstance(held, int) and weights[0].shape[1] in changed.get(held, ()):
            found[attribute] = {int(weights[0].shape[1])}
    features = getattr(module, "num_features", 0)
    if inputs is not None and isinstance(features, int) and features != getattr(module, "head_hidden_size", features):
        candidates = changed.get(features, set())
        found["num_features"] = (_feature_sizes(module, inputs, sizes) & candidates) or candidates
    return found


def _feature_sizes(module: nn.Module, inputs: object, sizes: Sizes) -> set[int]:
    """All sizes of what `forward_features` returns."""
    meta = sizes.recording.on_meta
    args, kwargs = map_tensors(as_call(inputs), to_meta if meta else lambda t: t.detach().clone())
    # a convention, not a promise: where it fails, nothing is told
    with forgetting(modules_of(module)), plain_kernels(), suppress(Exception):
        return {n for t in output_tensors(module.forward_features(*args, **kwargs)) for n in t.shape}  # type: ignore[operator]
    return set()

"""Plans: which channels of every group stay, how that was found, and the file that keeps it.

The file is JSON without any freedom: a key too many, a number of the wrong kind or an index out of place is refused,
because a plan that is almost right cuts the wrong channels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur._files import parse_json, read_json, said, shown, write_text
from secateur._protocols import BoolArray, GraphLike
from secateur.errors import PlanError
from secateur.forms import LayerForm, check_form

FORMAT = "secateur.plan"
#: Plans with forms are of another version, which a release that would cut without them refuses.
VERSION, WITH_FORMS = 1, 2
_KEYS = {"format", "version", "architecture", "groups", "provenance"}
#: A damaged file may claim any width; so many channels in all are beyond any network and still harmless to allocate.
_MOST_CHANNELS = 1 << 24


@dataclass(eq=False)
class Plan:
    """The masks of all groups (bool, True = keep), how they were found, and the architecture they were made for.

    forms: layers of the cut network that are computed another way (`secateur.forms`), by name.
    """

    masks: dict[str, BoolArray]
    provenance: dict[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    forms: dict[str, LayerForm] = field(default_factory=dict)

    @classmethod
    def full(cls, graph: GraphLike) -> Plan:
        """Return the plan that keeps every channel of `graph`."""
        masks = {group.name: np.ones(group.width, dtype=np.bool_) for group in graph.groups}
        return cls(masks, {"allocator": "none"}, fingerprint(graph))

    @property
    def widths(self) -> dict[str, int]:
        """Channels that stay, by group."""
        return {name: int(np.count_nonzero(mask)) for name, mask in self.masks.items()}

    def __eq__(self, other: object) -> bool:
        """Two plans are equal when they keep the same channels and have the same forms, however they were found."""
        if not isinstance(other, Plan):
            return NotImplemented
        if self.forms != other.forms or self.masks.keys() != other.masks.keys():
            return False
        return all(np.array_equal(mask, other.masks[name]) for name, mask in self.masks.items())

    __hash__ = None  # type: ignore[assignment]  # mutable

    def check(self, graph: GraphLike) -> None:
        """Raise PlanError unless this plan was made for the architecture of `graph` and covers each of its groups."""
        widths = {group.name: group.width for group in graph.groups}
        for name, mask in self.masks.items():
            _check_mask(name, mask)
            if name not in widths:
                raise PlanError(
                    f"The plan prunes group {name!r}, which this network does not have: make a new plan for it."
                )
            if len(mask) != widths[name]:
                raise PlanError(
                    f"The plan expects {len(mask)} channels in group {name!r}, this network has {widths[name]}: "
                    "make a new plan for it."
                )
        missing = [name for name in widths if name not in self.masks]
        if missing:
            raise PlanError(
                f"The plan says nothing about group {missing[0]!r} of this network: make a new plan for it."
            )
        if self.architecture is not None and self.architecture != fingerprint(graph):
            raise PlanError(
                "The plan was made for another architecture (names or shapes of parameters or buffers differ): "
                "apply it to a fresh copy of the original, unpruned network."
            )

    def then(self, later: Plan) -> Plan:
        """Return the plan that does at once what this one does and then `later`, of the network that this one leaves.

        Raises:
            PlanError: `later` is of another network, or cuts what could not be cut in the first one, or the first
            leaves layers that are computed another way.
        """
        if self.forms:
            layer = next(iter(self.forms))
            raise PlanError(f"The first plan has layers that are computed another way ({layer}): apply them in turn.")
        masks = {name: mask.copy() for name, mask in self.masks.items()}
        for name, mask in later.masks.items():
            if name not in masks and not mask.all():
                raise PlanError(
                    f"The later plan cuts group {name!r}, which the first does not know: apply them in turn."
                )
            if name in masks and len(mask) != np.count_nonzero(masks[name]):
                raise PlanError(
                    f"The later plan expects {len(mask)} channels in group {name!r}, and the first leaves "
                    f"{np.count_nonzero(masks[name])}: give plans of one network after the other."
                )
            if name in masks:
                masks[name][np.flatnonzero(masks[name])] = mask
        return Plan(masks, _joined(self.provenance, later.provenance, later), self.architecture, dict(later.forms))

    def since(self, earlier: Plan) -> Plan:
        """Return what this plan still does to the network that `earlier` leaves: `earlier.then(...)` is this plan.

        Raises:
            PlanError: this plan keeps what `earlier` has taken away, or they are of different networks.
        """
        if self.masks.keys() != earlier.masks.keys() or earlier.forms:
            raise PlanError("The plans are of different networks: give two of one network.")
        masks = {}
        for name, mask in self.masks.items():
            before = earlier.masks[name]
            if len(mask) != len(before) or bool((mask & ~before).any()):
                raise PlanError(f"The plan keeps channels of group {name!r} that are gone: give a plan made after it.")
            masks[name] = mask[before]
        last = self.provenance.get("last")
        settled = last.get("settled", []) if isinstance(last, dict) else []
        return Plan(masks, {**self.provenance, "settled": settled}, forms=dict(self.forms))

    def ends_with(self, last: Plan) -> bool:
        """Whether `last` is the last of the plans that were joined to this one."""
        noted = self.provenance.get("last")
        return isinstance(noted, dict) and noted.get("plan") == kept_fingerprint(last)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write strict JSON to `path`; a reader sees the old file or the new one, never half of it."""
        write_text(path, self.text() + "\n", what="The plan", error=PlanError)

    def text(self) -> str:
        """The plan as strict JSON, as it stands in its file."""
        for name, mask in self.masks.items():
            _check_mask(name, mask)
        content = {
            "format": FORMAT,
            "version": WITH_FORMS if self.forms else VERSION,
            "architecture": self.architecture,
            "groups": {
                name: {"width": len(mask), "kept": np.flatnonzero(mask).tolist()} for name, mask in self.masks.items()
            },
            "provenance": self.provenance,
            **({"forms": _form_rows(self)} if self.forms else {}),
        }
        try:
            return json.dumps(content, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(
                f"The plan cannot be saved because its provenance or a form is not JSON: {error}."
            ) from error

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read what `text` gave; PlanError for anything else."""
        try:
            return _from_json(parse_json(text))
        except (ValueError, RecursionError) as error:
            raise PlanError(f"The plan is not valid JSON: {said(error)}.") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote; PlanError for anything else."""
        return _from_json(read_json(path, what="The plan", error=PlanError))


def check_plan(plan: Any) -> None:
    """PlanError for what is none, as the name of a file."""
    if not isinstance(plan, Plan):
        raise PlanError(f"{plan!r:.60} is no plan: give one, such as secateur.Plan.load('plan.json').")


def fingerprint(graph: GraphLike) -> str:
    """Return the architecture's name: a hash of all parameter and buffer names with their shapes, values left out."""
    return shapes_fingerprint(graph.tensors())


def shapes_fingerprint(tensors: Mapping[str, Any]) -> str:
    """Return the `fingerprint` of these tensors by name."""
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    return "sha256:" + hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


def kept_fingerprint(plan: Plan) -> str:
    """Return a hash of which channels of which groups stay, and of the forms where there are any."""
    kept = {name: np.flatnonzero(mask).tolist() for name, mask in sorted(plan.masks.items())}
    said: object = [kept, dict(sorted(_form_rows(plan).items()))] if plan.forms else kept
    return "sha256:" + hashlib.sha256(json.dumps(said, sort_keys=bool(plan.forms)).encode()).hexdigest()


def _form_rows(plan: Plan) -> dict[str, Any]:
    return {name: {"kind": form.kind, "data": dict(form.data)} for name, form in plan.forms.items()}


def _joined(first: Mapping[str, Any], second: Mapping[str, Any], last: Plan) -> dict[str, Any]:
    """How a plan of two was found: as the second, with the story of those before."""
    story = {key: value for key, value in first.items() if key not in ("earlier", "last")}
    settled = [*first.get("settled", ()), *(s for s in second.get("settled", ()) if s not in first.get("settled", ()))]
    return {
        **second,
        **({"settled": settled} if settled else {}),
        "earlier": [*first.get("earlier", ()), story],
        "last": {"plan": kept_fingerprint(last), "settled": second.get("settled", [])},
    }


def _check_mask(name: str, mask: object) -> None:
    """Raise PlanError unless `mask` is a boolean vector that keeps something."""
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 1:
        raise PlanError(
            f"The mask of group {name!r} is not a one-dimensional boolean array: give one entry per channel."
        )
    if not mask.any():
        raise PlanError(f"The plan keeps no channel of group {name!r}: keep at least one.")


def _from_json(content: object) -> Plan:
    """Build a plan from parsed JSON, trusting nothing."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError(f"This is not a plan: its 'format' is not {FORMAT!r}.")
    version = content.get("version")
    if type(version) is not int or version not in (VERSION, WITH_FORMS):
        raise PlanError(f"This plan has version {shown(version)}: this release reads {VERSION} and {WITH_FORMS}.")
    _check_keys(content, _KEYS | ({"forms"} if version == WITH_FORMS else set()), "The plan")
    architecture, groups, provenance = content["architecture"], content["groups"], content["provenance"]
    forms = content.get("forms", {})
    if architecture is not None and not isinstance(architecture, str):
        raise PlanError("The plan's 'architecture' is not a string: the file was damaged or edited.")
    if not isinstance(groups, dict) or not isinstance(provenance, dict) or not isinstance(forms, dict):
        raise PlanError("The plan's 'groups', 'provenance' or 'forms' is no object: the file was damaged or edited.")
    total = 0
    for name, row in groups.items():
        total += _check_row(name, row)
        if total > _MOST_CHANNELS:
            raise PlanError(
                f"The plan claims more than {_MOST_CHANNELS} channels at group {shown(name)}: the file was damaged."
            )
    masks = {name: _mask(row) for name, row in groups.items()}
    return Plan(masks, provenance, architecture, {name: check_form(name, row) for name, row in forms.items()})


def _check_row(name: str, row: object) -> int:
    """Return the width of one group's entry after checking all of it."""
    where = f"Group {shown(name)} of the plan"
    if not isinstance(row, dict):
        raise PlanError(f"{where} is not an object: the file was damaged or edited.")
    _check_keys(row, {"width", "kept"}, where)
    width, kept = row["width"], row["kept"]
    if type(width) is not int or not 1 <= width <= _MOST_CHANNELS:
        raise PlanError(f"{where} has width {shown(width)}: it must be a positive integer.")
    # bool is an int for isinstance, so the exact type is asked for
    if not isinstance(kept, list) or any(type(index) is not int for index in kept):
        raise PlanError(f"{where} does not list its kept channels as integers: the file was damaged or edited.")
    if not kept:
        raise PlanError(f"{where} keeps no channel: keep at least one.")
    if any(low >= high for low, high in itertools.pairwise(kept)):
        raise PlanError(f"{where} lists its kept channels twice or out of order: list each once, ascending.")
    if kept[0] < 0 or kept[-1] >= width:
        raise PlanError(f"{where} keeps a channel outside 0 to {width - 1}: the file was damaged or edited.")
    return width


def _mask(row: Mapping[str, Any]) -> BoolArray:
    """Turn a checked entry into a mask."""
    mask = np.zeros(row["width"], dtype=np.bool_)
    mask[row["kept"]] = True
    return mask


def _check_keys(content: Mapping[str, Any], expected: set[str], where: str) -> None:
    """Raise PlanError unless `content` has exactly the `expected` keys."""
    missing, unknown = sorted(expected - content.keys()), sorted(content.keys() - expected)
    if missing:
        raise PlanError(f"{where} lacks {missing[0]!r}: the file was damaged or edited.")
    if unknown:
        raise PlanError(f"{where} has the unknown key {shown(unknown[0])}: remove it.")

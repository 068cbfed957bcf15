"""What a narrow network knows of how it was cut, so that plans compose: it can be pruned again, saved and loaded.

The network carries its whole plan as a text, an attribute that copies, pickles and is looked at by nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from secateur._protocols import GraphLike
from secateur.errors import PlanError
from secateur.plan import Plan, fingerprint

ATTRIBUTE = "_secateur_plan"  # of a network that was cut
_APART = ""


def earlier(model: nn.Module) -> Plan | None:
    """The plan by which `model` was cut from a network that was never pruned; None where it does not know of one."""
    text: Any = model.__dict__.get(ATTRIBUTE)
    return Plan.parse(text) if isinstance(text, str) and text else None


def is_apart(model: nn.Module) -> bool:
    """Whether the cuts of `model` make no single plan."""
    return model.__dict__.get(ATTRIBUTE) == _APART


def know(narrow: nn.Module, plan: Plan) -> None:
    """Let `narrow` know the whole plan it was cut by, as a file says."""
    narrow.__dict__[ATTRIBUTE] = plan.text()


def carry(before: nn.Module, narrow: nn.Module, plan: Plan) -> str | None:
    """Let `narrow`, which is `before` cut by `plan`, know its whole plan; a sentence where there is no such plan.

    before: may be `narrow` itself, cut in place.
    """
    try:
        if is_apart(before):
            raise PlanError("Those before it make none.")
        known = earlier(before)
        text = (plan if known is None else known.then(plan)).text()
    except PlanError as error:
        narrow.__dict__[ATTRIBUTE] = _APART
        return (
            f"This cut and those before it make no single plan ({str(error).rstrip('.')}), so that the network can be "
            "exported and not saved in a folder."
        )
    narrow.__dict__[ATTRIBUTE] = text
    return None


def rest(plan: Plan, graph: GraphLike, model: nn.Module) -> Plan:
    """What of `plan` is still to be done to `model`, if that was cut by the first part of it; else `plan` itself."""
    known = earlier(model)
    if known is None or known.architecture is None or known.architecture != plan.architecture:
        return plan
    try:
        left = plan.since(known)
    except PlanError:
        return plan
    here = {group.name: group.width for group in graph.groups}
    masks = {name: mask for name, mask in left.masks.items() if name in here or not mask.all()}
    masks |= {name: np.ones(width, dtype=np.bool_) for name, width in here.items() if name not in masks}
    return Plan(masks, left.provenance, fingerprint(graph), left.forms)


def whole(narrow: nn.Module, plan: Plan) -> Plan:
    """The plan from the network that was never pruned to `narrow`, of which `plan` is the last part; else `plan`."""
    known = earlier(narrow)
    if known is None or not known.ends_with(plan):
        return plan
    story: dict[str, Any] = {
        key: known.provenance[key] for key in ("settled", "earlier", "last") if key in known.provenance
    }
    return Plan(known.masks, {**plan.provenance, **story}, known.architecture, known.forms)

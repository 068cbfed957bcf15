"""The kinds of forms there are, and how data of unknown origin are checked."""

from __future__ import annotations

from collections.abc import Mapping

from secateur._files import shown
from secateur.errors import PlanError
from secateur.forms.base import FormKind, LayerForm
from secateur.forms.gated import Gated, GatedConv2d
from secateur.forms.offsets import Offsets, StripeConv2d

#: By name, one file each.
FORMS: Mapping[str, FormKind] = {"offsets": Offsets(), "gated": Gated()}
#: What they build; each has `in_channels` and `out_channels`, as the layer it stands for.
FORMED = (StripeConv2d, GatedConv2d)


def check_form(layer: str, given: object) -> LayerForm:
    """The form that a plan's file gives a layer.

    Args:
        layer: its name, for the message. given: what the file says of it, parsed and trusted in nothing.

    Raises:
        PlanError: one sentence: the kind is unknown, or the data are not sound.
    """
    where = f"The form of the layer {shown(layer)} in the plan"
    match given:
        case {"kind": str(kind), "data": dict(data), **rest} if not rest:
            pass
        case _:
            raise PlanError(f"{where} is not a kind with its data: the file was damaged or edited.")
    if kind not in FORMS:
        raise PlanError(f"{where} is of the kind {shown(kind)}: this release knows {', '.join(FORMS)}.")
    try:
        FORMS[kind].check(data)
    except ValueError as error:
        raise PlanError(f"{where} is not sound ({error}): the file was damaged or edited.") from error
    return LayerForm(kind, data)

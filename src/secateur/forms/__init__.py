"""Forms: layers of the result that are computed another way, as data in the plan; kinds by name.

`building` puts them into a model and counts what they cost, `proof` compares them with their plain references.
"""

from secateur.forms.base import FormKind, LayerForm
from secateur.forms.building import build_into, cost, dense_macs, formed, plainly
from secateur.forms.kinds import FORMED, FORMS, check_form
from secateur.forms.proof import FormsProof, prove

__all__ = [
    "FORMED", "FORMS", "FormKind", "FormsProof", "LayerForm", "build_into", "check_form", "cost", "dense_macs",
    "formed", "plainly", "prove",
]  # fmt: skip

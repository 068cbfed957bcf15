"""Forms: layers of the result that are computed another way, as data in the plan; kinds by name.

`building` puts them into a model and counts what they cost, `proof` compares them with their plain references.
"""

from secateur.forms.base import FormKind, LayerForm, Parts
from secateur.forms.building import build_into, cost, dense_macs, formed, formed_macs, plainly, touched
from secateur.forms.expected import Expected, expected, note_of
from secateur.forms.kinds import FORMED, FORMS, check_form
from secateur.forms.proof import FormsProof, prove

__all__ = [
    "FORMED", "FORMS", "Expected", "FormKind", "FormsProof", "LayerForm", "Parts", "build_into", "check_form", "cost",
    "dense_macs", "expected", "formed", "formed_macs", "note_of", "plainly", "prove", "touched",
]  # fmt: skip

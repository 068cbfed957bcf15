"""Operators that make tensors from sizes: their indices are free until they meet something."""

from __future__ import annotations

from secateur.graph.rules.registry import Labels, Op, rule

MAKERS = (
    "zeros ones empty full rand randn randint arange linspace logspace eye new_zeros new_ones new_empty new_full "
    "empty_strided new_empty_strided hann_window hamming_window randperm tril_indices triu_indices"
).split()
LIKES = "zeros_like ones_like empty_like full_like rand_like randn_like randint_like".split()


@rule(*MAKERS)
def make(op: Op) -> Labels:
    """Fresh slots in every dimension longer than one."""
    return [tuple(op.ledger.fresh(n) if n > 1 else None for n in out.shape) for out in op.outputs()]


@rule(*LIKES)
def like(op: Op) -> Labels:
    """The same places as the model tensor."""
    return op.same("self")


@rule(
    "scalar_tensor", "_local_scalar_dense", "item", "is_nonzero", "equal", "_assert_async", "_assert_scalar", "sym_size"
)
def scalar(op: Op) -> Labels:
    """No dimension in, none out."""
    for tensor in op.tensors():
        for axis in getattr(tensor, "_secateur_label", ()) or ():
            op.fix(axis, "read as a number")
    return [() for _ in op.outputs()]

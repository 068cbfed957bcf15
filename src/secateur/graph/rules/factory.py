"""Operators that make tensors from sizes: their indices are free until they meet something, if all hold the same."""

from __future__ import annotations

from secateur.graph.labels import Label
from secateur.graph.rules.positions import Count, keep, keep_random
from secateur.graph.rules.registry import Labels, Op, is_constant, label_of, rule

MAKERS = (
    "zeros ones empty full new_zeros new_ones new_empty new_full empty_strided new_empty_strided empty_permuted"
).split()
ORDERED = (
    "linspace logspace range tril_indices triu_indices hann_window hamming_window blackman_window bartlett_window "
    "kaiser_window fft_fftfreq fft_rfftfreq"
).split()
RANDOM = "rand randn randint randperm normal".split()
LIKES = "zeros_like ones_like empty_like full_like".split()
REDRAWN = (
    "rand_like randn_like randint_like bernoulli normal_ normal_functional poisson binomial multinomial "
    "_standard_gamma uniform random exponential log_normal cauchy geometric"
).split()


@rule(*MAKERS)
def make(op: Op) -> Labels:
    """Fresh slots in every dimension longer than one."""
    return [_fresh(op) for _ in op.outputs()]


def _fresh(op: Op) -> Label:
    return tuple(op.ledger.fresh(n) if n > 1 else None for n in op.out.shape)


@rule(*ORDERED)
def ordered(op: Op) -> Labels:
    """Every index holds a value of its own, which another size would change: it stays."""
    label = _fresh(op)
    for axis in label:
        keep(op, axis)
    return label


@rule("arange")
def arange(op: Op) -> Labels:
    """From zero by ones it counts, and what is done with the count decides; else as the other ranges."""
    label = _fresh(op)
    first, step = op.args.get("start", 0), op.args.get("step", 1)
    if label[0] is not None and first == 0 and step == 1:
        op.out._secateur_count = Count(label[0], op.where)
    else:
        keep(op, label[0])
    return label


@rule("eye")
def eye(op: Op) -> Labels:
    """Ones where both places are the same: two dimensions of one axis."""
    rows, columns = op.out.shape
    if rows == columns and rows > 1:
        axis = op.ledger.fresh(rows)
        return (axis, axis)
    return ordered(op)


@rule(*RANDOM)
def random(op: Op) -> Labels:
    """Numbers drawn anew: other sizes would draw others."""
    tensors = op.tensors()  # `normal` may be given means and deviations
    label = op.broadcast(tensors, op.out.dim()) if tensors else _fresh(op)
    for axis in label:
        keep_random(op, axis)
    return label


@rule(*LIKES)
def like(op: Op) -> Labels:
    """The same places as the model tensor."""
    return op.same("self")


@rule(*REDRAWN)
def redraw(op: Op) -> Labels:
    """Random numbers in the places of a tensor."""
    tensors = op.tensors()
    label = op.broadcast(tensors) if tensors[0].shape == op.out.shape else label_of(tensors[0])
    for axis in label:
        keep_random(op, axis)
    return label if tensors[0].shape == op.out.shape else op.blank()


@rule("_assert_tensor_metadata", "_linalg_check_errors", "is_same_size")
def asserted(op: Op) -> Labels:
    """Nothing comes out, whatever the sizes."""
    return []


@rule(
    "scalar_tensor", "_local_scalar_dense", "item", "is_nonzero", "equal", "_assert_async", "_assert_scalar", "sym_size"
)
def scalar(op: Op) -> Labels:
    """No dimension in, none out; by a number of the data the code may go another way."""
    read = not op.name.startswith(("aten::_assert", "aten::sym_size"))
    op.ledger.decides |= read and not all(map(is_constant, op.tensors()))
    for tensor in op.tensors():
        for axis in getattr(tensor, "_secateur_label", ()) or ():
            op.fix(axis, "read as a number")
    return [() for _ in op.outputs()]

"""BatchNorm re-estimation: running means and variances of the network as the cut leaves it, from a forward pass.

What a layer receives changes when channels before it go, and its norm still takes away the mean it used to have. The
statistics are measured anew, layers one behind the other in a single pass as in training, averaged over all images.
"""

from __future__ import annotations

import itertools

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur._files import said
from secateur._settings import Section
from secateur.errors import InputError
from secateur.graph.modules import call_with_copies
from secateur.repair.base import Case, Pairs, Repair, RepairRow
from secateur.statistics.gather import count, pair


class BatchNormSettings(Section):
    """How long to look."""

    batches: int | None = Field(None, ge=1, description="how many batches to look at; null: all there are")


class BatchNorm(Repair):
    """Measure running means and variances anew."""

    name = "batchnorm"
    Config = BatchNormSettings
    settings: BatchNormSettings

    def apply(self, case: Case, batches: Pairs) -> None:
        """Norms normalise by each batch while the rest evaluates; the averages over images are what stays.

        Raises:
            InputError: a norm gets a single number a channel from a batch, which has no variance.
        """
        case.notes += remeasure(case.model, itertools.islice(batches, self.settings.batches))


def remeasure(model: nn.Module, batches: Pairs) -> list[str]:
    """Measure the running means and variances of a network anew, in place; the rest of it is in evaluation.

    model: changed in place. batches: (inputs, target), of which the targets are not looked at.

    Returns:
        sentences for the report.

    Raises:
        InputError: a norm gets a single number a channel from a batch, which has no variance.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return ["The network has no batch norms with running statistics, so none were measured anew."]
    momenta = [(norm, norm.momentum) for norm in norms]
    handles = [norm.register_forward_pre_hook(_Average()) for norm in norms]
    for norm in norms:
        norm.train()
    try:
        return list(dict.fromkeys(_look(model, batches)))
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in momenta:
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def _look(model: nn.Module, batches: Pairs) -> list[str]:
    device, largest, said_so = next(model.parameters()).device, 0, []
    for batch in batches:
        inputs = pair(batch, device)[0]
        images = count(inputs)
        if images == 1 < largest:  # what is left over at the end has no variance in layers without positions
            said_so.append("A batch of one image was left out when norms were measured anew.")
            continue
        largest = max(largest, images)
        args, keywords = call_with_copies(inputs)
        try:
            model(*args, **keywords)
        except ValueError as error:  # of torch, where a norm gets one number a channel
            raise InputError(
                f"Batch norms cannot be measured anew with batches of {images}: {said(error)}; show other batches."
            ) from error
    return said_so


class _Average:
    """Makes the running average of one norm a plain one over samples, whatever the sizes of batches."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, norm: _BatchNorm, args: tuple[torch.Tensor, ...]) -> None:
        self.seen += len(args[0])
        norm.momentum = len(args[0]) / self.seen  # 1 at first: what was there before goes


ROW = RepairRow(
    name="batchnorm",
    summary="means and variances of batch norms, measured again",
    paper="EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning",
    year=2020,
    arxiv="2007.02491",
    needs="calibration",
    fidelity="the paper's adaptive batch normalisation, with a plain average over the calibration images",
    factory=BatchNorm,
)

"""BatchNorm re-estimation: running means and variances of the network as the cut leaves it, from a forward pass.

What a layer receives changes when channels before it go, and its norm still takes away the mean it used to have. The
statistics are measured anew, layers one behind the other in a single pass as in training, averaged over all images.
"""

from __future__ import annotations

from pydantic import Field
from torch.nn.modules.batchnorm import _BatchNorm

from secateur._settings import Section
from secateur.graph.modules import as_call
from secateur.repair.base import Batches, Case, Repair, RepairRow
from secateur.statistics.gather import pair


class BatchNormSettings(Section):
    """How long to look."""

    batches: int | None = Field(None, ge=1, description="how many batches to look at; null: all there are")


class BatchNorm(Repair):
    """Measure running means and variances anew."""

    name = "batchnorm"
    Config = BatchNormSettings
    settings: BatchNormSettings

    def apply(self, case: Case, batches: Batches) -> None:
        """Norms normalise by each batch while the rest evaluates; the averages over batches are what stays."""
        norms = [m for m in case.model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not norms:
            case.notes.append("The network has no batch norms with running statistics, so none were measured anew.")
            return
        momenta = [(norm, norm.momentum) for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
            norm.train()
        device = next(case.model.parameters()).device
        try:
            for number, batch in enumerate(batches):
                if number == self.settings.batches:
                    break
                args, keywords = as_call(pair(batch, device)[0])
                case.model(*args, **keywords)
        finally:
            for norm, momentum in momenta:
                norm.momentum = momentum
                norm.eval()


ROW = RepairRow(
    name="batchnorm",
    summary="means and variances of batch norms, measured anew",
    paper="EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning",
    year=2020,
    arxiv="2007.02491",
    needs="calibration",
    fidelity="the paper's adaptive batch normalisation, with a plain average over the images shown",
    factory=BatchNorm,
)

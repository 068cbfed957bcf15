"""Discrimination-aware pruning, of channels (DCP) and of single kernels (DKP)."""

from secateur.methods.dcp import channels, kernels
from secateur.methods.dcp.channels import DCP
from secateur.methods.dcp.kernels import DKP

__all__ = ["DCP", "DKP", "ROWS"]

#: One row for what goes: channels, or kernels.
ROWS = (channels.ROW, kernels.ROW)

"""ACP: widths from clustering and swarm optimisation; see `method`."""

from secateur.methods.acp.method import ROW, Acp

__all__ = ["ROW", "Acp"]

"""Charts of matplotlib as SVG: no paper, letters and axes in a grey that can be read on white and on dark pages."""

from __future__ import annotations

from typing import Any

GREY = "#8a8f98"


def prepare() -> Any:
    """pyplot, set up so that the same figures give the same file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "secateur"
    pyplot.rcParams["savefig.transparent"] = True
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        pyplot.rcParams[part] = GREY
    return pyplot

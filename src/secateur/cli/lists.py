"""Commands that list what there is: models, criteria, methods."""

from __future__ import annotations

from secateur.cli._base import AsJson, Quiet, emit, show


def models(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the zoo: the networks on which the pruning papers report, for 32x32 images.

    \b
    Examples:
      secateur models
      secateur models --json
    """
    from secateur import report
    from secateur._hints import readable
    from secateur.models import MODELS

    if quiet and not as_json:
        return show("\n".join(MODELS))
    rows = [
        {
            "name": row.name,
            "params": row.params,
            "macs": row.macs,
            "input_size": list(row.input_size),
            "summary": row.summary,
            "paper": row.paper,
            "year": row.year,
        }
        for row in MODELS.values()
    ]
    cells = [(row.name, readable(row.params), readable(row.macs), row.summary) for row in MODELS.values()]
    columns = ("model", "parameters", "MACs", "what it is")
    emit({"models": rows}, as_json, lambda: report.listing(columns, cells, right=columns[1:3]))


def criteria(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the criteria by which channels can be scored.

    \b
    Examples:
      secateur criteria
      secateur criteria --json
    """
    from secateur import report
    from secateur.methods import CRITERIA

    if quiet and not as_json:
        return show("\n".join(row.name for row in CRITERIA))
    rows = [
        {
            "name": row.name,
            "summary": row.summary,
            "needs_data": row.needs_data,
            "paper": row.paper,
            "year": row.year,
            "arxiv": row.arxiv,
        }
        for row in CRITERIA
    ]
    cells = [(c.name, c.summary, "yes" if c.needs_data else "no", str(c.year), c.arxiv) for c in CRITERIA]
    emit({"criteria": rows}, as_json, lambda: report.listing(("criterion", "score", "data", "year", "arXiv"), cells))

"""The card of a pruned network: what it is, what it costs, how it was pruned, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from secateur._files import parse_json
from secateur._version import __version__
from secateur.plan import Plan
from secateur.runtime.stored import Stored

CARD = "README.md"
_COSTS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "activations": "activations",
    "peak": "peak activations",
}


def card(repository: str, saved: Stored, plan: Plan, results: Mapping[str, Any] | None, licence: str | None) -> str:
    """The card in Markdown, with the Hub's front matter.

    repository: "org/name". results: results.json, of a run. licence: an identifier of the Hub.
    """
    front = {"library_name": "secateur", "tags": ["pruning", "channel-pruning", "pytorch"]}
    if licence is not None:
        front["license"] = licence
    head = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    method = plan.provenance.get("method", "a plan made by hand")
    return "\n".join([
        "---", *head, "---", "", f"# {repository}", "",
        f"`{_plain(saved.reference)}`, pruned by `{_plain(method)}` with Secateur {__version__}: whole channels are "
        "removed, so that it is an ordinary, smaller network.", "",
        *_figures(saved, results), "", "## How to load it", "",
        "```python", "import secateur", "", f'network = secateur.load("hf:{repository}")', "```", "",
        "Nothing in the files is unpickled or executed.", "", "## Channels", "",
        "| group | before | after |", "| --- | ---: | ---: |",
        *(f"| `{_plain(name)}` | {len(mask)} | {int(mask.sum())} |" for name, mask in plan.masks.items()), "",
        "## Licence", "",
        licence or "Not stated; that of the network and the data it was made from holds in any case.", "",
    ])  # fmt: skip


def _figures(saved: Stored, results: Mapping[str, Any] | None) -> Iterable[str]:
    """A table of costs, and of the accuracies of a run."""
    costs: Any = results if results is not None else parse_json(saved.header.get("costs", "{}"))
    rows = [
        f"| {said} | {costs['before'][key]:,} | {costs['after'][key]:,} |"
        for key, said in _COSTS.items()
        if all(isinstance(costs.get(when), dict) and type(costs[when].get(key)) is int for when in ("before", "after"))
    ]
    accuracy = (results or {}).get("accuracy") or {}
    if type(accuracy.get("dense")) is float and type(accuracy.get("final")) is float:
        data = _plain(((results or {}).get("data") or {}).get("name", "the test images"))
        rows.append(f"| accuracy on {data} | {accuracy['dense']:.2%} | {accuracy['final']:.2%} |")
    return ["## Figures", "", "| | before | after |", "| --- | ---: | ---: |", *rows] if rows else []


def _plain(text: Any) -> str:
    """As it may stand in a table of Markdown."""
    return " ".join(str(text).replace("`", "'").replace("|", "/").replace("<", "&lt;").split())[:200]

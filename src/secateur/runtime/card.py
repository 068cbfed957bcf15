"""The card of a pruned network: what it is, what it costs, how it was pruned, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from secateur._files import parse_json
from secateur._version import __version__
from secateur.plan import Plan, kept_fingerprint
from secateur.runtime.stored import Stored

CARD = "README.md"
_COSTS = {
    "macs": "multiply-accumulates",
    "params": "parameters",
    "activations": "activations",
    "peak": "peak activations",
}


def card(
    repository: str,
    saved: Stored,
    plan: Plan,
    results: Mapping[str, Any] | None,
    latency: Mapping[str, Any] | None,
    licence: str | None,
) -> str:
    """The card in Markdown, with the Hub's front matter.

    repository: "org/name". results, latency: results.json and latency.json, of a run. licence: an identifier of the
    Hub.
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
        *_figures(saved, results, latency), "", "## How to load it", "",
        "```python", "import secateur", "", f'network = secateur.load("hf:{repository}")', "```", "",
        "Nothing in the files is unpickled or executed.", "", *_made(plan, results), "## Channels", "",
        f"Which of them stay is in `plan.json` (fingerprint `{kept_fingerprint(plan)[:16]}`).", "",
        "| group | before | after |", "| --- | ---: | ---: |",
        *(f"| `{_plain(name)}` | {len(mask)} | {int(mask.sum())} |" for name, mask in plan.masks.items()), "",
        "## Licence", "",
        licence or "Not stated; that of the network and the data it was made from holds in any case.", "",
    ])  # fmt: skip


def _figures(saved: Stored, results: Mapping[str, Any] | None, latency: Mapping[str, Any] | None) -> Iterable[str]:
    """A table of costs, and of the accuracies and latencies of a run."""
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
        if type(accuracy.get("longer")) is float:
            rows.append(f"| the dense network trained as long | {accuracy['longer']:.2%} | |")
    rows += _latencies(latency or {})
    return ["## Figures", "", "| | before | after |", "| --- | ---: | ---: |", *rows] if rows else []


def _latencies(latency: Mapping[str, Any]) -> Iterable[str]:
    """A row a runtime; the interval is that of the ratio of times measured in turns."""
    for row in latency.get("runtimes", ()):
        low, high = row["ratio"]["low"], row["ratio"]["high"]
        found = "faster" if low > 1 else "as fast, slower" if high < 1 else "as fast, not significant"
        threads = f"{latency['threads']} thread{'s' * (latency['threads'] != 1)} of {_plain(latency['device'])}"
        yield (
            f"| latency, {_plain(row['runtime'])}, {latency['batch_size']} at a time, {threads} "
            f"| {row['dense']['median_ms']:.3g} ms "
            f"| {row['pruned']['median_ms']:.3g} ms ({low:.2f} to {high:.2f} times {found}) |"
        )


def _made(plan: Plan, results: Mapping[str, Any] | None) -> Iterable[str]:
    """How it was pruned: budget, seed and epochs, and the proof of the cut, as far as they are known."""
    found = results or {}
    epochs = ", ".join(f"{name} {count}" for name, count in (found.get("epochs") or {}).items())
    proof = found.get("verification") or {}
    error = proof.get("max_relative_error")
    asked = plan.provenance.get("budget")
    rows = {
        "budget": ", ".join(f"{key}={bound}" for key, bound in asked.items()) if isinstance(asked, Mapping) else None,
        "recipe": found.get("recipe_name"),
        "epochs": epochs or None,
        "seed": found.get("seed", plan.provenance.get("seed")),
        "date": found.get("date"),
        "proof": f"{'exact' if proof.get('exact') else 'structural'}; largest relative difference from the original "
        f"with these channels at zero: {error:.1e}" if type(error) is float else None,
    }  # fmt: skip
    said = [f"- {key}: {_plain(value)}" for key, value in rows.items() if value is not None]
    return ["## How it was made", "", *said, ""] if said else []


def _plain(text: Any) -> str:
    """As it may stand in a table of Markdown."""
    return " ".join(str(text).replace("`", "'").replace("|", "/").replace("<", "&lt;").split())[:200]

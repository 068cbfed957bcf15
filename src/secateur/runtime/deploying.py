"""Forms on a runtime: a layer keeps the way it is computed where that is faster there, and is an ordinary one else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import RunError
from secateur.forms import formed, plainly
from secateur.graph.modules import as_call, clone_module
from secateur.runtime.engines import copied, engines_of, threads_set
from secateur.runtime.inputs import with_batch
from secateur.runtime.latency import compare, in_turns


def deployed(
    model: nn.Module,
    example_inputs: Any,
    *,
    runtime: str = "onnxruntime",
    batch_size: int = 1,
    repeats: int = 15,
    threads: int = 1,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of `model` for a runtime, in which every layer computed another way is faster so than plainly.

    Each such layer is timed beside its plain counterpart, in turns, on the input that it gets. It keeps its form where
    the usual rule of `secateur.runtime.measure` sees a speed-up; elsewhere an ordinary layer computes the same.

    Args:
        model: a result of a method with forms; it stays as it is. example_inputs: what it runs with.
        runtime: one of `engines.ENGINES`. batch_size, threads: how it will be run. repeats: timed runs of each layer.

    Returns:
        the copy, and a row for each layer: "name", "form", "form_ms", "plain_ms" (medians; None where it did not run),
        "kept", and "said", why.

    Raises:
        ConfigError: there is no such runtime, or it is not installed.
    """
    (engine,) = engines_of([runtime])
    twin = copied(model)
    every = {name: (kind, layer) for name, kind, layer in formed(twin)}
    inputs = _inputs_of(twin, list(every), with_batch(example_inputs, batch_size))
    layers = {name: every[name] for name in inputs}
    rows = []
    with threads_set(threads):
        for name, (kind, layer) in layers.items():
            other = nn.Sequential(clone_module(layer, lambda tensor: tensor.detach().clone()))
            plainly(other, {"0": kind})
            row: dict[str, Any] = {"name": name, "form": kind, "form_ms": None, "plain_ms": None, "kept": False}
            try:
                calls = [engine.prepare(m, inputs[name], threads) for m in (other.eval(), nn.Sequential(layer).eval())]
            except RunError as error:
                rows.append({**row, "said": str(error)})
                continue
            found = compare(*in_turns(calls, repeats, 3))
            times = {"form_ms": found["pruned"]["median_ms"], "plain_ms": found["dense"]["median_ms"]}
            rows.append({**row, **times, "kept": found["speedup"], "said": found["said"]})
    plainly(twin, {row["name"]: row["form"] for row in rows if not row["kept"]})
    return twin, rows


#: The engine that runs a format's file. model.pt2 has the weights of model.safetensors, and so the forms as they are.
_RUN_BY: Mapping[str, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


def for_format(name: str, model: nn.Module, example_inputs: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The network to export in the format `name`, and under "forms" how its forms did there, where it has any."""
    if name not in _RUN_BY or not any(formed(model)):
        return model, {}
    twin, rows = deployed(model, example_inputs, runtime=_RUN_BY[name])
    return twin, {"forms": rows}


def all_plain(model: nn.Module) -> nn.Module:
    """`model`, or where it has layers that are computed another way a copy with ordinary ones, for quantisers."""
    layers = {name: kind for name, kind, _ in formed(model)}
    if not layers:
        return model
    twin = clone_module(model, lambda tensor: tensor.detach().clone())
    plainly(twin, layers)
    return twin


def deployment_note(file: str, rows: Sequence[dict[str, Any]]) -> str:
    """One sentence about what became of the forms in a file, layer by layer."""
    kept = sum(row["kept"] for row in rows)
    each = ", ".join(f"{row['name']} {_time(row['form_ms'])} against {_time(row['plain_ms'])}" for row in rows)
    return (
        f"In {file} {kept} of {len(rows)} layers are computed another way, and the others plainly, as that was not "
        f"slower (milliseconds of the form against the plain layer: {each})."
    )


def _time(milliseconds: float | None) -> str:
    return "not run" if milliseconds is None else f"{milliseconds:.3g}"


@torch.no_grad()
def _inputs_of(model: nn.Module, names: Sequence[str], inputs: Any) -> dict[str, torch.Tensor]:
    """What each layer is called with first; a layer that is not reached is left out."""
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(name, args[0].detach().clone())

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in names]
    try:
        args, keywords = as_call(inputs)
        model(*args, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return seen

"""Forms on a runtime: a layer keeps the way it is computed where that is faster there, and is an ordinary one else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from secateur.errors import RunError
from secateur.forms import FORMS, formed, plainly
from secateur.graph.modules import as_call, clone_module
from secateur.runtime.engines import Engine, copied, engines_of, threads_set
from secateur.runtime.inputs import drawn, with_batch
from secateur.runtime.latency import compare, in_turns


def deployed(
    model: nn.Module,
    example_inputs: Any,
    *,
    runtime: str = "onnxruntime",
    batch_size: int = 1,
    repeats: int = 15,
    threads: int = 1,
    images: Sequence[Any] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of `model` for a runtime, in which every layer computed another way is faster so than plainly.

    Each such layer is timed beside its plain counterpart, in turns, on the input that it gets. It keeps its form where
    the usual rule of `secateur.runtime.measure` sees a speed-up; elsewhere a layer that computes the same plainly
    stands there. A layer whose work depends on the image must be faster than itself without a gate, too, on the mean
    over several images, one at a time.

    Args:
        model: a result of a method with forms; it stays as it is. example_inputs: what it runs with.
        runtime: one of `engines.ENGINES`. batch_size, threads: how it will be run. repeats: timed runs of each layer.
        images: inputs of one image each, for layers whose work depends on it; by default noise, which opens other
            gates than images do.

    Returns:
        the copy, and a row for each layer: "name", "form", "form_ms", "plain_ms" (medians; None where it did not run),
        "kept", and "said", why.

    Raises:
        ConfigError: there is no such runtime, or it is not installed.
    """
    (engine,) = engines_of([runtime])
    twin = copied(model)
    every = {name: (kind, layer) for name, kind, layer in formed(twin)}
    each = any(FORMS[kind].per_input for kind, _ in every.values())
    shown = [with_batch(example_inputs, batch_size)] if not each else list(images or drawn(example_inputs, _DRAWN))
    inputs = _inputs_of(twin, list(every), shown)
    rows = []
    with threads_set(threads):
        for name, seen in inputs.items():
            kind, layer = every[name]
            row: dict[str, Any] = {"name": name, "form": kind, "form_ms": None, "plain_ms": None, "kept": False}
            try:
                rows.append({**row, **_timed(engine, kind, layer, seen, repeats, threads)})
            except RunError as error:
                rows.append({**row, "said": str(error)})
    plainly(twin, {row["name"]: row["form"] for row in rows if not row["kept"]})
    return twin, rows


def placed(
    model: nn.Module,
    example_inputs: Any,
    runtime: str,
    *,
    images: Sequence[Any] | None = None,
    known: Sequence[Mapping[str, Any]] | None = None,
) -> nn.Module:
    """What runs on a runtime in place of `model`: as `deployed`, or as the rows say that are `known` from there."""
    if not any(formed(model)):
        return model
    if known is None:
        return deployed(model, example_inputs, runtime=runtime, images=images)[0]
    twin = copied(model)
    plainly(twin, {row["name"]: row["form"] for row in known if not row["kept"]})
    return twin


#: Images of noise that stand for others.
_DRAWN = 8


def _timed(
    engine: Engine, kind: str, layer: nn.Module, seen: Sequence[Any], repeats: int, threads: int
) -> dict[str, Any]:
    """The layer beside its rivals; RunError where the runtime does not run one of them."""
    if (why := FORMS[kind].refused(engine.name)) is not None:
        raise RunError(why)
    own = clone_module(layer, lambda tensor: tensor.detach().clone())
    sides = [nn.Sequential(m).eval() for m in (*FORMS[kind].rivals(own), layer)]
    calls = [engine.prepared(side, seen, threads) for side in sides]
    times = [[spent / len(seen) for spent in side] for side in in_turns(calls, repeats, 3)]
    found = [compare(rival, times[-1]) for rival in times[:-1]]
    nearest = next((each for each in found if not each["speedup"]), found[0])
    return {
        "form_ms": found[0]["pruned"]["median_ms"],
        "plain_ms": found[0]["dense"]["median_ms"],
        "kept": all(each["speedup"] for each in found),
        "said": nearest["said"],
    }


#: The engine that runs a format's file. model.pt2 has the weights of model.safetensors, and so the forms as they are.
RUN_BY: Mapping[str, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
ALONE = "it computes the channels that an image opens, and so one image at a time"


@dataclass(frozen=True)
class Exported:
    """The network to export in one format.

    forms: under "forms" how its forms did there, where that was measured. fixed: why its batch size is fixed, if so.
    """

    model: nn.Module
    forms: dict[str, Any]
    fixed: str | None = None


def for_format(name: str, model: nn.Module, example_inputs: Any, images: Sequence[Any] | None = None) -> Exported:
    """What to export of `model` in the format `name`; images: as of `deployed`.

    Layers whose work depends on the image are masked, for batches of any size, save in ONNX where skipping pays.
    """
    if not any(formed(model)):
        return Exported(model, {})
    if name not in RUN_BY:
        return Exported(all_plain(model) if _per_input(model) else model, {})
    twin, rows = deployed(model, example_inputs, runtime=RUN_BY[name], images=images)
    alone = any(row["kept"] and FORMS[row["form"]].per_input for row in rows)
    return Exported(twin, {"forms": rows}, ALONE if alone else None)


def _per_input(model: nn.Module) -> bool:
    return any(FORMS[kind].per_input for _, kind, _ in formed(model))


def all_plain(model: nn.Module) -> nn.Module:
    """`model`, or where it has layers that are computed another way a copy in which they are plain, for quantisers."""
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


def _inputs_of(model: nn.Module, names: Sequence[str], shown: Sequence[Any]) -> dict[str, list[torch.Tensor]]:
    """What each layer is called with first, for each of the inputs; a layer that is not reached is left out."""
    every = [_seen(model, names, inputs) for inputs in shown]
    return {name: [seen[name] for seen in every if name in seen] for name in every[0]}


@torch.no_grad()
def _seen(model: nn.Module, names: Sequence[str], inputs: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        found.setdefault(name, args[0].detach().clone())

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in names]
    try:
        args, keywords = as_call(inputs)
        model(*args, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return found

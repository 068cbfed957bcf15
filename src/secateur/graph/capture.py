"""Capture: run a model once under the recorder, on the meta device where that works, and once more as training does.

The model itself is never touched; the run happens on a copy that shares (or does without) its storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from secateur.errors import InputError, ModelError, SecateurError
from secateur.graph.code import STEADY, Code
from secateur.graph.labels import Ids, Ledger
from secateur.graph.leaving import Outside
from secateur.graph.modules import (
    Inputs,
    Modules,
    as_call,
    clone_module,
    compiled_in_place,
    is_parameter,
    map_tensors,
    modules_of,
    named_tensors,
    output_tensors,
    tensors_of,
    to_evaluation,
    to_meta,
)
from secateur.graph.recorder import Call, Recorder, Recording, forward, label_parameters, places_of
from secateur.graph.rules import label_of

OUTPUT = "the model's output"
#: Names in code that does otherwise while gradients are taken.
_GRADIENTS = frozenset({"is_grad_enabled"})
#: Operators whose result holds what it is made of side by side; the parts are no excerpts of it.
_JOINS = ("aten::cat", "aten::stack")


def capture(model: nn.Module, example_inputs: Any, modules: Modules | None = None) -> Recording:
    """Record one forward pass of `model` (unwrapped, any mode); on real tensors where meta cannot run or differs.

    modules: all of `modules_of(model)`, if they are known.
    """
    args, kwargs = as_call(example_inputs)
    told = example_inputs.training if isinstance(example_inputs, Inputs) else None
    given = output_tensors([args, kwargs], refuse=True)
    if given and not any(tensor.numel() for tensor in given):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise InputError(f"The example inputs of shape {shapes} hold not one number: give a batch of at least one.")
    try:
        modules = modules_of(model) if modules is None else modules
        code = Code(module for _, module in modules)
        known: Any = {"told": told, "code": code, "modules": modules}
        recording = None if code.meta_differs() else capture_once(model, args, kwargs, meta=True, **known)
        if recording is None or (told is not None and recording.training_error):
            recording = capture_once(model, args, kwargs, meta=False, **known)
        if told is not None and recording.training_error:
            raise InputError(
                f"The forward pass in training mode failed on the inputs given for it: {recording.training_error}. "
                "Check their shape, number and dtype."
            )
        return recording
    except SecateurError:
        raise
    except Exception as first:
        try:
            return capture_once(model, args, kwargs, meta=False, told=told)
        except SecateurError:
            raise
        except Exception as error:
            raise _explain(model, args, kwargs, error) from first


def capture_once(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    meta: bool,
    training: bool = True,
    told: Inputs | None = None,
    code: Code | None = None,
    modules: Modules | None = None,
) -> Recording:
    """Record one forward pass in evaluation mode and, with `training`, what another one in training mode adds.

    told: what that one is called with, where it is something else. modules, code: of the model, if they are known.
    """
    whole = modules_of(model) if modules is None else modules
    code = Code(module for _, module in whole) if code is None else code
    twin = clone_module(model, to_meta if meta else _alias, whole)
    own = to_evaluation(twin)
    recording = Recording(Ledger(), on_meta=meta)
    label_parameters(own, recording)
    recorder = Recorder(recording, meta)
    inputs: tuple[Any, Any] = map_tensors((args, kwargs), lambda t: _input(t, meta))
    outside = Outside(own)
    before = outside.tensors()
    compiled = compiled_in_place(whole)  # the copy's code is another where the model's is compiled
    output = forward(twin, inputs[0], inputs[1], recorder, modules=own, code=None if compiled else code)
    own = modules_of(twin)
    _fix_outputs(recording, output)
    _fix_left(recording, outside.now(own), before)
    recording.gradients |= code.mentions(_GRADIENTS)
    if told is not None:
        _capture_training(twin, (told.args, told.kwargs), recording, meta)
    elif training and (recording.gradients or code.training_differs() or _never_used(own, recording)):
        _capture_training(twin, (args, kwargs), recording, meta)
    recording.compiled = compiled
    if recording.softmaxed:
        recording.scales = list(_scales(model, recording))
    return recording


def _never_used(modules: Modules, recording: Recording) -> bool:
    """Whether a parameter has no part in what was recorded."""
    return any(n not in recording.first_use for n, t in tensors_of(modules).items() if is_parameter(t))


def _scales(model: nn.Module, recording: Recording) -> Iterator[Ids]:
    """The axes of vectors that no training moves and whose values rise or fall throughout: 0, 1, 2, ... and the like.

    Behind a softmax such a vector reads the expected value of a distribution over bins.
    """
    for name, tensor in named_tensors(model).items():
        if name not in recording.first_use or tensor.dim() == 0 or not 2 < tensor.numel() == max(tensor.shape) < 2**16:
            continue
        values = tensor.detach().flatten().double().cpu()
        steps = values.diff()
        fixed = not tensor.requires_grad or (tensor.dim() > 1 and bool((steps == 1).all()))
        axis = recording.places[name][tensor.shape.index(tensor.numel())]
        if fixed and axis is not None and bool((steps > 0).all() or (steps < 0).all()):
            yield axis


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter's own storage, never written to; a copy of a buffer, for a forward may write to it."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _input(tensor: torch.Tensor, meta: bool) -> torch.Tensor:
    twin: Any = to_meta(tensor) if meta else tensor.detach().clone()
    twin._secateur_constant = False
    return twin  # type: ignore[no-any-return]


def _fix_outputs(recording: Recording, output: Any, mode: str = "") -> None:
    for tensor in output_tensors(output, refuse=True):
        if type(tensor) not in (torch.Tensor, nn.Parameter) and not hasattr(tensor, "_secateur_label"):
            raise ModelError(
                f"The model returns a tensor of class {type(tensor).__name__} that its forward made (by as_subclass, "
                "say), in which channels cannot be followed; return plain tensors."
            )
        for axis in label_of(tensor):
            recording.ledger.fix(axis, f"reaches {OUTPUT}{mode}")
        buffer = getattr(tensor, "_secateur_buffer", None)
        if buffer is not None and buffer < len(recording.buffers):
            recording.buffers[buffer].death = len(recording.calls)


def _fix_left(recording: Recording, outside: Outside, before: Mapping[int, tuple[str, torch.Tensor]]) -> None:
    """What the forward pass left outside all modules stays whole: a loss may read it there."""
    for number, (where, tensor) in outside.tensors().items():
        if number not in before:
            for axis in label_of(tensor):
                recording.ledger.fix(axis, f"is kept outside the network, in {where}")


def _capture_training(twin: nn.Module, inputs: Any, recording: Recording, meta: bool) -> None:
    """Run once more in training mode: what reaches an output there stays whole, and what only runs there is read.

    Auxiliary heads consume channels, and raw maps go to a loss. PyTorch's own norms and dropout stay in evaluation
    mode, so that they need no batch; where the rest cannot do without one, leaf modules stay as well. What this run
    computes does not count as cost. Where it fails, as a forward that needs targets does, that is told.
    """
    try:
        twin.train()
    except Exception as error:  # a network for inference only, as one read from an exported file, has no other mode
        if not isinstance(error, ModelError):
            recording.training_error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        twin.eval()
        return
    for module in twin.modules():
        if isinstance(module, STEADY):
            module.training = False
    try:
        _run_in_training(twin, inputs, recording, meta)
        return
    except Exception as error:
        recording.training_error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for module in twin.modules():
        module.training = module.training and any(True for _ in module.children())
    with suppress(Exception):  # of both attempts the first error is told
        _run_in_training(twin, inputs, recording, meta)
        recording.training_error = ""


def _run_in_training(twin: nn.Module, inputs: Any, recording: Recording, meta: bool) -> None:
    extra = Recording(recording.ledger, places=recording.places, first_use=dict(recording.first_use), on_meta=meta)
    before, recording.ledger.training = len(recording.ledger.macs), True
    known, outside = _kept(twin), Outside(modules_of(twin))
    left = outside.tensors()
    try:
        again = map_tensors(inputs, lambda t: _input(t, meta))
        with torch.random.fork_rng(devices=[]):  # dropout draws
            output = forward(twin, again[0], again[1], Recorder(extra, meta), gradients=recording.gradients)
    finally:
        del recording.ledger.macs[before:]
        recording.ledger.training = False
    _fix_outputs(recording, output, " in training mode")
    _fix_left(recording, outside.now(modules_of(twin)), left)
    for place, axis in _kept(twin).items():
        if place not in known:  # a loss may take it from there
            recording.ledger.fix(axis, f"is kept as {place[0]} in training mode")
    _fix_sources(extra, recording.calls, output)
    offset = len(recording.calls)
    for name, first in extra.first_use.items():
        if name not in recording.first_use and not _carried_on(extra.calls, first):
            recording.touched.add(name)
        recording.first_use.setdefault(name, first + offset)
    recording.unsupported += extra.unsupported


def _carried_on(calls: list[Call], first: int) -> bool:
    """Whether channels go on in what a call gives; a sum of all values, so that all have gradients, gives none."""
    return first < len(calls) and any(axis is not None for label in calls[first].labels for axis in label)


#: Attributes that every module has.
_STANDARD = frozenset(vars(nn.Module()))


def _kept(model: nn.Module) -> dict[tuple[str, bytes], Ids]:
    """What a forward pass left among the attributes of modules: the axes by where they are, and by their slots."""
    return {
        (f"{name}.{attribute}".lstrip("."), axis.tobytes()): axis
        for name, module in modules_of(model)
        for attribute, value in vars(module).items()
        if attribute not in _STANDARD
        for tensor in output_tensors(value)
        for axis in label_of(tensor)
        if axis is not None
    }


def _fix_sources(extra: Recording, known: list[Call], output: Any) -> None:
    """What training branches take a part of stays whole: no run of sizes sees where in their code it is taken.

    known: calls of the run in evaluation; what is called there as well follows a cut, or settles.
    """
    axes = [a for t in output_tensors(output, refuse=True) for a in label_of(t)]
    seen_before = set(zip(places_of(known), (call.shapes for call in known), strict=True))
    for call, place in zip(extra.calls, places_of(extra.calls), strict=True):
        if (place, call.shapes) not in seen_before:
            axes += [axis for label in call.labels for axis in label]
    parts = [set(axis.tolist()) for axis in axes if axis is not None]
    seen: set[bytes] = set()
    for call in extra.calls:
        for axis in (a for label in call.labels for a in label if a is not None):
            if (key := axis.tobytes()) in seen:
                continue
            seen.add(key)
            ids = set(axis.tolist())
            if call.name not in _JOINS and any(part and part < ids for part in parts):
                extra.ledger.fix(axis, f"a part of it reaches {OUTPUT} in training mode")


def _explain(model: nn.Module, args: Any, kwargs: Any, error: Exception) -> Exception:
    """Who is to blame for a forward that failed: the inputs, the model, or the trace (if it runs without one)."""
    shapes = [tuple(t.shape) for t in output_tensors([list(args), dict(kwargs)])]
    said = " ".join(str(error).split())[:300]
    if not shapes:
        return InputError(
            f"The example inputs hold no tensor, and the model's forward failed: {said}. Give example inputs."
        )
    if _runs_alone(model, args, kwargs):
        return ModelError(
            f"{type(model).__name__} runs, but not under Secateur's trace ({type(error).__name__}: {said}); "
            "please report this."
        )
    return ModelError(
        f"The forward pass of {type(model).__name__} failed on the example inputs of shape "
        f"{', '.join(map(str, shapes))}: {type(error).__name__}: {said}. Check their shape, number and dtype."
    )


def _runs_alone(model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a copy of the model runs without a trace; whatever its forward raises is the answer no."""
    twin = clone_module(model, _alias).eval()
    inputs = map_tensors((args, kwargs), lambda t: t.detach().clone())
    try:
        with torch.no_grad():
            twin(*inputs[0], **inputs[1])
    except Exception:
        return False
    return True

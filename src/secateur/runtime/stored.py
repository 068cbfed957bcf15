"""`model.safetensors` of a run folder: weights and a header that check themselves, read as data and trusted in nothing.

The header holds a hash of the tensors and one of itself, so that damage shows without any other file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from secateur._files import parse_json, said, shown
from secateur._version import __version__
from secateur.errors import ConfigError, RunError
from secateur.graph.modules import named_tensors
from secateur.plan import Plan, kept_fingerprint, shapes_fingerprint
from secateur.runtime.inputs import Signature
from secateur.runtime.weights import canonical, misfit, save_tensors, state_tensors

FORMAT = "secateur.model"
VERSION = "1"
FILE = "model.safetensors"
_HEADS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Stored:
    """What `model.safetensors` holds, checked: the tensors and what the header says."""

    path: Path
    tensors: dict[str, torch.Tensor]
    header: Mapping[str, str]
    inputs: Signature
    reference: str
    arguments: dict[str, Any]

    def put_into(self, model: nn.Module) -> None:
        """Make `model`, the original cut by the plan, the network that was saved.

        Heads that were replaced by others of another length are made so long, and layers take the precision that they
        were saved in.

        Raises:
            RunError: names, shapes or kinds of numbers are not the same on both sides; give the right original.
        """
        problem = self.misfit(model)
        if problem:
            raise RunError(
                f"The weights {str(self.path)!r} do not fit the network narrowed by plan.json: {problem}; "
                "give the model this run pruned, or the files are of different runs."
            )
        self._check_network(model)
        own = state_tensors(model)
        with torch.no_grad():
            for name, value in self.tensors.items():
                if own[name].dtype != value.dtype:
                    own[name].data = own[name].data.to(value.dtype)
                own[name].copy_(value)

    def misfit(self, model: nn.Module) -> str | None:
        """How the tensors differ from those of `model`, whose heads are made as long; None if they do not."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        _lengthen(model, shapes)
        own = state_tensors(model)
        problem = misfit(shapes, own)
        other = [name for name, t in self.tensors.items() if name in own and not _converts(own[name].dtype, t.dtype)]
        if problem is None and other:
            return f"{other[0]} is {_kind(self.tensors, other)} in the file, {_kind(own, other)} in the model"
        return problem

    def _check_network(self, model: nn.Module) -> None:
        """RunError unless `model` has the parameters and buffers of the network that was saved."""
        if shapes_fingerprint(named_tensors(model)) != self.header["narrow"]:
            raise RunError(
                f"The narrowed network is not the one {str(self.path)!r} was saved from (names or shapes of parameters "
                "or buffers differ); the files are of different runs or were edited."
            )


def described(
    path: Path,
    model: nn.Module,
    *,
    reference: str,
    arguments: Mapping[str, Any],
    inputs: Signature,
    plan: Plan,
    metadata: Mapping[str, Any],
) -> Stored:
    """What `write` would write of a network to `path`."""
    tensors = canonical(model)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "secateur": __version__,
        "torch": str(torch.__version__),
        "reference": reference,
        "arguments": _json(arguments, "The arguments of the model"),
        "inputs": json.dumps(inputs.shapes),
        "input_types": json.dumps(inputs.types),
        "input_names": json.dumps(inputs.names),
        **({"input_form": json.dumps(inputs.form)} if inputs.form is not None else {}),
        "plan": kept_fingerprint(plan),
        "architecture": plan.architecture or "",
        "narrow": shapes_fingerprint(named_tensors(model)),
        "weights": digest(tensors),
    }
    for key, value in metadata.items():
        if key in header or key == "checksum":
            raise ConfigError(f"The metadata {key!r} is written by save_model itself: leave it out.")
        header[key] = value if isinstance(value, str) else _json(value, f"The metadata {key!r}")
    header["checksum"] = _checksum(header)
    # as they come back from JSON, which is what they will be read from
    return Stored(path, tensors, header, inputs, reference, parse_json(header["arguments"]))


def write(stored: Stored) -> None:
    """Write the file."""
    save_tensors(stored.tensors, stored.path, stored.header)


def _lengthen(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give layers whose outputs were replaced by more or fewer, as the head for other classes is, as many."""
    for name, module in model.named_modules():
        weight = shapes.get(f"{name}.weight" if name else "weight")
        if not isinstance(module, _HEADS) or weight is None or tuple(module.weight.shape[1:]) != weight[1:]:
            continue
        if weight[0] == len(module.weight) or getattr(module, "groups", 1) != 1:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            fresh = parameter.detach().new_zeros((weight[0], *parameter.shape[1:]))
            setattr(module, key, nn.Parameter(fresh, requires_grad=parameter.requires_grad))
        setattr(module, "out_features" if isinstance(module, nn.Linear) else "out_channels", weight[0])


def _converts(own: torch.dtype, stored: torch.dtype) -> bool:
    return own == stored or (own.is_floating_point and stored.is_floating_point)


def read(path: Path) -> Stored:
    """Read and check the file.

    Raises:
        RunError: it is missing, foreign, damaged, or written by another version.
    """
    header, tensors = _content(path)
    _check_header(path, header)
    if header["weights"] != digest(tensors):
        raise RunError(f"The weights {str(path)!r} are damaged: their hash is not the one in their header.")
    arguments = _parsed(path, header, "arguments")
    if not isinstance(arguments, dict):
        raise _malformed(path, "arguments")
    noted = [_parsed(path, header, key) for key in ("inputs", "input_types", "input_names")]
    form = _parsed(path, header, "input_form") if "input_form" in header else None
    inputs = Signature.read(noted[0], noted[1], noted[2], form)
    return Stored(path, tensors, header, inputs, header["reference"], arguments)


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous()
        found.update(json.dumps([name, str(data.dtype), list(data.shape)]).encode())
        found.update(data.reshape(-1).view(torch.uint8).numpy().data if data.numel() else b"")
    return "sha256:" + found.hexdigest()


def _content(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(os.fspath(path), framework="pt") as stored:
            names = list(stored.keys())
            return dict(stored.metadata() or {}), {name: stored.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise RunError(f"The weights {str(path)!r} cannot be read: {said(error)}.") from error
    except Exception as error:  # a type of number this PyTorch does not know, a name that is not UTF-8
        raise RunError(
            f"The weights {str(path)!r} hold what no saved network does ({type(error).__name__}: {said(error)})."
        ) from error


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise RunError(
            f"{str(path)!r} was not written by secateur.runtime.save_model (its header has no format {FORMAT!r}): "
            "to put weights into a model of your own, load them with safetensors."
        )
    if header.get("version") != VERSION:
        raise RunError(
            f"The weights {str(path)!r} have version {shown(header.get('version'))}: this release reads {VERSION}."
        )
    if header.get("checksum") != _checksum(header):
        raise RunError(f"The header of {str(path)!r} is damaged: its hash is not the one it holds.")
    needed = "reference arguments inputs input_types input_names plan architecture narrow weights"
    for key in needed.split():
        if key not in header:
            raise _malformed(path, key)


def _parsed(path: Path, header: Mapping[str, str], key: str) -> Any:
    try:
        return parse_json(header[key])
    except (ValueError, RecursionError) as error:
        raise _malformed(path, key) from error


def _malformed(path: Path, key: str) -> RunError:
    return RunError(f"The header of {str(path)!r} has no sound entry {key!r}: the file was edited.")


def _checksum(header: Mapping[str, str]) -> str:
    rest = sorted((key, value) for key, value in header.items() if key != "checksum")
    return "sha256:" + hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def _kind(tensors: Mapping[str, torch.Tensor], names: list[str]) -> str:
    return str(tensors[names[0]].dtype).removeprefix("torch.")


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what} cannot be noted in the weights: not JSON ({said(error)}).") from error

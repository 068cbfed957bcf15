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
from secateur.runtime.inputs import Inputs
from secateur.runtime.weights import canonical, misfit, save_weights, state_tensors

FORMAT = "secateur.model"
VERSION = "1"
FILE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """What `model.safetensors` holds, checked: the tensors and what the header says."""

    path: Path
    tensors: dict[str, torch.Tensor]
    header: Mapping[str, str]
    inputs: Inputs
    reference: str
    arguments: dict[str, Any]

    def load_into(self, model: nn.Module) -> None:
        """Copy every tensor into `model`; RunError unless names, shapes and types are the same on both sides."""
        own = state_tensors(model)
        problem = misfit({name: tuple(t.shape) for name, t in self.tensors.items()}, own)
        if problem is None:
            other = [name for name, t in self.tensors.items() if t.dtype != own[name].dtype]
            problem = (
                f"{other[0]} is {_kind(self.tensors, other)} in the file, {_kind(own, other)} in the model"
                if other
                else None
            )
        if problem:
            raise RunError(
                f"The weights {str(self.path)!r} do not fit the network narrowed by plan.json: {problem}; "
                "give the model this run pruned, or the files are of different runs."
            )
        with torch.no_grad():
            for name, value in self.tensors.items():
                own[name].copy_(value)

    def check_network(self, model: nn.Module) -> None:
        """RunError unless `model` has the parameters and buffers of the network that was saved."""
        if shapes_fingerprint(named_tensors(model)) != self.header["narrow"]:
            raise RunError(
                f"The narrowed network is not the one {str(self.path)!r} was saved from (names or shapes of parameters "
                "or buffers differ); the files are of different runs or were edited."
            )


def write(
    path: Path,
    model: nn.Module,
    *,
    reference: str,
    arguments: Mapping[str, Any],
    inputs: Inputs,
    plan: Plan,
    metadata: Mapping[str, Any],
) -> dict[str, str]:
    """Write the file and return its header."""
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
        "plan": kept_fingerprint(plan),
        "architecture": plan.architecture or "",
        "narrow": shapes_fingerprint(named_tensors(model)),
        "weights": digest(canonical(model)),
    }
    for key, value in metadata.items():
        if key in header or key == "checksum":
            raise ConfigError(f"The metadata {key!r} is written by save_model itself: leave it out.")
        header[key] = value if isinstance(value, str) else _json(value, f"The metadata {key!r}")
    header["checksum"] = _checksum(header)
    save_weights(model, path, header)
    return header


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
    inputs = Inputs.read(*(_parsed(path, header, key) for key in ("inputs", "input_types", "input_names")))
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

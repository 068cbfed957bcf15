"""Weights as safetensors files: data, never pickle; read strictly, written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from secateur._files import kind_of, said, write_bytes
from secateur.errors import ConfigError, WeightsError

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
_ZIP = b"PK\x03\x04"  # what torch.save writes


def read_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a safetensors file into `model`: every tensor of one is in the other, with the same shape.

    path: of the file.

    Raises:
        ConfigError: the file cannot be read, or is a pickle. WeightsError: it does not fit; the model is as it was.
    """
    file = Path(path)
    _refuse_pickle(file)
    own = state_tensors(model)
    try:
        with safe_open(str(file), framework="pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            _check_fit(file, shapes, own)
            values = {name: stored.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"The weights {str(file)!r} cannot be read: {said(error)}.") from error
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def save_weights(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write the parameters and buffers of `model`; a reader sees the old file or the new one, never half of it.

    path: of the safetensors file. metadata: text that is kept with it.

    A tensor with several names is written under the first.
    """
    save_tensors(canonical(model), path, metadata)


def save_tensors(named: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write tensors by name, as `save_weights` does."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    data = ordered(save(_apart(tensors), metadata=dict(metadata)))
    write_bytes(path, data, what="The weights", error=ConfigError)


def check_target(path: str | os.PathLike[str], option: str) -> None:
    """Refuse an output file that cannot be written, before any work is done.

    path: of the file. option: what the user called it, for the message.
    """
    file = Path(path)
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except FileNotFoundError:
        kind = None
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise ConfigError(f"{option} {str(path)!r} cannot be written: {said(error)}.") from error
    if kind == stat.S_IFDIR:
        raise ConfigError(f"{option} {str(path)!r} is a folder: give a file name in it.")
    if kind_of(file.parent) != stat.S_IFDIR:
        raise ConfigError(f"{option} {str(path)!r} cannot be written: the folder {str(file.parent)!r} does not exist.")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{option} {str(path)!r} cannot be written: {str(file.parent)!r} is write-protected.")


def canonical(model: nn.Module) -> dict[str, torch.Tensor]:
    """What `save_weights` writes: the state dict, a tensor with several names under the first."""
    first: dict[int, str] = {}
    return {name: t for name, t in state_tensors(model).items() if first.setdefault(id(t), name) == name}


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with the tensors themselves, tied ones under all their names."""
    found: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{name} in the state dict is a {type(value).__name__}, which safetensors cannot hold.")
    return found


def ordered(data: bytes) -> bytes:
    """The file with its metadata in order: safetensors hashes them, so that no two files would be the same bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" not in header:
        return data
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Different tensors over one storage (views) become copies, as the format holds no sharing."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


def _refuse_pickle(file: Path) -> None:
    if kind_of(file) != stat.S_IFREG:
        raise ConfigError(f"There is no weights file {str(file)!r}: give a safetensors file.")
    try:
        with file.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise ConfigError(f"The weights {str(file)!r} cannot be read: {said(error)}.") from error
    if file.suffix.casefold() in _PICKLES or _is_pickle(start):
        raise ConfigError(
            f"The weights {str(file)!r} are a pickle, which can run code when it is loaded: convert them once with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors') and give that."
        )


def _is_pickle(start: bytes) -> bool:
    """A zip file, or pickle's mark and protocol; a safetensors header of such a length has its brace in ninth place."""
    return start.startswith(_ZIP) or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:] != b"{")


def _check_fit(file: Path, shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, torch.Tensor]) -> None:
    problem = misfit(shapes, own)
    if problem:
        raise WeightsError(f"The weights {str(file)!r} do not fit: {problem}; give the weights of this very model.")


def misfit(shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, torch.Tensor]) -> str | None:
    """How names (one of each tied set suffices) and shapes of a file differ from a model's; None if they do not."""
    unknown = [name for name in shapes if name not in own]
    there = {id(own[name]) for name in shapes if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in there]
    other = [name for name in shapes if name in own and shapes[name] != tuple(own[name].shape)]
    if other:
        name = other[0]
        return (
            f"{name} is {_shape(shapes[name])} in the file and {_shape(tuple(own[name].shape))} in the model"
            f"{_more(other)}"
        )
    parts = [f"{missing[0]} is missing from the file{_more(missing)}"] if missing else []
    parts += [f"{unknown[0]} is not in the model{_more(unknown)}"] if unknown else []
    return " and ".join(parts) or None


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""

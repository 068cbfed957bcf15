"""Weights: read strictly from a checkpoint of any usual kind, written as safetensors, whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from secateur._files import kind_of, said, write_bytes
from secateur.errors import ConfigError, WeightsError
from secateur.graph.modules import unwrap
from secateur.runtime.checkpoints import find, plain_name


def read_weights(model: nn.Module, path: str | os.PathLike[str], *, ema: bool = False) -> tuple[str, ...]:
    """Load a checkpoint into `model`: every tensor of one is in the other, with the same shape.

    path: of a safetensors file or of what torch.save wrote (runtime/checkpoints.py). ema: take the moving average.

    Returns:
        sentences, about what was chosen of the file and what was left out.

    Raises:
        ConfigError: the file cannot be read, or would run code. WeightsError: it does not fit; the model is as it was.
    """
    own = {plain_name(name): tensor for name, tensor in state_tensors(unwrap(model)).items()}
    found = find(Path(path), own, ema=ema)
    _check_fit(Path(path), found.tensors, own)
    with torch.no_grad():
        for name, value in found.tensors.items():
            own[name].copy_(value)
    return found.notes


def save_weights(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write the parameters and buffers of `model`; a reader sees the old file or the new one, never half of it.

    path: of the safetensors file. metadata: text that is kept with it.

    A tensor with several names is written under the first.
    """
    save_tensors(canonical(unwrap(model)), path, metadata)


def save_tensors(named: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write tensors by name, as `save_weights` does."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in named.items()}
    data = ordered(save(_apart(tensors), metadata=dict(metadata)))
    write_bytes(path, data, what="The weights", error=ConfigError)


def check_target(path: str | os.PathLike[str], option: str, model: str = "") -> None:
    """Refuse an output file that cannot be written, or that the network is made from, before any work is done.

    No Python file is written over: networks and plug-ins are made from them, whatever they are called by.

    path: of the file. option: what the user called it, for the message. model: the reference of the network; where it
        is a folder, none of its files may be written over.
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
    if kind is not None and file.resolve().suffix == ".py":
        raise ConfigError(f"{option} {str(path)!r} is a Python file, which would be lost: give another name.")
    if kind is not None and model and any(file.samefile(read) for read in _files(Path(model))):
        raise ConfigError(f"{option} {str(path)!r} is a file that the network is made from: give another name.")


def _files(folder: Path) -> Iterator[Path]:
    """What lies in a folder; nothing where there is none."""
    found = folder.iterdir() if kind_of(folder) == stat.S_IFDIR else ()
    return (file for file in found if kind_of(file) is not None)


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
        if value.is_meta:
            raise WeightsError(f"{name} has a shape and no numbers (it is on the meta device): load its weights first.")
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


def _check_fit(file: Path, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """WeightsError unless all names and shapes are the model's; counters of batches may be missing."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problem = misfit(shapes, {n: t for n, t in own.items() if n in shapes or not n.endswith("num_batches_tracked")})
    if problem is None:
        return
    remedy = "give the weights of this very model"
    other = [name for name, shape in shapes.items() if name in own and shape != tuple(own[name].shape)]
    heads = {name.rpartition(".")[0] for name in other}
    if len(heads) == 1 and all(shapes[name][1:] == tuple(own[name].shape)[1:] for name in other):
        remedy = f"build the model with {shapes[other[0]][0]} outputs there, such as num_classes={shapes[other[0]][0]}"
    raise WeightsError(f"The weights {str(file)!r} do not fit: {problem}; {remedy}.")


def misfit(shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, torch.Tensor]) -> str | None:
    """How names (one of each tied set suffices) and shapes of a file differ from a model's; None if they do not."""
    unknown = [name for name in shapes if name not in own]
    there = {id(own[name]) for name in shapes if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in there]
    other = [name for name in shapes if name in own and shapes[name] != tuple(own[name].shape)]
    if other:
        name = other[0]
        rest = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        return f"{name} is {_shape(shapes[name])} in the file and {_shape(tuple(own[name].shape))} in the model{rest}"
    parts = [f"{_few(missing)} missing from the file"] if missing else []
    parts += [f"{_few(unknown)} not in the model"] if unknown else []
    return " and ".join(parts) or None


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _few(names: list[str]) -> str:
    """The first few of them, as the subject of a sentence."""
    named, rest = ", ".join(names[:3]), f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{named}{rest} {'is' if len(names) == 1 else 'are'}"

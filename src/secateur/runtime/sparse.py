"""A network with many zeros in a file that does not store them: one bit a weight, and the weights that are not zero."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from secateur._files import parse_json, said, write_bytes
from secateur.errors import ConfigError
from secateur.runtime.weights import canonical, ordered

FILE = "model.sparse.safetensors"
FORMAT, VERSION = "secateur.sparse", "1"


def save_sparse(model: nn.Module, path: str | os.PathLike[str], names: Iterable[str]) -> int:
    """Write the state of `model`, the parameters `names` without their zeros; returns the bytes of the file."""
    chosen, tensors, shapes = set(names), dict[str, torch.Tensor](), dict[str, list[int]]()
    for name, tensor in canonical(model).items():
        value = tensor.detach().cpu().contiguous()
        if name not in chosen:
            tensors[f"{name}:whole"] = value
            continue
        there = value != 0
        tensors[f"{name}:bits"] = torch.from_numpy(np.packbits(there.flatten().numpy()))
        tensors[f"{name}:values"] = value[there].clone()
        shapes[name] = list(value.shape)
    header = {"format": FORMAT, "version": VERSION, "shapes": json.dumps(shapes)}
    data = ordered(save({name: tensor.clone() for name, tensor in tensors.items()}, metadata=header))
    write_bytes(path, data, what="The sparse weights", error=ConfigError)
    return len(data)


def read_sparse(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The state dict that `save_sparse` wrote, zeros in place; ConfigError for any other file."""
    file = Path(path)
    try:
        with safe_open(str(file), framework="pt") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT or header.get("version") != VERSION:
                raise ValueError(f"its format is not {FORMAT} {VERSION}")
            shapes = parse_json(header["shapes"])
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        whole = {name.removesuffix(":whole"): value for name, value in found.items() if name.endswith(":whole")}
        return whole | {name: _filled(found, name, shape) for name, shape in shapes.items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"The sparse weights {str(file)!r} cannot be read: {said(error)}.") from error


def _filled(found: dict[str, torch.Tensor], name: str, shape: list[int]) -> torch.Tensor:
    bits, values = found[f"{name}:bits"], found[f"{name}:values"]
    count = int(np.prod(shape, dtype=np.int64))
    if bits.dtype != torch.uint8 or bits.ndim != 1 or len(bits) != -(-count // 8):
        raise ValueError(f"the bits of {name} are not those of its shape")
    there = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).bool()
    if values.shape != (int(there.sum()),):
        raise ValueError(f"{name} has {len(values)} values for {int(there.sum())} bits")
    full = torch.zeros(count, dtype=values.dtype)
    full[there] = values
    return full.view(shape)

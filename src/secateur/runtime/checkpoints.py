"""Checkpoints as people have them: the state dict found in the file, and what wrappers put before its names taken off.

What torch.save wrote is read with weights_only=True, which makes tensors and plain containers and nothing else.
"""

from __future__ import annotations

import argparse
import pickle
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from secateur._files import kind_of, said, shown
from secateur.errors import ConfigError

Tensors = dict[str, torch.Tensor]

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
_ZIP = b"PK\x03\x04"  # what torch.save writes
#: Plain values that training scripts put beside the weights: their arguments, and numbers of NumPy.
_HARMLESS: list[Any] = [
    argparse.Namespace, np.dtype, np._core.multiarray.scalar,  # type: ignore[attr-defined]
    type(np.dtype(np.float64)), type(np.dtype(np.float32)), type(np.dtype(np.int64)),
]  # fmt: skip
_DEEPEST = 3  # dicts in dicts
_AVERAGES = frozenset({"ema", "averaged", "average", "swa"})
#: What a state dict is called, and what stands before its names, from the most to the least usual.
_USUAL = ("", "state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "generator")
#: What profilers leave in a model, and norms of old releases do without.
_FOREIGN, _COUNTER = ("total_ops", "total_params"), "num_batches_tracked"


@dataclass(frozen=True)
class Found:
    """The tensors that are a model's, under its names, and sentences about what was chosen and left out."""

    tensors: Tensors
    notes: tuple[str, ...] = ()


def find(path: Path, own: Mapping[str, torch.Tensor], *, ema: bool = False) -> Found:
    """What in a file is the state of a model with the tensors `own`.

    Where nothing fits, what comes nearest is returned as it is, so that the caller can say how it differs.

    Args:
        path: a safetensors file, or what torch.save wrote. own: the model's state dict. ema: take the moving average.

    Raises:
        ConfigError: the file cannot be read, would run code, holds no tensors, holds no moving average, or several
        states that fit.
    """
    offered = [_Offer(entry, prefix, _under(tensors, prefix)) for entry, tensors in _entries(path)
               for prefix in _prefixes(tensors, own)]  # fmt: skip
    if not offered:
        raise ConfigError(f"The weights {str(path)!r} hold no tensors by name: give a file with a state dict.")
    averages = [offer for offer in offered if offer.average]
    if ema and not averages:
        entries = ", ".join(dict.fromkeys(shown(offer.entry) for offer in offered if offer.entry)) or "one state dict"
        raise ConfigError(f"The weights {str(path)!r} hold no moving average (there is {entries}): leave ema out.")
    wanted = averages if ema else [offer for offer in offered if not offer.average] or averages
    fitting = [offer for offer in wanted if offer.fits(own)] or (
        [] if ema else [offer for offer in averages if offer.fits(own)]
    )
    if not fitting:
        return Found(max(wanted, key=lambda offer: offer.common(own)).tensors)
    first = min(offer.rank for offer in fitting)
    best = [offer for offer in fitting if offer.rank == first]
    if len(best) > 1:
        raise ConfigError(
            f"The weights {str(path)!r} hold several states that fit ({', '.join(offer.said for offer in best)}): save "
            "the one that is meant alone."
        )
    return best[0].found(own, fitting, ema)


@dataclass(frozen=True)
class _Offer:
    """Tensors of one entry of the file whose names begin with `prefix`, which is taken off."""

    entry: str
    prefix: str
    tensors: Tensors

    @property
    def average(self) -> bool:
        return bool(_AVERAGES & set(re.split(r"[\W_]+", f"{self.entry}.{self.prefix}".casefold())))

    @property
    def rank(self) -> int:
        """How usual it is that this is the one; averages are told apart by nothing else."""
        names = [re.split(r"\.", self.entry)[-1], *self.prefix.strip(".").split(".")]
        places = [_USUAL.index(name) if name in _USUAL else len(_USUAL) for name in names]
        return 0 if self.average else max(places)

    @property
    def said(self) -> str:
        return shown(".".join(filter(None, (self.entry, self.prefix.rstrip(".")))) or "the whole file")

    def common(self, own: Mapping[str, torch.Tensor]) -> int:
        return len(self.tensors.keys() & own.keys())

    def fits(self, own: Mapping[str, torch.Tensor]) -> bool:
        """Whether names and shapes are the model's; of a tensor with several names, one will do."""
        there = {id(own[name]) for name in self.tensors if name in own}
        missing = [name for name, t in own.items() if id(t) not in there and not name.endswith(_COUNTER)]
        strange = [name for name in self.tensors if name not in own and not name.endswith(_FOREIGN)]
        return not missing and not strange and all(own[n].shape == t.shape for n, t in self.tensors.items() if n in own)

    def found(self, own: Mapping[str, torch.Tensor], fitting: list[_Offer], ema: bool) -> Found:
        notes = []
        if self.entry or self.prefix:
            notes.append(f"The weights are those under {self.said} in the file.")
        if self.average and not ema:
            notes.append("They are a moving average, the only weights there that fit.")
        elif len(fitting) > 1:
            others = ", ".join(offer.said for offer in fitting if offer is not self)
            notes.append(f"Others that would fit were left: {others}.")
        strange = [name for name in self.tensors if name not in own]
        if strange:
            notes.append(f"Counters of a profiler were left out, such as {strange[0]}.")
        return Found({name: tensor for name, tensor in self.tensors.items() if name in own}, tuple(notes))


def plain_name(name: str) -> str:
    """Without what torch.compile puts before the names of whatever part it was given."""
    return name.removeprefix("_orig_mod.").replace("._orig_mod.", ".")


def _prefixes(tensors: Tensors, own: Mapping[str, torch.Tensor]) -> list[str]:
    """What may stand before the model's names in the file: whatever stands before one of them."""
    first = next(iter(own), "")
    last = [name[: -len(first)] for name in tensors if first and name.endswith(f".{first}")]
    return ["", *dict.fromkeys(last)]


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _entries(path: Path) -> list[tuple[str, Tensors]]:
    """All dicts of tensors in the file, by where they stand in it."""
    return list(_searched(_content(path), "", 0))


def _searched(content: Any, where: str, depth: int) -> Iterator[tuple[str, Tensors]]:
    if not isinstance(content, Mapping) or depth > _DEEPEST or "optim" in where.rpartition(".")[2].casefold():
        return
    tensors = {plain_name(n): t for n, t in content.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    if tensors:
        yield where, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _searched(value, f"{where}.{name}" if where else name, depth + 1)


def _content(path: Path) -> Any:
    if kind_of(path) != stat.S_IFREG:
        raise ConfigError(f"There is no weights file {str(path)!r}: give a checkpoint (.pth, .pt, .safetensors).")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
        plain = _is_safetensors(start, path.stat().st_size)
        if plain or not (path.suffix.casefold() in _SUFFIXES or _is_pickle(start)):
            with safe_open(str(path), framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as stream:  # by what it is, not its name
            return torch.load(stream, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"The weights {str(path)!r} cannot be read: {said(error)}.") from error
    except Exception as error:  # of a pickle there is no end of what can be wrong
        raise _refusal(path, error) from error


def _is_safetensors(start: bytes, size: int) -> bool:
    """The length of a header that fits into the file, and the header's first brace."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _is_pickle(start: bytes) -> bool:
    """A zip file, or pickle's mark and protocol; a safetensors header of such a length has its brace in ninth place."""
    return start.startswith(_ZIP) or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:] != b"{")


def _refusal(path: Path, error: Exception) -> ConfigError:
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if "TorchScript" in str(error):
        return ConfigError(
            f"The weights {str(path)!r} are a TorchScript program: give a checkpoint of the network's state dict."
        )
    if isinstance(error, pickle.UnpicklingError) and name is not None:
        return ConfigError(
            f"The weights {str(path)!r} hold a pickled object of {name[1]}, which can run code when it is loaded: in "
            "the program that wrote it, save only torch.save(model.state_dict(), 'weights.pth'), and give that."
        )
    return ConfigError(
        f"The weights {str(path)!r} cannot be read ({type(error).__name__}): the file is damaged, or not of torch.save."
    )

"""`model.pt2` as data: PyTorch's archive of an exported network, read without PyTorch's loader.

`torch.export.load` unpickles sample inputs and marked weights, evaluates the file's shape expressions as Python and
loads compiled libraries. Here a zip file is taken apart and JSON parsed; members of any other kind are refused.
"""

from __future__ import annotations

import math
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur._files import parse_json, said, shown
from secateur.errors import RunError

SCHEMA = 8  # the major version of PyTorch's serialisation that is understood
_MOST_MEMBERS = 1 << 20

#: Every member that data alone can be; `sample` must be empty, for what it could hold is a pickle.
_MEMBERS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)|"
    r"models/model\.json|archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id|"
    r"(?P<sample>data/sample_inputs/model\.pt)",
    re.ASCII,
)

#: PyTorch's numbers for the types of a tensor's elements.
TYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool,
    13: torch.bfloat16,
}  # fmt: skip


class NotRun(RunError):
    """A sound archive that holds what is not run here; another way to load the network may be open."""


@dataclass(frozen=True)
class Archive:
    """An exported network: its graph as parsed JSON, its tensors by name."""

    path: Path
    graph_module: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]  # names that shared storage share tensors
    parameters: frozenset[str]
    constants: Mapping[str, torch.Tensor]


def read_archive(path: Path) -> Archive:
    """Take an archive apart.

    Raises:
        RunError: it is missing, damaged, foreign, or holds anything but data. NotRun: it holds a newer format.
    """
    with foreign(path), zipfile.ZipFile(path) as file:
        names = _members(path, file)
        document = parse_json(_member(file, names, "models/model.json").decode("utf-8"))
        if document["schema_version"]["major"] != SCHEMA:
            raise NotRun(
                f"{str(path)!r} was exported by another PyTorch (format {shown(document['schema_version'])}): "
                f"this release reads format {SCHEMA}."
            )
        if _member(file, names, "byteorder").decode() != sys.byteorder:
            raise NotRun(f"{str(path)!r} was exported on a machine with another byte order: export it again here.")
        weights, parameters = _payload(file, names, "data/weights/", "model_weights_config.json")
        constants, _ = _payload(file, names, "data/constants/", "model_constants_config.json")
        return Archive(path, document["graph_module"], weights, frozenset(parameters), constants)


@contextmanager
def foreign(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file that anybody may have written is taken apart becomes one sentence."""
    try:
        yield
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(f"There is no file {str(path)!r}: it was not exported, or was removed.") from error
    except Exception as error:  # zipfile, json and tensor constructors have no common family
        raise RunError(
            f"{str(path)!r} is damaged or was not written by Secateur ({type(error).__name__}: {said(error)})."
        ) from error


def _members(path: Path, file: zipfile.ZipFile) -> dict[str, str]:
    """Names below the archive's one folder to names in the zip file; RunError unless all of it is plain data."""
    infos = file.infolist()
    if len(infos) > _MOST_MEMBERS or sum(info.file_size for info in infos) > path.stat().st_size:
        raise RunError(f"{str(path)!r} claims to hold more than its size: it was not written by Secateur.")
    found: dict[str, str] = {}
    for info in infos:
        name = info.filename.partition("/")[2]
        match = _MEMBERS.fullmatch(name)
        if match is None or (match["sample"] and info.file_size):
            raise RunError(
                f"{str(path)!r} holds {shown(info.filename)}, which may run code when it is loaded: only exported "
                "networks without pickles, sample inputs and compiled libraries are read."
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or name in found:
            raise RunError(f"{str(path)!r} is packed as PyTorch does not pack: it was not written by Secateur.")
        found[name] = info.filename
    return found


def _member(file: zipfile.ZipFile, names: Mapping[str, str], name: str) -> bytes:
    """One member whole; zipfile compares its checksum."""
    if name not in names:
        raise ValueError(f"{name} is missing")
    return file.read(names[name])


def _payload(
    file: zipfile.ZipFile, names: Mapping[str, str], folder: str, config: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors that a payload's JSON describes, and the names among them that are parameters."""
    found: dict[str, torch.Tensor] = {}
    parameters = []
    flat: dict[tuple[str, int], torch.Tensor] = {}
    whole: dict[str, torch.Tensor] = {}
    for name, row in parse_json(_member(file, names, folder + config).decode("utf-8"))["config"].items():
        if row["use_pickle"] is not False:
            raise RunError(f"{file.filename!r} holds {shown(name)} as a pickle, which may run code: it is not read.")
        meta, member = row["tensor_meta"], row["path_name"]
        kind = meta["dtype"]
        if (member, kind) not in flat:
            data = _member(file, names, folder + member)
            flat[member, kind] = torch.frombuffer(bytearray(data), dtype=TYPES[kind]) if data else torch.empty(0)
        place = f"{member} {meta['dtype']} {meta['sizes']} {meta['strides']} {meta['storage_offset']}"
        if place not in whole:  # tied weights become one tensor again
            whole[place] = _view(flat[member, kind].to(TYPES[kind]), meta)
        found[name] = whole[place]
        if row["is_param"] is True:
            parameters.append(name)
    return found, parameters


def _view(flat: torch.Tensor, meta: Mapping[str, Any]) -> torch.Tensor:
    sizes, strides = [whole(n) for n in meta["sizes"]], [whole(n) for n in meta["strides"]]
    if not flat.numel():
        return torch.empty(sizes, dtype=flat.dtype) if 0 in sizes else flat.reshape(sizes)
    if math.prod(sizes) > flat.numel():
        raise NotRun("The archive holds a weight that repeats its own numbers, which this release does not read.")
    return flat.as_strided(sizes, strides, whole(meta["storage_offset"])).clone()


def whole(number: Mapping[str, Any]) -> int:
    """A whole number as PyTorch writes those that could be symbols."""
    if set(number) != {"as_int"} or type(number["as_int"]) is not int:
        raise ValueError(f"{shown(number)} is not a whole number")
    return int(number["as_int"])

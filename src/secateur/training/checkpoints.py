"""Checkpoints: a folder each with tensors.safetensors and state.json, there whole or not at all, and never a pickle.

A checkpoint is written under a temporary name, made durable and renamed. state.json holds the hash of the tensors and
its own, so that a damaged checkpoint is known as one; the one before it then takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from secateur._files import read_json, said
from secateur.errors import RunError

FORMAT, VERSION = "secateur.checkpoint", 1
TENSORS, STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"(?P<stage>[a-z][a-z_]*)-(?P<step>\d{9,}|done)")


@dataclass(frozen=True)
class Checkpoint:
    """One that was found whole."""

    path: Path
    state: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `prefix`, which is taken off."""
        try:
            with safe_open(str(self.path / TENSORS), framework="pt") as file:
                return {k[len(prefix) :]: file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        except (OSError, SafetensorError) as problem:
            raise RunError(f"The checkpoint {str(self.path)!r} cannot be read: {said(problem)}.") from problem


class Store:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None]) -> None:
        self.folder, self.keep, self._say = folder, keep, say

    def write(
        self,
        stage: str,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        *,
        done: bool = False,
    ) -> str:
        """Write one and return its name; RunError, and nothing changed, where that is impossible."""
        name = f"{stage}-done" if done else f"{stage}-{step:09d}"
        temporary = self.folder / f".{name}.{secrets.token_hex(6)}.tmp"
        try:
            try:
                self.folder.mkdir(exist_ok=True)  # no folders above it: a run that was removed stays so
                temporary.mkdir()
                save_file(_apart(tensors), temporary / TENSORS)
                _sync(temporary / TENSORS)
                head = {"format": FORMAT, "version": VERSION, "stage": stage, "done": done}
                _write_json(temporary / STATE, {**head, **state, "tensors": _digest(temporary / TENSORS)})
                _sync(temporary)
                self._rename(temporary, self.folder / name)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        except (OSError, SafetensorError) as problem:
            raise RunError(
                f"The checkpoint cannot be written to {str(self.folder / name)!r}: {said(problem)}; "
                "the one before it is whole, so the run can be resumed."
            ) from problem
        return name

    def newest(self, stage: str) -> Checkpoint | None:
        """The newest whole checkpoint of a stage; for each damaged one that is newer, one sentence."""
        damaged: list[RunError] = []
        for name in reversed(self._names(stage)):
            try:
                found = self.open(name)
            except RunError as problem:
                damaged.append(problem)
                continue
            for one in damaged:
                self._say(f"{one} The one before it, {name}, is used instead.")
            return found
        for one in damaged:
            self._say(f"{one} There is no whole one before it: the stage {stage} begins again.")
        return None

    def open(self, name: str) -> Checkpoint:
        """One checkpoint, checked whole; RunError if it is damaged."""
        path = self.folder / name
        state = read_json(path / STATE, what="The checkpoint's state")
        reason = _damage(path, state)
        if reason:
            raise RunError(f"The checkpoint {name} is damaged: {reason}.")
        return Checkpoint(path, state)

    def tidy(self, stage: str, best: str | None) -> None:
        """Remove all of a stage but the newest ones, the best and the finished one, and what a crash left half-done."""
        steps = [name for name in self._names(stage) if not name.endswith("-done")]
        for name in steps[: -self.keep]:
            if name != best:
                self._remove(self.folder / name)
        self._sweep()

    def forget(self, stage: str, after: int) -> None:
        """Remove what lies beyond optimiser step `after` of a stage (-1: all of it), as training goes another way."""
        for name in self._names(stage):
            step = name.rpartition("-")[2]
            if step == "done" or int(step) > after:
                self._remove(self.folder / name)
        self._sweep()

    def _names(self, stage: str) -> list[str]:
        """From the oldest to the newest; a finished stage's is the newest."""
        if not self.folder.is_dir():
            return []
        matches = [_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        found = [(m["step"] == "done", m["step"].zfill(20), m[0]) for m in matches if m and m["stage"] == stage]
        return [name for *_, name in sorted(found)]

    def _rename(self, temporary: Path, target: Path) -> None:
        if target.exists():  # a damaged one, or one of a future that was given up
            self._remove(target)
        temporary.rename(target)
        _sync(self.folder)

    def _remove(self, path: Path) -> None:
        """First out of sight, in one move, so that a crash leaves no half of it under its name."""
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            path.rename(aside)
        except OSError as problem:
            raise RunError(f"The old checkpoint {str(path)!r} cannot be removed: {said(problem)}.") from problem
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self) -> None:
        if self.folder.is_dir():
            for path in self.folder.glob(".*.tmp"):
                shutil.rmtree(path, ignore_errors=True)


def _damage(path: Path, state: Any) -> str:
    """What is wrong with a checkpoint; empty if nothing is."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        return f"{STATE} is no {FORMAT}"
    if state.get("version") != VERSION:
        return f"{STATE} has version {state.get('version')!r}, and this Secateur reads {VERSION}"
    if state.get("checksum") != _checksum(state):
        return f"{STATE} has been changed"
    try:
        if _digest(path / TENSORS) != state.get("tensors"):
            return f"{TENSORS} does not have the hash it was written with"
    except OSError as problem:
        return f"{TENSORS} cannot be read ({said(problem)})"
    return ""


def _write_json(path: Path, document: dict[str, Any]) -> None:
    document = json.loads(json.dumps(document, allow_nan=False))  # as a reader will see it
    document["checksum"] = _checksum(document)
    with path.open("x", encoding="utf-8") as file:
        json.dump(document, file, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _checksum(document: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in document.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, and none sharing memory with another, as the format holds no sharing."""
    result, seen = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        whole = own.untyped_storage().nbytes() == own.numel() * own.element_size()
        result[name] = own if whole and place not in seen else own.clone()
        seen.add(place)
    return result


def _sync(path: Path) -> None:
    """Make a file durable, or a rename in a folder where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    with contextlib.ExitStack() as stack:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        stack.callback(os.close, handle)
        os.fsync(handle)

"""Who tries the candidates of a race: this process, one after the other, or several at a time on a Ray cluster.

What a candidate comes to depends on nothing but the candidate, and which are proposed not on how many are tried at a
time, so that a search with workers ends as one without them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from secateur._cluster import LOCAL, Need, answer, gpus_of, joined, look_at_all, short, silent
from secateur.compress.candidates import Candidate
from secateur.compress.making import Maker, Outcome
from secateur.errors import ConfigError

Attempt = tuple[Candidate, float]  # and its level
_FILES = ("secateur_plugin_", "_secateur_model_")  # modules of files, which no other process can import by name


class Hands(Protocol):
    """Who tries candidates, `count` at a time."""

    count: int

    def tried(self, attempts: Sequence[Attempt]) -> Iterator[Outcome]:
        """What each comes to, in this order."""


class OwnHands:
    """This process, one after the other."""

    count = 1

    def __init__(self, maker: Maker) -> None:
        """maker: of the search."""
        self._maker = maker

    def tried(self, attempts: Sequence[Attempt]) -> Iterator[Outcome]:
        """What each comes to, in this order."""
        return (self._maker.tried(*attempt) for attempt in attempts)


class Worker:
    """A process that tries candidates."""

    def __init__(self, maker: bytes, threads: int, cache: str | None) -> None:
        """maker: pickled by the process that searches. cache: folder of layer times, where it names one."""
        import pickle

        torch.set_num_threads(threads)
        if cache is not None:
            os.environ["SECATEUR_CACHE"] = cache
        self._maker: Maker = pickle.loads(maker)  # of our own process, through Ray, which pickles all it carries

    def tried(self, candidate: Candidate, level: float) -> Outcome:
        """What a candidate comes to."""
        return self._maker.tried(candidate, level)


class ClusterHands:
    """Workers on a Ray cluster."""

    def __init__(self, ray: Any, workers: Sequence[Any]) -> None:
        """workers: handles of Ray's."""
        self._ray, self._workers, self.count = ray, workers, len(workers)

    def tried(self, attempts: Sequence[Attempt]) -> Iterator[Outcome]:
        """What each comes to, in this order; RunError where a worker is lost. There are at most `count` attempts."""
        pairs = zip(self._workers, attempts, strict=False)
        asked = [worker.tried.remote(*attempt) for worker, attempt in pairs]
        return (answer(self._ray, each, "the same call, or --resume, goes on from there") for each in asked)


@contextlib.contextmanager
def hands(maker: Maker, workers: int, address: str, folder: Path | None, say: Any) -> Iterator[Hands]:
    """Those who try candidates.

    Args:
        workers: at a time; 1: this process, without Ray. address: of the cluster. folder: of the search.
        say: told where there is room for fewer.

    Raises:
        ConfigError: Ray is missing, or something of the search cannot be sent to a worker. RunError: the cluster
            cannot be joined, or has no room.
    """
    if workers == 1:
        yield OwnHands(maker)
        return
    if address != LOCAL and folder is None:
        raise ConfigError("Workers on several machines need out=, a folder that all of them share.")
    if address != LOCAL and maker.request.key == "latency":
        raise ConfigError(
            f"Layers are timed on this machine, and workers at {address!r} may run on others: leave the address local."
        )
    threads, size = torch.get_num_threads(), sum(t.nbytes for t in maker.model.state_dict().values())
    with tempfile.TemporaryDirectory() as own, joined(address, threads * workers, 4 * workers * size) as ray:
        need = Need(threads, gpus_of(ray, maker.device.type), (folder or Path(own)).absolute())
        with silent(ray):
            look_at_all(ray, need)
            count = min(workers, max(need.slots(ray), 1))
            if count < workers:
                say(f"The cluster has room for {count} of {workers} workers of the search.")
            made = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus)(Worker)
            content = ray.put(_pickled(maker))
            there = [made.remote(content, threads, os.environ.get("SECATEUR_CACHE")) for _ in range(count)]
            try:
                yield ClusterHands(ray, there)
            finally:
                for each in there:
                    ray.kill(each)


def _pickled(maker: Maker) -> bytes:
    """The maker as bytes, with the code of files and of modules that other processes do not find."""
    from ray import cloudpickle as ray_cloudpickle

    cloudpickle: Any = ray_cloudpickle
    fresh = replace(maker, options={**maker.options, "watch": None})  # nothing that was made; layers are timed by now
    unknown = _unknown(fresh.model)
    for module in unknown:
        cloudpickle.register_pickle_by_value(module)
    try:
        content: bytes = cloudpickle.dumps(fresh)
    except Exception as error:
        raise ConfigError(
            f"The network, its data or its task cannot be sent to workers ({short(error)}): search without workers."
        ) from error
    finally:
        for module in unknown:
            cloudpickle.unregister_pickle_by_value(module)
    return content


def _unknown(model: nn.Module) -> list[Any]:
    names = {name for name in sys.modules if name.startswith(_FILES)}
    names |= {name for name in {type(each).__module__ for each in model.modules()} if not _importable(name)}
    return [sys.modules[name] for name in sorted(names - {"__main__"}) if name in sys.modules]


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False

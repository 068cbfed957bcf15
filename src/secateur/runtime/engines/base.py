"""The contract between a measurement and what runs a network: one frozen row an engine, and what all of them share.

An engine turns a network into a call without arguments. It knows nothing of what the call is for: to be timed beside
another one, or to fill a table of times.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from secateur._hints import install
from secateur.errors import ConfigError, RunError
from secateur.graph.modules import clone_module, unwrap

Call: TypeAlias = Callable[[], object]
Seconds: TypeAlias = Mapping[str, float]  # by the name of a layer; under REST what is left of the whole
REST = "everything else"


@dataclass(frozen=True)
class Watch:
    """A network that notes where its time goes: call `run` as often as wanted, at least twice, then ask for `times`.

    `times` has the seconds of each run but the first, which warms up.
    """

    run: Call
    times: Callable[[], list[Seconds]]


def _nothing_more() -> str | None:
    return None


@dataclass(frozen=True)
class Engine:
    """A runtime: what it is called, what it needs, and how it runs a network.

    `prepare(model, inputs, threads)` gives a call that runs one forward pass without gradients and returns when it is
    done. `model` is a copy (`copied`) in evaluation mode on its device; `inputs` are what it is called with, and their
    batch size is the one that is run. PyTorch's own threads belong to the process, so prepare and call within
    `threads_set(threads)`. It raises RunError, one sentence, where this network cannot run here.

    `watch`, with the same arguments, gives the seconds of every layer; None where a runtime does not tell.

    `prepare_each(model, several, threads)` gives a call that runs one pass for each of several inputs, one after the
    other; None where an engine runs one alone.
    """

    name: str
    summary: str
    prepare: Callable[[nn.Module, Any, int], Call]
    packages: tuple[str, ...] = ()  # to be imported, beyond torch
    install: str = install()
    watch: Callable[[nn.Module, Any, int], Watch] | None = None
    prepare_each: Callable[[nn.Module, Sequence[Any], int], Call] | None = None
    lacking: Callable[[], str | None] = _nothing_more  # what else is missing, as a sentence

    def missing(self) -> str | None:
        """Why the engine cannot be used on this machine, in one sentence; None if it can. Nothing is imported."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: {self.install}"
        return self.lacking()

    def require(self) -> None:
        """ConfigError with the sentence of `missing`, if there is one."""
        if (sentence := self.missing()) is not None:
            raise ConfigError(sentence)

    def prepared(self, model: nn.Module, several: Sequence[Any], threads: int) -> Call:
        """A call that runs all of these inputs; as `prepare`, RunError where that cannot be done."""
        if len(several) == 1:
            return self.prepare(model, several[0], threads)
        if self.prepare_each is None:
            raise RunError(f"{self.summary} is timed with one input, and this network needs several: leave it out.")
        return self.prepare_each(model, several, threads)

    def versions(self) -> dict[str, str]:
        """Versions of torch and of the package that runs the network, by name."""
        found = {"torch": str(torch.__version__)}
        if self.packages:
            found[self.packages[0]] = importlib.metadata.version(self.packages[0])
        return found


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """PyTorch with so many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copied(model: nn.Module) -> nn.Module:
    """A copy for inference where the model is; the hooks and the mode of the original stay as they are."""
    return clone_module(unwrap(model), lambda tensor: tensor.detach().clone()).eval()


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer is; the CPU for a network without any."""
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))

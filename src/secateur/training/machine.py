"""The machine a run works on: devices, processes, precision, files, progress, and evaluation.

What a stage of training needs of the engine; the engine itself (`engine.py`) adds the stages.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from secateur._distributed import rank, world
from secateur._files import make_folder
from secateur.errors import ConfigError, RunError
from secateur.graph.modules import map_tensors
from secateur.recipe import EngineConfig, Training
from secateur.tasks import Evaluator, Task, create
from secateur.training.checkpoints import Store
from secateur.training.devices import accelerator, laid_out, lay_out, memory_format, precision
from secateur.training.interface import Data, Evaluation, Split
from secateur.training.metrics import Metrics
from secateur.training.prefetch import on_device
from secateur.training.progress import Progress, Silent
from secateur.training.randomness import preserved
from secateur.training.trackers import Trackers

_LOST = ("gloo", "nccl", "connection", "socket", "peer", "rendezvous")  # words of a process that is gone


class Machine:
    """Evaluates networks on one data set, for one run, and holds what training needs besides.

    Args:
        data: images; the engine trains on `data.train` and watches `data.validation`, and touches nothing else of it.
        config: how the machine is used. seed: of everything random.
        task: what networks are trained for and measured by; None: classification.
        batch_size: images of one optimiser step, over all processes and micro-batches together.
        workers: more than 0: batches are made ahead, in a thread (always so on a GPU).
        folder: of the run: gets checkpoints/ and metrics.jsonl with the first epoch. None: nothing is kept.
        progress: who is told; only the first of several processes tells.
        about: what trackers keep as the configuration of the run, such as its recipe.

    Raises:
        ConfigError: the machine cannot do what `config` asks.
    """

    def __init__(
        self,
        data: Data,
        config: EngineConfig | None = None,
        *,
        seed: int = 0,
        batch_size: int = 128,
        workers: int = 0,
        folder: Path | None = None,
        progress: Progress | None = None,
        task: Task | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.data, self.config = data, config or EngineConfig()
        self.task = task or create("classification")
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.accelerator = accelerator(self.config)
        self.device: torch.device = self.accelerator.device
        self.precision = precision(self.config, self.device)
        self.layout = memory_format(self.config, self.device)
        self.scaler: Any = self.accelerator.scaler
        self.main = rank() == 0
        self.progress: Progress = progress if progress is not None and self.main else Silent()
        self.notes: list[str] = []  # sentences for the run's report
        self.folder = Path(folder) if folder is not None else None
        self.store: Store | None = None
        if self.folder is not None:
            self.store = Store(self.folder / "checkpoints", self.config.keep_checkpoints, self.say)
        self._there = self.folder is None or self.folder.exists()  # one that is removed later is not made again
        self.metrics = Metrics(self.folder / "metrics.jsonl" if self.folder is not None and self.main else None)
        self._trackers = self._make_trackers(about or {})
        self._began = time.monotonic()

    # ----------------------------------------------------------------------------------------------------- what it does

    def evaluate(
        self, module: nn.Module, split: Split, *, transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> Evaluation:
        """How good `module` is, in evaluation mode, on all images of `split`; several processes share them.

        transform: applied to the inputs of every batch before the module sees them.
        """
        module.to(self.device)
        found = Evaluator(self.task)
        with self.together(), preserved(self.device), evaluating(module), torch.no_grad():
            batches = split.batches(self.batch_size, rank=rank(), world=world())
            for inputs, targets in on_device(
                batches, self.device, ahead=self.workers > 0, here=getattr(split, "draws_here", False)
            ):
                if not self.task.samples(targets):
                    continue
                shown = inputs if transform is None else map_tensors(inputs, transform)
                self.in_layout(module, shown, functools.partial(_seen, found, module, targets))
            metrics = found.result()
        return Evaluation(metrics["loss"], metrics[self.task.headline], found.samples, metrics)

    def in_layout(self, module: nn.Module, inputs: Any, call: Callable[[Any], Any]) -> Any:
        """`call` of inputs as they lie in memory; contiguous from now on where its code needs that."""
        with self.autocast():
            try:
                return call(laid_out(inputs, self.layout))
            except RuntimeError as error:
                chosen = self.config.memory_format == "auto" and self.layout == torch.channels_last
                if not chosen or "view" not in str(error):
                    raise
                self.layout = torch.contiguous_format
                lay_out(module, self.layout)
                output = call(laid_out(inputs, self.layout))
                self.say("The network's code takes images only where channels lie apart: engine.memory_format auto is "
                         "contiguous here, which is slower; reshape in place of view avoids that.")  # fmt: skip
                return output

    def steps(self, training: Training) -> int:
        """Optimiser steps of a stage; what a method wants to know as `steps`."""
        return training.epochs * self.steps_per_epoch

    # --------------------------------------------------------------------------------------------- for a stage at work

    @property
    def drops_last(self) -> bool:
        """A last batch of a single image is left out: batch norm has no variance of one value."""
        images = len(self.data.train)
        return images > self.batch_size and images % self.batch_size == 1

    @property
    def steps_per_epoch(self) -> int:
        return self.data.train.batch_count(self.batch_size, drop_last=self.drops_last)

    @property
    def validation(self) -> Split | None:
        """Images to watch by, if there are any."""
        split = self.data.validation
        return split if split is not None and len(split) else None

    @property
    def seconds(self) -> float:
        """Since the run began, time before a resumption included."""
        return time.monotonic() - self._began

    def wind(self, seconds: float) -> None:
        """Count what was spent before a checkpoint was written."""
        self._began = min(self._began, time.monotonic() - seconds)

    def say(self, sentence: str, *, note: bool = True) -> None:
        """Tell the user, and by default the run's report."""
        if note:
            self.notes.append(sentence)
        self.progress.say(sentence)

    def begin(self) -> None:
        """Make the folder before its first file; one that was there from the start may be gone, and stays so."""
        if self._there or not self.main or self.folder is None:
            return
        make_folder(self.folder)
        self._there = True

    def record(self, row: Mapping[str, Any]) -> None:
        """Keep one epoch's numbers."""
        self.begin()
        self.metrics.append(row)
        if self._trackers is not None:
            self._trackers.add(row)

    def close(self) -> None:
        """Tell trackers that no more rows follow."""
        if self._trackers is not None:
            self._trackers.end()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which layers compute."""
        return nullcontext() if self.precision == "fp32" else self.accelerator.autocast()

    @property
    def described(self) -> str:
        """The device, in what it computes and how images lie there, for people."""
        named = self.device.type
        if named == "cuda":
            named = f"cuda ({torch.cuda.get_device_name(self.device)})"
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"{named}, {self.precision}, {layout}" + (", compiled" if self.config.compile else "")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Say in a sentence that another process of this run has died, which shows as a broken connection."""
        try:
            yield
        except RuntimeError as error:
            words = str(error).lower()
            if world() == 1 or not (isinstance(error, distributed.DistError) or any(word in words for word in _LOST)):
                raise
            raise RunError(
                "Another process of this run has ended, and training needs them all: look at its messages, then resume "
                "the run from its last checkpoint."
            ) from error

    # ---------------------------------------------------------------------------------------------------------- inside

    def _make_trackers(self, about: Mapping[str, Any]) -> Trackers | None:
        if not self.config.trackers:
            return None
        if self.folder is None:
            raise ConfigError("engine.trackers follow a run in a folder, and there is none: leave them out.")
        return Trackers(self.config.trackers, self.accelerator, self.folder, about, self.say) if self.main else None


@contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards every part of it is in the mode it was in."""
    if module is None:
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _seen(found: Evaluator, module: nn.Module, targets: Any, inputs: Any) -> None:
    found.see(module, inputs, targets)

"""Two lines to a smaller network: what is asked, a search over methods, repairs and trainings, and the best network.

    result = secateur.compress(model, train_loader, speedup=2, runtime="onnxruntime")
    result.model                            # an ordinary module, narrower and fine-tuned

Stands above `prune`, the runtimes and the parts of training, and knows them all; nothing below knows of it. What takes
long to import (Optuna, the training) is imported when a search begins.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from secateur._defaults import own_defaults
from secateur._hints import install
from secateur.batches import Batches
from secateur.budget import Budget
from secateur.data.split import Split
from secateur.errors import ConfigError, InputError
from secateur.latency import Watcher

if TYPE_CHECKING:
    from secateur.compress.groups import Sensitivity
    from secateur.compress.result import Compressed, Tried
    from secateur.tasks import Task

__all__ = ["Compressed", "Sensitivity", "Tried", "compress", "sensitivity"]


@own_defaults
def compress(
    model: nn.Module,
    train_loader: Any = None,
    *,
    example_inputs: Any = None,
    speedup: float | str | None = None,
    latency: float | str | None = None,
    flops: float | str | None = None,
    params: float | str | None = None,
    size: float | str | None = None,
    budget: str | Mapping[str, float | str] | Budget | None = None,
    runtime: str | None = None,
    max_drop: float | None = None,
    time: str | float | None = "30m",
    task: str | Task | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    metric: Callable[[Any, Any], Any] | None = None,
    held_out: Any = None,
    out: str | os.PathLike[str] | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    methods: Iterable[str] | str | None = None,
    repairs: Iterable[str] | str | None = None,
    allocators: Iterable[str] | str | None = None,
    align: int | str | None = None,
    ignore: Iterable[str] | str = (),
    min_channels: int = 1,
    max_ratio: float = 1.0,
    attention: Literal["heads", "head_dim"] = "heads",
    workers: int = 1,
    address: str = "local",
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    watch: Watcher | None = None,
) -> Compressed:
    """Find the best network within a budget, or the smallest within a drop: race, short trainings, last training.

    Candidates (methods with repairs, allocators and alignments) are compared straight after the cut on training images
    that are held out; the best are trained for a while, and the best of these for the time that is left.

    Args:
        model: a trained network; it stays as it is. train_loader: its training data: a DataLoader, or batches in any
            form of `secateur.batches.Batches`; None: methods that need no data. Test data have no place here.
        example_inputs: what the model runs with; taken from the first batch if not given.
        speedup, latency, flops, params, size: what is to be reached, such as speedup=2, latency="5ms" (on `runtime`),
            flops=0.5, params="2M", size="4MB". budget: the same in one, or with other keys; see `Budget`.
        runtime: where it shall be fast, and is timed in the end; ONNX Runtime, if speedup or latency name none.
        max_drop: points of the metric (hundredths) that may be lost. Without a budget the smallest such network is
            looked for; with one, the nearest to it where the budget cannot be met so.
        time: of all, such as "30m", "1h30m" or seconds; None: no limit. trials: of the race. epochs: of the last
            training; 0 trains nothing. Where time binds, there are fewer.
        task: what the network is for, a name of `secateur.tasks.TASKS` or a task of one's own; classification if
            nothing is said. loss, metric: instead, functions of output and target; the metric is the mean over a batch,
            higher = better, and minus the loss if not given.
        held_out: batches to compare on, where the data cannot be divided. They must be no test images.
        out: a folder for the record of the search (study.db, which optuna-dashboard shows), the report and the network.
            The same call goes on from there after a crash, with the same trials and the same network.
        methods, repairs, allocators, align: what the race is run between, instead of the usual.
        ignore, min_channels, max_ratio, attention: as in `secateur.prune`.
        workers: candidates of the race that are tried at a time, each by a process on a Ray cluster, with the same
            result as one after the other; trainings stay in this process. 1: no Ray. address: of the cluster: "local"
            (one on this machine, for this call), "auto" or "HOST:PORT".
        seed: of everything random.
        say: told what is being done, and first, in sentences with a full stop, what will not be tried or followed.
        watch: told (done, total, runtime) while layer shapes are measured.

    Raises:
        SecateurError: one sentence: nothing is asked, the budget is out of reach, the data do not fit.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"compress needs Optuna: {install('compress')}.")
    from secateur.allocate import Constraints
    from secateur.compress import request as words
    from secateur.compress.entry import found
    from secateur.compress.judging import task_of

    asked = words.request(
        budget=budget,
        bounds={"speedup": speedup, "latency": latency, "flops": flops, "params": params, "size": size},
        runtime=runtime, max_drop=max_drop, time=time, trials=trials, epochs=epochs,
        methods=methods, repairs=repairs, allocators=allocators, align=align, seed=seed,
    )  # fmt: skip
    Constraints(ignore, min_channels, max_ratio)  # type: ignore[arg-type]  # checked before anything is written
    options = {
        "ignore": ignore, "min_channels": min_channels, "max_ratio": max_ratio, "attention": attention, "watch": watch,
    }  # fmt: skip
    data = _as_batches(train_loader)
    return found(
        model, data, _example(example_inputs, data), asked, task_of(task, loss, metric),
        held_out=held_out, folder=None if out is None else Path(out), options=options,
        workers=words.workers_of(workers), address=address, say=say,
    )  # fmt: skip


@own_defaults
def sensitivity(
    model: nn.Module,
    train_loader: Any,
    *,
    example_inputs: Any = None,
    shares: Iterable[float] | float = (0.25, 0.5, 0.75),
    method: str = "l1",
    repair: Iterable[str] | str = (),
    task: str | Task | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    metric: Callable[[Any, Any], Any] | None = None,
    held_out: Any = None,
    ignore: Iterable[str] | str = (),
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """How much a network suffers when one group alone is narrowed: accuracy against the share removed.

    Args:
        model: a trained network; it stays as it is. train_loader: its training data, as for `compress`; the figures
            are of images that are held out. example_inputs: what the model runs with; None: from the first batch.
        shares: of a group's channels that are removed, each alone, nothing else changed; one or several. method: whose
            scores choose them, one that only scores. repair: what repairs the remaining weights each time; nothing by
            default.
        task, loss, metric, held_out: as for `compress`. ignore: patterns of layers that stay whole.
        seed: of everything random. say: as for `compress`.

    Returns:
        the figures, as a table, a picture and JSON; `.ratios(drop)` gives what `secateur.prune(ratios=...)` takes.

    Raises:
        SecateurError: one sentence: a share is none, the method does more than score, the data do not fit.
    """
    from secateur.compress.entry import measured
    from secateur.compress.judging import task_of

    data = _as_batches(train_loader)
    several = (shares,) if isinstance(shares, int | float | str) else tuple(shares)
    return measured(
        model, data, _example(example_inputs, data), several, task_of(task, loss, metric),
        method=method, repair=repair, held_out=held_out, ignore=ignore, seed=seed, say=say,
    )  # fmt: skip


def _as_batches(data: Any) -> Any:
    """The data, which can be gone through again; ConfigError where they give no batches."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ConfigError(
            f"The data are a {type(data).__name__}, which gives single samples: wrap it in a "
            "torch.utils.data.DataLoader."
        )
    if data is None or isinstance(data, Split):
        return data
    Batches(data, None, keep=False)  # which says what are none
    return list(data) if isinstance(data, Iterator) else data


def _example(given: Any, data: Any) -> Any:
    """What the model runs with: as given, or one image of the first batch."""
    if given is not None:
        return given
    if data is None:
        raise InputError("Without data nothing says what the network runs with: give example_inputs=.")
    batch = data if isinstance(data, torch.Tensor) else next(iter(data), None)
    if batch is None:
        raise InputError("The data are empty: give at least one batch.")
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, torch.Tensor) or first.ndim < 2:
        raise InputError(
            f"The first batch begins with a {type(first).__name__}, and what the network runs with cannot be told from "
            "it: give example_inputs=."
        )
    return first[:1]


def __getattr__(name: str) -> Any:
    """Classes of results, imported when they are asked for."""
    if name in ("Compressed", "Tried"):
        from secateur.compress import result

        return getattr(result, name)
    if name == "Sensitivity":
        from secateur.compress.groups import Sensitivity

        return Sensitivity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

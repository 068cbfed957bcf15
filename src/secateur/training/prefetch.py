"""The next batches are made in a thread and copied to the GPU while it computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any

import torch

from secateur.graph.modules import map_tensors

Batch = tuple[Any, Any]
Item = Batch | BaseException | None
_AHEAD = 2


def on_device(
    batches: Iterable[Batch], device: torch.device, *, ahead: bool = False, here: bool = False
) -> Generator[Batch, None, None]:
    """The same batches on `device`; their order and content do not depend on the thread.

    here: there is none, as what makes the batches draws from the generators that training draws from.
    """
    if device.type == "cpu" and (here or not ahead):
        yield from batches
        return
    if here:
        for batch in batches:
            yield map_tensors(batch, lambda tensor: tensor.to(device))
        return
    for batch in in_advance(batches, pin=device.type == "cuda"):
        yield map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def in_advance(batches: Iterable[Batch], *, pin: bool) -> Generator[Batch, None, None]:
    """The same batches, up to two of them made in advance; an error in the thread is raised here."""
    made: queue.Queue[Item] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def work() -> None:
        try:
            for batch in batches:
                _put(made, map_tensors(batch, torch.Tensor.pin_memory) if pin else batch, stopped)
                if stopped.is_set():
                    return
            _put(made, None, stopped)
        except BaseException as error:  # handed on, whatever it is
            _put(made, error, stopped)

    thread = threading.Thread(target=work, name="secateur-batches", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def _put(made: queue.Queue[Item], item: Item, stopped: threading.Event) -> None:
    """Wait for room, but not for a reader that has gone."""
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            made.put(item, timeout=0.1)
            return

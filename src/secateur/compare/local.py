"""The engine for comparisons on this machine: one task after another, or in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from secateur.compare.tasks import Begun, Done, Queue, Task, attempt
from secateur.errors import RunError
from secateur.training import Progress

LOG = "processes.log"


def run(
    tasks: Sequence[Task],
    begun: Begun,
    *,
    jobs: int,
    threads: int,
    folder: Path,
    command: str,
    progress: Progress | None = None,
) -> Generator[Done, None, None]:
    """Do all tasks, each after what it needs, and yield each as it ends.

    Args:
        begun: told when a task begins.
        jobs: 1: in this process; more: so many others. threads: of each. folder: where processes log what they print.
        progress: told of the training, where it is in this process.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when everything at work has written a checkpoint.
    """
    queue = Queue(tasks)
    if jobs > 1 and len(tasks) > 1:
        yield from _beside(queue, min(jobs, len(tasks)), threads, folder / LOG, command, begun)
    else:
        yield from _here(queue, threads, command, begun, progress)


# ------------------------------------------------------------------------------------------------------ in this process


def _here(queue: Queue, threads: int, command: str, begun: Begun, progress: Progress | None) -> Iterator[Done]:
    before = torch.get_num_threads()
    while (task := queue.take()) is not None:
        begun(task)
        torch.set_num_threads(threads)
        try:
            done = attempt(task, command, progress)
        finally:
            torch.set_num_threads(before)
        yield from queue.close(done)


# --------------------------------------------------------------------------------------------------- in several others


class _Worker:
    """A process that does one task after another."""

    def __init__(self, threads: int, log: Path, command: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads, str(log), command))
        with _deaf():  # Ctrl-C is for us, who pass it on when there is something to interrupt
            self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.ready = False
        self._since = 0.0

    def give(self, task: Task) -> None:
        self.task, self._since = task, time.monotonic()
        with contextlib.suppress(OSError):  # it has died just now, which `hear` will find out
            self.pipe.send(task)

    def hear(self) -> Done | None:
        """What it has to say: that it is ready (None), or that its task is over."""
        task, was_ready = self.task, self.ready
        self.task = None
        try:
            heard = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.ready = False
            how = _ending(self.process.exitcode)
            if not was_ready:
                raise RunError(f"A process could not be started, it ended {how}: {LOG} may say why.") from None
            why = f"Its process ended before its time, {how}: start the same comparison again to continue."
            return None if task is None else Done(task, why, seconds=time.monotonic() - self._since)
        self.ready = True
        return heard if isinstance(heard, Done) else None

    def interrupt(self) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """A process at work is stopped at once, an idle one ends by itself."""
        self.pipe.close()
        if self.task is not None:
            self.process.terminate()
        self.process.join()


def _beside(queue: Queue, jobs: int, threads: int, log: Path, command: str, begun: Begun) -> Iterator[Done]:
    workers = [_Worker(threads, log, command) for _ in range(jobs)]
    try:
        while queue or any(worker.task for worker in workers):
            for worker in workers:
                if worker.ready and worker.task is None and (task := queue.take()) is not None:
                    begun(task)
                    worker.give(task)
            told = connection.wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in told]:
                done = worker.hear()
                if not worker.ready:  # it is dead
                    worker.end()
                    workers.remove(worker)
                if done is not None:
                    yield from queue.close(done)
            workers += [_Worker(threads, log, command) for _ in range(jobs - len(workers) if queue else 0)]
    except KeyboardInterrupt:
        _stop(workers)
        raise
    finally:
        for worker in workers:
            worker.end()


def _stop(workers: Sequence[_Worker]) -> None:
    """Let everything at work write a checkpoint; a second Ctrl-C does not wait for that."""
    for worker in workers:
        if worker.task is not None:
            worker.interrupt()
    for worker in workers:
        if worker.task is not None:
            with contextlib.suppress(EOFError, OSError):
                worker.pipe.recv()  # it finishes, or ends
            worker.task = None


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started here does not hear Ctrl-C until it says otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: connection.Connection, threads: int, log: str, command: str) -> None:
    """What a process does: tasks, until nobody gives it any more."""
    _alone(log)
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt), pipe:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pipe.send("ready")
        while True:
            pipe.send(attempt(pipe.recv(), command))


def _alone(log: str) -> None:
    """Print into the log, hear no Ctrl-C from the terminal, and do not outlive who started this."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: Any) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    return f"with exit status {code}"

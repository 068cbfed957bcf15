"""The engine for comparisons on a Ray cluster: each task is a remote function of so many CPUs, and perhaps GPUs.

Nothing but names travels: a task finds its folder on storage that all nodes share, which is tried at the beginning.
A worker that is lost costs the work since its last checkpoint; its task goes on wherever Ray puts it next.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur._cluster import AUTO, Need, gpus_of, joined, look_at_all, short, silent
from secateur.compare.tasks import Begun, Done, Engine, Queue, Task, attempt
from secateur.data._files import data_folder
from secateur.errors import ConfigError, RunError
from secateur.runs.folder import locked

#: How often a task is begun again after its worker was lost.
RETRIES = 3
#: Seconds in which the storage may still think that a lost worker holds its folder.
_LEASE = 150.0
#: Seconds for everything at work to write a checkpoint after Ctrl-C.
_PATIENCE = 300.0


@dataclass(frozen=True)
class Cluster:
    """Which Ray, and what a run has of it.

    address: "auto": the cluster this node belongs to; "local": one for this call on this machine; or host:port.
    gpus: of each run, also a part of one; None: 1 where the cluster has GPUs and the recipe does not say cpu.
    """

    address: str = AUTO
    gpus: float | None = None


@contextlib.contextmanager
def connected(
    cluster: Cluster, *, device: str, jobs: int | None, threads: int, folder: Path, command: str
) -> Iterator[Engine]:
    """The engine on a cluster whose nodes have been looked at.

    Args:
        device: `engine.device` of the recipe. jobs: runs at a time at most; None: as many as the cluster can hold.
        threads: CPUs of each run. folder: of the comparison. command: how it was called, for the documents.

    Raises:
        ConfigError: Ray is missing. RunError: no cluster is there, none of its nodes is large enough, or one of them
            does not see the folder or has other versions.
    """
    if cluster.gpus and device == "cpu":
        raise ConfigError(f"--gpus-per-run is {cluster.gpus:g}, but engine.device is cpu: leave one of them out.")
    with joined(cluster.address, threads * jobs if jobs is not None else None) as ray:
        need = Need(threads, gpus_of(ray, device, cluster.gpus), folder.absolute())
        look_at_all(ray, need)
        pool = _Pool(ray, need, jobs, command)
        with silent(ray):
            yield Engine(pool.room, pool.run)


# ------------------------------------------------------------------------------------------------------------ the tasks


class _Pool:
    """Gives tasks to the cluster, and takes back what is lost."""

    def __init__(self, ray: Any, need: Need, jobs: int | None, command: str) -> None:
        self._ray, self._need, self._jobs, self._command = ray, need, jobs, command
        self._work = ray.remote(_work)
        self._at_work: dict[Any, tuple[Task, float]] = {}
        self._lost: dict[str, int] = {}  # by task: how often its worker was

    def run(self, tasks: Sequence[Task], begun: Begun) -> Generator[Done, None, None]:
        """See `Engine`.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything at work has written a checkpoint.
        """
        queue = Queue(tasks)
        try:
            while True:
                while len(self._at_work) < self.room and (task := queue.take()) is not None:
                    begun(task)
                    self._give(task)
                if not self._at_work:
                    return
                ready, _ = self._ray.wait(list(self._at_work), timeout=10.0)  # the cluster may have grown meanwhile
                for reference in ready:
                    task, since = self._at_work.pop(reference)
                    done = self._take(reference, task, since, begun)
                    if done is not None:
                        yield from queue.close(done)
        except (KeyboardInterrupt, GeneratorExit):  # here, or in who takes what is done
            self._stop()
            raise
        finally:
            for reference in self._at_work:
                self._ray.cancel(reference, force=True)

    @property
    def room(self) -> int:
        """Runs at a time; one is asked for even where its node has just gone, so that Ray waits for another."""
        slots = max(self._need.slots(self._ray), 1)
        return slots if self._jobs is None else min(slots, self._jobs)

    def _give(self, task: Task) -> None:
        options = {"num_cpus": self._need.cpus, "num_gpus": self._need.gpus, "max_retries": 0, "name": task.name}
        place = _Place(str(Path.cwd()), str(self._need.folder), str(data_folder()), self._need.cpus)
        patience = _LEASE if task.name in self._lost else 0.0
        reference = self._work.options(scheduling_strategy="SPREAD", **options).remote(
            task, place, self._command, patience
        )
        self._at_work[reference] = (task, time.monotonic())

    def _take(self, reference: Any, task: Task, since: float, begun: Begun) -> Done | None:
        """What came of a task; None if it was begun again."""
        errors = self._ray.exceptions
        try:
            done: Done = self._ray.get(reference)
            return done
        except errors.TaskCancelledError:  # by somebody else, through Ray
            why = "It was cancelled through Ray"
        except errors.RayTaskError as error:
            why = f"It could not be done on a node ({short(error)}): look at processes-*.log"
        except errors.RayError as error:  # the worker, its node or its memory is gone
            lost = self._lost[task.name] = self._lost.get(task.name, 0) + 1
            if lost <= RETRIES:
                begun(task, f"as its worker was lost ({short(error)})")
                self._give(task)
                return None
            why = f"Its worker was lost {lost} times, the last time so: {short(error)}"
        return Done(task, f"{why}: start the same comparison again to continue.", seconds=time.monotonic() - since)

    def _stop(self) -> None:
        """Let everything at work write a checkpoint; a second Ctrl-C does not wait for that."""
        for reference in self._at_work:
            self._ray.cancel(reference, force=False)  # a Ctrl-C for the worker
        if self._at_work:
            self._ray.wait(list(self._at_work), num_returns=len(self._at_work), timeout=_PATIENCE)
        self._at_work.clear()


# ------------------------------------------------------------------------------------------------------------ on a node


@dataclass(frozen=True)
class _Place:
    """What a worker has in common with who called: where it was called, and where things lie."""

    here: str
    folder: str
    data: str
    threads: int


def _work(task: Task, place: _Place, command: str, patience: float) -> Done:
    """Do a task in this process; what is printed goes into a log of this node."""
    os.chdir(place.here)
    os.environ["SECATEUR_DATA"] = place.data
    torch.set_num_threads(place.threads)
    log = Path(place.folder) / f"processes-{socket.gethostname()}.log"
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("a", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        _await(task.folder, patience)
        return attempt(task, command)


def _await(folder: Path, patience: float) -> None:
    """Storage may need a while to see that a lost worker no longer holds a folder."""
    until = time.monotonic() + patience
    while folder.is_dir() and time.monotonic() < until:
        with contextlib.suppress(RunError), locked(folder):
            return
        time.sleep(1.0)

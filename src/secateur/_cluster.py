"""A Ray cluster before comparisons and searches use it: joined quietly, its nodes counted, and each of them tried.

What is tried is what goes wrong in practice: a folder that is another one on another node, and other versions there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur import _files
from secateur._hints import install
from secateur._version import __version__
from secateur.errors import ConfigError, RunError, SecateurError

AUTO, LOCAL = "auto", "local"
_STORE = 128 << 20  # bytes of the object store of a Ray of our own at least
_TRIES, _SECONDS = 3, 10.0
_CURRENT = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes its address


def package() -> Any:
    """The package, told to be quiet and to report to nobody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keeps Ray from a warning about that
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a Ray of our own: or its workers give way to everybody
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"ray is not installed: {install('ray')}.") from error
    return ray


@contextlib.contextmanager
def joined(address: str, cpus: int | None, store: int = 0) -> Iterator[Any]:
    """Ray, connected; what this process had connected before stays so afterwards.

    Args:
        address: "auto": the cluster this node belongs to; "local": one of our own on this machine; or host:port.
        cpus: of a Ray of our own; None: all. store: bytes that lie in its object store at a time.

    Raises:
        ConfigError: Ray is missing. RunError: there is none at that address.
    """
    ray = package()
    own = not ray.is_initialized()
    if own:
        _join(ray, address, cpus, max(store, _STORE))
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def gpus_of(ray: Any, device: str, asked: float | None = None) -> float:
    """GPUs of a run: as asked; by default 1 where the cluster has any and `device` of the engine is not cpu."""
    if asked is not None:
        return asked
    return 1.0 if device != "cpu" and ray.cluster_resources().get("GPU") else 0.0


def _join(ray: Any, address: str, cpus: int | None, store: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    if address == LOCAL:
        _start(ray, num_cpus=cpus, include_dashboard=False, object_store_memory=store, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise RunError(
            f"The Ray cluster {address!r} cannot be joined ({_files.said(error)[:200]}): start it on this node with "
            "ray start --head, or give the address local to use this machine alone."
        ) from error


def _start(ray: Any, **options: Any) -> None:
    """A Ray of our own; where the machine is so busy that it does not come up in its thirty seconds, once more."""
    for left in reversed(range(_TRIES)):
        try:
            ray.init(address=LOCAL, **options)
            return
        except Exception as error:  # noqa: PERF203  # what Ray raises then is a bare one
            ray.shutdown()
            if not left:
                raise RunError(
                    f"Ray cannot be started on this machine ({_files.said(error)[:200]}): look into /tmp/ray for its "
                    "logs, or do without Ray."
                ) from error


def _knock(address: str) -> None:
    """OSError where nobody listens, which Ray itself would find out after minutes and at length."""
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", "")
        with contextlib.suppress(OSError):
            address = address or _CURRENT.read_text().strip()
    host, colon, port = address.rpartition(":")
    if colon and host and "/" not in address and port.isdigit():  # Ray knows other forms
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()


@contextlib.contextmanager
def silent(ray: Any) -> Iterator[None]:
    """Ray prints on standard output what its nodes complain of, even where it was told not to; we say it ourselves."""
    place, name = ray._private.worker, "print_to_stdstream"
    before = getattr(place, name, None)
    setattr(place, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(place, name, before)


@dataclass(frozen=True)
class Need:
    """What every run takes, and where it is done."""

    cpus: int
    gpus: float
    folder: Path

    def on(self, resources: Mapping[str, float]) -> int:
        """How many runs fit on a node."""
        fit = int(resources.get("CPU", 0) // self.cpus)
        return min(fit, int(resources.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else fit

    def nodes(self, ray: Any) -> list[Mapping[str, Any]]:
        """The nodes that hold a run at least."""
        return [node for node in ray.nodes() if node["Alive"] and self.on(node["Resources"])]

    def slots(self, ray: Any) -> int:
        """How many runs the cluster holds at a time, as it is now."""
        return sum(self.on(node["Resources"]) for node in self.nodes(ray))


def look_at_all(ray: Any, need: Need) -> None:
    """RunError unless there are nodes for a run, and each sees the folder, may write there, and has our versions.

    A file is written here and read there, and the other way round.
    """
    nodes = need.nodes(ray)
    if not nodes:
        more = f" and {need.gpus:g} GPUs" if need.gpus else ""
        raise RunError(
            f"No node of the Ray cluster has {need.cpus} CPUs{more} for a run: lower --threads"
            f"{' or --gpus-per-run' if need.gpus else ''}, or add such a node."
        )
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = need.folder / f".token-{secrets.token_hex(8)}"
    word, here = secrets.token_hex(16), str(Path.cwd())
    _files.write_text(token, word, what="A file that the nodes of the cluster read")
    looker = ray.remote(_looker())
    asked = {}
    for number, node in enumerate(nodes):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = looker.options(num_cpus=0, max_retries=_TRIES, scheduling_strategy=there)
        asked[options.remote(str(token), f"{token}-{number}", here)] = (node, Path(f"{token}-{number}"))
    try:
        for reference, (node, answer) in asked.items():
            _check(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", _found(ray, reference), word, here)
            if not answer.is_file() or answer.read_text() != word:
                raise RunError(_apart(need.folder, node["NodeManagerHostname"]))
    finally:
        for path in (token, *(answer for _, answer in asked.values())):
            path.unlink(missing_ok=True)


def _found(ray: Any, reference: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise RunError(f"A node of the Ray cluster does not answer ({short(error)}): see ray status.") from error
    return found


def _check(node: str, found: Mapping[str, Any], word: str, here: str) -> None:
    for name, version in (("secateur", __version__), ("torch", str(torch.__version__))):
        if found[name] != version:
            there = f"has {name} {found[name]}" if found[name] else f"has no {name}"
            raise RunError(f"The node {node} {there}, and here it is {version}: install the same on all nodes.")
    if found["word"] != word:
        raise RunError(_apart(Path(found["token"]).parent, node))
    if not found["here"]:
        raise RunError(
            f"The folder {here!r}, in which this was called, is not there on the node {node}: call it in one that all "
            "nodes share, as a recipe may name files relative to it."
        )
    if found["problem"]:
        raise RunError(f"The node {node} cannot write into the folder: {found['problem']}.")


def _apart(folder: Path, node: str) -> str:
    return (
        f"The folder {str(folder)!r} is not the same on the node {node}: give an --out on storage that all nodes "
        "share, at the same place."
    )


def _looker() -> Any:
    """A function that travels whole, so that it also runs where Secateur is not installed."""

    def look(token: str, answer: str, here: str) -> dict[str, Any]:
        import importlib.util
        import os
        import runpy
        from pathlib import Path

        found: dict[str, Any] = {"token": token, "word": None, "problem": "", "here": os.path.isdir(here)}  # noqa: PTH112
        for name, file in (("secateur", "_version.py"), ("torch", "version.py")):  # alone, without their packages
            spec = importlib.util.find_spec(name)
            place = Path(spec.origin).with_name(file) if spec is not None and spec.origin else None
            found[name] = (
                str(runpy.run_path(str(place))["__version__"]) if place is not None else None
            )  # not the package
        try:
            found["word"] = Path(token).read_text()
            Path(answer).write_text(found["word"])
        except OSError as error:
            found["problem"] = str(error)
        return found

    return look


def answer(ray: Any, reference: Any, remedy: str) -> Any:
    """What a worker of a search found; its own sentence where it has refused.

    remedy: what to do where the worker is lost, such as "resume the run".

    Raises:
        SecateurError: of the worker, as it is. RunError: the worker failed otherwise, or is lost.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SecateurError):
            raise type(error.cause)(str(error.cause)) from error
        raise RunError(f"A worker of the search failed ({short(error)}).") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"A worker of the search was lost ({short(error)}): {remedy}.") from error


def short(error: BaseException) -> str:
    """Ray's own words take a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160].rstrip('.')}" if lines else type(error).__name__

"""Networks on the Hugging Face Hub: a saved network goes there with a card, and comes back by `hf:org/name`.

Only the files named here are fetched, none is larger than its bound, and none is unpickled or executed.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur._files import said, shown, write_text
from secateur._hints import install
from secateur.errors import ConfigError, RunError, SecateurError
from secateur.runtime.card import CARD, card
from secateur.runtime.folder import PLAN, PT2, WEIGHTS, Folder, save_model
from secateur.surgery import Result

PREFIX = "hf:"
#: What is sent and fetched, and how large each may be.
FILES: Mapping[str, int] = {PLAN: 1 << 26, WEIGHTS: 1 << 33, PT2: 1 << 33}
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def push_to_hub(
    what: Result | str | os.PathLike[str],
    name: str,
    *,
    reference: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    private: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> str:
    """Send a pruned network to the Hub, with a card made of its plan and figures; return its address.

    Args:
        what: the folder of a run or of `save_model`, or what `secateur.prune` returned. name: "org/name".
        reference, arguments: how the original is named and built, of a `Result`; a folder knows them.
        private: only for those the owner lets in. licence: an identifier of the Hub, such as "apache-2.0".
        token: of the Hub; by default the one this machine is logged in with.

    Raises:
        ConfigError: the name cannot be one, or huggingface_hub is not installed. RunError: the folder is not sound, or
        the Hub refuses.
    """
    repository, revision = _parsed(name)
    if revision is not None:
        raise ConfigError(f"{name!r} names a revision, and a push makes a new one: leave out @{revision}.")
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "network" if isinstance(what, Result) else Path(what)
        if isinstance(what, Result):
            named = reference or what.plan.provenance.get("model")
            if not isinstance(named, str):
                raise ConfigError("The original is not named: give reference=, such as 'torchvision:resnet18'.")
            inputs, costs = (
                what.graph.example_inputs,
                {"before": what.before.as_dict(), "after": what.averaged.as_dict()},
            )
            save_model(source, what.model, reference=named, arguments=arguments, inputs=inputs, plan=what.plan,
                       metadata={"costs": costs})  # fmt: skip
        run = Folder.open(source)
        there = [file for file in FILES if run.has(file)]
        run.check_files(there)
        saved, plan = run.saved()
        write_text(
            Path(place) / CARD,
            card(repository, saved, plan, run.results, run.latency(), licence),
            what="The model card",
        )
        return _sent(repository, [(Path(place) / CARD), *(source / file for file in there)], private, token)


def _sent(repository: str, files: list[Path], private: bool, token: str | None) -> str:
    hub = _hub()
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        sent = [hub.CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in files]
        api.create_commit(repository, sent, commit_message="Pruned with Secateur")
    except Exception as error:  # the libraries that huggingface_hub stands on raise their own
        raise RunError(f"The Hub did not take {repository!r}: {said(error)}.") from error
    return str(address)


def is_on_hub(name: object) -> bool:
    """Whether this is a name on the Hub rather than a folder."""
    return isinstance(name, str) and name.startswith(PREFIX)


def fetch(name: str, *, token: str | None = None) -> Path:
    """The folder of a network on the Hub, from the cache where it is there already.

    name: "hf:org/name", also with "@revision".

    Raises:
        ConfigError: the name cannot be one, or huggingface_hub is not installed. RunError: there is no such network,
        a file of it is larger than its bound, or the Hub is out of reach.
    """
    repository, revision = _parsed(name.removeprefix(PREFIX))
    hub, where = _hub(), os.environ.get("HF_ENDPOINT")
    try:
        told = hub.HfApi(endpoint=where, token=token).model_info(repository, revision=revision, files_metadata=True)
        sizes = {each.rfilename: each.size for each in told.siblings or ()}
        _check_sizes(repository, sizes)
        paths = [
            Path(hub.hf_hub_download(repository, file, revision=told.sha, endpoint=where, token=token))
            for file in FILES
            if file in sizes
        ]
    except SecateurError:
        raise
    except Exception as error:  # the libraries that huggingface_hub stands on raise their own
        raise RunError(f"{PREFIX}{repository} cannot be had from the Hub: {said(error)}.") from error
    _check_sizes(repository, {path.name: path.stat().st_size for path in paths})
    return paths[0].parent


def _check_sizes(repository: str, sizes: Mapping[str, int | None]) -> None:
    for file in (PLAN, WEIGHTS):
        if file not in sizes:
            raise RunError(f"{PREFIX}{repository} holds no {file}: it is not a network that Secateur sent there.")
    for file, most in FILES.items():
        size = sizes.get(file, 0)
        if size is None or size > most:
            raise RunError(
                f"{file} in {PREFIX}{repository} has {shown(size)} bytes, and {most} are the most: not taken."
            )


def _parsed(name: str) -> tuple[str, str | None]:
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        raise ConfigError(f"{name!r} is no name on the Hub: write org/name, or org/name@revision.")
    return found["repository"], found["revision"]


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ConfigError(f"huggingface_hub is not installed: {install('hub')}.") from error
    return huggingface_hub

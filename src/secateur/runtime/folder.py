"""A narrow network in a folder: `plan.json` and `model.safetensors`, beside what else a run leaves there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import warnings
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import references
from secateur._files import kind_of, make_folder, read_json, said, shown
from secateur.errors import RunError, SecateurError, SecateurWarning
from secateur.graph.modules import clone_module, unwrap
from secateur.history import earlier, is_apart, whole
from secateur.plan import Plan, check_plan, kept_fingerprint
from secateur.runtime import stored
from secateur.runtime.archive import NotRun, read_archive
from secateur.runtime.inputs import Signature, to_device
from secateur.runtime.program import Program
from secateur.runtime.reloading import as_precise, check_again
from secateur.runtime.stored import Stored
from secateur.runtime.weights import misfit, state_tensors
from secateur.surgery import Result, apply

PLAN, WEIGHTS, PT2, RESULTS = "plan.json", stored.FILE, "model.pt2", "results.json"
LATENCY = "latency.json"
FORMAT, VERSION = "secateur.run", 1
#: Arguments of torchvision's and timm's factories that fetch or unpickle weights; all weights come from the folder.
_FETCHING = frozenset("weights weights_backbone pretrained pretrained_cfg checkpoint_path cache_dir".split())
_MOST_BYTES = 1 << 26


def save_model(
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    reference: str,
    inputs: Any,
    plan: Plan | None = None,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Write `plan.json` and `model.safetensors` into `folder`, which is made if need be; return the header.

    Buffers that were added to the model, as profilers do, are left out; the header names them under "left_out". Where
    the network could not be compared with what `load` will make, a warning and the header's "not_compared" say why.

    Args:
        model: the narrow network, in any precision; its heads may have been replaced by ones of another length.
        reference: how the original is named (`zoo:resnet56`). arguments: of its factory.
        inputs: example inputs, or a list of their shapes.
        plan: the plan `model` was cut by, joined to those of earlier cuts; by default the one that `model` carries.
        metadata: more entries for the header (classes, mean, std); what is not text is written as JSON.

    Raises:
        RunError: `load` could not make this network of the folder again, or the folder cannot be written; nothing is
        written then.
    """
    place = Path(folder)
    narrow, extra = _own(unwrap(model), _ADDED)
    if is_apart(narrow):
        raise RunError(
            "The cuts of the network make no single plan, so it could not be loaded again: export it with "
            "secateur.runtime.export_pt2, which needs no code."
        )
    if plan is not None:
        check_plan(plan)
    plan = earlier(narrow) if plan is None else whole(narrow, plan)
    if plan is None:
        raise RunError("The network does not know of a plan that it was cut by: give plan=result.plan.")
    kept = plan
    more = dict(metadata or {})

    def described(network: nn.Module, left_out: list[str]) -> Stored:
        return stored.described(
            place / WEIGHTS,
            network,
            reference=reference,
            arguments=dict(arguments or {}),
            inputs=Signature.of(inputs),
            plan=kept,
            metadata={**more, **({"left_out": left_out} if left_out else {})},
        )

    content = described(narrow, extra)
    fresh = _fresh(content, plan)
    if fresh is not None:
        narrow, others = _own(narrow, None, {name for name, _ in fresh.named_buffers(remove_duplicate=False)})
        if others:
            content = described(narrow, extra + others)
        not_compared = check_again(content, fresh, narrow)
        if not_compared:
            more["not_compared"] = not_compared
            content = described(narrow, extra + others)
            warnings.warn(not_compared, SecateurWarning, stacklevel=2)
    make_folder(place)
    plan.save(place / PLAN)
    stored.write(content)
    return dict(content.header)


#: Buffers that others' tools leave in every module (thop).
_ADDED = frozenset({"total_ops", "total_params"})


def _own(model: nn.Module, names: Set[str] | None, known: Set[str] = frozenset()) -> tuple[nn.Module, list[str]]:
    """`model` without the buffers of these last names, or those that are not known; and which these are."""
    buffers = [name for name, _ in model.named_buffers()]
    left_out = [
        name for name in buffers if (name.rpartition(".")[2] in names if names is not None else name not in known)
    ]
    if not left_out:
        return model, []
    own = clone_module(model, lambda tensor: tensor)
    for name in left_out:
        module, _, last = name.rpartition(".")
        del own.get_submodule(module)._buffers[last]
    return own, left_out


def _fresh(content: Stored, plan: Plan) -> nn.Module | None:
    """What `load` would put the weights into; None where that needs code that is not installed, or a file."""
    library = content.reference.partition(":")[0]
    if not is_library(content.reference) or (library != "zoo" and importlib.util.find_spec(library) is None):
        return None
    run = Folder(content.path.parent, None)
    try:
        return run.cut(run.original(content), content, plan).model
    except SecateurError as error:
        raise RunError(
            f"The network is not {shown(content.reference)} cut by this plan, so it could not be loaded again "
            f"({str(error).rstrip('.')}): give the plan that the network was cut by, of several cuts "
            "plan=first.then(second); or export it with secateur.runtime.export_pt2, which needs no code."
        ) from error


#: Networks of our own recipes: these alone, as a path to an attribute of a module reaches whatever that has imported.
_EXAMPLES = frozenset(f"secateur.examples.{name}:net" for name in ("detection", "segmentation", "super_resolution"))


class NotTrusted(RunError):
    """A folder names code that is imported only where the user trusts it."""


def can_build(reference: str, *, trust: bool) -> bool:
    """Whether the network of a reference may be built: its code is a library's, or is trusted."""
    return trust or is_library(reference)


def is_library(reference: str) -> bool:
    """Whether a reference names code that is installed, rather than a file somewhere."""
    library = reference.partition(":")[0] in ("zoo", "torchvision", "timm") and not reference.endswith(".py")
    return library or reference in _EXAMPLES


def describe_files(folder: str | os.PathLike[str], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and hash of those files that are there, as `results.json` lists them.

    folder: where they lie. names: of the files that may be there.
    """
    found = {}
    for name in names:
        path = Path(folder) / name
        if path.is_file():
            found[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return found


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = hashlib.sha256()
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be read: {said(error)}.") from error
    return found.hexdigest()


class Folder:
    """A run folder opened for reading: its path and, if it is a finished run's, its results."""

    def __init__(self, path: Path, results: Mapping[str, Any] | None) -> None:
        self.path = path
        self.results = results

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Folder:
        """RunError unless it is the folder of a finished run, or one that `save_model` alone wrote."""
        path = Path(folder)
        if kind_of(path) != stat.S_IFDIR:
            raise RunError(f"There is no folder {str(folder)!r}: give the folder a run was written to.")
        if kind_of(path / RESULTS) is None:
            if kind_of(path / "recipe.yaml") is not None:
                raise RunError(unfinished(folder))
            return cls(path, None)
        _check_regular(path / RESULTS)
        results = read_json(path / RESULTS, what="The results", most=_MOST_BYTES)
        if not isinstance(results, dict) or results.get("format") != FORMAT:
            raise RunError(f"{str(path / RESULTS)!r} is not a run's: its 'format' is not {FORMAT!r}.")
        if type(results.get("version")) is not int or results["version"] != VERSION:
            raise RunError(
                f"The run in {str(folder)!r} has version {shown(results.get('version'))}: this release reads {VERSION}."
            )
        return cls(path, results)

    def has(self, name: str) -> bool:
        return kind_of(self.path / name) is not None

    def latency(self) -> Mapping[str, Any] | None:
        """latency.json of a run that has one, as the run wrote it."""
        if self.results is None or LATENCY not in self.listed():
            return None
        self.check_files([LATENCY])
        found: Mapping[str, Any] = read_json(self.path / LATENCY, what="The latencies", most=_MOST_BYTES)
        return found

    def listed(self) -> dict[str, tuple[int, str]]:
        """Size and hash of the files in `results.json`."""
        files = (self.results or {}).get("files")
        if not isinstance(files, dict):
            raise RunError(f"The results of {str(self.path)!r} list no files: results.json was damaged or edited.")
        found = {}
        for name, row in files.items():
            match row:
                case {"bytes": int(size), "sha256": str(digest)} if _plain(name):
                    found[name] = (size, digest)
                case _:
                    raise RunError(
                        f"The results of {str(self.path)!r} list {shown(name)} wrongly: "
                        "results.json was damaged or edited."
                    )
        return found

    def check_files(self, names: Iterable[str]) -> None:
        """RunError unless each is a regular file and, in a finished run's folder, has the size and hash listed."""
        listed = self.listed() if self.results is not None else None
        for name in names:
            path = self.path / name
            _check_regular(path)
            if listed is None:
                continue
            if name not in listed:
                raise RunError(f"{str(path)!r} is not listed in results.json: it is not of this run; remove it.")
            size, digest = listed[name]
            if path.stat().st_size != size or sha256(path) != digest:
                raise RunError(
                    f"{str(path)!r} is not the file this run wrote (its size or hash differs from results.json): "
                    "restore it from a copy, or run the recipe again."
                )

    def saved(self) -> tuple[Stored, Plan]:
        """Weights and plan; RunError unless they belong together."""
        saved = stored.read(self.path / WEIGHTS)
        plan = Plan.load(self.path / PLAN)
        if saved.header["plan"] != kept_fingerprint(plan) or saved.header["architecture"] != (plan.architecture or ""):
            raise RunError(
                f"plan.json and {WEIGHTS} in {str(self.path)!r} are of different runs: restore one of them from a copy."
            )
        return saved, plan

    def original(self, saved: Stored, *, trust: bool = False) -> nn.Module:
        """The dense network, built from its reference with random weights.

        Raises:
            NotTrusted: its code is no library's. SecateurError: it cannot be built here.
        """
        if not can_build(saved.reference, trust=trust):
            raise NotTrusted(
                f"The original network {shown(saved.reference)} is code that is not imported for a folder unasked: say "
                "trust=True (on the command line: --trust) where both are yours, or give a fresh copy of it as model=."
            )
        known = is_library(saved.reference)
        arguments = {key: value for key, value in saved.arguments.items() if not known or key not in _FETCHING}
        return references.load(saved.reference, arguments=arguments, input_shapes=saved.inputs.shapes).model

    def without_code(self, saved: Stored, why: SecateurError) -> Program:
        """The network as `model.pt2` has it, with a warning; RunError where there is none. why: no other is given."""
        missing = f"{str(self.path / PT2)!r} does not exist"
        if self.has(PT2):
            try:
                program = self.program(saved)
            except NotRun as error:
                missing = str(error).rstrip(".")
            else:
                told = f"The network in {str(self.path)!r} is run from {PT2}, for inference only: {why}"
                warnings.warn(told, SecateurWarning, stacklevel=4)
                return program
        raise RunError(
            f"The network in {str(self.path)!r} needs the original's code ({missing}), and that is not at hand: {why}"
        ) from why

    def narrowed(self, model: nn.Module, saved: Stored, plan: Plan, *, verify: bool = False) -> Result:
        """`model` cut by the plan, with the weights; the result's model is a copy in evaluation mode."""
        result = self.cut(model, saved, plan, verify=verify)
        saved.put_into(result.model)
        result.model.eval()
        return result

    def cut(self, model: nn.Module, saved: Stored, plan: Plan, *, verify: bool = False) -> Result:
        """`model` cut by the plan, with weights of its own."""
        inner = unwrap(model)
        device = next((t.device for t in [*inner.parameters(), *inner.buffers()]), torch.device("cpu"))
        return apply(inner, to_device(as_precise(saved.inputs.make(), inner), device), plan, verify=verify)

    def program(self, saved: Stored) -> Program:
        """The network in `model.pt2`; RunError unless it has the weights of `model.safetensors`. NotRun: see there."""
        program = Program(read_archive(self.path / PT2))
        own = state_tensors(program)
        if (
            misfit({name: tuple(t.shape) for name, t in saved.tensors.items()}, own) is not None
            or stored.digest({name: own[name] for name in saved.tensors}) != saved.header["weights"]
        ):
            raise RunError(
                f"{PT2} and {WEIGHTS} in {str(self.path)!r} hold different weights: they are of different runs; export "
                "it again with `secateur export --format pt2`."
            )
        return program


def unfinished(folder: str | os.PathLike[str]) -> str:
    """The sentence for a run that has no results yet, or for what is no run."""
    if not any((Path(folder) / name).is_file() for name in ("state.json", "recipe.yaml")):
        return f"{str(folder)!r} is not the folder of a run (it has neither results.json nor state.json): name one."
    return (
        f"The run in {str(folder)!r} is not finished (it has no results.json): "
        f"continue it with `secateur run --resume {folder}`."
    )


def _check_regular(path: Path) -> None:
    kind = kind_of(path)
    if kind is None:
        raise RunError(f"There is no file {str(path)!r}: it was removed, or the folder is not a run's.")
    if kind != stat.S_IFREG:  # reading a pipe would wait for ever
        raise RunError(f"{str(path)!r} is not an ordinary file: restore it from a copy.")


def _plain(name: object) -> bool:
    """Whether a name in results.json stays inside the folder."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    return not name.startswith("/") and ".." not in name.split("/") and ":" not in name

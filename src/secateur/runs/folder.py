"""A run's folder: what lies where, and state.json, the one file that says how far the run has come.

state.json names every finished stage with what it measured and the hashes of the files it left. A stage counts as
finished once that file says so; whatever else lies there belongs to a stage that will be done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur import _files
from secateur._distributed import rank
from secateur.errors import RunError, SecateurError
from secateur.recipe import Recipe

RECIPE, STATE, METRICS, LOCK = "recipe.yaml", "state.json", "metrics.jsonl", ".lock"
SEARCH = "search.jsonl"
PLAN, MODEL, RESULTS, VERIFICATION, LATENCY, REPORT = (
    "plan.json", "model.safetensors", "results.json", "verification.json", "latency.json", "report.html",
)  # fmt: skip
CHECKPOINTS = "checkpoints"
_FORMAT, _VERSION = "secateur.state", 1


class Folder:
    """An open run."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self._state = path, state
        self._saved = False  # whether state.json must be there

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Folder:
        """Make the folder with the recipe in it; `refuse` has been asked before.

        state.json comes first and holds the recipe, so that the folder is a run or it is nothing.
        """
        text = recipe.to_yaml()
        state = {"format": _FORMAT, "version": _VERSION, "recipe": text, "sessions": [], "stages": {}}
        _files.make_folder(path)
        folder = cls(path, state)
        folder._save()
        folder._write_recipe()
        return folder

    @classmethod
    def open(cls, path: Path) -> Folder:
        """Open a run that `create` made; RunError for anything else."""
        if _files.kind_of(path) != stat.S_IFDIR:
            raise RunError(f"There is no run in {str(path)!r}: begin one with secateur run RECIPE --out {path}.")
        if not (path / STATE).is_file():
            raise RunError(f"{str(path)!r} is not the folder of a run (it has no {STATE}): name one that is.")
        state = _files.read_json(path / STATE, what="The run's state")
        _check(path, state)
        folder = cls(path, state)
        folder._saved = True
        folder._write_recipe()
        return folder

    @property
    def main(self) -> bool:
        """Of several processes only the first one writes."""
        return rank() == 0

    # ---------------------------------------------------------------------------------------------------- the state

    @property
    def recipe(self) -> Recipe:
        """The recipe the run began with."""
        return Recipe.parse(self._state["recipe"], what=f"The recipe of the run {str(self.path)!r}")

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What the finished stages left, in their order."""
        return dict(self._state["stages"])

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return "report" in self._state["stages"] and all((self.path / n).is_file() for n in (MODEL, PLAN, RESULTS))

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """When, where and with which versions the run was begun and continued."""
        return list(self._state["sessions"])

    def keep_data(self, digest: Mapping[str, str]) -> list[str]:
        """Note what the data hold, with the first session; later, RunError unless they still do.

        Returns:
            a sentence, where an older release did not note it.
        """
        new = "data" not in self._state
        if not new and self._state["data"] != digest:
            raise RunError(
                f"The data are not those that the run {str(self.path)!r} was begun with (their digest, of "
                f"{digest['covers']}, is another): put the old ones back, or begin another run with secateur run "
                f"{self.path / RECIPE} --out ANOTHER."
            )
        self._state["data"] = dict(digest)
        if not new or not self.sessions:
            return []
        return ["The run was begun by a release that did not note what its data hold: whether they changed is unknown."]

    def change(self, recipe: Recipe, said: str, forget: Sequence[str]) -> None:
        """Go on with another recipe: `said` stands in the next session, and the stages in `forget` are done again."""
        self._state["replaced"], self._state["recipe"] = self._state["recipe"], recipe.to_yaml()
        self._state.setdefault("changed", []).append(said)
        files = [name for stage in forget for name in self._state["stages"].pop(stage, {}).get("files", {})]
        self._save()
        self._write_recipe()
        for name in files if self.main else ():  # the stage may leave others now
            (self.path / name).unlink(missing_ok=True)

    def begin_session(self, values: Mapping[str, Any]) -> None:
        """Note that somebody works on the run from now on."""
        changed = self._state.pop("changed", None)
        self._state["sessions"].append({**values, **({"changed": changed} if changed else {})})
        self._save()

    def finish(self, stage: str, values: Mapping[str, Any], files: Sequence[str] = ()) -> None:
        """Note that a stage is done, with the hashes of the files it wrote, which are durable by now."""
        noted = {name: self.digest(name) for name in files} if self.main else {}
        self._state["stages"][stage] = {**values, "files": noted}
        self._save()

    def rewind(self, order: Sequence[str]) -> list[str]:
        """Forget each stage whose files are not as it left them, and those after it; one sentence for each file."""
        said, forget = [], False
        for stage in order:
            done = self._state["stages"].get(stage)
            if done is None:
                forget = True  # what stands behind a gap was made from something else
            for name, noted in (done or {}).get("files", {}).items():
                if not forget and self._changed(name, noted):
                    said.append(f"{name} is not as the stage {stage} left it: the run goes on from there.")
                    forget = True
            if forget:
                self._state["stages"].pop(stage, None)
        if said:
            self._save()
        return said

    def digest(self, name: str) -> dict[str, Any]:
        """Size and SHA-256 of a file."""
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise RunError(f"{name} of the run {str(self.path)!r} cannot be read: {_files.said(error)}.") from error
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _changed(self, name: str, noted: Mapping[str, Any]) -> bool:
        try:
            return self.digest(name) != noted
        except RunError:
            return True

    def sweep(self) -> None:
        """Remove what writers that were killed left under temporary names."""
        for place in (self.path, self.path / CHECKPOINTS):
            for left in place.glob(".*.tmp"):
                if left.is_file():
                    left.unlink(missing_ok=True)

    def _save(self) -> None:
        if not self.main:
            return
        if self._saved and not (self.path / STATE).is_file():
            raise RunError(_gone(self.path))
        _files.write_json(self.path / STATE, self._state, what="The run's state")
        self._saved = True

    def _write_recipe(self) -> None:
        """recipe.yaml is for people; a changed one must not mislead them."""
        file = self.path / RECIPE
        if not self.main:
            return
        there = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
        if there is not None and there not in (self._state["recipe"], self._state.get("replaced")):
            raise RunError(
                f"{str(file)!r} has been changed since the run began, and a run keeps to one recipe: change it back, "
                f"or begin another run with secateur run {file} --out ANOTHER."
            )
        if there != self._state["recipe"]:
            _files.write_text(file, self._state["recipe"], what="The recipe")


def refuse(path: Path) -> None:
    """RunError unless a new run may be begun in `path`: nothing is there, or an empty folder, and it can be written."""
    try:
        _refuse(path)
    except OSError as error:  # a name that is too long, a folder above it that nobody may look into
        raise RunError(
            f"The folder {str(path)!r} cannot be made ({_files.said(error)}): give another --out."
        ) from error


def _refuse(path: Path) -> None:
    if path.is_dir():
        there = [p.name for p in path.iterdir() if not (p.name.startswith(f".{STATE}.") and p.suffix == ".tmp")]
        if STATE in there:
            raise RunError(
                f"{str(path)!r} holds a run already: continue it with secateur run --resume {path}, or give another "
                "--out."
            )
        if there:
            raise RunError(f"The folder {str(path)!r} is not empty: give another --out.")
    elif path.exists() or path.is_symlink():
        raise RunError(f"{str(path)!r} is a file: give another --out.")
    else:
        parent = next((p for p in path.absolute().parents if p.exists()), None)
        if parent is not None and not parent.is_dir():
            raise RunError(f"{str(parent)!r} is a file, so {str(path)!r} cannot be made: give another --out.")
    there_is = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(there_is, os.W_OK):
        raise RunError(
            f"{str(there_is)!r} is write-protected, so nothing can be written to {str(path)!r}: give another --out."
        )


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """What a disk refuses while a run is at work ends in a sentence that says how to go on."""
    try:
        yield
    except BrokenPipeError:  # who was told has left
        raise
    except (OSError, SecateurError) as error:
        if not (path / STATE).is_file():
            raise RunError(_gone(path)) from error
        if isinstance(error, SecateurError) and not _files.by_system(error):
            raise
        raise RunError(
            f"{' '.join(str(error).split()).rstrip('.')}: see to that, and continue the run with secateur run --resume "
            f"{path}."
        ) from error


def _gone(path: Path) -> str:
    return (
        f"The folder {str(path)!r} was moved or removed while the run was at work: put it back and continue it with "
        "secateur run --resume, or begin another run."
    )


@contextlib.contextmanager
def locked(path: Path, what: str = "run") -> Iterator[None]:
    """Keep a second process from working on the same run; the system opens the lock when the holder dies."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart there
        yield
        return
    if rank() > 0:  # the first of several processes of one run holds the lock for all
        yield
        return
    try:
        opened = (path / LOCK).open("wb")
    except OSError as error:
        raise RunError(
            f"The {what} {str(path)!r} cannot be written to ({_files.said(error)}): copy it to where it can be, and "
            "resume it there."
        ) from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"Another process is working on the {what} {str(path)!r}: wait for it, or stop it."
            ) from error
        yield


def _check(path: Path, state: Any) -> None:
    """RunError unless this is a state of ours."""
    ours = isinstance(state, dict) and state.get("format") == _FORMAT
    if ours and state.get("version") != _VERSION:
        raise RunError(
            f"The run {str(path)!r} is of version {state.get('version')!r}, and this Secateur reads {_VERSION}: "
            "continue it with the Secateur that began it."
        )
    kinds = {"recipe": str, "sessions": list, "stages": dict}
    if not ours or not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise RunError(f"{STATE} in {str(path)!r} is damaged: begin another run.")
    for name, stage in state["stages"].items():
        if not isinstance(stage, dict) or not isinstance(stage.get("files"), dict):
            raise RunError(f"{STATE} in {str(path)!r} is damaged at the stage {_files.shown(name)}: begin another run.")

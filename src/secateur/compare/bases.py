"""The base network of a seed: trained once, plainly, and then shared by all cells of that seed that begin with weights.

It is what an ordinary run with that seed would train, bit for bit on the CPU: same initial weights, same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.compare.cells import base_recipe
from secateur.data import digest_of
from secateur.errors import RunError
from secateur.recipe import Recipe
from secateur.runs.documents import session
from secateur.runs.folder import STATE, Folder, locked, refuse
from secateur.runs.preparing import prepare
from secateur.runs.stages import Stages
from secateur.runtime import save_weights
from secateur.training import Engine, Progress, Silent

WEIGHTS = "weights.safetensors"
_TRAIN, _DONE = "train", "weights"  # stages of the folder: trained; measured and written


@dataclass(frozen=True)
class Base:
    """What is known of a finished base network."""

    seed: int
    weights: Path
    accuracy: float  # on the test images, in the measure of the recipe's task
    validation: float | None
    epochs: int
    seconds: float
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the leaderboard."""
        names = ("seed", "accuracy", "validation", "epochs", "seconds", "sha256")
        return {name: getattr(self, name) for name in names}


def find(folder: Path) -> Base | None:
    """The finished base network in `folder`; None if there is none yet, or its file is not as it was left."""
    if not (folder / STATE).is_file():
        return None
    opened = Folder.open(folder)
    done = opened.stages.get(_DONE)
    if done is None or not (folder / WEIGHTS).is_file() or opened.digest(WEIGHTS) != done["files"][WEIGHTS]:
        return None
    train = opened.stages[_TRAIN]
    return Base(
        opened.recipe.seed,
        folder / WEIGHTS,
        train["quality"]["dense"],
        done["validation"],
        train["epochs"],
        round(train["seconds"] + done["seconds"], 3),
        done["files"][WEIGHTS]["sha256"],
    )


def train(recipe: Recipe, seed: int, folder: Path, *, progress: Progress | None = None, command: str = "") -> Base:
    """Train the base network of a seed, on from the newest checkpoint if that was begun, and return it.

    Raises:
        SecateurError: one sentence. KeyboardInterrupt: after Ctrl-C; called again it goes on from there.
    """
    found = find(folder)
    if found is not None:
        return found
    wanted = base_recipe(recipe, seed)
    if (folder / STATE).is_file():
        opened = Folder.open(folder)
        if opened.recipe != wanted:
            raise RunError(f"{str(folder)!r} holds a base network of another recipe: give another --out.")
    else:
        refuse(folder)
        opened = Folder.create(folder, wanted)
    with locked(folder):
        _train(opened, wanted, progress or Silent(), command)
    found = find(folder)
    if found is None:
        raise RunError(f"The base network in {str(folder)!r} was changed while it was written: begin again.")
    return found


def _train(folder: Folder, recipe: Recipe, progress: Progress, command: str) -> None:
    prepared = prepare(recipe)
    engine = Engine(
        prepared.data,
        recipe.engine,
        seed=recipe.seed,
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        folder=folder.path,
        progress=progress,
        task=prepared.task,
    )
    folder.sweep()
    folder.keep_data(digest_of(prepared.data))
    folder.rewind((_TRAIN, _DONE))
    folder.begin_session(session(engine.described, command, prepared))
    if _TRAIN not in folder.stages:
        Stages(prepared, folder, engine).run(_TRAIN)
    network = prepared.network().model
    assert recipe.train is not None
    engine.fit(_TRAIN, network, recipe.train)  # which has ended: the network gets what it ended with
    watched = engine.validation
    validation = None if watched is None else engine.evaluate(network, watched).headline
    save_weights(network.to("cpu"), folder.path / WEIGHTS, {})
    folder.finish(_DONE, {"seconds": 0.0, "validation": validation}, [WEIGHTS])

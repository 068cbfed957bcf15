"""What may be changed in a run that has begun: what does not touch training, so that its weights stay what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur._settings import shown
from secateur.errors import ConfigError
from secateur.recipe import Recipe
from secateur.runs.folder import Folder

#: Keys of a recipe that a resume may change, each with all keys in it, and the first stage that is done again then.
CHANGEABLE: Mapping[str, str | None] = {
    "export": "export",
    "latency": "latency",
    "data.workers": None,
    "engine.checkpoint_minutes": None,
    "engine.keep_checkpoints": None,
    "engine.trackers": None,
}
_LATER = ("export", "latency", "report")  # in this order; each looks at what those before it left


@dataclass(frozen=True)
class Change:
    """Another recipe for a run: what is said of it, and the stages that are done again."""

    recipe: Recipe
    said: str
    forget: tuple[str, ...]

    def make(self, run: Folder) -> None:
        """Put it into a run that this process alone works on."""
        run.change(self.recipe, self.said, self.forget)


def changed(run: Folder, overrides: Sequence[str]) -> Change | None:
    """What overrides change in a run, which is as it was; None: nothing.

    Args:
        overrides: such as "export.onnx=false".

    Raises:
        ConfigError: one of them is of another key.
    """
    before = run.recipe
    after = before.changed(overrides)
    differing = list(_differences(before.to_dict(), after.to_dict()))
    forget: set[str] = set()
    for key, _ in differing:
        section = next((name for name in CHANGEABLE if key == name or key.startswith(f"{name}.")), None)
        if section is None:
            raise ConfigError(
                f"{key} cannot be changed in a run that has begun: a resume changes {', '.join(CHANGEABLE)} alone, and "
                "another run is begun with secateur run RECIPE --out ANOTHER."
            )
        first = CHANGEABLE[section]
        forget |= set(_LATER[_LATER.index(first) :]) if first is not None else set()
    if not differing:
        return None
    said = ", ".join(f"{key}={shown(new)}" for key, new in differing)
    return Change(after, f"The recipe was changed when the run was continued: {said}.", tuple(sorted(forget)))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with other values, by their whole path, and the new ones; a section that comes or goes is one of them."""
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{where}{name}.")
        elif old != new:
            yield f"{where}{name}", new

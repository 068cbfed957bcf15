"""What networks are for: losses, metrics and batches of the built-in tasks, and of one's own.

>>> task = secateur.tasks.create("classification")
>>> task.evaluate(model, loader)["accuracy"]
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from secateur._hints import choose
from secateur._importing import imported
from secateur.errors import ConfigError
from secateur.tasks.asking import Asks, refusal
from secateur.tasks.base import Evaluator, Task, TaskSettings, shown
from secateur.tasks.classification import Classification
from secateur.tasks.detection import Detection
from secateur.tasks.embeddings import MetricLearning
from secateur.tasks.labels import Binary, MultiLabel
from secateur.tasks.numbers import Regression, SuperResolution
from secateur.tasks.segmentation import Segmentation

__all__ = ["TASKS", "Asks", "Classification", "Evaluator", "Task", "TaskSettings", "create", "refusal", "shown"]

#: The built-in tasks by name.
TASKS: Mapping[str, type[Task]] = {
    kind.name: kind
    for kind in (
        Classification, MultiLabel, Binary, Regression, Segmentation, Detection, SuperResolution, MetricLearning
    )
}  # fmt: skip


def create(what: str | Task | Any = "classification", **settings: Any) -> Task:
    """A task.

    Args:
        what: a name of `TASKS`, an import path (`mypkg.tasks:Mine`, `file.py:Mine`) of a class, function or object, or
            such a thing itself. settings: for the class or function.

    Raises:
        ConfigError: there is no such task, a setting is wrong, or what is named is no task.
    """
    found: Any = what
    if isinstance(what, str):
        own = ":" in what or "." in what
        found = imported(what, "task") if own else TASKS[choose(what, TASKS, "task")]
    if isinstance(found, Task) or not callable(found):
        if settings:
            raise ConfigError(f"The task {what!r} is an object already: make it with {', '.join(settings)} itself.")
        return _checked(found, what)
    try:
        made = found(**settings)
    except TypeError as error:
        if (wrong := _unknown(found, settings)) is None:
            raise
        raise ConfigError(f"The task {what!r} takes no setting {wrong!r}: leave it out.") from error
    return _checked(made, what)


def _checked(found: Any, what: Any) -> Task:
    if not isinstance(found, Task):
        raise ConfigError(
            f"{what!r:.80} is a {type(found).__name__}, no task: derive it from secateur.tasks.Task, or choose one of "
            f"{', '.join(TASKS)}."
        )
    return found


def _unknown(function: Any, settings: Mapping[str, Any]) -> str | None:
    """The first setting that a function does not take."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return next((name for name in settings if name not in parameters), None)

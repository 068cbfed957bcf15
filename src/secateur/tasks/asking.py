"""What a method asks of a task, and the sentence where the task has no such thing."""

from __future__ import annotations

from typing import Any, Literal

from secateur.batches import listed
from secateur.graph.modules import as_call
from secateur.tasks.base import Task

#: nothing: any task. samples: inputs that are tensors, a row a sample. loss: that of a model in evaluation. scores:
#: answers that are scores of classes. classes: the class of every sample. class scores: both of these.
Asks = Literal["nothing", "samples", "loss", "scores", "classes", "class scores"]


def refusal(asks: Asks, task: Task, inputs: Any = None) -> str | None:
    """Why a task cannot be served: the end of a sentence that begins with the method; None if it can.

    asks: what the method needs of a task. inputs: example inputs, where they are known.
    """
    name = task.name or type(task).__name__
    args, keywords = as_call(inputs)
    if asks == "nothing":
        return None
    if any(listed(value) for value in (*args, *keywords.values())):
        return "follows samples along the first dimension of a tensor, and these inputs are a list of tensors"
    if asks == "loss" and not task.judges:
        return f"looks at the loss of a network in evaluation, and the task {name} has one in training only"
    if asks in ("scores", "class scores") and not task.scores:
        return f"takes answers for scores of classes, and those of the task {name} are none"
    if asks in ("classes", "class scores") and task.label_free:
        return f"needs the class of every sample, and the task {name} has none"
    return None

"""A method's row: all that lists, documentation and the test matrix know of it outside its own room.

On the contract: every room has one row or several, and the registry holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from secateur.errors import ConfigError
from secateur.methods.contract import Method, Settings
from secateur.tasks import Asks, Task, refusal

Needs = Literal["nothing", "calibration", "training"]
Acts = Literal["before training", "while training", "after training"]
Begins = Literal["weights", "new", "narrow"]
Outcome = Literal["ordinary", "forms", "per input"]


@dataclass(frozen=True)
class MethodRow:
    """One method for lists, documentation and the test matrix; all that is known of it outside its own room.

    A name, a factory and a summary are enough for a method of one's own that scores a trained network.
    """

    name: str
    factory: Callable[..., Method]
    summary: str
    paper: str = ""
    year: int | None = None
    arxiv: str = ""  # number of the preprint; empty where there is none
    needs: Needs = "nothing"  # nothing, calibration batches, or training
    labels: bool = False  # whether collect() looks at the targets of its batches
    acts: Acts = "after training"
    #: What it needs of a task (`secateur.tasks.Asks`); None: the loss if it looks at labels, else samples or nothing.
    asks: Asks | None = None
    granularity: str = "channel"  # what is removed
    fidelity: str = "not from a paper"  # how close this is to the paper, and what was reconstructed
    settings: type[Settings] | None = None  # None: the factory's Config
    begins: Begins = "weights"  # trained weights, a new network, or a new one that is narrow from the start
    finetunes: bool = True  # whether training after the cut is part of it, or all of it precedes the cut
    #: Share of the epochs in which its paper has the method at work: of all of them, or of those that follow the
    #: training of the network it begins with; None: not said.
    acting: float | None = None
    #: The learning rate then, constant, over the highest of a training from nothing; None: the schedule goes on.
    acting_rate: float | None = None
    variants: tuple[Mapping[str, Any], ...] = field(
        default=(), hash=False
    )  # settings that take another way, which the contract suite also runs
    #: What finish() gives: an ordinary network, or one with layers computed another way (`Method.forms`); "per input":
    #: what they compute depends on the image, and `collect` is shown images before the cut, to know their mean cost.
    result: Outcome = "ordinary"
    chance: str = ""  # what is drawn by the number of a channel, so that a plan does not follow its channels

    def refusal(self, task: Task, inputs: Any = None) -> str | None:
        """Why it cannot serve a task, in a sentence; None if it can. inputs: example inputs, if they are known."""
        usual: Asks = "nothing" if self.needs != "calibration" else "loss" if self.labels else "samples"
        why = refusal(self.asks or usual, task, inputs)
        return None if why is None else f"The method {self.name} {why}: choose another method, such as l1 or bwcp."

    def check_task(self, task: Task, inputs: Any = None) -> None:
        """ConfigError where it cannot serve a task."""
        if (why := self.refusal(task, inputs)) is not None:
            raise ConfigError(why)

    @property
    def collects(self) -> bool:
        """Whether images are to be shown to it before the cut."""
        return self.needs == "calibration" or self.result == "per input"

    @property
    def config(self) -> type[Settings]:
        """The class of its settings."""
        found: Any = self.settings or getattr(self.factory, "Config", Settings)
        kind: type[Settings] = found
        return kind

    @property
    def example_budget(self) -> str:
        """A budget in what it saves: FLOPs, or the share of weights that stay where all it does is set some to zero."""
        return "params=0.5" if self.granularity in ("kernel", "weight") else "flops=0.5"

    @property
    def removes(self) -> str:
        """What is removed, in the plural."""
        return f"{self.granularity}s".replace("channel or", "channels or").replace("stripe and", "stripes and")

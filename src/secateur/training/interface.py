"""What the engine needs of data, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Split(Protocol):
    """Some of the images; `secateur.data.Split` is one.

    What batch number b of an epoch holds depends on the seed, the epoch and b alone, whatever `start` and `world` are.
    """

    def __len__(self) -> int: ...

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> Iterator[tuple[Any, Any]]: ...

    def batch_count(self, batch_size: int, drop_last: bool = False) -> int: ...


class Data(Protocol):
    """Images to train on and to watch by."""

    @property
    def classes(self) -> int | None: ...
    @property
    def train(self) -> Split: ...
    @property
    def validation(self) -> Split | None: ...


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on some images; `headline` is the task's, and among `metrics`, all that it measures."""

    loss: float
    headline: float
    images: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Fitted:
    """A stage of training that is over."""

    stage: str
    epochs: int
    steps: int
    seconds: float  # of this stage, all resumptions together
    selected: str  # whose weights the module now has: "last" or "best"
    best_epoch: int | None = None  # counted from 1; None without validation images
    best_headline: float | None = None
    resumed: int | None = None  # the optimiser step this call went on from
    notes: tuple[str, ...] = ()  # sentences for the run's report

    def to_dict(self) -> Mapping[str, Any]:
        """What a checkpoint of the finished stage remembers."""
        names = ("epochs", "steps", "seconds", "selected", "best_epoch", "best_headline")
        return {name: getattr(self, name) for name in names}

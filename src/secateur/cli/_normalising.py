"""`--mean` and `--std`: how the images of `--data` are normalised, and the sentence that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secateur.data import Data
    from secateur.references import Loaded

Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="NUMBERS",
        help="Of the colours of --data's images, 0 to 1: 0.5,0.5,0.5, or 0.5 for all, or a name: imagenet, measured.",
    ),
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="NUMBERS", help="What the colours are divided by, as --mean.")
]


@dataclass(frozen=True)
class Normalising:
    """The two options as they were typed."""

    mean: str | None = None
    std: str | None = None

    def __bool__(self) -> bool:
        return self.mean is not None or self.std is not None

    def refuse(self, why: str) -> None:
        """ConfigError if any was typed: it has no effect."""
        if self:
            option = "--std" if self.mean is None else "--mean"
            raise ConfigError(f"{option} has no effect {why}: leave it out.")

    def options(self, loaded: Loaded, channels: int, *, own: bool) -> tuple[dict[str, Any], str]:
        """What goes into `data.options`, and in words where that is from ("" where the data set knows better).

        loaded: the network; where nothing was typed, its run's folder is asked what it was trained with, and unless the
            data set has an `own` normalisation also its configuration (timm's). channels: of the images.

        Raises:
            ConfigError: no numbers, of colours from 0 to 1; or one option without the other.
        """
        if not self:
            if found := _of_run(Path(loaded.reference), channels):
                return found, f"those of the run in {loaded.reference}"
            found = {} if own else _of_model(loaded.model, channels)
            return found, "those of the network's own configuration" if found else ""
        mean, std = (_understood(o, v) for o, v in (("--mean", self.mean), ("--std", self.std)))
        if isinstance(mean, str) or isinstance(std, str):  # a name alone has both
            mean, std = (mean or std), (std or mean)
        if mean is None or std is None:
            there, missing = ("--std", "--mean") if mean is None else ("--mean", "--std")
            raise ConfigError(f"{there} is given without {missing}: give both.")
        for option, values in (("--mean", mean), ("--std", std)):
            if isinstance(values, list) and len(values) not in (1, channels):
                raise ConfigError(
                    f"{option} has {len(values)} numbers for images of {channels} colours: give one for each, or one "
                    "for all."
                )
        return {"mean": mean, "std": std}, ""


def told(data: Data, origin: str) -> str:
    """The sentence that says how images are normalised. origin: where that is from, if the data set cannot know."""
    said = data.normalised if not origin else f"{data.normalised.rpartition(', ')[0]}, {origin}"
    return f"Images of {data.name} are normalised by {said}; --mean and --std give others."


def _understood(option: str, text: str | None) -> list[float] | str | None:
    if text is None:
        return None
    from secateur.data.normalisation import checked_name

    word = text.strip()
    if word and word[0].isalpha() and "," not in word and word.lower() not in ("nan", "inf", "infinity"):
        try:
            checked_name(word)
        except ValueError as error:
            raise ConfigError(f"{option} {text!r} is not understood: {error}.") from None
        return word
    try:
        numbers = [float(part) for part in word.split(",")]
    except ValueError:
        numbers = []
    least = "above 0" if option == "--std" else "from 0"
    if not numbers or not all((n > 0 if option == "--std" else n >= 0) and n <= 1 for n in numbers):
        large = [n for n in numbers if 1 < n <= 255]
        hint = f" ({large[0]:g} of 255 is {large[0] / 255:.4f})" if large else ""
        raise ConfigError(
            f"{option} {text!r} is not understood: give numbers {least} to 1, by commas{hint}, such as "
            "0.485,0.456,0.406, or a name such as imagenet."
        )
    return numbers


def _of_run(folder: Path, channels: int) -> dict[str, Any]:
    """What the network in a run's folder was trained with, as the header of its weights says."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        said = (weights.metadata() or {}).get("normalisation", "null")
    return _complete(json.loads(said), channels)


def _of_model(model: nn.Module, channels: int) -> dict[str, Any]:
    """Mean and standard deviation in the network's own configuration, where there are some for so many colours."""
    configs = (getattr(model, name, None) for name in ("pretrained_cfg", "default_cfg"))
    return next(filter(None, (_complete(config, channels) for config in configs)), {})


def _complete(given: Any, channels: int) -> dict[str, Any]:
    """Mean and std where both are there, for so many colours."""
    pair = {key: given.get(key) for key in ("mean", "std")} if isinstance(given, Mapping) else {"": None}
    if not all(isinstance(values, list | tuple) and len(values) == channels for values in pair.values()):
        return {}
    return {key: [float(number) for number in values] for key, values in pair.items() if values is not None}

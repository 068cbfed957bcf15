"""How pixels are normalised: by the user's numbers, those of a name, the usual ones of a set, or measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur._hints import nearest
from secateur.data.images import Images, Request
from secateur.data.order import Indices
from secateur.errors import ConfigError, DataError

Numbers = tuple[float, ...]
MEASURED = "measured"
#: Mean and standard deviation of each colour, for pixels from 0 to 1, by the name of what they are usual for.
USUAL: Mapping[str, tuple[Numbers, Numbers]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),  # -1 to 1, as Inception and many transformers want it
    "digits": ((0.3053,), (0.3760,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each colour, and in words where they are from."""

    mean: Numbers
    std: Numbers
    origin: str

    def __str__(self) -> str:
        return f"mean {_listed(self.mean)} and std {_listed(self.std)}, {self.origin}"


def checked_name(value: Sequence[float] | str | None) -> Sequence[float] | str | None:
    """What `data.options.mean` or `.std` may be; ValueError for a word that is no name."""
    names = (*USUAL, MEASURED)
    if isinstance(value, str) and value not in names:
        close = nearest(value, names)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{hint}Give a number for each colour, one for all, or a name: {', '.join(names)}")
    return value


def normalisation(
    mean: Sequence[float] | str | None,
    std: Sequence[float] | str | None,
    usual: str | None,
    images: Images,
    train: Indices,
) -> Normalisation:
    """What a set is normalised by.

    Args:
        mean, std: what `data.options` say: a number for each colour or for all, a name of `USUAL`, "measured", or None.
        usual: the name of what is usual for the set; None: measured. images, train: what is measured, if need be.

    Raises:
        ConfigError: numbers for another count of colours. DataError: a stream, of which nothing can be measured.
    """
    channels = images.size[0]
    found: list[Numbers] = []
    origins: list[str] = []
    for place, (key, given) in enumerate((("mean", mean), ("std", std))):
        if isinstance(given, Sequence) and not isinstance(given, str):
            if len(given) not in (1, channels):
                raise ConfigError(
                    f"data.options.{key} has {len(given)} numbers for {channels} colours: give one for each, or one."
                )
            found.append(tuple(given) * (channels // len(given)))
            origins.append("as given")
            continue
        name = given or usual or MEASURED
        if name == MEASURED:
            if not len(train):
                raise DataError(f"data.options.{key} is measured, and a stream is not: give numbers, or a name.")
            found.append(_measured(images, train)[place])
            origins.append(f"measured from {len(train):,} training images")
        else:
            found.append(_fitted(USUAL[name][place], channels))
            origins.append(f"{'' if given else 'the usual ones: '}those of {name}")
    return Normalisation(found[0], found[1], " and ".join(dict.fromkeys(origins)))


def _fitted(values: Numbers, channels: int) -> Numbers:
    """Where the numbers of colours differ, each colour takes the average."""
    return values if len(values) == channels else (float(np.mean(values)),) * channels


def _measured(images: Images, train: Indices) -> tuple[Numbers, Numbers]:
    """From how often each value occurs, so exact and independent of the order of summation."""
    counts = np.zeros((images.size[0], 256), dtype=np.int64)
    requests = (Request(part, None) for part in np.array_split(train, len(train) // 4096 + 1))
    for pixels in images.read(requests, 0):
        for channel, plane in enumerate(pixels.movedim(1, 0)):
            counts[channel] += np.bincount(plane.numpy().ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    spread = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.maximum(spread, 1 / 255).tolist())  # of one colour only: not 0


def _listed(values: Numbers) -> str:
    return ",".join(f"{value:.4g}" for value in values)

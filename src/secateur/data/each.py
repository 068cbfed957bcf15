"""Augmentations of torchvision (`transforms.v2`) and of the user's own: done image by image, with boxes and masks.

All that one draws, of whichever generator, follows from a key of the image at its place in seed, epoch and batch.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur._files import said
from secateur._hints import choose, install, nearest
from secateur._importing import imported
from secateur.data.augment import AUGMENTATIONS, Augmentation
from secateur.errors import ConfigError, DataError
from secateur.recipe import steps

_BITS = 1 << 53  # of a number from 0 to 1
_CROPS = ("RandomResizedCrop",)  # done while an image still has its own size


@contextmanager
def drawing(key: int) -> Iterator[None]:
    """Inside, Python, NumPy and PyTorch draw what follows from the key; afterwards they go on as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(key)
    np.random.seed(key % (1 << 32))
    torch.default_generator.manual_seed(key >> 1)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def augmentations(names: Iterable[Any]) -> tuple[Augmentation, ...]:
    """What these name, in this order: rows of `AUGMENTATIONS`, classes of torchvision's, or import paths.

    Raises:
        ConfigError: one is unknown (the nearest is named), given twice, or does not take its arguments.
    """
    if isinstance(names, str):
        raise ConfigError(f"data.augment {names!r} is a word, not a list: write [{names}].")
    rows = tuple(map(_row, names))
    called = [row.name for row in rows]
    twice = next((name for place, name in enumerate(called) if name in called[:place]), None)
    if twice is not None:
        raise ConfigError(f"data.augment names {twice!r} twice: name it once.")
    return rows


def _row(given: Any) -> Augmentation:
    if isinstance(given, str) and given in AUGMENTATIONS:
        return AUGMENTATIONS[given]
    if not isinstance(given, str | steps.Chosen):
        return AUGMENTATIONS[choose(given, AUGMENTATIONS, "augmentation")]
    chosen = steps.Chosen(name=given) if isinstance(given, str) else given
    if chosen.name in AUGMENTATIONS:
        raise ConfigError(f"data.augment: {chosen.name} takes no arguments: name it alone, or one of torchvision's.")
    arguments = ", ".join(f"{key}={value}" for key, value in chosen.arguments.items())
    name = f"{chosen.name}({arguments})" if arguments else chosen.name
    each = Each(chosen)
    if chosen.name in _CROPS:
        return Augmentation(name, name, 1, "reading", each, each.opened)
    return Augmentation(name, name, 1, "pixels", each)


def together(rows: Sequence[Augmentation], sample: Any, marks: str) -> Any:
    """A sample of the user's own data, augmented inside `drawing`: its image and what lies on it alike.

    Args:
        sample: (image, target).
        marks: what the target is: none (nothing that lies on the image), mask, boxes (a dict of boxes, perhaps masks),
            image.

    Raises:
        ConfigError: it is no such pair.
    """
    if not rows:
        return sample
    if not isinstance(sample, tuple | list) or len(sample) != 2 or not isinstance(sample[0], Tensor):
        raise ConfigError(
            "data.augment needs samples that are pairs of an image tensor and a target: augment in your own code."
        )
    pair = _marked(sample[0], sample[1], marks)
    for row in rows:
        pair = row.function.both(pair)  # type: ignore[attr-defined]
    return _plain(pair)


class Each:
    """Does the same to each image of a batch, with its own draws; made anew in every process, so that it travels."""

    def __init__(self, chosen: steps.Chosen) -> None:
        self.chosen = chosen
        self._made: dict[tuple[int, ...], Any] = {}
        self._for((8, 8))  # refuses what cannot be

    def __reduce__(self) -> Any:
        return Each, (self.chosen,)

    def _for(self, size: tuple[int, ...]) -> Any:
        """The transform, made once for a size."""
        if size not in self._made:
            self._made[size] = _built(self.chosen, size)
        return self._made[size]

    def check(self, size: tuple[int, ...]) -> None:
        """Try it on an image of this size; ConfigError where it makes something else of it."""
        self(torch.zeros(1, *size, dtype=torch.uint8), torch.zeros(1, 1))

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """images: uint8 [n, C, H, W]. numbers: [n, 1], from 0 to 1."""
        if not len(images):
            return images
        keys = _keys(numbers)
        done = [self.one(image, key, tuple(images.shape[-2:])) for image, key in zip(images, keys, strict=True)]
        if any(image.shape != images.shape[1:] or image.dtype != images.dtype for image in done):
            wrong = next(image for image in done if image.shape != images.shape[1:] or image.dtype != images.dtype)
            raise ConfigError(
                f"data.augment: {self.chosen.name} makes {_size(wrong.shape)} {str(wrong.dtype).partition('.')[2]} of "
                f"{_size(images.shape[1:])} uint8: images keep their size and kind here, so change its arguments."
            )
        return torch.stack(done)

    def opened(self, image: Any, numbers: Tensor, size: tuple[int, int]) -> Any:
        """An image as Pillow has it, made to have that size."""
        done = self.one(image, _keys(numbers)[0], size)
        return done if done.size == size[::-1] else done.resize(size[::-1])

    def one(self, image: Any, key: int, size: tuple[int, ...]) -> Any:
        """An image as a tensor, or as Pillow has it, with the draws of a key; size: of what it shall become."""
        transform = self._for(size)
        with drawing(key):
            try:
                return transform(_image(image) if isinstance(image, Tensor) else image)
            except Exception as error:
                raise DataError(f"data.augment: {self.chosen.name} fails on an image ({said(error)}).") from error

    def both(self, pair: Any) -> Any:
        """An image and what lies on it, inside `drawing`."""
        transform = self._for(tuple(pair[0].shape[-2:]))
        try:
            return transform(pair) if isinstance(transform, torch.nn.Module) else transform(*pair)
        except Exception as error:
            raise DataError(f"data.augment: {self.chosen.name} fails on a sample ({said(error)}).") from error


def _keys(numbers: Tensor) -> list[int]:
    return [int(number) for number in (numbers[:, 0] * _BITS).tolist()]


def _built(chosen: steps.Chosen, size: tuple[int, ...]) -> Any:
    given = chosen.arguments
    if ":" in chosen.name:
        found = imported(chosen.name, "augmentation")
        try:
            made = found(**given) if given or inspect.isclass(found) else found
        except Exception as error:
            raise ConfigError(f"data.augment: {chosen.name} cannot be made so ({said(error)}).") from error
        if not callable(made):
            raise ConfigError(f"data.augment: {chosen.name} cannot be called: name a function or class that can.")
        return made
    kind = _class(chosen.name)
    takes = steps.arguments_of(kind, ())
    try:
        steps.refuse_unknown(chosen, given, takes, "augmentation")
        given = {key: _value(key, value, size) for key, value in given.items()}
        if chosen.name in _CROPS and "size" not in given:
            given["size"] = list(size)
        return steps.instance(chosen, "augmentation", kind, **given)
    except ValueError as error:
        raise ConfigError(f"data.augment: {error}.") from error


def _class(name: str) -> Any:
    """Of `torchvision.transforms.v2`; ConfigError with the nearest name where it is not there."""
    own = list(AUGMENTATIONS)
    try:
        room = importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError) as error:  # the second: compiled parts that do not load
        close = nearest(name, own)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"Unknown augmentation {name!r}: {hint}Choose one of {', '.join(own)}; those of torchvision need it "
            f"({said(error)}): {install('vision')}."
        ) from error
    there = {n: v for n, v in vars(room).items() if inspect.isclass(v) and issubclass(v, torch.nn.Module)}
    if name in there and name not in ("Transform", "CutMix", "MixUp"):
        return there[name]
    close = nearest(name, [*own, *there])
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = "They mix two images: set mixup or cutmix of the stage. " if name in ("CutMix", "MixUp") else hint
    raise ConfigError(
        f"Unknown augmentation {name!r}: {more}Choose one of {', '.join(own)}, a class of "
        "torchvision.transforms.v2, or file.py:function."
    )


def _value(key: str, value: Any, size: tuple[int, ...]) -> Any:
    """An argument as torchvision takes it: transforms inside others, and words for its enumerations."""
    if key in ("transforms", "transform"):
        inner = [value] if isinstance(value, str | Mapping) else list(value)
        made = [
            _built(steps.Chosen.model_validate({"name": each} if isinstance(each, str) else each), size)
            for each in inner
        ]
        return made if key == "transforms" else made[0]
    if key in ("interpolation", "policy") and isinstance(value, str):
        room = importlib.import_module("torchvision.transforms.v2")
        return getattr(room, "InterpolationMode" if key == "interpolation" else "AutoAugmentPolicy")(value)
    return value


def _image(image: Tensor) -> Any:
    try:
        return importlib.import_module("torchvision.tv_tensors").Image(image)
    except (ImportError, RuntimeError):  # a function of the user's own needs none
        return image


def _marked(image: Tensor, target: Any, marks: str) -> tuple[Any, Any]:
    """An image and a target under the kinds by which torchvision knows what to do with each."""
    try:
        kinds = importlib.import_module("torchvision.tv_tensors")
    except (ImportError, RuntimeError):
        return image, target
    if marks == "mask":
        target = kinds.Mask(target)
    elif marks == "image":
        target = kinds.Image(target)
    elif marks == "boxes":
        size = tuple(image.shape[-2:])
        marked = {"boxes": lambda v: kinds.BoundingBoxes(v, format="XYXY", canvas_size=size), "masks": kinds.Mask}
        target = {key: marked[key](value) if key in marked else value for key, value in target.items()}
    return kinds.Image(image), target


def _plain(value: Any) -> Any:
    """The same without those kinds."""
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

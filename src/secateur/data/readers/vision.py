"""Data sets of torchvision, by the names of their classes: what they give, their files and downloads are torchvision's.

Their small ones lie in memory as arrays; of others images are decoded when they are needed.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur._hints import install, nearest
from secateur.data._files import data_folder, said
from secateur.data.images import Images, MemoryImages, Shape
from secateur.data.options import VisionOptions
from secateur.data.readers import Contents, count_classes, shape_of
from secateur.data.readers.hub import RowImages
from secateur.data.readers.npz import images_of
from secateur.errors import ConfigError, DataError

#: Read from pickles, which can run code.
_PICKLED = ("CIFAR10", "CIFAR100", "LSUN", "LSUNClass")
_SIZED = {"size", "resize", "channels", "check"}  # options of images that are decoded


class VisionImages(RowImages):
    """One part of a set of torchvision's, whose samples are an image and a label."""

    def bytes_of(self, number: int) -> bytes:
        """The pixels: where their file lies is not known."""
        return bytes(self.load(number).tobytes())


def read(path: str | None, options: VisionOptions, get: str) -> Contents:
    kind = _class(options.dataset)
    root = Path(path).expanduser() if path is not None else data_folder()
    shape, check = shape_of(options)
    sets: list[Images] = []
    names = None
    for part, arguments in (("train", _division(kind, True, options)), ("test", _division(kind, False, options))):
        made = _opened(kind, root, {**options.arguments, **arguments}, options.download)
        where = f"torchvision's {kind.__name__} ({part})"
        sets.append(_images(made, where, shape, check, bool(options.model_fields_set & _SIZED)))
        names = getattr(made, "classes", None) if part == "train" else names
    named = tuple(map(str, names)) if isinstance(names, list | tuple) and names else None
    classes = len(named) if named else count_classes(sets[0].labels, f"torchvision's {kind.__name__}")
    row = {"name": f"torchvision.datasets.{kind.__name__}", "options": options.model_dump(mode="json")}
    return Contents(sets[0], sets[1], classes, named, partial(list, [row]))


def _class(name: str | None) -> Any:
    """The class of that name; ConfigError where there is none that can be read."""
    if name is None:
        raise ConfigError("data.options.dataset is missing: name a class of torchvision.datasets, such as Flowers102.")
    try:
        room = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:  # the second: compiled parts that do not load
        raise ConfigError(f"torchvision cannot be imported ({said(error)}): {install('vision')}.") from error
    if name in _PICKLED:
        ours = f"set data.name: {name.lower()}, which reads the binary version" if "CIFAR" in name else "take another"
        raise ConfigError(f"torchvision's {name} is read from pickles, which can run code: {ours}.")
    if name not in room.__all__ or not hasattr(getattr(room, name), "__getitem__"):
        close = nearest(name, room.__all__)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"torchvision has no data set {name!r}: {hint}Name a class of torchvision.datasets.")
    return getattr(room, name)


def _division(kind: Any, train: bool, options: VisionOptions) -> dict[str, Any]:
    """The argument that tells training images from test images."""
    takes = inspect.signature(kind).parameters
    # EMNIST has a split that is no such thing, and passes train on
    if "train" in takes or ("split" in options.arguments and any(p.kind is p.VAR_KEYWORD for p in takes.values())):
        given = {"train", "test"} & options.model_fields_set
        if given:
            raise ConfigError(f"data.options.{min(given)} has no effect on {kind.__name__}, which has no such splits.")
        return {"train": train}
    if "split" in takes and "split" not in options.arguments:
        return {"split": options.train if train else options.test}
    raise ConfigError(
        f"torchvision's {kind.__name__} is not divided into training and test images: divide it in a function of your "
        "own, and name that in data.name."
    )


def _opened(kind: Any, root: Path, arguments: dict[str, Any], download: bool) -> Any:
    given = {**arguments, "download": True} if download else arguments
    try:
        return kind(str(root), **given)
    except Exception as error:  # arguments, files and the network: each class has its own
        raise DataError(
            f"torchvision's {kind.__name__} cannot be opened in {str(root)!r} ({said(error)}): put its files there as "
            "torchvision has them, correct data.options, or set data.options.download: true."
        ) from error


def _images(made: Any, where: str, shape: Shape, check: int | None, sized: bool) -> Images:
    """Arrays as they are, unless sizes are asked for; other images are decoded and brought to size."""
    labels = _labels(made, where)
    pixels = getattr(made, "data", None)
    array = np.asarray(pixels) if pixels is not None and len(pixels) == len(labels) else None
    if array is not None and array.dtype == np.uint8 and not sized:
        return MemoryImages(images_of(array, where, "auto"), labels)
    return VisionImages(made, 0, where, labels, shape, check)


def _labels(made: Any, where: str) -> NDArray[np.int64]:
    """Of all images, without decoding them where the set has a list of them."""
    lists = (getattr(made, name, None) for name in ("targets", "labels", "_labels"))
    pairs = (getattr(made, name, None) for name in ("samples", "_samples"))
    found = next((each for each in lists if each is not None and len(each) == len(made)), None)
    if found is None:
        listed = next((each for each in pairs if each is not None and len(each) == len(made)), None)
        found = [label for _, label in (listed if listed is not None else map(made.__getitem__, range(len(made))))]
    values = np.asarray(found)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{where} has no class for each image: name a data set of classes in data.options.dataset.")
    return values.astype(np.int64)

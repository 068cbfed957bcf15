"""What `prune` takes from its options: settings of a method and its repairs, and images for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli._normalising import Normalising, told
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.data import Data
    from secateur.references import Loaded
    from secateur.repair import Repair

#: What people call the data sets otherwise.
_ALSO = {"imagefolder": "folder", "image_folder": "folder"}


def chosen(
    name: str, repairs: Sequence[str], settings: Sequence[str], plugins: Sequence[str]
) -> tuple[dict[str, Any], list[Repair]]:
    """The settings of a method, and the repairs, from options such as --set cp.ridge=1e-3.

    Raises:
        ConfigError: there is no such method, repair or setting; one sentence.
    """
    from secateur._settings import validated
    from secateur.methods import method, plug_in
    from secateur.repair import METHOD_OF
    from secateur.repair import repairs as made

    for each in plugins:
        plug_in(each)
    row = method(name)
    mending = [METHOD_OF.get(each, each) for each in repairs]
    made(mending)
    given: dict[str, dict[str, Any]] = {row.name: {}, **{each: {} for each in mending}}
    for text in settings:
        owner, key, value = _setting(text, row.name)
        if owner not in given:
            raise ConfigError(
                f"--set {text!r} is of {owner!r}, which is not used here: write {row.name}.KEY=VALUE"
                + "".join(f" or {each}.KEY=VALUE" for each in mending)
                + "."
            )
        if key in given[owner]:
            raise ConfigError(f"--set gives {owner}.{key} twice: give it once.")
        given[owner][key] = value
    own = given.pop(row.name)
    validated(row.config, own, row.name)
    return own, made([{"name": each, **given[each]} for each in mending])


def _setting(text: str, name: str) -> tuple[str, str, Any]:
    """Owner, key and value of NAME.KEY=VALUE, or of KEY=VALUE of the method."""
    from secateur import _yaml

    path, sign, value = text.partition("=")
    owner, dot, key = path.strip().rpartition(".")
    if not sign or not key or (dot and not owner):
        raise ConfigError(f"--set {text!r} is not understood: write NAME.KEY=VALUE, such as {name}.KEY=VALUE.")
    return owner or name, key, _yaml.parse(value, f"--set {text!r}")


def images_of(
    given: str,
    loaded: Loaded,
    images: int,
    batch_size: int,
    seed: int,
    normalising: Normalising,
    say: Callable[[str], None],
) -> tuple[Shown, str]:
    """Batches of training images for a network, from KIND or KIND:PATH, and how they are normalised, in a sentence.

    say: told which batch is being looked at, and how often all of them have been.

    Raises:
        SecateurError: there are no such data, or the network does not take images of their size; one sentence.
    """
    data, sentence = data_of(given, loaded, seed, normalising, augment=())
    return Shown(data, images, batch_size, seed, say), sentence


def data_of(
    given: str, loaded: Loaded, seed: int, normalising: Normalising, *, augment: Sequence[str] | None = None
) -> tuple[Data, str]:
    """The data set that KIND or KIND:PATH names, in the size that the network takes; a bare folder is one of images.

    augment: what is done to training images where they are trained on; None: what is usual for the set.

    Returns:
        the data, and sentences that say how their images are normalised, and what else there is to know of them.

    Raises:
        SecateurError: there are no such data, or the network does not take images of their size; one sentence.
    """
    from secateur._settings import validated
    from secateur.data import open_data
    from secateur.data.options import ImageOptions
    from secateur.data.registry import DATASETS, dataset
    from secateur.recipe import DataConfig

    kind, colon, path = given.partition(":")
    kind = _ALSO.get(kind, kind)
    if kind not in DATASETS and given and not colon and _path_like(given):
        if not Path(given).is_dir():
            raise ConfigError(f"--data {given!r}: there is no such folder of images: correct it, or write KIND:PATH.")
        kind, path = "folder", given
    row = dataset(kind)
    options: dict[str, Any] = {}
    shape = loaded.shapes[0] if loaded.shapes else ()
    if issubclass(row.options, ImageOptions) and len(shape) == 4 and shape[2] == shape[3]:
        options = {"size": shape[2], "channels": shape[1]}
    channels = shape[1] if len(shape) == 4 else 3
    look, origin = normalising.options(loaded, channels, own=row.usual == row.name)
    config = {
        "name": kind,
        "path": path or None,
        "validation": 0.0,
        "batch_size": 1,  # who takes batches says how large; no set is too small
        "augment": augment,
        "options": {**options, **look},
    }
    data = open_data(validated(DataConfig, config, "data"), seed)
    if len(shape) == 4 and tuple(shape[1:]) != tuple(data.input_size):
        raise ConfigError(
            f"The network takes images of {_size(shape[1:])}, and those of {data.name} are {_size(data.input_size)}: "
            "give --input-size, or other data."
        )
    return data, " ".join((told(data, origin), *data.notes))


def _path_like(given: str) -> bool:
    """Whether somebody means a folder: there is one, or it is written as a path."""
    return Path(given).is_dir() or Path(given).name != given or given in (".", "..")


def training_data(given: str, loaded: Loaded, seed: int, normalising: Normalising) -> Any:
    """What `compress` divides: the training images of a data set, or what an import path names, such as a DataLoader.

    given: KIND, KIND:PATH, a folder of images, `file.py:name` or `package.module:name`, of batches or of a function
        that returns them. The split's `notes` say how its images are normalised.

    Raises:
        SecateurError: see `data_of`; or nothing can be imported from there.
    """
    from secateur._importing import imported
    from secateur.data import Split
    from secateur.data.registry import DATASETS

    kind, sign, _ = given.partition(":")
    if sign and ("." in kind or "/" in kind) and kind not in DATASETS:
        normalising.refuse(f"on {given}, whose images come as they are")
        found = imported(given, "data")
        return found() if callable(found) and not hasattr(found, "__iter__") else found
    data, sentence = data_of(given, loaded, seed, normalising)
    return replace(data.train, notes=(sentence,)) if isinstance(data.train, Split) else data.train


class Shown:
    """Calibration images, batch by batch, which may be gone through again."""

    def __init__(self, data: Data, images: int, batch_size: int, seed: int, say: Callable[[str], None]) -> None:
        import torch

        from secateur.runs.calibration import Calibration

        images = min(images, len(data.train))
        self._batches = Calibration(data.train, images, batch_size, seed, torch.device("cpu"))
        self._count, self._say, self._pass = -(-images // self._batches.size), say, 0

    def __iter__(self) -> Iterator[Any]:
        """Pairs of images and labels."""
        self._pass += 1
        for number, batch in enumerate(self._batches, 1):
            self._say(f"batch {number} of {self._count}, pass {self._pass} over the images")
            yield batch


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

"""One frozen row per data set: opening, the documentation's table and the tests read these and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from secateur._hints import choose
from secateur.data.normalisation import USUAL
from secateur.data.options import (
    Cifar100Options,
    FolderOptions,
    HubOptions,
    NpzOptions,
    Options,
    ShardOptions,
    StreamOptions,
    VisionOptions,
)
from secateur.data.readers import Contents, Streams, cifar, digits, folder, hub, npz, shards, vision


@dataclass(frozen=True)
class DataRow:
    """`usual`: of `normalisation.USUAL`; None: measured. `get` is the end of a sentence: how to come by the set."""

    name: str
    summary: str
    get: str
    usual: str | None
    augment: tuple[str, ...]
    options: type[Options]
    reader: Callable[[str | None, Any, str], Contents]
    streamer: Callable[[str | None, Any, str], Streams] | None = None  # where data.options.stream is true

    @property
    def mean(self) -> tuple[float, ...] | None:
        """What is usually subtracted, for each colour; None: what is measured."""
        return USUAL[self.usual][0] if self.usual else None

    @property
    def std(self) -> tuple[float, ...] | None:
        """What is usually divided by, for each colour; None: what is measured."""
        return USUAL[self.usual][1] if self.usual else None

    def read(self, path: str | None, options: Options) -> Contents:
        return self.reader(path, options, self.get)

    def stream(self, path: str | None, options: Options) -> Streams | None:
        """The set as a stream, if the options ask for one."""
        if not isinstance(options, StreamOptions) or self.streamer is None:
            return None
        options.check_stream(self.name)
        return self.streamer(path, options, self.get) if options.stream else None


_PHOTO_AUGMENT = ("resized_crop", "flip")
_TORONTO = "from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and give its folder as data.path"

_ROWS = (
    DataRow(
        name="digits",
        summary="handwritten digits, 8x8 grey, 1,297 + 500; inside scikit-learn",
        get="it is inside scikit-learn, nothing is to be fetched",
        usual="digits",
        augment=("shift",),
        options=Options,
        reader=digits.read,
    ),
    DataRow(
        name="cifar10",
        summary="photographs of 10 classes, 32x32, 50,000 + 10,000; the binary version or an .npz",
        get=f"get cifar-10-binary.tar.gz {_TORONTO}",
        usual="cifar10",
        augment=("crop", "flip"),
        options=Options,
        reader=cifar.read_10,
    ),
    DataRow(
        name="cifar100",
        summary="photographs of 100 classes, 32x32, 50,000 + 10,000; the binary version or an .npz",
        get=f"get cifar-100-binary.tar.gz {_TORONTO}",
        usual="cifar100",
        augment=("crop", "flip"),
        options=Cifar100Options,
        reader=cifar.read_100,
    ),
    DataRow(
        name="npz",
        summary="arrays of your own: x_train, y_train, x_test, y_test in a numpy .npz, images uint8",
        get="save x_train, y_train, x_test and y_test with numpy.savez and give the file as data.path",
        usual=None,
        augment=(),
        options=NpzOptions,
        reader=npz.read,
    ),
    DataRow(
        name="folder",
        summary="images in train/CLASS/ and test/CLASS/ (or val/CLASS/), or in CLASS/ alone",
        get="give the folder that holds train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE), or CLASS/IMAGE "
        "alone, as data.path",
        usual="imagenet",
        augment=_PHOTO_AUGMENT,
        options=FolderOptions,
        reader=folder.read,
    ),
    DataRow(
        name="torchvision",
        summary="any image classification set of torchvision.datasets, by the name of its class",
        get="name the class in data.options.dataset, and give the folder that it takes as root as data.path, or set "
        "data.options.download: true",
        usual="imagenet",
        augment=_PHOTO_AUGMENT,
        options=VisionOptions,
        reader=vision.read,
    ),
    DataRow(
        name="hf",
        summary="any image classification set of the Hugging Face hub, through `datasets`, also as a stream",
        get="give its name on huggingface.co/datasets, such as uoft-cs/cifar10, or its folder as data.path",
        usual="imagenet",
        augment=_PHOTO_AUGMENT,
        options=HubOptions,
        reader=hub.read,
        streamer=hub.stream,
    ),
    DataRow(
        name="webdataset",
        summary="WebDataset shards: plain .tar files of KEY.jpg (or another format) and KEY.cls, also as a stream",
        get="give the folder that holds train*.tar and test*.tar (or val*.tar) as data.path, or their patterns in "
        "data.options.train and data.options.test",
        usual="imagenet",
        augment=_PHOTO_AUGMENT,
        options=ShardOptions,
        reader=shards.read,
        streamer=shards.stream,
    ),
)
#: Data sets and forms of data by name, one frozen row each.
DATASETS = MappingProxyType({row.name: row for row in _ROWS})


def dataset(name: str) -> DataRow:
    """The row of that name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    return DATASETS[choose(name, DATASETS, "data set")]

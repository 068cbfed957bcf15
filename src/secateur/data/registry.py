"""One frozen row per data set: opening, the documentation's table and the tests read these and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from secateur._hints import choose
from secateur.data.options import (
    Cifar100Options,
    FolderOptions,
    HubOptions,
    NpzOptions,
    Options,
    ShardOptions,
    StreamOptions,
)
from secateur.data.readers import Contents, Streams, cifar, digits, folder, hub, idx, npz, shards, tars


@dataclass(frozen=True)
class DataRow:
    """`mean` and `std` None: those of the training images. `get` is the end of a sentence: how to come by the set."""

    name: str
    summary: str
    needs_path: bool
    get: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augment: tuple[str, ...]
    options: type[Options]
    reader: Callable[[str | None, Any, str], Contents]
    streamer: Callable[[str | None, Any, str], Streams] | None = None  # where data.options.stream is true

    def read(self, path: str | None, options: Options) -> Contents:
        return self.reader(path, options, self.get)

    def stream(self, path: str | None, options: Options) -> Streams | None:
        """The set as a stream, if the options ask for one."""
        if not isinstance(options, StreamOptions) or self.streamer is None:
            return None
        options.check_stream(self.name)
        return self.streamer(path, options, self.get) if options.stream else None


# The usual values for photographs of things (ImageNet's).
_PHOTO_MEAN, _PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PHOTO_AUGMENT = ("resized_crop", "flip")
_TORONTO = "from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and give its folder as data.path"

_ROWS = (
    DataRow(
        name="digits",
        summary="handwritten digits, 8x8 grey, 1,297 + 500; inside scikit-learn",
        needs_path=False,
        get="it is inside scikit-learn, nothing is to be fetched",
        mean=(0.3053,),
        std=(0.3760,),
        augment=("shift",),
        options=Options,
        reader=digits.read,
    ),
    DataRow(
        name="cifar10",
        summary="photographs of 10 classes, 32x32, 50,000 + 10,000; the binary version or an .npz",
        needs_path=True,
        get=f"get cifar-10-binary.tar.gz {_TORONTO}",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augment=("crop", "flip"),
        options=Options,
        reader=cifar.read_10,
    ),
    DataRow(
        name="cifar100",
        summary="photographs of 100 classes, 32x32, 50,000 + 10,000; the binary version or an .npz",
        needs_path=True,
        get=f"get cifar-100-binary.tar.gz {_TORONTO}",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment=("crop", "flip"),
        options=Cifar100Options,
        reader=cifar.read_100,
    ),
    DataRow(
        name="fashion_mnist",
        summary="clothes of 10 classes, 28x28 grey, 60,000 + 10,000; four IDX files, plain or gzipped",
        needs_path=True,
        get="get the four *-ubyte.gz files from https://github.com/zalandoresearch/fashion-mnist and give their folder "
        "as data.path",
        mean=(0.2860,),
        std=(0.3530,),
        augment=("crop", "flip"),
        options=Options,
        reader=idx.read,
    ),
    DataRow(
        name="npz",
        summary="arrays of your own: x_train, y_train, x_test, y_test in a numpy .npz, images uint8",
        needs_path=True,
        get="save x_train, y_train, x_test and y_test with numpy.savez and give the file as data.path",
        mean=None,
        std=None,
        augment=(),
        options=NpzOptions,
        reader=npz.read,
    ),
    DataRow(
        name="folder",
        summary="images in train/CLASS/ and test/CLASS/ (or val/CLASS/)",
        needs_path=True,
        get="give the folder that holds train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE) as data.path",
        mean=_PHOTO_MEAN,
        std=_PHOTO_STD,
        augment=_PHOTO_AUGMENT,
        options=FolderOptions,
        reader=folder.read,
    ),
    DataRow(
        name="hf",
        summary="any image classification set of the Hugging Face hub, through `datasets`, also as a stream",
        needs_path=True,
        get="give its name on huggingface.co/datasets, such as uoft-cs/cifar10, or its folder as data.path",
        mean=_PHOTO_MEAN,
        std=_PHOTO_STD,
        augment=_PHOTO_AUGMENT,
        options=HubOptions,
        reader=hub.read,
        streamer=hub.stream,
    ),
    DataRow(
        name="webdataset",
        summary="WebDataset shards: plain .tar files of KEY.jpg (or another format) and KEY.cls, also as a stream",
        needs_path=True,
        get="give the folder that holds train*.tar and test*.tar (or val*.tar) as data.path, or their patterns in "
        "data.options.train and data.options.test",
        mean=_PHOTO_MEAN,
        std=_PHOTO_STD,
        augment=_PHOTO_AUGMENT,
        options=ShardOptions,
        reader=shards.read,
        streamer=tars.stream,
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

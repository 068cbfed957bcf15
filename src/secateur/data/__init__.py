"""Data sets: a name and perhaps a path become training, validation and test images in deterministic batches.

data = open_data(config, seed=0)
for images, labels in data.train.batches(128, epoch=0, shuffle=True, augment=True, seed=0):
    ...
"""

from secateur.data.augment import AUGMENTATIONS, Augmentation
from secateur.data.digest import digest_of
from secateur.data.opening import Data, DataRequest, is_own, open_data
from secateur.data.registry import DATASETS, DataRow, dataset
from secateur.data.split import Split

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Augmentation",
    "Data",
    "DataRequest",
    "DataRow",
    "Split",
    "dataset",
    "digest_of",
    "is_own",
    "open_data",
]

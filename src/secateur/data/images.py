"""Where pixels come from: arrays in memory, or files decoded by workers. Both answer the same requests."""

from __future__ import annotations

import io
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from secateur.data._files import extra, read_bytes, said
from secateur.data.augment import Augmentation
from secateur.data.order import Indices
from secateur.errors import DataError

Size = tuple[int, int, int]
_LONGEST = 256  # times the shorter side; what of an image is longer lies far outside the middle that is kept

#: An augmentation and its random numbers [n, k].
Drawn = tuple[Augmentation, Tensor]


class Request(NamedTuple):
    """A batch before it has pixels: which images, and what is done to them while they are read and to their pixels.

    indices: their numbers, or of a stream, which has none, what stands for each image.
    """

    indices: Indices | Sequence[Any]
    reading: Drawn | None = None
    pixels: Sequence[Drawn] = ()

    def done(self, images: Tensor) -> Tensor:
        """Read images, uint8 [n, C, H, W], as they are asked for."""
        for row, numbers in self.pixels:
            images = row.function(images, numbers)
        return images


class Images(ABC):
    """Labelled images of one size, to be read in any order."""

    labels: NDArray[np.int64]
    size: Size

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, requests: Iterable[Request], workers: int) -> Iterator[Tensor]:
        """For each request, in order, its images as uint8 [n, C, H, W], augmented as it says."""

    def check(self) -> tuple[str, ...]:
        """Look for damage that shows only when pixels are read, DataError at the first; what else is to be said."""
        return ()  # pixels in memory have been read already

    def where(self, number: Any) -> str:
        """What to call an image in a message."""
        return f"number {number}"


class MemoryImages(Images):
    """A uint8 array [N, C, H, W] and its labels; whole batches are gathered at once."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # torch wants to be able to write
        self.labels = labels
        self.size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])

    def read(self, requests: Iterable[Request], workers: int) -> Iterator[Tensor]:
        for request in requests:
            pixels = self.pixels[torch.as_tensor(request.indices)]
            if request.reading is not None:
                row, numbers = request.reading
                pixels = row.function(pixels, numbers)
            yield request.done(pixels)


@dataclass(frozen=True)
class Shape:
    """How a decoded image gets its size: shorter side to `resize`, the middle `size` x `size` of that is kept."""

    channels: int
    size: int
    resize: int


class EncodedImages(Images):
    """Images that are decoded, one by one, each time they are asked for; subclasses say where the bytes are."""

    def __init__(self, labels: NDArray[np.int64], shape: Shape, check: int | None) -> None:
        self.labels = labels
        self.shape = shape
        self.size = (shape.channels, shape.size, shape.size)
        self._check = check  # how many images to decode when the set is opened; None: all

    @abstractmethod
    def load(self, number: Any) -> Any:
        """The image as a PIL image, or its bytes, or the path of its file."""

    def bytes_of(self, number: Any) -> bytes | None:
        """The encoded image; None where the library that holds it has decoded it."""
        source = self.load(number)
        if isinstance(source, Path):
            return read_bytes(source)
        return source if isinstance(source, bytes) else None

    def read(self, requests: Iterable[Request], workers: int) -> Iterator[Tensor]:
        loader = DataLoader(
            _Batches(self),
            batch_size=None,  # an item is a whole batch
            sampler=requests,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # or each loader would draw a number from the global one
        )
        batches = iter(loader)
        try:
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, DataError):  # raised in a worker it would come with a traceback in its text
                    raise batch
                yield batch
        finally:
            del batches  # ends the workers now; left in a traceback, they would be waited for when it is collected

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except RuntimeError as error:
            raise DataError(
                f"Reading images failed ({said(error)}): lower data.workers, or free some memory."
            ) from error

    def check(self) -> tuple[str, ...]:
        """Decode as many images as asked for, evenly spread; a note where some have grey of 16 bits."""
        count = len(self) if self._check is None else min(self._check, len(self))
        brightest: list[int] = []
        for number in np.linspace(0, len(self) - 1, count).round().astype(np.int64):
            self.decode(int(number), None, brightest)
        if not brightest:
            return ()
        return (
            f"{len(brightest):,} of {count:,} images looked at have grey of 16 bits, black at 0 and white at 65,535, "
            f"and the brightest reach {max(brightest):,}: where that should be white, save them rescaled.",
        )

    def decode(self, number: Any, reading: Drawn | None, brightest: list[int] | None = None) -> Tensor:
        """One image, uint8 [C, H, W], with what is done before it has its size, if anything is.

        brightest: gets the largest value of an image whose grey has 16 bits.
        """
        try:
            return _decode(self.load(number), self.shape, reading, [] if brightest is None else brightest)
        except DataError as error:
            raise DataError(f"The image {self.where(number)} {error}") from error


class _Batches(Dataset[Any]):
    """The DataLoader's view: an index is a request, an item is its batch, or the error to raise."""

    def __init__(self, images: EncodedImages) -> None:
        self.images = images

    def __getitem__(self, request: Any) -> Tensor | DataError:
        indices, reading = request.indices, request.reading
        try:
            parts = [
                self.images.decode(number, None if reading is None else (reading[0], reading[1][place : place + 1]))
                for place, number in enumerate(indices.tolist() if isinstance(indices, np.ndarray) else indices)
            ]
            whole = torch.stack(parts) if parts else torch.empty((0, *self.images.size), dtype=torch.uint8)
            return cast(Request, request).done(whole)
        except DataError as error:
            return DataError(str(error))  # without its cause, which may not travel between processes


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Ctrl-C reaches workers too; the main process finishes its step and then stops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode(source: Any, shape: Shape, reading: Drawn | None, brightest: list[int]) -> Tensor:
    """DataError with the end of a sentence, whatever is wrong with the image."""
    pillow = extra("PIL.Image", "pillow")
    try:
        image = source
        if isinstance(source, bytes | Path):
            image = pillow.open(io.BytesIO(source if isinstance(source, bytes) else read_bytes(source)))
        image = _resize(_colours(image, shape.channels, brightest), shape, reading, pillow.Resampling.BILINEAR)
    except DataError:
        raise
    except Exception as error:  # whatever a decoder raises on a damaged file
        raise DataError(
            f"cannot be read ({said(error)}): replace it, take it out, or set data.on_broken: skip."
        ) from error
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels[None] if shape.channels == 1 else pixels.movedim(-1, 0).contiguous()


def _colours(image: Any, channels: int, brightest: list[int]) -> Any:
    """An image of Pillow's, whatever its mode, upright and with 8 bits a colour; how opaque it is does not count."""
    extra("PIL.ImageOps", "pillow").exif_transpose(image, in_place=True)  # as the camera was held
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image)
        brightest.append(int(values.max()))
        higher = (values >> 8).astype(np.uint8)  # of two bytes, as Pillow itself reads colours of 16 bits
        image = extra("PIL.Image", "pillow").fromarray(higher)
    elif image.mode in ("I", "F"):
        raise DataError(f"has 32 bits a colour (mode {image.mode}), of which none is white: save it with 8 or 16.")
    if image.mode == "P":  # or Pillow warns where colours of a palette are each opaque to a degree
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def _resize(image: Any, shape: Shape, reading: Drawn | None, method: Any) -> Any:
    target = (shape.size, shape.size)
    if reading is not None and reading[0].opened is not None:
        return reading[0].opened(image, reading[1], target)
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) > most:  # a thread of an image: brought to size whole, it would fill the memory
        left, top = max(width - most, 0) // 2, max(height - most, 0) // 2
        image = image.crop((left, top, left + min(width, most), top + min(height, most)))
        width, height = image.size
    scale = shape.resize / min(width, height)
    image = image.resize((max(round(width * scale), shape.resize), max(round(height * scale), shape.resize)), method)
    left, top = (image.size[0] - shape.size) // 2, (image.size[1] - shape.size) // 2
    return image.crop((left, top, left + shape.size, top + shape.size))

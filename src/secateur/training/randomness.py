"""All random number generators that training may touch: seeded, saved to the bit, and given back as they were found."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_PYTHON_WORDS, _NUMPY_WORDS = 625, 624


def derive(seed: int, *purposes: str | int) -> int:
    """A seed below 2^31 for one purpose; different purposes get unrelated ones."""
    text = "\0".join(map(str, (seed, *purposes)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def seed_all(seed: int) -> None:
    """Seed Python, numpy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Whatever happens inside, the generators go on afterwards as if it had not."""
    before = capture(device)
    try:
        yield
    finally:
        restore(before, device)


def capture(device: torch.device) -> torch.Tensor:
    """The state of all generators as bytes; always the same number of them on one kind of device."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    parts = [
        torch.get_rng_state().numpy(),
        np.array(words, np.int64),
        np.array([version, gauss is not None, position, has_gauss], np.int64),
        np.array([gauss or 0.0, cached], np.float64),
        np.asarray(keys, np.uint32),
    ]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device).numpy())
    return torch.from_numpy(np.concatenate([part.view(np.uint8) for part in parts]))


def restore(state: torch.Tensor, device: torch.device) -> None:
    """Bring back what `capture` gave."""
    data = state.cpu().contiguous().numpy()
    size = torch.get_rng_state().numel()
    torch.set_rng_state(torch.from_numpy(data[:size].copy()))
    words, data = _take(data[size:], np.dtype(np.int64), _PYTHON_WORDS)
    numbers, data = _take(data, np.dtype(np.int64), 4)
    floats, data = _take(data, np.dtype(np.float64), 2)
    keys, data = _take(data, np.dtype(np.uint32), _NUMPY_WORDS)
    gauss = float(floats[0]) if numbers[1] else None
    random.setstate((int(numbers[0]), tuple(int(word) for word in words), gauss))
    np.random.set_state(("MT19937", keys, int(numbers[2]), int(numbers[3]), float(floats[1])))
    if device.type == "cuda" and data.size:
        torch.cuda.set_rng_state(torch.from_numpy(data.copy()), device)


def _take(data: np.ndarray, dtype: np.dtype, count: int) -> tuple[np.ndarray, np.ndarray]:
    size = dtype.itemsize * count
    return np.frombuffer(data[:size].tobytes(), dtype), data[size:]

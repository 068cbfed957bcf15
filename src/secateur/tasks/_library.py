"""torchmetrics, imported when a metric is first wanted: what needs none of its metrics runs without it."""

from __future__ import annotations

import importlib
from typing import Any

from secateur._hints import install
from secateur.errors import ConfigError


def torchmetrics(part: str) -> Any:
    """A module of torchmetrics, such as "classification"; ConfigError where it cannot be had.

    torchmetrics imports torchvision where that is installed, and fails with it.
    """
    try:
        return importlib.import_module(f"torchmetrics.{part}")
    except ImportError as error:
        raise ConfigError(
            f"The metrics of this task are torchmetrics', which is not there ({error}): {install('train')}."
        ) from error
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"torchmetrics cannot be imported ({' '.join(str(error).split())[:160]}): install a torchvision that fits "
            "torch, or none."
        ) from error

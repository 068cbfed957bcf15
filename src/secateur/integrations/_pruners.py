"""What adapters to trainers share: the pruner in somebody's module, and what it adds to the loss."""

from __future__ import annotations

import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.methods import Method


def pruner_in(module: nn.Module, callback: str) -> Method:
    """The one pruner that `module` holds; ConfigError where there is none, or several. callback: for the message."""
    found = [part for part in module.modules() if isinstance(part, Method)]
    if len(found) != 1:
        raise ConfigError(
            f"{type(module).__name__} holds {len(found) or 'no'} pruner{'s' if found else ''}, and {callback} "
            'serves one: give it, such as secateur.methods.create("bwcp", network, ...), in place of the network.'
        )
    return found[0]


def added(method: Method) -> torch.Tensor:
    """What the method adds to the loss, in single precision."""
    with torch.autocast(method.device.type, enabled=False):
        return method.loss()

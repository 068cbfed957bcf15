"""Loading a narrow network from its folder, here or on the Hub.

network = secateur.load("runs/a")                      # the original class where it is known, else without its code
network = secateur.load("runs/a", model=factory())     # the original class, narrowed
network = secateur.load("hf:org/name")
"""

from __future__ import annotations

import os

from torch import nn

from secateur._defaults import own_defaults
from secateur.errors import ConfigError, InputError, ModelError, PlanError
from secateur.history import know
from secateur.runtime.folder import PLAN, PT2, WEIGHTS, Folder, NotTrusted
from secateur.runtime.hub import fetch, is_on_hub


@own_defaults
def load(folder: str | os.PathLike[str], model: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """The narrow network of a run folder, in evaluation mode; nothing in the folder is executed or unpickled.

    Where the original can be built from its reference (zoo:, torchvision: or timm:; Python code of one's own with
    `trust`), it is narrowed by `plan.json` and given the weights of `model.safetensors`: the original class, which can
    be trained, pruned again and saved. Otherwise the network is read from `model.pt2`, for inference only: its graph is
    data there, and is run operator by operator (`runtime/program.py`); a warning says so. `torch.export.load` is not
    used, because it unpickles what the file tells it to and evaluates the file's shape expressions as Python.

    Args:
        folder: what `secateur run` or `save_model` wrote, or "hf:org/name" on the Hub.
        model: a fresh network of the original architecture; a narrowed copy of it is returned, it stays as it is.
        trust: import the Python file or module that the folder names, and call its factory; only for folders of one's
            own, for a name in a foreign folder may be that of anything.

    Raises:
        RunError: a file is missing, damaged, foreign or of another run.
    """
    if is_on_hub(folder):
        if trust:
            raise ConfigError(
                f"trust=True is for folders of one's own, not for {folder}: leave it out, or give model=."
            )
        folder = fetch(str(folder))
    run = Folder.open(folder)
    run.check_files([WEIGHTS, PLAN])
    saved, plan = run.saved()
    if model is not None:
        return run.narrowed(model, saved, plan).model
    if run.has(PT2):
        run.check_files([PT2])
    try:
        original = run.original(saved, trust=trust)
        cut = run.cut(original, saved, plan).model
    except (ConfigError, ModelError, InputError, PlanError, NotTrusted) as why:
        network = run.without_code(saved, why)
        know(network, plan)
        return network
    saved.put_into(cut)
    return cut.eval()

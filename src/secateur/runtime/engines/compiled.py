"""PyTorch compiled: torch.compile with inductor, its weights frozen.

Frozen weights are inductor's setting for inference: normalisations are folded into convolutions, and weights are laid
out once for the kernels. Plain `torch.compile(model)` leaves both to every call. Where the two differ, an own
deployment has to set `torch._inductor.config.freezing` (or TORCHINDUCTOR_FREEZING=1) to see these times.

Every network is compiled as a function of its own, in one piece and for one shape. Otherwise the compiler's cache,
which is kept by code and not by network, would give the second network of a class sizes left open, and the ninth none
of it compiled.
"""

from __future__ import annotations

import shutil
from types import FunctionType
from typing import Any

import torch
from torch import nn

from secateur.graph.modules import as_call
from secateur.runtime.engines.base import Call, Engine, device_of
from secateur.runtime.export import told
from secateur.runtime.inputs import to_device


def prepare(model: nn.Module, inputs: Any, threads: int) -> Call:
    """Compile, and run until nothing is left to compile; RunError where that cannot be done in one piece."""
    import torch._inductor.config as settings

    device = device_of(model)
    args, kwargs = as_call(to_device(inputs, device))
    cuda = device.type == "cuda"

    def forward() -> object:
        return model(*args, **kwargs)

    own = FunctionType(  # the compiler keeps what it made by the code object, so each network gets one
        forward.__code__.replace(), forward.__globals__, f"forward_{id(model):x}", None, forward.__closure__
    )
    run = torch.compile(own, fullgraph=True, dynamic=False)

    def call() -> object:
        with torch.no_grad():
            output = run()
        if cuda:
            torch.cuda.synchronize(device)
        return output

    with told("The network cannot be compiled in one piece", "leave the compiled runtime out"):
        with settings.patch(freezing=True, compile_threads=1):  # no processes that linger beside the timing
            call()
        with torch.compiler.set_stance("fail_on_recompile"):
            call()
    return call


def compiler() -> str | None:
    """Why nothing can be compiled for the CPU here, in one sentence; None if it can."""
    from torch._inductor.config import cpp

    names = [cpp.cxx] if isinstance(cpp.cxx, str) else [name for name in cpp.cxx if name]
    if any(shutil.which(name) for name in names):
        return None
    return (
        f"torch.compile needs a C++ compiler and finds none ({', '.join(names)}): install g++ or clang++, or name one "
        "in the environment variable CXX."
    )


ENGINE = Engine("compiled", "torch.compile: inductor, weights frozen", prepare, lacking=compiler)

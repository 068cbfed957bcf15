"""Alignment presets: of which number widths should be multiples, by target.

Runtimes compute channels in blocks and pad the last one, so a width between two multiples costs what the next multiple
does (NVIDIA's, ONNX Runtime's, oneDNN's and XNNPACK's own documents; `secateur latency --staircase` measures it).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from secateur._hints import choose

#: Name of a target -> the number of channels it computes at a time.
PRESETS: Mapping[str, int] = {
    "arm": 8,  # NEON: two registers of four
    "x86-avx2": 8,  # one register
    "x86-avx512": 16,  # one register
    "xnnpack-avx512": 32,  # tiles of XNNPACK
    "cuda-fp16": 8,  # tensor cores
    "int8-trt": 32,  # TensorRT's int8 format
}
#: In place of a preset's name: that of this machine's processor.
AUTO = "auto"


def align_of(given: int | str) -> int:
    """The number that widths should be multiples of.

    given: a number, taken as it is, the name of a preset, or "auto" for this machine's processor.

    Raises:
        ConfigError: there is no such preset.
    """
    if not isinstance(given, str):
        return given
    if given.isdecimal():
        return int(given)
    if given == AUTO:
        return PRESETS[this_machine()]
    return PRESETS[choose(given, [*PRESETS, AUTO], "alignment")]


def this_machine() -> str:
    """The preset of this processor."""
    if platform.machine().casefold() in ("arm64", "aarch64"):
        return "arm"
    return "x86-avx512" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "x86-avx2"

"""Kinds of values that several sections of a recipe hold, and how YAML's spelling of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator


def listed(value: Any) -> Any:
    """One word where a list of words is asked for is a list of one."""
    return (value,) if isinstance(value, str) else fixed(value)


def fixed(value: Any) -> Any:
    """YAML's lists become tuples, which a frozen recipe can hold."""
    return tuple(value) if isinstance(value, list) else value


def several(value: Any) -> Any:
    """One section, or the word that stands for it, where a list of them is asked for is a list of one."""
    return (value,) if isinstance(value, str | Mapping) else fixed(value)


Words = Annotated[tuple[str, ...], BeforeValidator(listed)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(fixed)]
Size = Annotated[tuple[int, int, int], BeforeValidator(fixed)]

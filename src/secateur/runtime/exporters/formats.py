"""What a kind of file says of itself: its names, what it is for, and the packages it takes to write and to run it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur._hints import install
from secateur.runtime.exporters.outside import needed
from secateur.runtime.exporters.subject import Run

Opened = Callable[[Sequence[bytes]], tuple[Run, bool]]  # contents of the files to what runs them; any batch size?


@dataclass(frozen=True)
class Format:
    """A kind of file: what it is called, its usual file names (a runtime is given the first), and what it needs."""

    name: str
    files: tuple[str, ...]
    summary: str
    packages: tuple[str, ...]
    extra: str  # of ours, with these packages

    @property
    def file(self) -> str:
        """The file that is named to a runtime."""
        return self.files[0]

    @property
    def install(self) -> str:
        """The command that brings its packages."""
        return install(*filter(None, [self.extra]))

    @property
    def missing(self) -> str | None:
        """The first of its packages that is not installed."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)

    def check(self) -> None:
        """ConfigError, with the command that installs it, unless all its packages are there."""
        for package in self.packages:
            needed(package, self.extra)

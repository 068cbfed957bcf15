"""Which groups a pattern of module names means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from secateur._hints import nearest
from secateur._protocols import GraphLike, MemberLike
from secateur.errors import ConfigError

_SIDES = {"": ("producer",), "out": ("producer",), "in": ("consumer",), "both": ("producer", "consumer")}


@dataclass(frozen=True)
class Pattern:
    """A glob over module names, and the roles in which a matched module counts."""

    text: str
    glob: str
    roles: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read 'layer4.*', 'fc', or either with ':in', ':out' or ':both'."""
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"The layer pattern {text!r} is not a module name: write one such as 'layer4.*' or 'fc'.")
        glob, _, side = text.strip().rpartition(":")
        if glob and side in _SIDES:
            return cls(text, glob, _SIDES[side])
        return cls(text, text.strip(), _SIDES[""])

    def matches(self, name: str) -> bool:
        """Say whether the glob matches `name` or anything above it: a bare module name means all that is below, too."""
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[:depth]), self.glob) for depth in range(len(parts), 0, -1))


def known_names(graph: GraphLike) -> list[str]:
    """Return what patterns can match: the names of all modules, parameters and buffers (some belong to the root)."""
    return list(dict.fromkeys(_names(graph)))


def _names(graph: GraphLike) -> Iterator[str]:
    """Yield the same one by one, some twice: most patterns match early."""
    yield from (name for name, _ in graph.model.named_modules() if name)
    yield from graph.tensors()


def parse_patterns(graph: GraphLike, texts: Iterable[str], option: str) -> list[Pattern]:
    """Read patterns; ConfigError with the `option` and the nearest names for one that matches nothing."""
    patterns = [Pattern.parse(text) for text in texts]
    for pattern in patterns:
        if not any(map(pattern.matches, _names(graph))):
            close = _suggestion(pattern, known_names(graph))
            raise ConfigError(f"{option} pattern {pattern.text!r} matches no module: {close}")
    return patterns


def matched(pattern: Pattern, members: Sequence[MemberLike]) -> bool:
    """Say whether the pattern matches a module that touches these members in a role that counts."""
    names = {member.name for member in members if member.role in pattern.roles}
    return any(pattern.matches(name) for name in names)


def _suggestion(pattern: Pattern, names: Sequence[str]) -> str:
    """Return the end of the sentence: the nearest names, or what names look like."""
    word = re.sub(r"[*?\[\]!]", "", pattern.glob).strip(".")
    close = nearest(word, names, count=3)
    if close:
        return f"did you mean {' or '.join(repr(name) for name in close)}?"
    return (
        f"names look like {', '.join(repr(name) for name in names[:3])}."
        if names
        else "the model has no named modules."
    )

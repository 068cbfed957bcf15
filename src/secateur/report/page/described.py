"""Settings and data out of the files in words: nothing on the page looks like a program's notation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from secateur.errors import ConfigError
from secateur.report.page import words
from secateur.report.page.results import MethodUsed

_SIZES = {"train": "for training", "validation": "for validation", "test": "for testing"}
_NAMES = {
    "name": "Data set",
    "class_names": "Class names",
    "input_size": "Image size",
    "split": "Split",
    "augmentation": "Augmentation",
    "normalisation": "Normalisation",
    "files": "Files",
}
_ALONE = "by itself"  # a setting that is null: the method finds the value
_DEEPEST = 4  # levels of what is nested; deeper ones are left to results.json


def data(known: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The data set, a line each: (what, in words)."""
    rest = {key: value for key, value in known.items() if value not in (None, [], {}, "")}
    found = []
    if isinstance(name := rest.pop("name", None), str):
        found.append((_NAMES["name"], words.data_set(name)))
    sizes = rest.pop("sizes", None)
    counts = sizes if isinstance(sizes, dict) else {key: rest.pop(key) for key in _SIZES if key in rest}
    said = [f"{value:,} {_SIZES[key]}" for key, value in counts.items() if key in _SIZES and _whole(value)]
    if said:
        found.append(("Images", ", ".join(said)))
    for key, value in rest.items():
        found.append((_NAMES.get(key, _title(key)), words.brief(_said(key, value), 600)))
    return tuple(found)


def settings(used: MethodUsed) -> tuple[tuple[str, str, str, str], ...]:
    """A method's settings: (name, value, meaning, the default where the value is another).

    Meanings and defaults are those of this release; of a method that it does not know there are none.
    """
    from secateur._settings import shown

    known = {each.path: each for each in _known(used.name)}
    rows = []
    for key, value in used.settings.items():
        for name, one in _leaves(key, value):
            about = known.get(name)
            other = about is not None and shown(one) != about.default
            usual = (about.default.strip("'") if about.default != "null" else _ALONE) if about and other else ""
            rows.append((name, _plain(one), about.meaning if about else "", usual))
    return tuple(rows)


def _known(name: str) -> Any:
    from secateur._settings import settings as of
    from secateur.methods import method

    try:
        return of(method(name).config)
    except ConfigError:  # a plugin's, or of another release
        return ()


def _leaves(key: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and depth < _DEEPEST:
        for inner, one in value.items():
            yield from _leaves(f"{key}.{inner}", one, depth + 1)
    else:
        yield key, value


def _plain(value: Any) -> str:
    if value is None:
        return _ALONE
    return words.plain(value) if not isinstance(value, list) else ", ".join(map(words.plain, value)) or "none"


def _said(key: str, value: Any, depth: int = 0) -> str:
    """A value in words: what is nested follows its name, without brackets."""
    if key == "input_size" and isinstance(value, list):
        return "×".join(map(words.plain, value))
    if key in ("sha256", "hash") and isinstance(value, str):
        return f"SHA-256 {value.removeprefix('sha256:')[:12]}"
    if key == "bytes" and _whole(value):
        return words.size(value)
    if depth >= _DEEPEST and isinstance(value, list | dict):
        return "more in results.json"
    if isinstance(value, dict):
        bare = ("name", "sha256", "hash", "bytes")
        parts = [(k, _said(k, v, depth + 1)) for k, v in value.items()]
        return ", ".join(said if k in bare else f"{k.replace('_', ' ')} {said}" for k, said in parts) or "none"
    if isinstance(value, list):
        between = "; " if any(isinstance(one, dict | list) for one in value) else ", "
        return between.join(_said("", one, depth + 1) for one in value) or "none"
    return f"{value:,}" if _whole(value) else words.plain(value)


def _title(key: str) -> str:
    return words.shortened(key.replace("_", " ").capitalize(), 60)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

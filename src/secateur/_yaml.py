"""Strict YAML: plain data only, no key twice, no anchors; numbers and words read as people mean them.

PyYAML follows YAML 1.1, where `no` is false, `1e-4` is text and `1:30` is ninety; here `true` and `false` are the only
booleans, every usual way to write a number is one, and everything else is text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from secateur._hints import install
from secateur.errors import ConfigError

_LONGEST = 1 << 20  # characters; a recipe is a page
_TAG = "tag:yaml.org,2002:"
_WORDS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
)


def parse(text: str, what: str) -> Any:
    """Return the data written in `text`; ConfigError naming `what` and the line for anything that is not plain data."""
    yaml, loader, _ = _classes()
    if len(text) > _LONGEST:
        raise ConfigError(f"{what} is longer than {_LONGEST} characters: a recipe is a page of YAML.")
    try:
        return yaml.load(text, Loader=loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = _said(error.problem or error.context)
        if problem == "but found another document":  # the end of PyYAML's sentence
            problem = "another document begins with '---'; write one"
        raise ConfigError(f"{what} is not understood{where}: {problem}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{what} is not understood: {_said(error)}.") from error
    except RecursionError as error:
        raise ConfigError(f"{what} is nested too deeply: a recipe has three levels.") from error


def dump(data: Any) -> str:
    """Return `data` as YAML that `parse` reads back, and that any other YAML reader reads alike."""
    yaml, _, dumper = _classes()
    readable, escaped = (
        str(yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=unicode, width=100))
        for unicode in (True, False)
    )
    what = "What was just written"
    # PyYAML writes some of Unicode's line breaks as they are, and then reads them as breaks
    return readable if parse(readable, what) == parse(escaped, what) else escaped


@lru_cache(maxsize=1)
def _classes() -> tuple[Any, Any, Any]:
    """PyYAML with our loader and dumper, made when first needed."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError(f"Recipes need PyYAML, which is not installed: {install('train')}.") from error

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own way

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event: Any = self.get_event()  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(
                    problem=f"'*{event.anchor}' is an alias; write the value itself, or quote text that begins with *",
                    problem_mark=event.start_mark,
                )
            return super().compose_node(parent, index)

        def construct_undefined(self, node: Any) -> Any:
            problem = f"the tag {node.tag.removeprefix(_TAG)!r} is not known; write plain values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else None
                if name is None or key.tag != f"{_TAG}str":
                    shown = name if name is not None else "a list or mapping"
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {shown} is not text; keys are words", problem_mark=key.start_mark
                    )
                if name in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {name!r} occurs twice; keep one", problem_mark=key.start_mark
                    )
                seen.add(name)
            return super().construct_mapping(node, deep=True)

    Loader.add_constructor(None, Loader.construct_undefined)

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_tuple(self, data: Any) -> Any:
            return self.represent_sequence(f"{_TAG}seq", data, flow_style=True)

    Dumper.add_representer(tuple, Dumper.represent_tuple)
    Dumper.add_representer(list, Dumper.represent_tuple)
    for kind, pattern, first in _WORDS:
        # the dumper keeps YAML 1.1's words too, so that it quotes whatever any reader would not take for text
        for cls in (Loader, Dumper):
            cls.add_implicit_resolver(f"{_TAG}{kind}", re.compile(rf"^(?:{pattern})$"), list(first))
    return yaml, Loader, Dumper


def _said(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".") or "it is not YAML"

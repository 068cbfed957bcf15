"""The house keeps its rules: no circle of imports, every module in the room of those who use it, one name one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import networkx
import pytest

import secateur

ROOT = Path(secateur.__file__).parent
#: What several methods share; every module of these rooms has at least two users.
SHARED = ("methods.kit", "statistics", "allocate", "repair")


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


#: What the contract of methods itself stands on.
CONTRACT = {"methods.allocators", "methods.hands", "methods.replanning", "methods.trials"}

MODULES = {_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def _imports(tree: ast.AST) -> set[str]:
    """The modules of the package that a module names anywhere in an import, also inside functions and for types."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "secateur":
            base = node.module.partition(".")[2]
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                found.add(name if name in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "secateur"}
    return found & MODULES.keys()


IMPORTS = {name: _imports(tree) - {name} for name, tree in MODULES.items()}


def _graph(edges: dict[str, set[str]]) -> networkx.DiGraph:
    return networkx.DiGraph((a, b) for a, ends in edges.items() for b in ends if a != b)


def _room(module: str) -> str:
    """The room of a module: a method's own folder, else the folder or file right below the package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "methods" else parts[0]


def _methods() -> list[str]:
    inside = {_room(name) for name in MODULES if name.startswith("methods.") and name.count(".") == 2}
    return sorted(inside - {"methods.kit"})


def test_no_circle_of_imports() -> None:
    inner = {name: {end for end in ends if end} for name, ends in IMPORTS.items() if name}  # "" is the public face
    assert [sorted(c) for c in networkx.simple_cycles(_graph(inner))] == []


def test_no_circle_of_rooms() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, ends in IMPORTS.items():
        if name:
            rooms[_room(name)] |= {_room(end) for end in ends if end}
    assert [sorted(c) for c in networkx.simple_cycles(_graph(rooms))] == []


def test_methods_stand_on_floors() -> None:
    """Registry, methods, kit, contract: nothing imports what stands above it, and no method another one."""
    for name, ends in IMPORTS.items():
        if not name.startswith("methods."):
            continue
        room = _room(name)
        below = {room, "methods.contract", "methods.row", *CONTRACT}
        if room in _methods():
            below.add("methods.kit")
        above = {end for end in ends if end.split(".")[0] == "methods" and _room(end) not in below}
        assert not above, f"{name} imports {sorted(above)}"


@pytest.mark.parametrize("method", _methods())
def test_a_methods_room_is_its_own(method: str) -> None:
    """Nobody imports a module of one method's folder from outside, save the folder's face."""
    for name, ends in IMPORTS.items():
        if _room(name) != method:
            inside = {end for end in ends if end.startswith(f"{method}.")}
            assert not inside, f"{name} imports {sorted(inside)}"


@pytest.mark.parametrize("room", SHARED)
def test_what_is_shared_has_two_users(room: str) -> None:
    """What only one method uses lives with it: two rooms or more reach every module, through others of its room."""
    graph = _graph(IMPORTS)
    for name in MODULES:
        if not name.startswith(f"{room}."):
            continue
        users = {_room(n) for n in networkx.ancestors(graph, name) if _direct(graph, n, name, room)} - {room}
        users |= {room} & {user for user in graph.predecessors(name) if user == room}  # offered by the room's own face
        own = {user for user in users if user in _methods()}
        assert len(own) >= 2 or users - own, f"{name} is used by {sorted(users) or 'nobody'}: move it there"


def _direct(graph: networkx.DiGraph, user: str, name: str, room: str) -> bool:
    """Whether `user`, which is outside the room, reaches the module through modules of the room alone."""
    if not user or user.startswith(f"{room}.") or user == room:
        return False
    inside = [n for n in graph if n.startswith(f"{room}.")]
    return bool(networkx.has_path(graph.subgraph([user, *inside]), user, name))


def test_one_name_is_one_thing() -> None:
    """No two public definitions of one name in the rooms of methods, statistics, allocators and repairs."""
    homes: dict[str, list[str]] = defaultdict(list)
    for name, tree in MODULES.items():
        if name.split(".")[0] in ("methods", "statistics", "allocate", "repair"):
            for node in ast.iter_child_nodes(tree):
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                    homes[node.name].append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}

"""How much one opens to follow a method: files and lines, in any checkout.

python benchmarks/house.py                          # this checkout, every method
python benchmarks/house.py path/to/src cp dcp       # another one's source, these methods
python benchmarks/house.py --rooms path/to/src      # lines of every room, of another one's source and of this checkout
python benchmarks/house.py --both path/to/src cp    # files and lines of these methods, on both sides

From the module of a method along its imports, inside the rooms of methods, statistics, repairs and allocators; less
what the contract of methods imports anyway. A name that a package only offers counts for the module that defines it.
Nothing is imported: the source is read.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parents[1] / "src"
ROOMS = ("methods", "statistics", "repair", "allocate")
#: Where a method shares code with others; the size of these rooms is printed too.
COUNTED = ("methods", "statistics", "allocate")
#: What every method imports: rows on the contract, by its names over time.
CONTRACT = ("methods.row", "methods.contract", "methods.base")


@dataclass
class Source:
    """The modules of one checkout: paths, syntax, lines."""

    paths: dict[str, Path]

    @classmethod
    def of(cls, folder: Path) -> Source:
        """All modules of the package below a folder that holds `secateur/`; SystemExit where there is none."""
        package = folder / "secateur"
        if not package.is_dir():
            raise SystemExit(f"house.py: there is no folder secateur in {folder}: give the src of a checkout.")
        found = {}
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return cls(found)

    def methods(self) -> dict[str, str]:
        """The module of every method that has one of its own, by the method's name: its class says `name = "..."`."""
        found: dict[str, str] = {}
        for module, path in self.paths.items():
            if module.startswith("methods."):
                for each in ast.parse(path.read_text(encoding="utf-8")).body:
                    found |= dict.fromkeys(_named(each), module)
        return dict(sorted(found.items()))

    def lines(self, name: str) -> int:
        """Lines of one module, blank ones and comments as well."""
        return len(self.paths[name].read_text(encoding="utf-8").splitlines())

    def opened(self, name: str) -> set[str]:
        """All modules of the rooms that one follows from a module, with itself."""
        found, waiting = set[str](), [name]
        while waiting:
            now = waiting.pop()
            if now not in found:
                found.add(now)
                waiting += [end for end in self._imports(now) if end.split(".")[0] in ROOMS]
        return found

    def _imports(self, name: str) -> set[str]:
        """Modules that define what a module imports, for types alone as well."""
        found = set[str]()
        for node in ast.walk(ast.parse(self.paths[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "secateur":
                place = str(node.module).partition(".")[2]
                found |= {self._home(place, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "secateur"}
        return found & self.paths.keys()

    def _home(self, place: str, name: str) -> str:
        """The module that defines a name, through the faces of packages that only offer it."""
        inner = f"{place}.{name}".strip(".")
        if inner in self.paths:
            return inner
        path = self.paths.get(place)
        if path is not None and path.name == "__init__.py":
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "secateur":
                    for alias in node.names:
                        if name in (alias.asname, alias.name):
                            return self._home(str(node.module).partition(".")[2], alias.name)
        return place

    def rooms(self) -> dict[str, int]:
        """Lines of every room; modules outside of one are together under an empty name."""
        found: dict[str, int] = {}
        for name, path in self.paths.items():
            room = name.split(".")[0] if "." in name or path.name == "__init__.py" else ""
            found[room] = found.get(room, 0) + self.lines(name)
        return found


def _named(node: ast.stmt) -> list[str]:
    """What a class with `name = "..."` in its body calls itself; nothing for anything else."""
    inside = node.body if isinstance(node, ast.ClassDef) else []
    values = [n.value for n in inside if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "name"]
    return [str(value.value) for value in values if isinstance(value, ast.Constant)]


def followed(source: Source, start: str) -> list[str]:
    """The modules one opens to follow a method from its own, save those the contract has anyway."""
    contract = next(name for name in CONTRACT if name in source.paths)
    return sorted(source.opened(start) - source.opened(contract))


def compared(before: Source, now: Source) -> str:
    """A table of the rooms' lines on both sides."""
    sides = before.rooms(), now.rooms()
    rows = [
        (f"`{room}/`" if room else "outside", *(side.get(room, 0) for side in sides))
        for room in sorted({*sides[0], *sides[1]})
    ]
    rows.append(("all", *(sum(side.values()) for side in sides)))
    lines = [f"| {room} | {then:,} | {today:,} | {today - then:+,} |" for room, then, today in rows]
    return "\n".join(["| room | before | now | difference |", "| --- | ---: | ---: | ---: |", *lines])


def both(before: Source, now: Source, names: list[str]) -> str:
    """A table of the files and lines one opens to follow methods, on both sides: in all, and of their own."""
    lines = [
        "| method | files before | of its own | lines | of its own | files now | of its own | lines | of its own |",
        "| --- |" + " ---: |" * 8,
    ]
    for name in names:
        figures = []
        for source in (before, now):
            files, own = opened_for(source, name)
            sums = [sum(source.lines(each) for each in some) for some in (files, own)]
            figures += [len(files), len(own), *sums]
        lines.append(f"| `{name}` | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    return "\n".join(lines)


def opened_for(source: Source, name: str) -> tuple[list[str], list[str]]:
    """The modules one opens to follow a method, and those of them that are in its own room."""
    home = source.methods()[name]
    opened, room = followed(source, home), ".".join(home.split(".")[:2])
    return opened, [each for each in opened if each == room or each.startswith(f"{room}.")]


def known(source: Source, names: list[str]) -> list[str]:
    """`names`, or all methods; SystemExit where there is no such."""
    methods = source.methods()
    unknown = [name for name in names if name not in methods]
    if unknown:
        raise SystemExit(f"house.py: there is no method {unknown[0]!r} with a module: name {', '.join(methods)}.")
    return names or [*methods]


def main(arguments: list[str]) -> None:
    """Print a table of the methods, and the lines of the rooms that they share; or one of both sides."""
    if arguments[:1] in (["--rooms"], ["--both"]):
        if len(arguments) < 2 or (arguments[0] == "--rooms" and len(arguments) != 2):
            raise SystemExit(f"house.py {arguments[0]}: give the src of the checkout to compare with.")
        before, now = Source.of(Path(arguments[1])), Source.of(HERE)
        names = arguments[2:] or sorted(before.methods().keys() & now.methods().keys())
        if arguments[0] == "--rooms":
            print(compared(before, now))
        else:
            print(both(before, now, known(now, known(before, names))))
        return
    folder, names = HERE, arguments
    if arguments and Path(arguments[0]).is_dir():
        folder, names = Path(arguments[0]), arguments[1:]
    source = Source.of(folder)
    names = known(source, names)
    print("| method | files | lines | files of its own | lines of its own | shared |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name in names:
        opened, own = opened_for(source, name)
        lines, mine = (sum(source.lines(each) for each in some) for some in (opened, own))
        shared = ", ".join(each for each in opened if each not in own)
        print(f"| `{name}` | {len(opened)} | {lines:,} | {len(own)} | {mine:,} | {shared} |")
    sizes = {room: sum(source.lines(n) for n in source.paths if n.split(".")[0] == room) for room in COUNTED}
    print(f"\n{sum(sizes.values()):,} lines in all: " + ", ".join(f"{n:,} in {room}" for room, n in sizes.items()))


if __name__ == "__main__":
    main(sys.argv[1:])

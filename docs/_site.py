"""What the documentation site needs besides its pages; mkdocs.yml names it twice, as a hook and as a Griffe extension.

As a hook it fills the navigation in (`methods/*` is every page of that folder, `*` those that nothing else names),
shows notebooks and sources, and makes wide tables fit narrow screens. As an extension it reads our docstrings: lines
`name: meaning` become a list of arguments, and a comment beside or above a field or a constant is its docstring.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import griffe
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.structure.files import File, Files, InclusionLevel

_NAMED = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): ")


def on_config(config: Any) -> Any:
    """Fill the navigation in, mark wide tables, and offer a choice of versions where mike builds one of them."""
    folder = Path(config["docs_dir"])
    config["nav"] = _expanded(config["nav"], folder, set(_named(config["nav"])))
    config["markdown_extensions"].append(Cards())
    if "MIKE_DOCS_VERSION" in os.environ:
        config["extra"]["version"] = {"provider": "mike"}
    return config


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for below in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _named(below)


def _expanded(nav: Any, folder: Path, named: set[str]) -> Any:
    """`folder/*` in the order of titles, `*` for pages at the top; neither repeats a page that has an entry."""
    if isinstance(nav, dict):
        return {title: _expanded(below, folder, named) for title, below in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("*"):
            pages = {page.relative_to(folder).as_posix(): page for page in folder.glob(entry.replace("*", "*.md"))}
            entries += sorted(pages.keys() - named, key=lambda name: _title(pages[name]).lower())
        else:
            entries.append(_expanded(entry, folder, named))
    return entries


def _title(page: Path) -> str:
    return next((line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# ")), page.stem)


_NOTEBOOK = re.compile(r"\]\(([\w/.-]+)\.ipynb\)")
_SOURCE = re.compile(r"\]\(((?:\.\./)+)(src/[\w/]+)\.py\)")


def on_files(files: Files, config: Any) -> Files:
    """A page for every notebook, and for every file of src/ that a page links to, to be read without a network."""
    folder = Path(config["docs_dir"])
    for notebook in sorted(folder.glob("notebooks/*.ipynb")):
        name = notebook.relative_to(folder).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=shown(json.loads(notebook.read_text(encoding="utf-8")))))
    linked = {found[2] for page in folder.rglob("*.md") for found in _SOURCE.finditer(page.read_text(encoding="utf-8"))}
    for source in sorted(linked):
        code = (folder.parent / f"{source}.py").read_text(encoding="utf-8")
        text = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {Path(source).name}.py\n\n`{source}.py`\n\n"
        content = f"{text}~~~~python\n{code}~~~~\n"
        files.append(File.generated(config, f"{source}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to src/ and to notebooks lead to their pages; a very wide table gets the room of the table of contents."""
    depth = page.file.src_uri.count("/")
    markdown = _NOTEBOOK.sub(r"](\1.md)", markdown)
    markdown = _SOURCE.sub(lambda found: f"]({'../' * depth}{found[2]}.md)", markdown)
    if any(line.count(" | ") > 6 for line in markdown.splitlines() if line.startswith("| ")):
        page.meta.setdefault("hide", ["toc"])
    return markdown


_TEXT = re.compile(r'(<div class="language-text)( highlight"><pre><span></span><code>)(.*?)(?=</code>)', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Text in columns keeps them; other text, such as a command, wraps on a narrow screen as programs do."""
    return _TEXT.sub(lambda it: it[0] if re.search(r"\S {3,}\S", it[3]) else f"{it[1]} lines{it[2]}{it[3]}", html)


def shown(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its programs, and what they printed or drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif text := "".join(output.get("text") or data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


class Cards(Extension):
    """Tables that fit: every cell says what its column is, so that a phone can show rows as cards; a wide table scrolls
    by itself."""

    def extendMarkdown(self, md: Any) -> None:
        """After the text of cells is read."""
        md.treeprocessors.register(_Labels(md), "cards", 1)


class _Labels(Treeprocessor):
    def run(self, root: Element) -> None:
        for parent in list(root.iter()):
            for place, table in enumerate(list(parent)):
                heads = ["".join(head.itertext()).strip() for head in table.iter("th")]
                if table.tag != "table" or len(heads) < 2 or not any(heads):
                    continue
                _label(table, heads)
                frame = Element("div", {"class": "wide"})
                frame.append(table)
                parent[place] = frame


#: Letters and digits that stand side by side on a phone, and what the space around a column takes of them.
_PHONE, _SPACE = 55, 2
#: Letters from which a cell is not kept on one line.
_SENTENCE = 40


def _label(table: Element, heads: list[str]) -> None:
    rows = [row.findall("td") for row in table.iter("tr")]
    table.set("class", "cards" if _room(rows, heads) > _PHONE else "cards fits")
    for column, (head, name) in enumerate(zip(table.iter("th"), heads, strict=True)):
        cells = [row[column] for row in rows if column < len(row)]
        said = ["".join(cell.itertext()).strip() for cell in cells]
        words = not any(re.search(r"\d", text) for text in said)
        for cell, text in zip(cells, said, strict=True):
            cell.set("data-label", name)
            if len(text) > _SENTENCE:
                cell.attrib.pop("style", None)  # a sentence among figures, such as why there is none, wraps
            if text in ("", "-", "–"):
                cell.set("class", "none")  # on a phone, a line that says nothing
        for cell in (head, *cells) if words else ():
            cell.attrib.pop("style", None)  # a column of words begins at the left


def _room(rows: list[list[Element]], heads: list[str]) -> int:
    """How wide a table is in letters: a head breaks between words, a cell does not."""
    room = 0
    for column, head in enumerate(heads):
        said = ["".join(row[column].itertext()).strip() for row in rows if column < len(row)]
        room += max(map(len, [*said, *(head.split() or [""])])) + _SPACE
    return room


class Docstrings(griffe.Extension):
    """Read docstrings as the house writes them."""

    def on_module_instance(self, *, mod: griffe.Module, **_: Any) -> None:
        """Examples of a module."""
        if mod.docstring:
            mod.docstring.value = fenced(mod.docstring.value)

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Arguments of a function."""
        if func.docstring:
            func.docstring.value = listed(func.docstring.value, {p.name for p in func.parameters})

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Fields of a class, where its docstring lists them: those without a default as well."""
        if cls.docstring:
            names = {name for name, member in cls.members.items() if member.is_attribute}
            made = cls.members.get("__init__")
            if isinstance(made, griffe.Function):
                names |= {parameter.name for parameter in made.parameters}
            cls.docstring.value = listed(cls.docstring.value, names, "Attributes")

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A comment is the docstring of a field or a constant."""
        if attr.docstring or attr.lineno is None or not isinstance(attr.filepath, Path):
            return
        lines = attr.filepath.read_text(encoding="utf-8").splitlines()
        above = attr.lineno - 1
        while above and lines[above - 1].strip().startswith("#:"):
            above -= 1
        text = " ".join(line.strip().removeprefix("#:").strip() for line in lines[above : attr.lineno - 1])
        beside = re.search(r"\s#:? (?!type:|fmt:|noqa)(.+)$", lines[(attr.endlineno or attr.lineno) - 1])
        text = text or (beside[1] if beside else "")
        if text:
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)


def fenced(text: str) -> str:
    """The docstring with every paragraph that is a program in a fence."""
    return "\n\n".join(f"```python\n{part}\n```" if _program(part) else part for part in text.split("\n\n"))


def _program(paragraph: str) -> bool:
    if paragraph.startswith(">>> "):
        return True
    try:
        statements = ast.parse(paragraph).body
    except SyntaxError:
        return False
    return bool(statements) and not all(isinstance(each, ast.Expr) and _word(each.value) for each in statements)


def _word(given: ast.expr) -> bool:
    return isinstance(given, ast.Name | ast.Constant)


def listed(text: str, names: set[str], title: str = "Args") -> str:
    """The docstring with its lines `name: meaning` under a heading that Griffe knows, one name a line."""
    lines: list[str] = []
    inside = False  # a list of ours, not under a heading of its own
    headed = False  # under Args:, Raises: and the like
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields|Attributes):", line):
            headed, inside = line.startswith("Args"), False
            lines.append(line)
        elif headed and line.startswith("    ") and not line.startswith("     "):
            lines += [f"    {part}" for part in _parted(line.strip(), names)]
        elif _starts(line, names):
            if not inside:
                lines += ["", f"{title}:"]
            inside, headed = True, False
            lines += [f"    {part}" for part in _parted(line, names)]
        elif inside and line.strip():
            lines.append(f"        {line.strip()}" if line.startswith(" ") else f"        {line}")
        else:
            if inside and not line.strip():
                inside = False
            lines.append(line)
    return "\n".join(lines)


def _starts(line: str, names: set[str]) -> bool:
    found = _NAMED.match(line)
    return found is not None and all(name.strip(" *") in names for name in found[1].split(","))


def _parted(line: str, names: set[str]) -> list[str]:
    """`a: this. b: that.` as two; `a, b: this` once for each."""
    parts = re.split(r"(?<=[.;]) (?=\*{0,2}\w+(?:, \*{0,2}\w+)*: )", line)
    entries: list[str] = []
    for part in parts:
        if not _starts(part, names):  # a sentence with a colon in it, or words of no argument
            if entries:
                entries[-1] += f" {part}"
            else:
                entries.append(part)
            continue
        head, meaning = part.split(": ", 1)
        entries += [f"{name.strip()}: {meaning}" for name in head.split(",")]
    return entries

"""Report and leaderboard in a real browser: nothing overflows, decisive columns are in sight, tables sort and filter.

One headless Chromium measures every page: each stands in a frame of the width in question (a window cannot be as narrow
as a phone), and a script of the page around them writes down what it finds.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from _board import board, hostile_board
from _folder import bare, documents, hostile, write

from secateur.report import write_report
from secateur.report.leaderboard import write_leaderboard

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --enable-logging=stderr --window-size=1400,1000
""".split()
WIDTHS = (1280, 390, 320)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt install chromium)")

MEASURE = """
<script>
function broken(cell) {  // one word in two lines
  const range = cell.ownerDocument.createRange();
  for (const text of [...cell.childNodes].filter(n => n.nodeType === 3)) {
    for (const word of text.data.matchAll(/[^\\s-]+/g)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(b => Math.round(b.top))).size > 1) return true;
    }
  }
  return false;
}
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
  page.querySelectorAll('details').forEach(d => d.open = frame.dataset.open === 'yes');
  const out = [];
  for (const e of page.body.querySelectorAll('*')) {
    if (e.closest('.scroll, pre, .rows li > span, svg *')) continue;
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1) out.push(e.tagName + '.' + e.className + ' ' + Math.round(box.right));
  }
  const pictures = [...page.querySelectorAll('svg')].map(e => e.getBoundingClientRect());
  const texts = [...page.querySelectorAll('svg.chart text')].map(e => e.getBoundingClientRect().height);
  return {
    name: frame.dataset.name, width: width, scroll: Math.max(root.scrollWidth, page.body.scrollWidth),
    out: out.slice(0, 5), pictures: pictures.length, empty: pictures.filter(b => !(b.width > 0 && b.height > 0)).length,
    far: [...page.querySelectorAll('th.vital')].filter(e => e.getBoundingClientRect().right > width + 1)
      .map(e => e.textContent),
    broken: [...page.querySelectorAll('th, dd, .remarks li, pre.command code, .cards b, .cards span')]
      .filter(e => broken(e)).map(e => e.textContent),
    smallest: Math.min(99, ...texts), height: root.scrollHeight, title: page.title,
    paper: getComputedStyle(page.body).backgroundColor,
  };
}
window.onload = () => {
  const found = [...document.querySelectorAll('iframe')].map(measure);
  document.getElementById('found').textContent = JSON.stringify(found);
};
</script>
"""


def browse(folder: Path, page: Path, *flags: str) -> tuple[str, list[str]]:
    """The page's document after loading, and the lines of the console."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def one_group() -> dict[str, Any]:
    content = documents()
    content["metrics"] = []
    content["results"]["groups"] = [{"name": "the.only.one", "width": 2048, "kept": 1024}]
    return content


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, str], dict[str, Any]]:
    """What the browser measured, by page, width and whether all details were open."""
    folder = tmp_path_factory.mktemp("browser")
    frames = []
    runs = {"full": documents, "bare": bare, "hostile": hostile, "one": one_group}
    pages = {name: write_report(write(folder / name, make())) for name, make in runs.items()}
    for name, made in {"board": board(), "wild": hostile_board()}.items():
        (folder / name).mkdir()
        pages[name] = write_leaderboard(folder / name, made)
    for name, file in pages.items():
        html = file.read_text(encoding="utf-8")
        frames += [
            f'<iframe data-name="{name} {width} {opened}" data-open="{opened}" srcdoc="{escape(html)}" '
            f'style="border:0;width:{width}px;height:900px"></iframe>'
            for width in WIDTHS
            for opened in ("no", "yes")
        ]
    page = folder / "all.html"
    page.write_text(f'<!DOCTYPE html><meta charset="utf-8">{MEASURE}{"".join(frames)}<pre id="found"></pre>', "utf-8")
    document, console = browse(folder, page)
    assert console == []
    written = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    assert written is not None, document[-500:]
    rows = json.loads(unescape(written[1]))
    assert len(rows) == len(frames)
    keyed = {}
    for row in rows:
        name, width, opened = row["name"].split()
        keyed[name, int(width), opened] = row
    return keyed


def test_no_page_scrolls_sideways(found: dict[tuple[str, int, str], dict[str, Any]]) -> None:
    for (name, width, opened), row in found.items():
        assert row["width"] in range(width - 20, width + 1)  # less a scroll bar
        assert row["scroll"] <= row["width"], (name, width, opened, row["out"])
        assert row["out"] == [], (name, width, opened)


def test_decisive_columns_are_in_sight_and_no_word_is_broken(found: dict[tuple[str, int, str], dict[str, Any]]) -> None:
    for (name, width, opened), row in found.items():
        if name in ("full", "one", "board") and width >= 390:
            assert row["far"] == [], (name, width, opened)
            assert row["broken"] == [], (name, width, opened)


CLICK = """
<script>
window.onload = () => {
  const page = document.querySelector('iframe').contentDocument, table = page.querySelector('table.layers');
  const heads = [...table.tHead.rows[0].cells].map(e => e.querySelector('button'));
  const first = () => table.tBodies[0].rows[0].cells[1].textContent;
  const said = [];
  heads[1].click(); said.push(first());
  heads[1].click(); said.push(first());
  const box = page.querySelector('#speed input');
  box.value = 'LAYER3'; box.dispatchEvent(new page.defaultView.Event('input'));
  said.push([...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent).join(' '));
  document.getElementById('found').textContent = JSON.stringify(said);
};
</script>
"""


def test_tables_sort_and_filter(tmp_path: Path) -> None:
    html = write_report(write(tmp_path / "run", documents())).read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(
        f'<meta charset="utf-8">{CLICK}<iframe srcdoc="{escape(html)}"></iframe><pre id="found"></pre>', "utf-8"
    )
    document, console = browse(tmp_path, page)
    assert console == []
    written = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    assert written is not None
    least, most, names = json.loads(unescape(written[1]))
    shares = [
        row["pruned_ms"] / row["dense_ms"]
        for row in sorted(documents()["latency"]["layers"], key=lambda r: -max(r["dense_ms"], r["pruned_ms"]))[:12]
    ]
    assert least == f"{100 * min(shares):.1f}%"
    assert most == f"{100 * max(shares):.1f}%"
    assert names
    assert all(name.startswith("layer3") for name in names.split())


def test_pictures_can_be_seen_and_read(found: dict[tuple[str, int, str], dict[str, Any]]) -> None:
    for (name, width, opened), row in found.items():
        assert row["empty"] == 0, (name, width, opened)
        assert row["pictures"] >= {"full": 40, "bare": 0, "hostile": 25, "one": 10, "board": 8, "wild": 8}[name]
        assert row["smallest"] > 8.99, (name, width)  # 9 pixels, but for rounding: the height of a line of labels
        assert row["height"] > 900


def test_titles_are_text(found: dict[tuple[str, int, str], dict[str, Any]]) -> None:
    assert found["full", 390, "no"]["title"] == "ResNet-20 on CIFAR-10, pruned with BWCP"
    assert '"><img src=x onerror=alert(1)>' in found["hostile", 390, "no"]["title"]


def test_the_page_itself_says_nothing_on_the_console(tmp_path: Path) -> None:
    page = write_report(write(tmp_path / "run", hostile()))
    document, console = browse(tmp_path, page, "--blink-settings=preferredColorScheme=0")  # in dark mode
    assert console == []
    assert "What could not be pruned, and why" in document


def test_the_console_would_be_heard(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text("<!DOCTYPE html><script>console.error('heard'); nothing()</script>", encoding="utf-8")
    _, console = browse(tmp_path, page)
    assert len(console) == 2

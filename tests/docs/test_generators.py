"""The programs that write pages: what they make of docstrings, of results, and of the navigation."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from _blocks import DOCS, alike

from secateur.methods import METHODS, method

sys.path.insert(0, str(DOCS))
from _by_method import Facts, Measured, measured
from _choosing_page import by_method, poor, situations
from _diagrams import kernels_chart
from _method_notes import note
from _method_pages import _board, details, prose
from _one_shot_page import _section

DOCSTRING = """\
A method of nobody's: it keeps channels x_1 where W*x < 0.

A paper of 2020 (arXiv:0000.00000), with

    s_j = |w_j|        summed
      over all

and so on, `as_is[0]`.

Where this differs from the paper, and why:
    First a point that
        goes on.
    Then another one.

What is one paragraph:
    Words that
    flow on.
"""


def test_docstrings_become_pages() -> None:
    parts = prose(DOCSTRING).split("\n\n")
    assert parts[0] == "A method of nobody's: it keeps channels x\\_1 where W\\*x &lt; 0."
    assert parts[2] == "```text\ns_j = |w_j|        summed\n  over all\n```"
    assert parts[3] == "and so on, `as_is[0]`."
    assert parts[5] == "- First a point that\n  goes on.\n- Then another one."
    assert parts[7] == "Words that\nflow on."


def test_pages_keep_what_a_docstring_says_of_its_sources() -> None:
    assert details(DOCSTRING).startswith("Where this differs from the paper, and why:")
    assert details("Score by it.\n\nNothing else.") == "Nothing else."
    assert details("Score by it.") == ""


NOTE = "---\nreads: maps, labels\n---\n\n# The Method (TM)\n\nIt is $x$.\n\n## Algorithm\n\n1. Do it.\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no note: write src/secateur/methods/cp/cp.md"),
        (NOTE.replace("Algorithm", "Steps"), "is no note"),
        (NOTE.replace("labels", "minds"), "reads minds: choose from"),
        (NOTE.replace("$", ""), "no equation"),
    ],
)
def test_notes_are_of_one_form(tmp_path: Any, monkeypatch: Any, text: str | None, said: str) -> None:
    monkeypatch.setattr("_method_notes.ROOMS", tmp_path)
    (tmp_path / "cp").mkdir()
    file = tmp_path / "cp" / "cp.md"
    file.write_text(NOTE)
    found = note(method("cp"))
    assert (found.reads, found.title, found.algorithm) == (("maps", "labels"), "The Method (TM)", "1. Do it.")
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(SystemExit, match=said):
        note(method("cp"))


def test_links_to_sources_lead_to_pages(tmp_path: Any) -> None:
    pytest.importorskip("griffe")
    import types

    import _site as site

    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="methods/cp.md"), meta={})
    text = "[a](../../src/secateur/methods/cp/method.py) [b](../compare.md)"
    assert site.on_page_markdown(text, page) == "[a](../src/secateur/methods/cp/method.md) [b](../compare.md)"
    assert "hide" not in page.meta
    site.on_page_markdown("| a | b | c | d | e | f | g | h |", page)
    assert page.meta["hide"] == ["toc"]


def test_arguments_become_lists() -> None:
    pytest.importorskip("griffe")
    from _site import listed

    text = "Do it.\n\na: one thing. b, c: two others: both\n    of them.\nd is not listed.\n\nNote: nothing."
    assert listed(text, {"a", "b", "c"}).splitlines() == [
        "Do it.",
        "",
        "",
        "Args:",
        "    a: one thing.",
        "    b: two others: both",
        "    c: two others: both",
        "        of them.",
        "        d is not listed.",
        "",
        "Note: nothing.",
    ]
    headed = "Do it.\n\nArgs:\n    a: this. b: that.\n\nRaises:\n    a: never. b: split."
    assert "    a: this.\n    b: that." in listed(headed, {"a", "b"})
    assert "    a: never. b: split." in listed(headed, {"a", "b"})


def test_programs_in_docstrings_are_fenced() -> None:
    pytest.importorskip("griffe")
    import _site as site

    text = "What it is.\n\nmodel = make(1)\nmodel.run()\n\nWords alone\n\n>>> f(x)"
    assert site.fenced(text).count("```python") == 2
    assert "Words alone\n\n```" in site.fenced(text)


def test_navigation_is_filled_in(tmp_path: Any) -> None:
    pytest.importorskip("griffe")
    import _site as site

    (tmp_path / "methods").mkdir()
    for name, title in {
        "index": "x",
        "new": "New",
        "methods/b": "Apart",
        "methods/a": "Behind",
        "methods/all": "All",
    }.items():
        (tmp_path / f"{name}.md").write_text(f"# {title}")
    nav = [{"Start": "index.md"}, {"Methods": ["methods/all.md", "methods/*"]}, {"Rest": ["*"]}]
    made = site.on_config({"docs_dir": str(tmp_path), "nav": nav, "markdown_extensions": []})["nav"]
    assert made == [
        {"Start": "index.md"},
        {"Methods": ["methods/all.md", "methods/b.md", "methods/a.md"]},
        {"Rest": ["new.md"]},
    ]


def test_cells_of_wide_tables_say_their_column() -> None:
    pytest.importorskip("griffe")
    import _site as site
    from markdown import markdown

    wide = f"| a | `b` | c |\n| --- | --- | --- |\n| 1 | 2 | {'3' * 60} |\n"
    made = markdown(wide, extensions=["tables", site.Cards()])
    assert '<table class="cards">' in made
    assert '<td data-label="b">2</td>' in made
    assert made.startswith('<div class="wide"><table')  # which scrolls by itself
    assert "cards" not in markdown("|  |  |\n| --- | --- |\n| 1 | 2 |\n", extensions=["tables", site.Cards()])


@pytest.mark.parametrize(
    ("head", "row", "fits"),
    [
        ("method | final", "l1 | 61.27 ± 0.83", True),
        ("method | faster, ONNX Runtime, batch one, four threads, in turns | b", "l1 | 1.5 | 2", True),  # heads break
        ("method | what it does", "l1 | the sum of the absolute values of the weights of a channel", False),
        (" | ".join("abcdefgh"), " | ".join(["61.27 ± 0.83"] * 8), False),
    ],
)
def test_a_table_that_a_phone_has_room_for_stays_one(head: str, row: str, fits: bool) -> None:
    pytest.importorskip("griffe")
    import _site as site
    from markdown import markdown

    rule = " | ".join(["---"] * len(head.split(" | ")))
    made = markdown(f"| {head} |\n| {rule} |\n| {row} |\n", extensions=["tables", site.Cards()])
    assert ('class="cards fits"' in made) == fits


def test_what_is_folded_is_read_as_markdown() -> None:
    pytest.importorskip("griffe")
    import _site as site
    from _markdown import folded, table
    from markdown import markdown

    text = folded("Few need it", table(["a", "b"], [["1", "`2`"]]))
    made = markdown(text, extensions=["tables", "md_in_html", site.Cards()])
    assert made.startswith("<details>\n<summary>Few need it</summary>")
    assert '<td data-label="b" style="text-align: right;"><code>2</code></td>' in made


def test_words_begin_at_the_left_and_dashes_are_hidden_on_a_phone() -> None:
    pytest.importorskip("griffe")
    import _site as site
    from markdown import markdown

    text = "| method | needs | top-1 |\n| --- | ---: | ---: |\n| `l1` | nothing | 84.6 |\n| `cp` | images | – |\n"
    made = markdown(text, extensions=["tables", site.Cards()])
    assert '<td data-label="needs">nothing</td>' in made
    assert '<td data-label="top-1" style="text-align: right;">84.6</td>' in made
    assert made.count('class="none"') == 1
    assert '<td class="none" data-label="top-1" style="text-align: right;">–</td>' in made


def _facts(final: float, *, sd: float | None = 0.01, share: float = 0.5, seconds: float = 100.0, **more: Any) -> Facts:
    values = {
        "accuracy.final": {"mean": final, "sd": sd},
        "params.share": {"mean": share, "sd": None},
        "seconds.total": {"mean": seconds, "sd": None},
    }
    seeds = [0] if sd is None else [0, 1, 2]
    return Facts({"flops=0.5": {"values": values, "seeds": seeds}}, **more)


def test_a_page_says_who_is_below_random_choice_on_the_leaderboard() -> None:
    facts = {name: _facts(0.5) for name in ("random", "l1", "gdp", "cp")}
    for name, finals in (("random", [0.86]), ("l1", [0.87]), ("gdp", [0.85]), ("cp", [0.85, 0.9])):
        facts[name].board.extend(finals)
    found = Measured(facts, None, None, None)
    assert "85.0%, **below random choice** (one seed; `l1` 87.0%, `random` 86.0%)" in _board("gdp", found)
    assert "87.5% (mean of 2 seeds; `l1` 87.0%, `random` 86.0%)" in _board("cp", found)
    assert "86.0% (one seed; `l1` 87.0%)" in _board("random", found)


def test_poor_choices_follow_from_figures() -> None:
    chance = _facts(0.55, top1={"none": 0.1, "least_squares": 0.80})
    plain = _facts(0.60, networks=[{"network": "zoo:a", "total_s": 10.0}, {"network": "zoo:b", "total_s": 10.0}])
    bad = _facts(
        0.55,
        share=0.8,
        seconds=200.0,
        top1={"none": 0.2, "least_squares": 0.79},
        score_s=30.0,
        networks=[{"network": "zoo:a", "total_s": 60.0}, {"network": "zoo:b", "error": "it does not fit"}],
    )
    good = _facts(0.62, top1={"none": 0.7, "least_squares": 0.88}, score_s=1.0)
    result = {"dense": {"x": 0.9}, "tested": 1500}
    found = Measured({"random": chance, "l1": plain, "cp": bad, "taylor": good}, None, result, None)
    said = "; ".join(poor(method("cp"), found))
    for clause in (
        "there are no images of the task",
        "nothing follows the cut (20.0% straight after it)",
        "with `least_squares` random channels do as well (79.0% against 80.0%)",
        "the training is as short as ours: 55.0%, random channels 55.0%",
        "80.0% of the parameters stay",
        "plans are wanted in seconds (30 s)",
        "2.0 times the seconds of `l1`",
        "like a: 60 s where `l1` took 10",
        "like b: it failed",
    ):
        assert clause in said
    assert list(poor(method("taylor"), found)) == ["there are no images of the task"]
    assert "figures are wanted" in "; ".join(poor(method("dcp"), found))


def test_a_situation_says_who_is_first_on_the_leaderboard_too() -> None:
    facts = {name: _facts(final) for name, final in (("cp", 0.6), ("dcp", 0.5), ("l1", 0.5))}
    finals = {"cp": [0.80], "dcp": [0.84], "l1": [0.87], "l2": [0.82, 0.90], "csgd": [0.99]}
    facts |= {name: Facts() for name in ("l2", "csgd")}
    for name, accuracies in finals.items():
        facts[name].board.extend(accuracies)
    (*_, (title, name, why)) = situations(Measured(facts, None, None, None))  # csgd acts elsewhere
    assert (title, name) == ("trained weights and a short fine-tuning", "[`cp`](methods/cp.md)")
    ranked = re.findall(r"\[`(\w+)`\]\(\S+\) ([\d.]+%)( \(2 seeds\))?", why.partition("of 4 measured: ")[2])
    assert ranked == [("l1", "87.0%", ""), ("l2", "86.0%", " (2 seeds)"), ("dcp", "84.0%", ""), ("cp", "80.0%", "")]


@pytest.mark.parametrize(("low", "said"), [((0.9, 1.0), True), ((0.9, 1.1), False), ((), False)])
def test_a_method_that_is_no_faster_is_a_poor_choice_where_speed_counts(low: tuple[float, ...], said: bool) -> None:
    names = ("pytorch", "onnxruntime")
    times = (
        [{name: {"ratio": 1.08, "low": at, "high": 1.3} for name, at in zip(names, low, strict=True)}] if low else []
    )
    found = Measured({"swp": Facts(board=[0.8], speed=times), "random": Facts(), "l1": Facts()}, None, None, None)
    clause = "not significantly faster on any runtime (1.08 on PyTorch, 1.08 on ONNX Runtime)"
    assert any(clause in line for line in poor(method("swp"), found)) == said


def test_shown_output_may_differ_by_a_few_percent() -> None:
    assert alike("after: 96.4% with 381,856 MACs", "after: 95.0% with 382,000 MACs")
    assert not alike("after: 96.4%", "after: 80.0%")
    assert not alike("after: 96.4%", "before: 96.4%")


def test_every_method_has_a_row_or_is_named_as_not_measured() -> None:
    table, *others = by_method(measured())
    head, _, *rows = table.splitlines()
    assert head.startswith("| method | cut | repaired | trained |")  # what decides is not off a narrow screen
    text = "\n".join([*rows, *others])
    assert all(text.count(f"[`{row.name}`]") == 1 for row in METHODS)
    assert not any(row.count("–") > 4 for row in rows)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_kernels_are_drawn_as_means_over_networks(seeds: int) -> None:
    names = ("dkp", "L1 norm", "random")
    rows = [
        {"seed": seed, "left": left, "kernels": name, "top1": 0.5 + 0.1 * (seed % 2)}
        for seed in range(seeds)
        for left in (0.5, 0.1)
        for name in names
    ]
    chart = kernels_chart({"dense": 0.99, "rows": rows})
    assert all(f">{name}<" in chart for name in (*names, "not pruned", "50%", "90%"))
    assert chart.count("<circle") == 2 * len(names)


def test_one_budget_is_one_table_and_several_are_pictures() -> None:
    rows = [
        {"method": name, "repair": repair, "left": left, "top1": top1, "kept": {}}
        for left in (0.5, 0.3)
        for name, repair, top1 in (("l1", "none", 0.2), ("l1", "least_squares", 0.6), ("cp", "none", 0.7))
    ]
    result = {"dense": {"x": 0.9}, "tested": 100, "images": 10, "versions": {}, "command": "c", "date": "2026-01-01"}
    result |= {"rows": rows, "python": "3", "device": "d", "threads": 1}
    assert "one_shot_vgg16_bn.svg" in "\n".join(_section("vgg16_bn", result))
    one = "\n".join(_section("vgg16_bn", {**result, "rows": [*rows[3:], {**rows[0], "left": 0.3, "error": "no"}]}))
    lines = [line for line in one.splitlines() if line.startswith("| `")]
    assert lines[:3] == ["| `cp` | `none` | 70.0 |", "| `l1` | `least_squares` | 60.0 |", "| `l1` | `none` | 20.0 |"]
    assert "without 70% of the FLOPs" in one
    assert "svg" not in one
    assert "| `l1` | no |" in one

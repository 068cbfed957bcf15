"""The HTML report of a run: what it shows, what it leaves out, what it refuses."""

from __future__ import annotations

import base64
import builtins
import copy
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from _folder import bare, documents, hostile, write

from secateur.errors import ConfigError, RunError
from secateur.report import html as html_module
from secateur.report import write_report

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags with attributes, text by section, and whether every tag was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {"": ""}
        self.section = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = str(dict(attrs)["id"])
            self.texts[self.section] = ""
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.texts[self.section] += data + " "

    def text(self, section: str = "") -> str:
        """The words of a section (or of what is in none), blanks made one."""
        return " ".join(self.texts[section].split())

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts.values()).split())


def report(folder: Path, content: dict[str, Any] | None = None, **others: Any) -> Page:
    path = write_report(write(folder, content or documents()), **others)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def pictures(folder: Path) -> Iterator[ElementTree.Element]:
    for svg in re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(encoding="utf-8"), re.DOTALL):
        yield ElementTree.fromstring(svg)


# ---------------------------------------------------------------- what it shows


def test_the_sentence_says_what_was_gained_and_lost(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert (
        "ResNet-20 on CIFAR-10: 49.2% of the MACs and 52.1% of the parameters remain; accuracy 91.2% before "
        "and 90.7% after (not significant); no significant change of latency on PyTorch, 1.40× faster on ONNX Runtime."
    ) in page.text()


def test_means_over_images_are_called_so(tmp_path: Path) -> None:
    content = documents()
    content["results"]["expected"] = {"macs": 20_000_000, "spread": 1_000_000, "images": 1024, "most": 41_000_000}
    page = report(tmp_path, content)
    assert "49.2% of the MACs (on average over 1,024 images) and 52.1% of the parameters remain" in page.text()
    assert "MACs (mean over 1,024 images)" in page.words


@pytest.mark.parametrize(
    ("final", "words"),
    [
        (0.9300, "accuracy rises from 91.2% to 93.0% (+1.8 points)"),
        (0.9000, "accuracy falls from 91.2% to 90.0% (−1.2 points)"),
        (0.9050, "accuracy 91.2% before and 90.5% after (not significant)"),  # 0.74 points; by chance up to 0.80
        (0.9126, "accuracy stays at 91.3%"),
    ],
)
def test_the_sentence_knows_what_chance_can_do(tmp_path: Path, final: float, words: str) -> None:
    content = documents()
    content["results"]["accuracy"].update(final=final, finetuned=final)
    assert words in report(tmp_path, content).text()


def test_a_slower_network_is_called_slower(tmp_path: Path) -> None:
    content = documents()
    content["latency"]["runtimes"][1]["ratio"] = {"median": 0.8, "low": 0.75, "high": 0.85}
    page = report(tmp_path, content)
    assert "1.25× slower on ONNX Runtime" in page.text()
    assert "1.25× slower 1.18× to 1.33×" in page.text("result")
    assert "ONNX Runtime: 25.0% more time, not less." in page.text("speed")


def test_an_interval_that_holds_one_is_no_speed_up_whatever_the_file_says(tmp_path: Path) -> None:
    content = documents()
    content["latency"]["runtimes"][0].update(speedup=True, said="5x faster")
    page = report(tmp_path, content)
    assert "no significant change of latency on PyTorch" in page.text()
    assert "not significant 0.97× to 1.10×" in page.text("result")


def test_the_headline_shows_the_figures_of_the_files(tmp_path: Path) -> None:
    content = documents()
    page, results = report(tmp_path, content).text("result"), content["results"]
    for key in ("macs", "params", "activations", "peak_activations"):
        assert f"{results['before'][key]:,}" in page
        assert f"{results['after'][key]:,}" in page
        assert f"{100 * results['remaining'][key]:.1f}% left" in page
    for key in ("dense", "soft", "hard", "pruned", "finetuned"):
        assert f"{100 * results['accuracy'][key]:.2f}%" in page
    assert f"{results['dense_bytes']:,} bytes" in page
    assert f"{results['files']['model.safetensors']['bytes']:,} bytes" in page
    for row in content["latency"]["runtimes"]:
        assert f"{row['dense']['median_ms']:#.3g} ms" in page
        assert f"{row['pruned']['median_ms']:#.3g} ms" in page
    assert "Budget flops=0.5: MACs 49.2% of at most 50.0% (under by 1.6% of it)." in page


def test_a_budget_that_binds_nothing_and_a_fine_tuning_that_costs_read_as_words(tmp_path: Path) -> None:
    content = documents()
    content["results"]["budget"] = "flops=1e99"
    content["results"]["accuracy"] |= {"dense": 0.9, "pruned": 0.5, "finetuned": 0.4, "final": 0.4}
    page = report(tmp_path, content).text("result")
    assert "(under by 100% of it)" in page
    assert "Fine-tuning took another 10.0 points." in page


def test_every_group_is_listed_in_order(tmp_path: Path) -> None:
    content = documents()
    page = report(tmp_path, content)
    groups = content["results"]["groups"]
    shown = re.findall(r"(\S+) (\d+) (\d+) [\d.]+%", page.text("widths"))
    assert shown == [(row["name"], str(row["width"]), str(row["kept"])) for row in groups]
    bars = [[float(rect.get("width", 0)) for rect in svg] for svg in pictures(tmp_path) if svg.get("class") == "bar"]
    most = max(g["width"] for g in groups)  # the longest bar is 100 units for the widest group
    for row in groups:
        wanted = [100 * row["width"] / most, 100 * row["kept"] / most]
        assert any(bar == pytest.approx(wanted, abs=0.01) for bar in bars)


def test_every_layer_is_a_block_as_high_as_it_is_wide(tmp_path: Path) -> None:
    content = documents()
    report(tmp_path, content)
    drawing = next(svg for svg in pictures(tmp_path) if "layers from input" in svg.get("aria-label", ""))
    layers = content["results"]["layers"]
    assert [title.text for title in drawing.iter("title")] == [
        f"{row['name']}: {row['out_before']} to {row['out_after']} channels" for row in layers
    ]
    heights = [[float(rect.get("height", 0)) for rect in group.iter("rect")] for group in drawing.iter("g")]
    most = max(row["out_before"] for row in layers)
    for (before, after), row in zip(heights, layers, strict=True):
        assert before == pytest.approx(96 * row["out_before"] / most, abs=0.01)
        assert after == pytest.approx(96 * row["out_after"] / most, abs=0.01)
    said = [text.text for text in drawing.findall("text[@class='tick']")]
    assert said == ["16", "32", "64", "10", "input", "output"]


def test_without_layers_the_groups_are_drawn_and_of_many_a_part(tmp_path: Path) -> None:
    content = hostile(400)
    content["results"]["layers"] = []
    report(tmp_path, content)
    drawing = next(svg for svg in pictures(tmp_path) if "layers from input" in svg.get("aria-label", ""))
    assert len(list(drawing.iter("g"))) == 200


@pytest.mark.parametrize(
    ("latency", "figure", "words"),
    [
        ({"median": 1.4, "low": 1.35, "high": 1.45}, "1.40×", "faster on ONNX Runtime 95% interval 1.35× to 1.45×"),
        ({"median": 0.8, "low": 0.75, "high": 0.85}, "1.25×", "slower on ONNX Runtime 95% interval 1.18× to 1.33×"),
        (
            {"median": 1.2, "low": 0.9, "high": 1.5},
            "0.97× to 1.10×",
            "the dense network's speed on PyTorch (95%): not significant",
        ),
    ],
)
def test_three_figures_stand_at_the_top(tmp_path: Path, latency: dict[str, float], figure: str, words: str) -> None:
    content = documents()
    content["latency"]["runtimes"][1]["ratio"] = latency
    page = report(tmp_path, content).text()
    assert f"{figure} {words}" in page
    assert "1.90× smaller file of weights 1.104 MB → 582.4 kB" in page
    assert (
        "91.2% → 90.7% accuracy −0.51 points (95% interval −1.30 to +0.28 points): not significant "
        "on 10,000 test images, measured once"
    ) in page


def test_what_is_not_significant_is_grey(tmp_path: Path) -> None:
    rows = re.findall(
        r'<tr( class="unsure")?><th scope="row">([^<]+)', write_report(write(tmp_path, documents())).read_text()
    )
    grey = {name: bool(style) for style, name in rows}
    assert grey["Latency, PyTorch"]
    assert not grey["Latency, ONNX Runtime"]
    assert grey["Accuracy after fine-tuning"]
    assert not grey["MACs"]


def test_the_dense_network_that_was_trained_as_long_is_what_counts(tmp_path: Path) -> None:
    content = documents()
    content["results"]["accuracy"]["longer"] = 0.925
    content["results"]["epochs"] = {"pretrain": 20, "train": 30, "finetune": 20}
    page = report(tmp_path, content)
    assert "accuracy 90.7%, and 92.5% of the dense network trained as long (significant)" in page.text()
    assert "92.5% → 90.7% accuracy, the dense network trained as long −1.77 points" in page.text()
    assert "Dense network trained as long 92.50%" in page.text("result")
    assert "longer training" not in page.text("result")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("bwcp", "BWCP"), ("l1", "L1"), ("taylor", "taylor"), ("group_fisher", "group_fisher"), ("Mine", "Mine")],
)
def test_the_title_names_the_method(name: str, shown: str, tmp_path: Path) -> None:
    content = documents()
    content["results"]["method"]["name"] = name
    assert f"pruned with {shown}" in report(tmp_path, content).text()


def test_a_dense_network_that_was_trained_for_less_is_told(tmp_path: Path) -> None:
    content = documents()
    assert "longer training" not in report(tmp_path, content).text("result")
    content["results"]["epochs"] = {"pretrain": 20, "train": 30, "finetune": 20}
    text = report(tmp_path, content).text("result")
    assert "The dense network was trained for 20 epochs, the pruned one for 70 in all" in text


def test_the_curves_end_at_the_last_values(tmp_path: Path) -> None:
    content = documents()
    page = report(tmp_path, content).text("training")
    last = content["metrics"][-1]
    assert f"train {last['train_loss']:#.4g} validation {last['validation_loss']:#.4g}" in page
    assert f"train {100 * last['train_accuracy']:.1f}% validation {100 * last['validation_accuracy']:.1f}%" in page
    assert "train from epoch 1 and finetune from epoch 13" in page
    for key in ("flops", "channels", "strength", "soft accuracy", "hard accuracy"):
        assert key in page
    charts = [svg for svg in pictures(tmp_path) if svg.get("class") == "chart"]
    assert len(charts) == 1 + 2 + 1 + 5  # the network, loss and accuracy, the learning rate, what the method says
    points = charts[1].findall("polyline")[0].get("points", "").split()
    assert len(points) == 16


def test_missing_values_break_a_line_and_one_value_is_a_dot(tmp_path: Path) -> None:
    content = documents()
    for k, row in enumerate(content["metrics"]):
        row["validation_loss"] = row["validation_loss"] if k in (2, 3, 7) else None
    report(tmp_path, content)
    chart = next(svg for svg in pictures(tmp_path) if svg.get("aria-label", "").startswith("Loss"))
    assert len(chart.findall("polyline[@class='line s1']")) == 1
    assert len(chart.findall("circle[@class='dot s1']")) == 1


def test_a_loss_that_spikes_is_drawn_logarithmically(tmp_path: Path) -> None:
    content = documents()
    content["metrics"][5]["validation_loss"] = 140.0
    text = report(tmp_path, content).text("training")
    assert "Loss, logarithmic train 0.3040" in text
    content["metrics"][6]["validation_loss"] = 0.0
    assert "logarithmic" not in report(tmp_path, content).text("training")


def test_a_repeated_epoch_counts_once(tmp_path: Path) -> None:
    content = documents()
    again = copy.deepcopy(content["metrics"][3])
    again["train_loss"] = 9.0
    content["metrics"].append(again)  # a run resumed from a checkpoint writes an epoch again
    report(tmp_path, content)
    chart = next(svg for svg in pictures(tmp_path) if svg.get("aria-label", "").startswith("Loss"))
    assert len(chart.findall("polyline")[0].get("points", "").split()) == 16


def test_accuracy_against_macs_with_other_runs(tmp_path: Path) -> None:
    other = documents()
    other["results"].update(recipe_name="l1 instead")
    other["results"]["accuracy"]["final"] = 0.8811
    foreign = documents()
    foreign["results"]["model"] = "zoo:vgg16_bn"
    folders = [write(tmp_path / "b", other), write(tmp_path / "c", foreign), tmp_path / "a"]
    page = report(tmp_path / "a", others=folders).text("tradeoff")
    assert "dense 100.0% 91.24%" in page
    assert "just after the cut 49.2% 90.41%" in page
    assert "after fine-tuning 49.2% 90.73%" in page
    assert "1 l1 instead 49.2% 88.11%" in page
    assert "Run 2 has another network" in page
    assert "3 " not in re.sub(r"[\d.]+%", "", page)  # its own folder among the others is no other run


def test_the_proof_in_words(tmp_path: Path) -> None:
    page = report(tmp_path).text("proof")
    assert "The cut is exact: with random weights and input" in page
    assert "relative error 3.2e-07, tolerance 1e-05, 10 output values compared" in page
    assert "Masked and cut network have the same accuracy: 90.41%." in page
    assert (
        "ONNX file (model.onnx) computes what the network computes with any batch size (relative error 4.1e-07" in page
    )


def test_an_inexact_cut_gives_both_errors_and_the_reasons(tmp_path: Path) -> None:
    content = documents()
    proof = {"exact": False, "max_relative_error": 0.31, "structural_error": 2e-7, "tolerance": 1e-5}
    content["verification"].update(proof, reasons=["LayerNorm mixes channels (norm1)"])
    page = report(tmp_path, content).text("proof")
    assert "right but not exact" in page
    assert "2.0e-07" in page
    assert "3.1e-01" in page
    assert "LayerNorm mixes channels (norm1)" in page


def test_what_disagrees_is_marked(tmp_path: Path) -> None:
    content = documents()
    content["verification"]["onnx"] = {"max_relative_error": None, "tolerance": 1e-5}
    content["verification"].update(exact=False, structural_error=None)
    content["results"]["accuracy"]["hard"] = 0.85
    path = write_report(write(tmp_path, content))
    html = path.read_text(encoding="utf-8")
    assert html.count('class="sign no"') == 4  # the cut, soft and hard, hard and cut, ONNX
    assert "differs from the network it was made from (relative error not finite" in html


def test_frozen_settled_and_repaired(tmp_path: Path) -> None:
    page = report(tmp_path).text("frozen")
    assert "fc (outputs) (10) an output of the model: its size is the number of classes" in page
    assert "a literal 16 in forward() ties the shortcut" in page
    assert "layer2.0 planes 32 21" in page


def test_the_method_and_how_to_repeat_the_run(tmp_path: Path) -> None:
    content = documents()
    page = report(tmp_path, content)
    text = page.text("method")
    for part in (
        content["results"]["command"].replace(" --", " \\ --"),  # an option a line, as a shell reads it
        content["results"]["method"]["paper"],
        content["results"]["method"]["fidelity"],
        *content["results"]["method"]["notes"],
        " ".join(content["recipe"].split()),
        "newton_steps 3",
        "lambda1 by itself",
        "Images 45,000 for training, 5,000 for validation, 10,000 for testing",
        "Normalisation mean 0.4914, 0.4822, 0.4465, std 0.247, 0.2435, 0.2616",
        "PyTorch 2.13.0",
        "Date 2026-11-21 09:02 UTC",
        "train 12 21 min 24 s 424",
        "total 26 min 56 s",
    ):
        assert part in text
    assert ("a", "https://arxiv.org/abs/2105.06423") in [(tag, a.get("href")) for tag, a in page.tags]


# ---------------------------------------------------------------- robust and self-contained


CASES: dict[str, Callable[[], dict[str, Any]]] = {"full": documents, "bare": bare, "hostile": hostile}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path, case: str) -> None:
    page = report(tmp_path, CASES[case]())
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "b<b"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,", "https://arxiv.org/abs/")), value
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in html
    assert "@import" not in html
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert scripts == [html_module._script()]  # ours, and the one whose hash the page allows
    digest = base64.b64encode(sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:" in html
    assert not re.search(r"fetch|XMLHttp|import|innerHTML|eval|https?:", scripts[0])


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_well_formed_and_finite(tmp_path: Path, case: str) -> None:
    report(tmp_path, CASES[case]())
    for svg in pictures(tmp_path):
        numbers = [value for part in svg.iter() for name, value in part.attrib.items() if name not in _WORDS]
        assert not re.search(r"nan|inf|None", " ".join(numbers))


_WORDS = {"aria-label", "class", "role", "aria-hidden", "preserveAspectRatio", "text-anchor"}


@pytest.mark.parametrize("case", CASES)
def test_no_python_shows_through(tmp_path: Path, case: str) -> None:
    words = report(tmp_path, CASES[case]()).words
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|\bTrue\b|\bFalse\b|object at 0x", words)


@pytest.mark.parametrize("case", CASES)
def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, case: str) -> None:
    folder = write(tmp_path, CASES[case]())
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = report(tmp_path, hostile())
    assert "<script>alert('x')</script>" in page.words
    assert "\u202e" not in page.words
    assert "\x1b" not in page.words
    assert "javascript:alert(1)" in page.text("method")  # as text, not as a link


@pytest.mark.parametrize("missing", ["metrics", "latency", "verification", "recipe"])
def test_an_optional_file_may_be_missing(tmp_path: Path, missing: str) -> None:
    content = documents()
    content[missing] = None
    words = report(tmp_path, content).words
    said = {
        "metrics": "no metrics.jsonl",
        "latency": "latency was not measured",
        "verification": "but how well it agrees is not known",
        "recipe": "no recipe.yaml",
    }
    assert said[missing] in words


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document; of lists the first entry."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))


def _short(value: Any) -> Any:
    """A document whose lists hold two entries."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value[:2]] if isinstance(value, list) else value


@pytest.mark.parametrize("file", ["results", "latency", "verification", "metrics"])
def test_any_value_may_be_null_or_refused_in_a_sentence(tmp_path: Path, file: str) -> None:
    """Every value in turn is null, then of some other type: a page without Python in it, or a RunError."""
    original = _short(documents())
    others = itertools.cycle(["text", -1, [[1]], {"a": 1}, True])
    outcomes = set()
    for k, path in enumerate(list(_paths(original[file]))):
        for wrong in (None, next(others))[: 1 + (k % 3 == 0)]:
            content = {**original, file: copy.deepcopy(original[file])}
            inner = content[file]
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            outcomes.add(_outcome(tmp_path, content))
    assert outcomes == {"refused", "shown"}


def _outcome(folder: Path, content: dict[str, Any]) -> str:
    try:
        html = write_report(write(folder, content)).read_text(encoding="utf-8")
    except RunError as error:
        said = str(error)
    else:
        assert not re.search(r"\bNone\b|\bnan\b", html)
        return "shown"
    assert said.endswith(".")
    assert "\n" not in said
    return "refused"


def test_no_epochs_and_one_group(tmp_path: Path) -> None:
    content = documents()
    content["metrics"] = []
    content["results"]["groups"] = content["results"]["groups"][:1]
    page = report(tmp_path, content)
    assert "No epoch was trained" in page.text("training")
    assert "1 group, 16 channels before and 14 after" in page.text("widths")


def test_one_epoch_is_drawn_as_dots(tmp_path: Path) -> None:
    content = documents()
    content["metrics"] = content["metrics"][:1]
    report(tmp_path, content)
    chart = next(svg for svg in pictures(tmp_path) if svg.get("aria-label", "").startswith("Loss"))
    assert len(chart.findall("circle")) == 2


_HEAD = '{"format": "secateur.run", "version": 1, '


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("results.json", "{", "not valid JSON"),
        ("results.json", "[]", "no JSON object"),
        ("results.json", '{"format": "secateur.plan", "version": 1}', "'format' is not 'secateur.run'"),
        ("results.json", '{"format": "secateur.run", "version": 7}', "this release reads version 1"),
        ("results.json", _HEAD + '"seed": NaN}', "not valid JSON"),
        ("results.json", _HEAD + '"accuracy": {"dense": 91}}', "accuracy.dense"),
        ("results.json", _HEAD + '"groups": [{"name": "a", "width": 2, "kept": 3}]}', "keeps more"),
        ("results.json", _HEAD + '"inputs": [[' + '{"a": ' * 400 + "1" + "}" * 400 + "]]}", "too deeply"),
        ("metrics.jsonl", '{"stage": "train", "epoch": 1}\n{"stage": "tr', "line 2"),
        ("metrics.jsonl", "7\n", "line 1"),
        ("latency.json", '{"format": "x"}', "'format' is not 'secateur.latency'"),
        ("latency.json", b"\xff\xfe", "cannot be read"),
        ("verification.json", '{"exact": "yes"}', "verification.exact"),
        ("recipe.yaml", b"\xff\xfe", "cannot be read"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, file: str, text: str | bytes, words: str) -> None:
    write(tmp_path, documents())
    (tmp_path / file).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RunError, match=re.escape(words)) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no results\.json"):
        write_report(tmp_path / "nowhere")


def test_a_refused_run_leaves_the_old_report(tmp_path: Path) -> None:
    first = write_report(write(tmp_path, documents())).read_bytes()
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


def test_without_jinja2_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html_module._environment.cache_clear()
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "secateur\[train\]"'):
        write_report(write(tmp_path, documents()))


def test_the_files_are_not_changed(tmp_path: Path) -> None:
    folder = write(tmp_path, documents())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert json.loads(before["results.json"])["format"] == "secateur.run"

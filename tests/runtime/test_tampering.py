"""Damaged, exchanged and hostile files: always one sentence or the identical network, and never code that runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import FILES, Run, assert_sentence, computes_the_same, without_code
from torch import nn

import secateur
from secateur.errors import SecateurError
from secateur.runtime import check_folder
from secateur.runtime.archive import NotRun, read_archive
from secateur.runtime.program import Program

Copy = Callable[..., Path]
ROOT = "archive"
GRAPH = "models/model.json"


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def refused_or_same(run: Run, folder: Path, model: nn.Module | None = None) -> bool:
    """Load; whether it was refused. Anything but a sentence or the identical network fails the test.

    Without `model`, from model.pt2, as where the code of the original is not at hand.
    """
    try:
        with contextlib.nullcontext() if model is not None else without_code():
            network = secateur.load(folder, model=model)
    except SecateurError as error:
        assert_sentence(error)
        return True
    assert computes_the_same(network, run.narrow)
    return False


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One of: bits flipped, cut short, bytes inserted, a stretch repeated, removed or zeroed."""
    where, length = dice.randrange(len(data)), dice.randint(1, 16)
    match dice.randrange(6):
        case 0:
            return data[:where] + bytes([data[where] ^ (1 << dice.randrange(8))]) + data[where + 1 :]
        case 1:
            return data[:where]
        case 2:
            return data[:where] + dice.randbytes(length) + data[where:]
        case 3:
            return data[:where] + data[where : where + length] + data[where:]
        case 4:
            return data[:where] + data[where + length :]
        case _:
            return data[:where] + bytes(length) + data[where + length :]


@pytest.mark.parametrize("finished", [True, False], ids=["run", "saved"])
@pytest.mark.parametrize("name", ["plan.json", "model.safetensors", "model.pt2", "results.json"])
def test_damage_is_one_sentence_or_the_identical_network(run: Run, copied: Copy, name: str, finished: bool) -> None:
    folder = copied()
    if not finished:  # as save_model and export_pt2 alone leave it: the files check themselves
        (folder / "recipe.yaml").unlink()
        if name != "results.json":
            (folder / "results.json").unlink()
    whole = (folder / name).read_bytes()
    dice = random.Random(f"{name} {finished}")
    refused = 0
    for turn in range(100):
        data = damaged(whole, dice)
        (folder / name).write_bytes(data)
        # the way through the original's code is slower, and does not read model.pt2
        model = run.fresh() if turn % 10 == 0 and name != "model.pt2" else None
        refused += refused_or_same(run, folder, model)
    assert refused > (50 if name != "results.json" else 15)


def test_damage_to_any_file_is_found_by_the_check_or_harmless(run: Run, copied: Copy) -> None:
    dice = random.Random(7)
    for name in [*FILES, "metrics.jsonl"]:
        folder = copied()
        whole = (folder / name).read_bytes()
        for _ in range(12):
            (folder / name).write_bytes(damaged(whole, dice))
            try:
                check_folder(folder)
                assert name == "metrics.jsonl"  # alone has no hash: it grows while a run is resumed
            except SecateurError as error:
                assert_sentence(error)


def test_header_entries_are_trusted_in_nothing(run: Run, copied: Copy) -> None:
    """Damage in the part of the weights file where the words are, with and without a checksum that fits."""
    from secateur.runtime import stored

    folder = copied()
    for name in ("results.json", "recipe.yaml", "model.pt2"):
        (folder / name).unlink()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    odd = {
        "": ["", "1" * 5000],
        "reference": ["zoo:", "zoo:nothing", "timm:../x", "a.py:b", "zoo:tiny.py", "\0"],
        "arguments": ["[]", '{"num_classes": 1e9}', '{"x=y": 1}', '{"width": "a"}', '{"width": -1}'],
        "inputs": ["[[-1]]", "[[1e9, 1e9]]", "[[99999999, 99999999]]", "[[1, 3, 32]]", "[[1, 3, 1, 1]]", "[]", "NaN"],
        "input_types": ["null", '["float99"]', '["int64"]', '["float32", "float32"]', "[" * 5000],
        "input_names": ["[]", '["y"]', '[1]', '["a", "b"]'],
    }  # fmt: skip
    for key in list(header["__metadata__"]):
        for value in [*odd[""], *odd.get(key, [])]:
            changed = {**header["__metadata__"], key: value}
            if key != "checksum":
                changed["checksum"] = stored._checksum(changed)
            text = json.dumps({**header, "__metadata__": changed}).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
            refused_or_same(run, folder)
            if key.startswith("input"):
                refused_or_same(run, folder, run.fresh())


def test_odd_safetensors_are_one_sentence(run: Run, copied: Copy) -> None:
    folder = copied()
    for name in ("results.json", "recipe.yaml", "model.pt2"):
        (folder / name).unlink()
    row = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for header in (
        {"a": {**row, "dtype": "F4"}}, {"a": {**row, "dtype": "F8_E8M0", "shape": [8]}}, {"a": {**row, "dtype": "C64"}},
        {"a": {**row, "shape": [1 << 62]}}, {"a": {**row, "data_offsets": [0, 1 << 60]}}, {"\ud800": row}, {"a": 1}, [],
        {"a": row}, {"a": row, "__metadata__": {"format": 1}}, {"a": row, "__metadata__": {"format": "secateur.model"}},
    ):  # fmt: skip
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        assert refused_or_same(run, folder)
    for start in (
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 99 << 20) + b"{",
        b"",
        b"\x80\x04",
        b"PK\x03\x04" + bytes(64),
    ):
        (folder / "model.safetensors").write_bytes(start)
        assert refused_or_same(run, folder)


@pytest.mark.parametrize("name", ["plan.json", "results.json", "verification.json"])
def test_loose_json_is_refused(run: Run, copied: Copy, name: str) -> None:
    folder = copied()
    good = (run.folder / name).read_text()
    for text in (
        "", "null", "[]", "NaN", '{"format": NaN}', good + good, "[" * 200_000, '{"format": ' + "9" * 10_000 + "}",
        good.replace("{", '{"version": 1, "version": 1, ', 1), '{"format": 1e999}', "\ufeff" + good, '{"\ud800": 1}',
    ):  # fmt: skip
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(SecateurError) as caught:
            check_folder(folder)
        assert_sentence(caught.value)
        if name != "verification.json":
            assert refused_or_same(run, folder)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2", "plan.json"])
@pytest.mark.parametrize("form", ["pickle", "zip", "link", "dangling", "folder", "pipe"])
def test_foreign_files_are_refused_and_never_run(
    run: Run, copied: Copy, tmp_path: Path, name: str, form: str, finished: bool
) -> None:
    folder, mark = copied(), tmp_path / "ran"
    if not finished:
        (folder / "results.json").unlink()
        (folder / "recipe.yaml").unlink()
    target = folder / name
    target.unlink()
    elsewhere = tmp_path / "elsewhere"
    torch.save(Payload(mark), elsewhere)
    match form:
        case "pickle":
            target.write_bytes(pickle.dumps(Payload(mark)))
        case "zip":
            torch.save(Payload(mark), target)
        case "link":
            target.symlink_to(elsewhere)
        case "dangling":
            target.symlink_to(tmp_path / "nowhere")
        case "folder":
            target.mkdir()
        case _:
            os.mkfifo(target)
    refused = refused_or_same(run, folder)
    assert refused
    if name != "model.pt2":
        assert refused_or_same(run, folder, run.fresh())
    assert not mark.exists()


# ------------------------------------------------------------------------------------------------- inside model.pt2


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], compression: int = 0) -> Path:
    """A sound zip file with other content: every checksum fits."""
    with zipfile.ZipFile(source) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{ROOT}/{name}" if not name.startswith("/") else name, data)
    return target


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def edit(members: dict[str, bytes]) -> None:
        document = json.loads(members[GRAPH])
        change(document)
        members[GRAPH] = json.dumps(document).encode()

    return edit


def calling(target: str, *args: dict[str, Any]) -> Callable[[dict[str, bytes]], None]:
    """A graph that first calls something else."""

    def edit(document: dict[str, Any]) -> None:
        node = {
            "target": target,
            "inputs": [{"name": "", "arg": arg, "kind": 1} for arg in args],
            "outputs": [{"as_tensor": {"name": "zz"}}],
            "metadata": {},
            "name": "zz",
        }
        document["graph_module"]["graph"]["nodes"].insert(0, node)

    return in_graph(edit)


def test_what_pytorch_would_evaluate_is_not_even_looked_at(run: Run, copied: Copy, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"__import__('os').system('touch {mark}')"

    def edit(document: dict[str, Any]) -> None:
        document["guards_code"] = [code]
        graph = document["graph_module"]["graph"]
        for meta in graph["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        for value in graph["sym_int_values"].values():
            value["as_expr"]["expr_str"] = code

    folder = copied()
    (folder / "results.json").unlink()
    (folder / "recipe.yaml").unlink()
    rewritten(run.folder / "model.pt2", folder / "model.pt2", in_graph(edit))
    assert not refused_or_same(run, folder)
    assert not mark.exists()


def hostile(mark: Path) -> dict[str, Callable[[dict[str, bytes]], None]]:
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    packed = buffer.getvalue()
    text = {"as_string": f"touch {mark}"}

    def sample(members: dict[str, bytes]) -> None:
        members["data/sample_inputs/model.pt"] = packed

    def weight(members: dict[str, bytes]) -> None:
        config = json.loads(members["data/weights/model_weights_config.json"])
        next(iter(config["config"].values()))["use_pickle"] = True
        members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
        members["data/weights/weight_0"] = packed

    def extra(name: str) -> Callable[[dict[str, bytes]], None]:
        return lambda members: members.update({name: packed})

    def twice(members: dict[str, bytes]) -> None:
        members["./" + GRAPH] = b"{}"

    return {
        "sample inputs": sample,
        "pickled weight": weight,
        "legacy weights": extra("data/weights/model.pt"),
        "opaque constant": extra("data/constants/opaque_obj_0"),
        "script object": extra("data/constants/custom_obj_0"),
        "compiled library": extra("data/aotinductor/model/model.so"),
        "absolute name": extra("/models/evil.json"),
        "outside": extra("../models/model.json"),
        "second graph": twice,
        "os.system": calling("torch.os.system", text),
        "builtin eval": calling("torch._inductor.codecache.eval", text),
        "from_file": calling("torch.ops.aten.from_file.default", {"as_string": str(mark)}, {"as_bool": True}),
        "torch.load": calling("torch.load", {"as_string": str(mark)}),
        "other library": calling("torch.ops.profiler._record_function_enter.default", text),
        "memory": calling("torch.ops.aten._unsafe_index.Tensor", text),
        "set_": calling("torch.ops.aten.set_.source_Storage", text),
        "operator": calling("_operator.methodcaller", text),
        "attribute": calling("torch.ops.aten.__class__.mro"),
        "subgraph": calling("torch.ops.aten.relu.default", {"as_graph": {"name": "g", "graph": {}}}),
        "enum": in_graph(lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
            out_spec='[1, {"type": "os:system", "context": "{}", "children_spec": []}]')),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(hostile(Path())))
def test_an_archive_with_anything_but_data_is_refused(run: Run, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "ran"
    path = rewritten(run.folder / "model.pt2", tmp_path / "model.pt2", hostile(mark)[kind])
    with pytest.raises(SecateurError) as caught:
        Program(read_archive(path))
    assert_sentence(caught.value)
    assert not mark.exists()


def test_a_zip_bomb_is_refused_unopened(run: Run, tmp_path: Path) -> None:
    def blow_up(members: dict[str, bytes]) -> None:
        members["data/weights/weight_0"] = bytes(1 << 24)

    path = rewritten(run.folder / "model.pt2", tmp_path / "bomb.pt2", blow_up, zipfile.ZIP_DEFLATED)
    with pytest.raises(SecateurError, match="more than its size"):
        read_archive(path)
    path = rewritten(run.folder / "model.pt2", tmp_path / "small.pt2", lambda _: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(SecateurError, match=r"claims|packed"):
        read_archive(path)


def test_a_weight_larger_than_its_bytes_is_refused(run: Run, tmp_path: Path) -> None:
    for sizes, strides in (([1 << 40], [0]), ([1 << 40], [1]), ([-4], [1]), ([1 << 70], [1]), ([8, 8], [1, 1 << 40])):

        def claim(members: dict[str, bytes], sizes: list[int] = sizes, strides: list[int] = strides) -> None:
            config = json.loads(members["data/weights/model_weights_config.json"])
            meta = next(iter(config["config"].values()))["tensor_meta"]
            meta["sizes"], meta["strides"] = [{"as_int": n} for n in sizes], [{"as_int": n} for n in strides]
            members["data/weights/model_weights_config.json"] = json.dumps(config).encode()

        path = rewritten(run.folder / "model.pt2", tmp_path / "model.pt2", claim)
        with pytest.raises(SecateurError) as caught:
            read_archive(path)
        assert_sentence(caught.value)


def test_another_version_is_refused_and_the_reference_serves(run: Run, copied: Copy) -> None:
    folder = copied()
    (folder / "results.json").unlink()
    (folder / "recipe.yaml").unlink()
    newer = in_graph(lambda document: document["schema_version"].update(major=9))
    path = rewritten(run.folder / "model.pt2", folder / "model.pt2", newer)
    with pytest.raises(NotRun, match="another PyTorch"):
        read_archive(path)
    assert refused_or_same(run, folder)  # there is nothing else to load it from
    assert type(secateur.load(folder)) is type(run.narrow)


def test_graphs_with_anything_changed_build_or_are_one_sentence(run: Run, tmp_path: Path) -> None:
    """Every checksum fits, so only the reader itself stands between the file and PyTorch."""
    with zipfile.ZipFile(run.folder / "model.pt2") as file:
        original = json.loads(file.read(next(n for n in file.namelist() if n.endswith(GRAPH))))
    dice = random.Random(11)
    junk: list[Any] = [None, True, -1, 1 << 70, 0.5, "", "x", [], {}, [[]], {"as_int": 1}, {"as_tensor": {"name": "x"}}]
    refused = 0
    for _ in range(100):
        document = json.loads(json.dumps(original))
        for _ in range(dice.randint(1, 3)):
            place: Any = document
            while isinstance(place, dict | list) and place:
                key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if not isinstance(place[key], dict | list) or not place[key] or dice.random() < 0.08:
                    if dice.random() < 0.2:
                        del place[key]
                    else:
                        place[key] = dice.choice(junk)
                    break
                place = place[key]
        text = json.dumps(document).encode()
        path = rewritten(run.folder / "model.pt2", tmp_path / "model.pt2", lambda m, t=text: m.update({GRAPH: t}))
        try:
            Program(read_archive(path))
        except SecateurError as error:
            assert_sentence(error)
            refused += 1
    assert refused > 15


def test_swapped_files_are_found_by_the_check(run: Run, other_run: Run, copied: Copy) -> None:
    for name in ("plan.json", "model.safetensors", "model.pt2", "verification.json", "results.json"):
        folder = copied()
        (folder / name).write_bytes((other_run.folder / name).read_bytes())
        with pytest.raises(SecateurError) as caught:
            check_folder(folder)
        assert_sentence(caught.value)

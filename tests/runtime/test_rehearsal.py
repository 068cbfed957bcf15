"""Forged graphs of allowed operators: refused in a sentence before anything is computed, in no time and no memory."""

from __future__ import annotations

import copy
import io
import json
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import Run, assert_sentence, computes_the_same
from torch import nn

from secateur.errors import InputError, SecateurError
from secateur.runtime import export_pt2
from secateur.runtime.archive import NotRun, read_archive
from secateur.runtime.program import Program

Document = dict[str, Any]


def tensor(name: str) -> Document:
    return {"as_tensor": {"name": name}}


def ints(*values: int) -> Document:
    return {"as_ints": list(values)}


def node(target: str, *args: Any, out: Document | None = None, **kwargs: Any) -> Document:
    """A call, as the file writes it; plain numbers, texts and None are wrapped."""

    def wrapped(value: Any) -> Document:
        if isinstance(value, dict):
            return value
        kinds = {bool: "as_bool", int: "as_int", float: "as_float", str: "as_string", type(None): "as_none"}
        return {kinds[type(value)]: True if value is None else value}

    rows = [{"name": "", "arg": wrapped(value), "kind": 1} for value in args]
    rows += [{"name": name, "arg": wrapped(value), "kind": 2} for name, value in kwargs.items()]
    outputs = [out if out is not None else tensor("z")]
    return {"target": target, "inputs": rows, "outputs": outputs, "metadata": {}, "name": "z"}


def aten(name: str, *args: Any, **more: Any) -> Document:
    return node(f"torch.ops.aten.{name}", *args, **more)


def number(name: str, *args: Any, result: str = "n") -> Document:
    return node(name, *args, out={"as_sym_int": {"as_name": result}})


def named(name: str) -> Document:
    return {"as_sym_int": {"as_name": name}}


def squares(times: int) -> list[Document]:
    return [number("_operator.mul", *([12345] * 2 if i == 0 else [named(f"n{i - 1}")] * 2), result=f"n{i}")
            for i in range(times)]  # fmt: skip


WEIGHT = tensor("p_stem_0_weight")
BIG = 1 << 40
FORGED: dict[str, list[Document]] = {
    "a dimension there is not": [aten("_fft_r2c.default", tensor("x"), ints(9), 0, True)],
    "a mean over one there is not": [aten("mean.dim", tensor("x"), ints(-9))],
    "a number without end": squares(40),
    "a large shift": [number("_operator.mul", 1 << 61, 1 << 61)],
    "a text repeated": [number("_operator.mul", "abc", 1 << 33)],
    "a list repeated": [number("_operator.mul", ints(1, 2), 1 << 33)],
    "a text formatted": [number("_operator.mod", "%9999999999d", 1)],
    "a tensor as a number": [number("_operator.mul", tensor("x"), tensor("x"))],
    "a short vector of a norm": [
        aten("ones.default", ints(2), out=tensor("v")),
        aten("_native_batch_norm_legit_no_training.default", tensor("x"), *[tensor("v")] * 4, 0.1, 1e-5),
    ],
    "one number for all channels": [
        aten("ones.default", ints(1), out=tensor("v")),
        aten("native_batch_norm.default", tensor("x"), *[tensor("v")] * 4, False, 0.1, 1e-5),
    ],
    "zeros": [aten("zeros.default", ints(1 << 20, 1 << 10))],
    "an arange": [aten("arange.default", BIG)],
    "repeated": [aten("repeat.default", tensor("x"), ints(1 << 10, 1 << 8, 4, 4))],
    "expanded": [aten("expand.default", aten_one := tensor("w"), ints(BIG))],
    "padded": [aten("constant_pad_nd.default", tensor("x"), ints(1 << 20, 1 << 20), 0)],
    "enlarged": [aten("upsample_nearest2d.vec", tensor("x"), ints(1 << 15, 1 << 15), None)],
    "an outer product": [
        aten("ones.default", ints(1 << 20), out=tensor("v")), aten("outer.default", tensor("v"), tensor("v")),
    ],
    "much at a time": [
        *(aten("ones.default", ints(1 << 24), out=tensor(f"v{i}")) for i in range(20)),
        aten("cat.default", {"as_tensors": [{"name": f"v{i}"} for i in range(20)]}),
    ],
    "many parts": [
        aten("ones.default", ints(1 << 22), out=tensor("v")),
        aten("unbind.int", tensor("v"), out={"as_tensors": [{"name": "a"}, {"name": "b"}]}),
    ],
    "many empty parts": [aten("tensor_split.sections", tensor("x"), 1 << 30, out={"as_tensors": [{"name": "a"}]})],
    "a number as a type": [aten("_to_copy.default", tensor("x"), dtype=1 << 31)],
    "a number as a layout": [aten("zeros_like.default", tensor("x"), layout=77)],
    "another shape than is said": [aten("relu.default", tensor("x"), out=tensor("conv2d"))],
    "written into another": [aten("min.dim_min", tensor("x"), 0, min=WEIGHT, min_indices=WEIGHT)],
    "a degree in a tensor": [aten("special_hermite_polynomial_h.n_scalar", tensor("x"), 1 << 40)],
    "so many times": [aten("mvlgamma.default", tensor("x"), 1 << 31)],
    "a gain for one row of many": [
        aten("ones.default", ints(40000, 4), out=tensor("v")),
        aten("ones.default", ints(1, 1), out=tensor("g")),
        aten("_weight_norm_interface.default", tensor("v"), tensor("g"), 0, out={"as_tensors": []}),
    ],
    "fewer values than keys": [
        aten("ones.default", ints(1, 2, 4, 8), out=tensor("k")),
        aten("ones.default", ints(1, 2, 2, 8), out=tensor("v")),
        aten("scaled_dot_product_attention.default", tensor("k"), tensor("k"), tensor("v")),
    ],
    "fewer heads of keys": [
        aten("ones.default", ints(1, 2, 4, 8), out=tensor("q")),
        aten("ones.default", ints(1, 1, 4, 8), out=tensor("k")),
        aten("_scaled_dot_product_flash_attention_for_cpu.default", *map(tensor, "qkk"), out={"as_tensors": []}),
    ],
    "a scale of nothing": [aten("_upsample_bilinear2d_aa.default", tensor("x"), ints(8, 8), False, 1e-7, 1e-7)],
    "lengths beyond the end": [
        aten("ones.default", ints(4), out=tensor("v")),
        aten("segment_reduce.default", tensor("v"), "sum", lengths=tensor("v"), unsafe=True),
    ],
    "offsets before the start": [
        aten("ones.default", ints(4), out=tensor("v")),
        aten("embedding_bag.default", tensor("x"), tensor("v"), tensor("v"), out={"as_tensors": []}),
    ],
    "memory never written": [aten("resize.default", tensor("x"), ints(1 << 16))],
    "a list for scripts": [aten("sort.int", ints(3, 2), False)],
}  # fmt: skip
FORGED["expanded"].insert(0, aten("ones.default", ints(1), out=aten_one))


def forged(source: Path, target: Path, change: Callable[[Document], None]) -> Path:
    """A sound zip file with another graph."""
    with zipfile.ZipFile(source) as file, zipfile.ZipFile(target, "w") as copied:
        for name in file.namelist():
            data = file.read(name)
            if name.endswith("models/model.json"):
                document = json.loads(data)
                change(document["graph_module"]["graph"])
                data = json.dumps(document).encode()
            copied.writestr(name, data)
    return target


@pytest.mark.parametrize("kind", list(FORGED))
def test_a_forged_graph_is_refused_before_it_runs(run: Run, tmp_path: Path, kind: str) -> None:
    def insert(graph: Document) -> None:
        # at the end, where all that the file says is known; what it names anew, it says nothing of
        graph["nodes"] += json.loads(
            json.dumps(FORGED[kind]).replace("p_stem_0_weight", graph["inputs"][0]["as_tensor"]["name"])
        )

    path = forged(run.folder / "model.pt2", tmp_path / "model.pt2", insert)
    began = time.process_time()
    with pytest.raises(SecateurError) as caught:
        Program(read_archive(path))
    assert time.process_time() - began < 20  # and not minutes; it is a tenth of a second
    assert_sentence(caught.value)


def test_what_only_larger_inputs_make_too_large_is_refused_then(run: Run, tmp_path: Path) -> None:
    """Batch to the power of eight is small for two images."""

    def insert(graph: Document) -> None:
        nodes = [number("torch.ops.aten.sym_size.int", tensor("x"), 0, result="n0")]
        nodes += [number("_operator.mul", named(f"n{i}"), named(f"n{i}"), result=f"n{i + 1}") for i in range(3)]
        graph["nodes"] += [*nodes, aten("ones.default", {"as_sym_ints": [{"as_name": "n3"}]})]

    program = Program(read_archive(forged(run.folder / "model.pt2", tmp_path / "model.pt2", insert)))
    assert computes_the_same(program, run.narrow, 3)
    with pytest.raises(InputError, match=r"inputs of 64x3x32x32: .* numbers, and .* would be many") as caught:
        program(torch.zeros(64, 3, 32, 32))
    assert_sentence(caught.value)


def test_shapes_that_depend_on_numbers_are_not_run_from_a_file(run: Run, tmp_path: Path) -> None:
    def insert(graph: Document) -> None:
        graph["nodes"].append(aten("nonzero.default", tensor("x")))

    with pytest.raises(NotRun, match="shapes depend on numbers"):
        Program(read_archive(forged(run.folder / "model.pt2", tmp_path / "model.pt2", insert)))


class Parts(nn.Module):
    """Operators that the checks look at closely, used as networks use them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.out = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        a, b, c = x.chunk(3, 1)
        d, e = torch.split(x, [4, 8], 1)
        first, *others = x.unbind(1)
        x = torch.cat([a, b * c, d, e[:, :4], first[:, None], torch.stack(others, 1)[:, :3]], 1)
        x = nn.functional.interpolate(x, scale_factor=2).flatten(2).repeat(1, 1, 2)
        n = x.shape[0] * 2 // 2
        return self.out(x.reshape(n, -1, 12).float().mean(1)) + torch.arange(5)


def test_what_networks_do_passes_and_nothing_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network, x = Parts().eval(), torch.randn(2, 3, 6, 6)
    assert export_pt2(network, x, tmp_path / "m.pt2")["loads"]
    program = Program(read_archive(tmp_path / "m.pt2"))
    for size in (1, 2, 7):
        x = torch.randn(size, 3, 6, 6)
        assert torch.equal(program(x), network(x))
    assert capfd.readouterr() == ("", "")


def test_a_program_is_rehearsed_once_for_each_size(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import program as room

    program, times, true = Program(read_archive(run.folder / "model.pt2")), [], room.rehearse
    monkeypatch.setattr(room, "rehearse", lambda *args: (times.append(1), true(*args)))
    for size in (2, 2, 3, 2, 3):
        program(torch.zeros(size, 3, 32, 32))
    assert len(times) == 2


def test_a_program_is_copied_and_pickled(run: Run) -> None:
    program = Program(read_archive(run.folder / "model.pt2"))
    file = io.BytesIO()
    torch.save(program, file)
    file.seek(0)
    for other in (copy.deepcopy(program), torch.load(file, weights_only=False)):
        assert computes_the_same(other, run.narrow)
        assert list(other.state_dict()) == list(program.state_dict())
    half = copy.deepcopy(program).half()
    assert half(torch.zeros(1, 3, 32, 32).half()).dtype == torch.float16


def test_a_program_goes_through_compilers(run: Run) -> None:
    """Others that carry it out without numbers find nothing of the rehearsal."""
    warnings.simplefilter("ignore", torch.jit.TracerWarning)
    program, x = Program(read_archive(run.folder / "model.pt2")), torch.randn(2, 3, 32, 32)
    exported = torch.export.export(program, (x,))
    assert torch.allclose(exported.module()(x), program(x), atol=1e-6)
    traced = torch.jit.trace(program, x)
    assert torch.allclose(traced(x), program(x), atol=1e-6)
    assert torch.compile(program, backend="eager", fullgraph=True)(x).shape == program(x).shape
    assert program.to("meta")(x.to("meta")).shape == (2, 10)

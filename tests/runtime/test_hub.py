"""The Hub, by a stand-in of its HTTP interface on this machine: what is sent comes back, and nothing else is taken."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import Run, assert_sentence, computes_the_same

import secateur
from secateur import references
from secateur.errors import ConfigError, RunError, SecateurError
from secateur.runtime import hub, save_model
from secateur.runtime.named import network

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(BaseHTTPRequestHandler):
    """Repositories in memory: made, committed to, listed and read."""

    store: dict[str, dict[str, bytes]]
    sizes: dict[str, int]  # told instead of the true ones
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any, code: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(self.path)
        if self.path == "/api/repos/create":
            sent = json.loads(data)
            name = f"{sent['organization']}/{sent['name']}"
            self.store.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
        if self.path.endswith("/preupload/main"):
            files = json.loads(data)["files"]
            return self.answer({"files": [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in files]})
        if self.path.endswith("/commit/main"):
            name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in data.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.store[name][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            where = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            return self.answer({"commitUrl": where, "commitOid": COMMIT, "hookOutput": "", "pullRequestUrl": None})
        return self.answer({"errors": [], "warnings": []})  # the check of the front matter

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path)) and found[1] in self.store:
            files = [
                {"rfilename": n, "size": self.sizes.get(n, len(d)), "blobId": "0"}
                for n, d in self.store[found[1]].items()
            ]
            return self.answer({"id": found[1], "sha": COMMIT, "siblings": files})
        found = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path)
        if found and found[2] in self.store.get(found[1], {}):
            data = self.store[found[1]][found[2]]
            etag = '"' + hashlib.sha256(data).hexdigest() + '"'
            return self.answer(data, ETag=etag, X_Repo_Commit=COMMIT)
        return self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A saved network, without what makes it a run."""
    loaded = references.load("zoo:tiny")
    result = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.5")
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder, result.model, reference="zoo:tiny", inputs=loaded.inputs, plan=result.plan)
    return Run(folder, result.model.eval(), result, loaded.inputs)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    class Mine(StandIn):
        store, sizes, asked = {}, {}, []

    running = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Mine
    running.shutdown()
    running.server_close()


def test_a_run_goes_there_and_comes_back(server: type[StandIn], run: Run) -> None:
    address = secateur.push_to_hub(run.folder, "org/tiny-half", licence="mit", token="hf_test")
    assert address.endswith("/org/tiny-half")
    assert set(server.store["org/tiny-half"]) == {"README.md", "plan.json", "model.safetensors"}
    card = server.store["org/tiny-half"]["README.md"].decode()
    for part in (
        'license: "mit"',
        'secateur.load("hf:org/tiny-half")',
        "`zoo:tiny`, pruned by `l1`",
        "| `stem.0` | 8 |",
    ):
        assert part in card
    loaded = secateur.load("hf:org/tiny-half")
    assert type(loaded) is type(run.narrow)
    assert computes_the_same(loaded, run.narrow)
    again = secateur.prune(network("hf:org/tiny-half").model, run.inputs, budget="flops=0.8")
    assert again.whole_plan.widths["stem.0"] <= run.result.plan.widths["stem.0"]


def test_a_result_is_saved_and_sent(server: type[StandIn], run: Run) -> None:
    with pytest.raises(ConfigError, match="give reference="):
        secateur.push_to_hub(run.result, "org/a", token="t")
    secateur.push_to_hub(run.result, "org/a", reference="zoo:tiny", token="t")
    card = server.store["org/a"]["README.md"].decode()
    assert f"| multiply-accumulates | {run.result.before.macs:,} | {run.result.after.macs:,} |" in card
    assert computes_the_same(secateur.load("hf:org/a"), run.narrow)


RESULTS = {
    "before": {"macs": 4_000, "params": 300},
    "after": {"macs": 2_000, "params": 100},
    "accuracy": {"dense": 0.99, "longer": 0.994, "final": 0.986},
    "data": {"name": "digits|<b>"},
    "epochs": {"train": 6, "finetune": 4},
    "recipe_name": "demo",
    "seed": 3,
    "verification": {"exact": True, "max_relative_error": 2e-7},
}


def test_the_card_of_a_run_has_its_figures(run: Run) -> None:
    folder = hub.Folder.open(run.folder)
    time = {"dense": {"median_ms": 0.5214}, "pruned": {"median_ms": 0.211}}
    rows = [{"runtime": name, "ratio": {"low": low, "high": 3.1}, **time} for name, low in (("a", 2.2), ("b", 0.9))]
    latency = {"batch_size": 1, "threads": 1, "device": "cpu", "runtimes": rows}
    said = hub.card("org/name", *folder.saved(), RESULTS, latency, None).splitlines()
    for line in (
        "| multiply-accumulates | 4,000 | 2,000 |",
        "| accuracy on digits/&lt;b> | 99.00% | 98.60% |",
        "| the dense network trained as long | 99.40% | |",
        "| latency, a, 1 at a time, 1 thread of cpu | 0.521 ms | 0.211 ms (2.20 to 3.10 times faster) |",
        "| latency, b, 1 at a time, 1 thread of cpu | 0.521 ms | 0.211 ms "
        "(0.90 to 3.10 times as fast, not significant) |",
        "- budget: flops=0.5",
        "- epochs: train 6, finetune 4",
        "- seed: 3",
        "- proof: exact; largest relative difference from the original with these channels at zero: 2.0e-07",
    ):
        assert line in said
    assert not any(line.startswith("license") for line in said)


def refused(name: str, part: str) -> None:
    with pytest.raises(SecateurError, match=part) as caught:
        secateur.load(name)
    assert_sentence(caught.value)


def test_only_known_files_of_bounded_size_are_fetched(server: type[StandIn], run: Run) -> None:
    secateur.push_to_hub(run.folder, "org/b", token="t")
    server.store["org/b"]["pytorch_model.bin"] = b"\x80\x04 a pickle"
    server.store["org/b"]["evil.py"] = b"raise SystemExit"
    server.sizes["plan.json"] = 1 << 40
    server.asked.clear()
    refused("hf:org/b", "plan.json in hf:org/b has .* bytes")
    assert not any("resolve" in path for path in server.asked)
    server.sizes.clear()
    secateur.load("hf:org/b")
    assert not any("pytorch_model" in path or "evil" in path for path in server.asked)


def test_a_file_larger_than_told_is_refused(server: type[StandIn], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    secateur.push_to_hub(run.folder, "org/c", token="t")
    size = len(server.store["org/c"]["plan.json"])
    server.sizes["plan.json"] = 10
    monkeypatch.setattr(hub, "FILES", {**hub.FILES, "plan.json": size - 1})
    refused("hf:org/c", "plan.json in hf:org/c has")


def test_damage_and_foreign_networks_are_one_sentence(server: type[StandIn], run: Run, tmp_path: Path) -> None:
    refused("hf:org/nowhere", "cannot be had from the Hub")
    server.store["org/foreign"] = {"pytorch_model.bin": b"\x80\x04"}
    refused("hf:org/foreign", "holds no plan.json")
    secateur.push_to_hub(run.folder, "org/d", token="t")
    server.store["org/d"]["model.safetensors"] = b"\x80\x04 a pickle"
    refused("hf:org/d", "cannot be read")
    save_model(tmp_path / "e", run.narrow, reference="os:abort", inputs=run.inputs, plan=run.result.plan)
    secateur.push_to_hub(tmp_path / "e", "org/e", token="t")
    refused("hf:org/e", "needs the original's code")
    with pytest.raises(ConfigError, match="trust=True is for folders of one's own"):
        secateur.load("hf:org/e", trust=True)
    assert computes_the_same(secateur.load("hf:org/e", run.fresh()), run.narrow)


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "a/..", "a b/c", "a/b@"])
def test_what_is_no_name(name: str, run: Run) -> None:
    with pytest.raises(ConfigError, match="no name on the Hub"):
        secateur.load(f"hf:{name}")
    with pytest.raises(ConfigError, match="no name on the Hub"):
        secateur.push_to_hub(run.folder, name)


def test_networks_of_our_recipes_need_no_trust_and_what_their_modules_import_does(tmp_path: Path) -> None:
    name = "secateur.examples.super_resolution:net"
    loaded = references.load(name, input_size="1x8x8")
    result = secateur.prune(loaded.model, loaded.inputs, budget="flops=0.6")
    for folder, reference in (("own", name), ("torch", "secateur.examples.super_resolution:torch.hub.load")):
        save_model(tmp_path / folder, result.model, reference=reference, inputs=loaded.inputs, plan=result.plan)
    assert type(secateur.load(tmp_path / "own")) is type(loaded.model)
    with pytest.raises(RunError, match="needs the original's code"):
        secateur.load(tmp_path / "torch")


def test_a_hub_out_of_reach(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="cannot be had from the Hub"):
        secateur.load("hf:org/name")
    assert torch.is_grad_enabled()

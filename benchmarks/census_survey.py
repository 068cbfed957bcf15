"""Find the smallest input that works for every model there is, choose the census's models, write census_models.json.

    python benchmarks/census_survey.py            # about 8 minutes on one core; goes on where it was stopped
    python benchmarks/census_survey.py --verify   # build every chosen model and run its forward with real tensors

Each model is built and run on the meta device, so an input size is known to work and its cost is known without
computing. From timm the survey keeps, in each family, the always-wanted names below and then the smallest models
that bring a layer type or operator no smaller one had, up to a share of the whole.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _macs
import census_models as cm
import timm
import torch
import torchvision
from torch import nn
from torch.nn import init
from torch.utils._python_dispatch import TorchDispatchMode

CACHE = Path(__file__).parent.parent / "runs" / "census_survey.jsonl"
SIZES = (64, 70, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512, 1024)
MAX_PARAMS = 90e6  # of a timm model, unless its family has none smaller
MAX_MACS = 8e9  # about 5 s on one thread
PER_FAMILY = {"conv": (12, 5), "other": (5, 15)}  # at least so many, or one in so many of the family

# Structures known to break pruners: kept even where the family's share is full.
_ALWAYS = """
bat_resnext26ts cs3darknet_focus_s cs3darknet_s cs3edgenet_x cs3sedarknet_l cspdarknet53 cspnext_tiny cspresnet50
cspresnext50 densenet121 densenetblur121d dla60_res2net dla60_res2next dm_nfnet_f0 dpn48b dpn68 dpn92 eca_nfnet_l0
eca_vovnet39b ecaresnet26t ecaresnet50t efficientnet_b0 efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_lite0
ese_vovnet39b_evos fastvit_t8 gc_efficientnetv2_rw_t gcresnet33ts gcresnext26ts ghostnet_100 ghostnetv2_100
ghostnetv3_100 inception_next_atto mixnet_s mixnet_xl mobilenetv2_100 mobilenetv3_small_100
mobilenetv4_conv_blur_medium mobilenetv4_conv_small mobilenetv4_hybrid_medium nasnetalarge nf_ecaresnet26 nf_regnet_b0
nf_resnet26 nf_seresnet26 nfnet_l0 poolformer_s12 poolformerv2_s12 regnetx_002 regnety_002 regnetz_b16_evos resnest14d
resnest50d_4s2x40d resnet18 resnet50 resnet50_clip resnetblur18 resnetblur50 resnetv2_50d_evos resnetv2_50x1_bit
rexnet_100 skresnet18 skresnext50_32x4d tf_efficientnet_b0 tf_mixnet_s tf_mobilenetv3_small_100 tresnet_m tresnet_v2_l
vgg11_bn seresnext26t_32x4d resnetaa50 convnextv2_atto convnext_atto convnext_atto_rms caformer_s18 convformer_s18
botnet26t_256 halonet26t lambda_resnet26t sebotnet33ts_256 eca_botnext26ts_256 coatnet_nano_rw_224 maxvit_pico_rw_256
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 vit_tiny_patch16_224 eva02_tiny_patch14_224 mobilevit_xs
mobilevitv2_050 hiera_tiny_224 mvitv2_tiny xcit_nano_12_p8_224 volo_d1_224 levit_128s levit_conv_128s gmlp_ti16_224
gmixer_12_224 resmlp_12_224 mixer_s32_224 sequencer2d_s
"""
ALWAYS = frozenset(_ALWAYS.split())


class TooSlow(Exception):
    """A model's survey took longer than its limit."""


class _Signature(TorchDispatchMode):
    """Hashes the sequence of operator calls and shapes: two names with one signature are one architecture."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.hash = hashlib.sha1()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        self.operators[name] += 1
        self.hash.update(f"{name}{[tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]}".encode())
        return func(*args, **(kwargs or {}))


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    signature = _Signature()
    with torch.no_grad(), signature:
        model(*inputs)
    shapes = [tuple(p.shape) for p in model.parameters()]
    return {
        "macs": _macs.count(model, inputs),
        "signature": hashlib.sha1(f"{signature.hash.hexdigest()}{shapes}".encode()).hexdigest(),
        "pieces": sorted({type(m).__name__ for m in model.modules()} | set(signature.operators)),
    }


def _candidates(name: str, default: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """(input shapes, builder options) to try, smallest first."""
    library, model = name.split(":")
    sizes = [size for size in SIZES if size < default] + [default]
    if library == "timm":
        for size in sizes:
            yield [[1, 3, size, size]], {}
            if size < default:
                yield [[1, 3, size, size]], {"img_size": size}
        return
    kind = cm.torchvision_kind(model)
    if kind == "detection":
        yield [[[3, 64, 64]] if model.startswith("ssd") else [[3, 64, 64], [3, 64, 80]]], {}  # SSD scales up to 300
    elif kind == "optical_flow":
        yield from (([[1, 3, size, size]] * 2, {}) for size in sizes)
    elif kind == "video":
        for size in sizes:
            yield from (([[1, 3, frames, size, size]], {}) for frames in (4, 8, 16))
    elif model.startswith("vit_"):
        patch = int(model.split("_")[-1])
        size = 4 * patch if patch < 32 else 2 * patch
        yield [[1, 3, size, size]], {"image_size": size}
    else:
        yield from (([[1, 3, size, size]], {}) for size in sizes)


def _describe(name: str) -> tuple[dict[str, Any], int]:
    """What the name alone says about a model, and the largest image size to try."""
    library, model = name.split(":")
    if library == "timm":
        family = timm.models._registry._model_to_module[model]
        row = {"kind": "classification", "family": family, "architecture": cm.timm_architecture(model, family)}
        config = timm.get_pretrained_cfg(model)
        return {"name": name, **row}, (config.input_size if config else (3, 224, 224))[-1]
    row = {"kind": cm.torchvision_kind(model), "family": cm.torchvision_family(model)}
    return {"name": name, **row, "architecture": cm.torchvision_architecture(model)}, 299


def survey(name: str, device: str = "meta") -> dict[str, Any]:
    """One row: the smallest input that works and what the model costs there, or why none does."""
    row, limit = _describe(name)
    if row["kind"] == "detection":
        device = "cpu"  # it reads the values of boxes
    built: dict[str, nn.Module] = {}  # with the default options, and with the last ones
    for shapes, options in _candidates(name, limit):
        key = json.dumps(options)
        try:
            with torch.device(device):
                if key not in built:
                    built = {"{}": built["{}"]} if "{}" in built else {}
                    built[key] = cm.build(name, options).eval()
                row["params"] = sum(p.numel() for p in built[key].parameters())
                if name.startswith("timm:") and row["params"] > 5 * MAX_PARAMS:
                    return {**row, "error": f"{row['params'] / 1e6:.0f} M parameters"}
                inputs = tuple(
                    [torch.zeros(*s) for s in shape] if isinstance(shape[0], list) else torch.zeros(*shape)
                    for shape in shapes
                )
                return {**row, "inputs": shapes, "options": options, **_run(built[key], inputs)}
        except TooSlow:
            raise
        except NotImplementedError as error:  # reads values: meta tensors have none
            if device == "meta":
                return survey(name, "cpu")
            row["error"] = f"{shapes} {options}: {error!r}"[:300]
        except Exception as error:  # any failure of a foreign model means: try the next input
            row["error"] = f"{shapes} {options}: {error!r}"[:300]
    return row


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow(f"over {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run_survey() -> list[dict[str, Any]]:
    """Rows of all models, from the cache where it has them."""
    names = [f"torchvision:{n}" for n in torchvision.models.list_models() if not n.startswith("quantized_")]
    names += [f"timm:{n}" for n in timm.list_models() if not n.startswith("test_")]
    CACHE.parent.mkdir(exist_ok=True)
    rows = {row["name"]: row for row in map(json.loads, CACHE.read_text().splitlines())} if CACHE.exists() else {}
    with CACHE.open("a") as file:
        for name in names:
            if name in rows:
                continue
            try:
                with _limit(90):
                    row = survey(name)
            except Exception as error:
                row = {"name": name, "error": repr(error)[:300]}
            rows[name] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    return [rows[name] for name in names]


def select(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of torchvision; of timm each family's share, see the module's docstring."""
    chosen = [row for row in rows if row["name"].startswith("torchvision:")]
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["name"].startswith("timm:") and "signature" in row:
            families.setdefault(row["family"], []).append(row)
    for family in sorted(families):
        by_size = sorted(families[family], key=lambda row: (row["params"], row["name"]))
        fits = [row for row in by_size if row["params"] <= MAX_PARAMS and row["macs"] <= MAX_MACS] or by_size[:1]
        always = [row for row in by_size if row["name"].split(":")[1] in ALWAYS]
        taken: dict[str, dict[str, Any]] = {row["signature"]: row for row in always}  # one name for each signature
        seen: set[str] = {piece for row in always for piece in row["pieces"]}
        for architecture in ("conv", "other"):
            candidates = [row for row in fits if row["architecture"] == architecture and row["signature"] not in taken]
            least, one_in = PER_FAMILY[architecture]
            quota = max(least, len(families[family]) // one_in) - sum(
                row["architecture"] == architecture for row in always
            )
            news = []
            for row in candidates:
                if set(row["pieces"]) - seen:
                    news.append(row)
                    seen |= set(row["pieces"])
            for row in news + candidates:
                if quota > 0 and row["signature"] not in taken:
                    taken[row["signature"]] = row
                    quota -= 1
        chosen += sorted(taken.values(), key=lambda row: (row["params"], row["name"]))
    return chosen


@contextlib.contextmanager
def _without_init() -> Iterator[None]:
    """Weights stay as allocated, but filled once with small numbers: building takes a third of the time."""
    saved = {name: getattr(init, name) for name in dir(init) if name.endswith("_") and not name.startswith("_")}
    for name in saved:
        setattr(init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, function in saved.items():
            setattr(init, name, function)


def verify(names: list[str]) -> None:
    """Construct each model and run it with real tensors, and print what fails."""
    start, failed = time.perf_counter(), 0
    for name in names:
        entry = cm.entries()[name]
        before = time.perf_counter()
        try:
            with _limit(180), torch.no_grad(), _without_init():
                model = entry.factory().eval()
                for tensor in model.parameters():
                    if tensor.is_floating_point():
                        tensor.fill_(
                            1 / math.sqrt(max(tensor.numel() // max(tensor.shape[0], 1), 1)) if tensor.ndim else 1.0
                        )
                model(*entry.example_inputs())
        except Exception as error:
            failed += 1
            print(f"FAILED {name}: {error!r}"[:300], flush=True)
        seconds = time.perf_counter() - before
        if seconds > 8:
            print(f"slow {name}: {seconds:.1f} s", flush=True)
    print(f"{len(names)} models, {failed} failed, {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verify", action="store_true", help="run every chosen model once with real tensors")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if arguments.verify:
        verify(list(cm.entries()))
        return
    rows = run_survey()
    missing = sorted(set(timm.list_modules()) - {row.get("family") for row in rows if "signature" in row})
    chosen = select(rows)
    keys = ("name", "kind", "family", "architecture", "inputs", "options", "params", "macs")
    lines = ",\n".join("  " + json.dumps({key: row[key] for key in keys}) for row in chosen if "inputs" in row)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    cm.TABLE.write_text(f'{{"versions": {json.dumps(versions)}, "models": [\n{lines}\n]}}\n')
    count = Counter((row["name"].split(":")[0], row["architecture"]) for row in chosen)
    print(f"{len(chosen)} models: {dict(count)}; families without a model: {missing}")
    for row in rows:
        if "inputs" not in row:
            print(f"left out {row['name']}: {row.get('error')}")


if __name__ == "__main__":
    main()

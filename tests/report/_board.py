"""Leaderboards that nobody trained: ordinary figures, and one whose every word is hostile."""

from __future__ import annotations

import itertools
from typing import Any

from secateur.compare.leaderboard import means, paired

KINDS = {
    "bwcp": ("while training", "new", False),
    "cwb": ("while training", "new", True),
    "nap": ("while training", "weights", True),
    "l1": ("after training", "weights", True),
    "l1+batchnorm": ("after training", "weights", True),
    "scratch": ("before training", "narrow", False),
    "dense": ("after training", "weights", True),
}
HOSTILE = "<b onmouseover=alert(1)>|x|`y`\n# z</b>\u202e\x1b"


def row(label: str, seed: int, budget: str, share: float, final: float) -> dict[str, Any]:
    acts, begun, _ = KINDS[label]
    begins = begun == "weights"
    acting = {"cwb": 1, "nap": 2}.get(label, 13)
    train = None if acts == "after training" else acting
    after = 0 if train == 13 else 13 - (10 if begins else 0) - (train or 0)
    return {
        "label": label, "method": label.partition("+")[0], "repair": label.split("+")[1:], "seed": seed,
        "budget": budget, "folder": f"runs/{label}-{seed}-{budget}",
        "accuracy": {
            "dense": 0.6 if begins else None, "soft": None, "hard": final if label == "bwcp" else None,
            "pruned": final / 2, "final": final,
        },
        "images": 10_000,
        "macs": {"before": 12_000_000, "after": round(12e6 * share), "share": share},
        "params": {"before": 80_000, "after": 40_000, "share": 0.5},
        "within": label != "nap",
        "epochs": {"base": 10 if begins else None, "train": train, "finetune": after or None, "total": 13},
        "seconds": {
            "base": 200.0 if begins else None, "acting": 90.5 if label == "bwcp" else None, "prune": 0.25,
            "train": None, "finetune": 60.0, "total": 260.25,
        },
        "exact": True, "max_relative_error": 1.5e-7, "structural_error": None, "plan": f"sha256:{seed}23456789abcdef",
        "notes": [f"A note of {label}."], "device": "cpu", "threads": 1, "date": "2026-01-02T03:04:05+00:00",
        "latency": {"pytorch": {"dense_ms": 2.0, "pruned_ms": 1.25, "ratio": 1.6, "low": 1.5, "high": 1.7}},
        "untimed": None,
    }  # fmt: skip


def board() -> dict[str, Any]:
    """Six methods and the whole network, three seeds at half the MACs, one at a third; one failed, one is not over."""
    finals = {"bwcp": 0.61, "cwb": 0.5, "nap": 0.57, "l1": 0.585, "l1+batchnorm": 0.59, "scratch": 0.605}
    rows = [
        row(label, seed, "flops=0.5", 0.4975, finals[label] + 0.004 * (seed - 1))
        for seed, label in itertools.product((0, 1, 2), finals)
    ]
    rows += [row("dense", seed, "flops=1.0", 1.0, 0.612 + 0.003 * seed) for seed in (0, 1, 2)]
    rows += [row(label, 0, "flops=0.3", 0.298, finals[label] - 0.08) for label in ("bwcp", "l1", "scratch")]
    methods = [
        {
            "label": label, "method": label.partition("+")[0], "summary": f"what {label} does", "paper": "A Paper",
            "year": 2020, "arxiv": "2001.00001", "needs": "nothing", "acts": acts, "begins": begins,
            "finetunes": finetunes, "fidelity": "near",
            **({"acting": 0.1, "acting_rate": 1.0} if label == "cwb" else {}),
        }
        for label, (acts, begins, finetunes) in KINDS.items()
    ]  # fmt: skip
    recipe = {
        "name": "short", "model": {"reference": "zoo:resnet8_b"}, "data": {"name": "cifar10"},
        "train": {"epochs": 10, "lr": 0.1, "select": "last"}, "finetune": {"epochs": 3, "select": "best"},
        "latency": {"batch_size": 1, "threads": 1, "repeats": 30},
    }  # fmt: skip
    return {
        "format": "secateur.leaderboard", "version": 1, "secateur": "0.1.0", "date": "2026-01-02T03:04:05+00:00",
        "name": "short",
        "calls": [{"date": "2026-01-01T00:00:00+00:00", "command": "secateur compare short.yaml", "jobs": 2}],
        "device": ["cpu"], "threads": [1], "processes": [1], "torch": ["2.13"], "python": ["3.11"], "recipe": recipe,
        "settings": {}, "data": {"name": "cifar10", "train": 9000}, "images": 10_000,
        "dense": {"macs": 12_000_000, "params": 80_000}, "bases": [], "methods": methods, "means": means(rows),
        "paired": paired(rows), "rows": rows,
        "failed": [{"label": "nap", "seed": 0, "budget": "flops=0.3", "said": "The budget | is <out> of reach."}],
        "missing": [{"label": "l1+batchnorm", "seed": 0, "budget": "flops=0.3"}],
    }  # fmt: skip


def hostile_board() -> dict[str, Any]:
    """The same with words that want to be markup."""
    made = board()
    made["name"] = made["recipe"]["name"] = made["failed"][0]["said"] = HOSTILE
    made["recipe"]["model"]["reference"] = made["recipe"]["data"]["name"] = made["calls"][0]["command"] = HOSTILE
    made["methods"][0]["summary"] = made["methods"][0]["fidelity"] = HOSTILE * 40
    for each in made["rows"]:
        each["notes"] = [HOSTILE]
        each["label"] = each["label"].replace("bwcp", HOSTILE)
        each["untimed"] = HOSTILE
    made["methods"][0]["label"] = HOSTILE
    made["means"], made["paired"] = means(made["rows"]), paired(made["rows"])
    return made


def empty_board() -> dict[str, Any]:
    """Nothing is finished."""
    empty: dict[str, Any] = {"rows": [], "means": [], "paired": paired([]), "data": None, "images": None}
    return board() | empty | {key: [] for key in ("device", "threads", "processes", "torch", "python")}

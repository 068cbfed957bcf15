"""How the time to trace, group and cut grows with depth, on a DenseNet whose every layer sees all layers before it.

    python benchmarks/graph_growth.py      # writes results/graph_growth.json and docs/figures/graph_growth.svg

The network is that of the paper without bottlenecks (3 blocks, k=12, 32x32 images). Beside the time stand the number of
operator calls, linear in the depth, and the number of channels all layers together read, quadratic in it.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import _record
import numpy as np
import torch
from _charts import prepare
from torch import nn

DEPTHS = (50, 100, 200, 400)
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "graph_growth.svg"


class DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], dim=1)


def dense_net(depth: int, growth: int = 12, blocks: int = 3) -> nn.Sequential:
    """A densely connected network of `depth` layers with weights, as near to it as equal blocks allow."""
    width, layers = 16, round((depth - blocks - 1) / blocks)
    net: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False)]
    for block in range(blocks):
        for _ in range(layers):
            net.append(DenseLayer(width, growth))
            width += growth
        if block < blocks - 1:
            net += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(
        *net, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def depth_of(model: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())


def channels_read(model: nn.Module) -> int:
    """Input channels of all layers together: what any description of the couplings has to hold."""
    return sum(m.weight.shape[1] for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def measure(model: nn.Module, image: torch.Tensor) -> dict[str, float]:
    """Seconds to trace and group, and to cut half of every group."""
    from graph_speed import ours

    from secateur.graph import trace

    fresh = copy.deepcopy(model)
    gc.collect()
    start = time.perf_counter()
    trace(fresh, (image,))
    traced = time.perf_counter() - start
    gc.collect()
    start = time.perf_counter()
    ours(fresh, image)
    return {"trace_s": traced, "total_s": time.perf_counter() - start}


def fit(depths: list[int], seconds: list[float]) -> dict[str, float]:
    """Least squares line with the share of variance it explains, and the exponent of the best power law."""
    x, y = np.asarray(depths, dtype=float), np.asarray(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (slope * x + intercept)
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    r_squared = 1 - float(residual @ residual) / float((y - y.mean()) @ (y - y.mean()))
    return {
        "ms_per_layer": 1e3 * float(slope),
        "intercept_s": float(intercept),
        "r_squared": r_squared,
        "exponent": float(exponent),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    plt = prepare()
    depths = [row["depth"] for row in result["rows"]]
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for key, label, colour in (
        ("total_s", "trace, group, L1, cut", "#0d9488"),
        ("trace_s", "trace and group", "#d97706"),
    ):
        line = result["fits"][key]
        ends = np.array([0.0, max(depths)])
        axes.plot(ends, ends * line["ms_per_layer"] / 1e3 + line["intercept_s"], color=colour, linewidth=1)
        text = f"{label}: {line['ms_per_layer']:.1f} ms a layer, R² {line['r_squared']:.3f}"
        axes.scatter(depths, [row[key] for row in result["rows"]], color=colour, label=text, zorder=3)
    axes.set(
        xlabel="layers with weights (DenseNet, k=12)", ylabel="seconds, one thread", xlim=(0, None), ylim=(0, None)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=_record.RESULTS / "graph_growth.json")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for depth in [arguments.depths[0], *arguments.depths]:  # the first, thrown away, warms the library up
        torch.manual_seed(0)
        model = dense_net(depth).eval()
        runs = [measure(model, image) for _ in range(arguments.repeats)]
        row = {"depth": depth_of(model), "channels_read": channels_read(model)}
        rows.append(row | {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]})
        print(rows[-1], flush=True)
    rows = rows[1:]
    fits = {key: fit([row["depth"] for row in rows], [row[key] for row in rows]) for key in ("trace_s", "total_s")}
    result = {**_record.environment(), "repeats": arguments.repeats, "fits": fits, "rows": rows}
    _record.save(arguments.out, result)
    draw(result, arguments.figure)
    print(fits)


if __name__ == "__main__":
    main()

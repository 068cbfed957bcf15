"""The rehearsal of the benchmark of `compress`: all of it, on digits, in a minute or two."""

from __future__ import annotations

from pathlib import Path

import compress_bench
import pytest


@pytest.mark.long
def test_the_rehearsal_measures_compress_and_single_methods(tmp_path: Path) -> None:
    words = ["--quick", "--rows", str(tmp_path / "rows.jsonl")]
    rows = compress_bench.main(words)
    assert [row["name"] for row in rows] == ["compress", "l1", "fpgm"]
    assert all(row["flops"] <= 0.3 and 0 < row["figure"] <= 1 for row in rows)
    assert rows[0]["said"]
    assert compress_bench.main(words) == rows  # goes on from what there is


def test_the_table_has_means_and_intervals() -> None:
    rows = [{"name": name, "figure": figure} for name, figure in (("a", 0.5), ("a", 0.7), ("b", 0.9))]
    # 1.96 · stdev(0.5, 0.7) / √2 = 0.196
    assert compress_bench.table(rows, 0.95).splitlines() == [
        "original   0.9500", "b          0.9000 ± nan  (1 seeds)", "a          0.6000 ± 0.1960  (2 seeds)"
    ]  # fmt: skip

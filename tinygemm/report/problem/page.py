"""Tables of the problem: the shapes of the report and their intensity."""

from __future__ import annotations

import pandas as pd

from tinygemm.problem import LAYER_OF_SHAPE
from tinygemm.report.base import tables
from tinygemm.report.base.tables import BASELINE


def shapes(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The weights of a run and what their bytes allow: layer, K, N, fp16_mb, int4_mb, ideal_speedup, floor_us."""
    rows = tables.primary(table)
    fp16, int4 = (rows[(rows["backend"] == name) & (rows["M"] == M)] for name in (BASELINE, "int4"))
    both = int4.merge(fp16[["K", "N", "bytes_min"]], on=["K", "N"], suffixes=("", "_fp16"), validate="one_to_one")
    layers = [LAYER_OF_SHAPE.get(shape) for shape in zip(both["K"], both["N"], strict=True)]
    return both.assign(
        layer=[layer.layer if layer else "–" for layer in layers],
        fp16_mb=both["K"] * both["N"] * 2 / 1e6,
        int4_mb=both["K"] * both["N"] * both["bits_per_weight"] / 8e6,
    ).sort_values(["K", "N"])


def intensities(table: pd.DataFrame, M: int = 1) -> dict[str, float]:
    """FLOP per byte of the largest weight in FP16 and INT4, bits of an INT4 weight, and the speedup they allow."""
    rows = tables.primary(table)
    rows = rows[(rows["M"] == M)].sort_values("bytes_min")
    fp16, int4 = (rows[rows["backend"] == name].iloc[-1] for name in (BASELINE, "int4"))
    return {
        "fp16_intensity": fp16["flops"] / fp16["bytes_min"],
        "int4_intensity": int4["flops"] / int4["bytes_min"],
        "int4_bits": int4["bits_per_weight"],
        "ideal": 16 / int4["bits_per_weight"],
    }

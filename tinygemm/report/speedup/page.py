"""Tables of the speedup: the projections of the earlier study, and more tokens."""

from __future__ import annotations

import pandas as pd

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import tables
from tinygemm.report.base.tables import BASELINE
from tinygemm.report.base.words import shape_name, shape_names


def projections(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The four projections of the earlier study in this run: shape, then latencies and speedups of each kernel."""
    rows = tables.primary(table)
    rows = rows[rows["M"] == M].set_index(["K", "N", "backend"]).sort_index()
    result = []
    for K, N in STUDY_SHAPES:
        one = rows.loc[(K, N)] if (K, N) in rows.index.droplevel("backend") else rows.iloc[:0].droplevel(["K", "N"])
        latency, speedup = (one[name].get for name in ("latency_us_p50", "speedup_vs_fp16"))
        result.append({
            "shape": shape_name((K, N)),
            "fp16_us": latency(BASELINE, float("nan")),
            "static_us": latency("int4-static", float("nan")),
            "static_speedup": speedup("int4-static", float("nan")),
            "int4_us": latency("int4", float("nan")),
            "int4_speedup": speedup("int4", float("nan")),
            "ideal_speedup": one["ideal_speedup"].get("int4", float("nan")),
        })  # fmt: skip
    return pd.DataFrame(result)


def token_counts(table: pd.DataFrame) -> list[int]:
    """The values of M that the tuned kernel was timed at."""
    return sorted(int(M) for M in table.loc[table["backend"] == "int4", "M"].unique())


def by_tokens(table: pd.DataFrame, backend: str = "int4") -> pd.DataFrame:
    """Speedup over FP16, one row per projection of the earlier study and one column per M: shape, M1, M2, ..."""
    rows = tables.primary(table)
    rows = rows[(rows["backend"] == backend) & tables.at_shapes(rows, STUDY_SHAPES)]
    wide = rows.pivot(index=["K", "N"], columns="M", values="speedup_vs_fp16").add_prefix("M").reset_index()
    return wide.assign(shape=shape_names(wide)).rename_axis(columns=None)

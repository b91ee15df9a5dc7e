"""One pair of kernels timed and compared in several ways: the same question, and as many answers."""

from __future__ import annotations

import pandas as pd

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import tables
from tinygemm.report.base.host import steady_run
from tinygemm.report.base.tables import GROUP_SIZE, at_shapes, origin, usual
from tinygemm.report.base.words import shape_name
from tinygemm.report.models import tables as projections

# ways of timing, each as the columns of a case that it fixes
WAYS = {
    "calls overlap": {"backend": "int4", "launch": "graph", "l2_state": "cold"},
    "no overlap": {"backend": "int4-serial", "launch": "graph", "l2_state": "cold"},
    "after a programmatic dependent launch": {"backend": "int4", "launch": "primed", "l2_state": "cold"},
    "weights still in L2, as far as they fit": {"backend": "int4", "launch": "graph", "l2_state": "hot"},
    "one call alone, by `triton.testing.do_bench`": {"backend": "int4", "launch": "do_bench", "l2_state": "cold"},
    "launched one by one from Python": {"backend": "int4", "launch": "eager", "l2_state": "cold"},
}
BEST_FP16 = "calls overlap, against the faster of cuBLAS and our FP16 kernel"


def speedups(run, M: int = 1) -> pd.DataFrame:
    """The speedup of the same INT4 kernel over FP16, timed or compared in several ways, at the study's projections.

    returns: way (of WAYS, and BEST_FP16), K, N, speedup, ideal_speedup (the ratio of the bytes), gpu, run_id; no row
             for what was not timed, nor from Python where the host was slow
    """
    steady = steady_run(run)
    few = tables.only(
        steady, (steady.cases["M"] == 0) | (steady.cases["M"] == M) & at_shapes(steady.cases, STUDY_SHAPES)
    )
    rows = usual(tables.report_table(few))
    rows = rows[(rows["M"] == M) & at_shapes(rows, STUDY_SHAPES)].rename(columns={"speedup_vs_fp16": "speedup"})
    best = projections.against_best_fp16(few)
    told = {way: rows[(rows[list(mode)] == list(mode.values())).all(axis=1)] for way, mode in WAYS.items()}
    told[BEST_FP16] = best[best["group_size"] == GROUP_SIZE]
    columns = ["way", "K", "N", "speedup"]
    found = pd.concat([mine.assign(way=way)[columns] for way, mine in told.items()], ignore_index=True)
    ideal = rows.loc[rows["backend"] == "int4"].drop_duplicates(["K", "N"])[["K", "N", "ideal_speedup"]]
    return found.dropna(subset=["speedup"]).merge(ideal, on=["K", "N"], how="left").assign(**origin(run))


def spans(rows: pd.DataFrame) -> pd.DataFrame:
    """The least and the largest speedup of each way.

    rows:    speedups(run)
    returns: way, low, high, missing (projections that are not in them, in words); no row for a way in which half of
             them or more are missing
    """
    found = []
    for way, mine in rows.groupby("way", sort=False):
        timed = set(zip(mine["K"], mine["N"], strict=True))
        missing = ", ".join(shape_name(shape) for shape in STUDY_SHAPES if shape not in timed)
        if 2 * len(timed) > len(STUDY_SHAPES):
            found.append((way, mine["speedup"].min(), mine["speedup"].max(), missing))
    return pd.DataFrame(found, columns=["way", "low", "high", "missing"])

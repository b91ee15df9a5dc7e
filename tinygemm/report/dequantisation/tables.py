"""Dequantisation, launch, or too little parallelism: what each removal saves, and how each kernel was launched."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import contrasts
from tinygemm.report.base.intervals import saved
from tinygemm.report.base.tables import origin

REGIMES = dict(zip(("narrow", "square", "wide", "tall"), STUDY_SHAPES, strict=True))  # at these (K, N)

# cause -> (with it, without it), each (backend, launch): the tuned kernel with this one thing done the simple way, and
# with it gone. Of dequantisation all is removed, the naive form first, which is the most that can be said for it.
CAUSES = {
    "dequantisation": (("int4-naive-dequant", "graph"), ("int4-no-dequant", "graph")),
    "too little parallelism": (("int4-no-split", "graph"), ("int4", "graph")),
    "launch": (("int4", "eager"), ("int4", "graph")),
}
# the same from Python, where what a kernel saves may vanish behind the host; the launch is the same removal in both
FROM_PYTHON = {
    cause: tuple((backend, "eager") for backend, _ in ends) for cause, ends in CAUSES.items() if cause != "launch"
}
# `int4-no-split` is of this form; where the run timed it, too, only the split differs, and the tile of one warp may
SAME_FORM = {"too little parallelism": "int4-splitk"}
# what is left to gain in the tuned kernel, and how far one form of dequantisation is from the other
LEFTOVERS = {
    "naive instead of lop3 dequantisation": (("int4-naive-dequant", "graph"), ("int4", "graph")),
    "the lop3 dequantisation": (("int4", "graph"), ("int4-no-dequant", "graph")),
    "K split over twice the programs": (("int4", "graph"), ("int4-more-split", "graph")),
    "all but the reads": (("int4", "graph"), ("int4-load-only", "graph")),
}

# the kernels of the experiment, and the simple one
EXPERIMENT = (
    "int4", "int4-no-dequant", "int4-naive-dequant", "int4-no-split", "int4-more-split", "int4-static",
    *SAME_FORM.values(),
)  # fmt: skip


def removals(run, M: int = 1) -> pd.DataFrame:
    """The saving of one cause removed, everything else as it was, one row per problem and removal.

    returns: problem, M, K, N, removal, cause (of CAUSES; empty for LEFTOVERS and FROM_PYTHON), from_python (the cause,
             of FROM_PYTHON, and the launch; else empty), left_us, right_us, value, low, high: the share of the time
             before that is saved, with its 95 % interval; gpu, run_id; no row for what was not timed
    """
    cases = contrasts.timed(run, M)
    from_python = {_from_python(cause): ends for cause, ends in FROM_PYTHON.items()}
    in_one_form = {}
    for cause, backend in SAME_FORM.items():
        for removal, (before, (_, launch)) in ((cause, CAUSES[cause]), (_from_python(cause), FROM_PYTHON[cause])):
            in_one_form[removal] = (before, (backend, launch))
    every = (in_one_form, CAUSES | LEFTOVERS | from_python)
    found = [contrasts.changes(run, cases, ends, "removal", saved) for ends in every]
    rows = pd.concat(found, ignore_index=True).drop_duplicates(["problem", "removal"], ignore_index=True)
    eager = {_from_python(cause): cause for cause in FROM_PYTHON} | {"launch": "launch"}
    return rows.assign(
        cause=rows["removal"].where(rows["removal"].isin(list(CAUSES)), ""),
        from_python=rows["removal"].map(eager).fillna(""),
        **origin(run),
    )


def _from_python(cause: str) -> str:
    return f"{cause}, from Python"


def programs(run, M: int = 1, launch: str = "graph") -> pd.DataFrame:
    """The launch of each kernel of the experiment, and the time it took.

    returns: problem, M, K, N, backend, split_k, num_warps, programs (of one launch), programs_per_sm, k_per_program,
             steps (of a program along K, one after the other), weights_per_warp (of the tuned kernel, whose warps share
             K), bytes_min, latency_us; one row per case of EXPERIMENT
    """
    cases = contrasts.timed(run, M)
    cases = cases[(cases["launch"] == launch) & cases["backend"].isin(EXPERIMENT)]
    cases = cases.dropna(subset=["split_k", "block_n", "block_k", "num_warps"])
    tiles = np.ceil(cases["N"] / cases["block_n"]) * np.ceil(cases["M"] / cases["block_m"].clip(lower=1))
    columns = ["problem", "M", "K", "N", "backend", "split_k", "num_warps", "bytes_min"]
    return cases[columns].assign(
        programs=tiles * cases["split_k"],
        programs_per_sm=tiles * cases["split_k"] / run.gpu["sm_count"],
        k_per_program=cases["K"] / cases["split_k"],
        steps=np.ceil(cases["K"] / cases["split_k"] / cases["block_k"]),
        weights_per_warp=cases["block_n"] * cases["K"] / (cases["split_k"] * cases["num_warps"]),
        latency_us=cases["case_id"].map(contrasts.medians(run, cases)),
    )

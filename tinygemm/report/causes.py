"""Dequantisation, launch, or too little parallelism: what each removal saves, and the terms of the time fitted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report import contrasts
from tinygemm.report.intervals import interval_of, median, resample
from tinygemm.report.tables import at_shapes, origin

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

# kernels that differ in one term each, fitted together: without them bytes and dequantisation, which both grow with
# K * N, could not be told apart, nor the walk from the rest; a shape counts where the first kernels were all timed
FAMILIES = {
    "tuned": ("int4", "int4-no-dequant", "int4-naive-dequant", "int4-no-split", "int4-more-split"),
    "simple": ("int4-static",),
}
NEEDED = {"tuned": ("int4", "int4-no-dequant"), "simple": ("int4-static",)}
VARIED = ("int4-no-split", "int4-naive-dequant")  # without them somewhere, the tuned kernel's terms are not fitted
TERMS = {
    "tuned": {"start": "µs per call", "walk": "µs per thousand weights of one warp",
              "adding up programs": "µs per call", "bytes": "µs per MB", "dequantisation": "µs per million weights",
              "doing it the naive way": "µs per million weights"},
    "simple": {"start": "µs per call", "walk": "µs per step of one program",
               "bytes and dequantisation": "µs per million weights"},
}  # fmt: skip
FEWEST = 3  # values of K and of N below which no terms are fitted


def removals(run, M: int = 1) -> pd.DataFrame:
    """What removing one cause saves, everything else as it was, one row per problem and removal.

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


def saved(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    """The share of the time `left` that `right` saves; below zero it takes longer."""
    return 1 - median(right, axis) / median(left, axis)


def programs(run, M: int = 1, launch: str = "graph") -> pd.DataFrame:
    """How each kernel of the experiment was launched, and the time it took.

    returns: problem, M, K, N, backend, split_k, num_warps, programs (of one launch), programs_per_sm, k_per_program,
             steps (of a program along K, one after the other), weights_per_warp (of the tuned kernel, whose warps share
             K), bytes_min, latency_us; one row per case of FAMILIES and SAME_FORM
    """
    cases = contrasts.timed(run, M)
    cases = cases[
        (cases["launch"] == launch) & cases["backend"].isin([*sum(FAMILIES.values(), ()), *SAME_FORM.values()])
    ]
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


def fit(run, M: int = 1) -> pd.DataFrame:
    """The terms of T = start + walk(K per program) + bytes + dequantisation(K N), fitted to all shapes of the run.

    The walk of the simple kernel is counted in steps: a program asks for one tile of block_k inputs at a time, and
    waits for it. The warps of the tuned kernel share K, so it is counted in the weights that one warp works through.

    Least squares of the relative error over all problems at which the kernels of NEEDED were timed. The interval is
    that of other shapes: problems are drawn with replacement, so it covers what the model misses, not only the clock.
    A term may come out below zero; then the data do not show that cost. In the simple kernel alone bytes and
    dequantisation grow together, so they are one term.

    returns: kernel (of FAMILIES), launch, term, unit, value, low, high (per unit), problems, median_error and
             worst_error of the fitted time (0..1), gpu, run_id; no rows where fewer than three K or N were timed
    """
    found = []
    for kernel in FAMILIES:
        for launch in ("graph", "eager"):
            rows = _fitted_rows(programs(run, M, launch), kernel)
            if rows["K"].nunique() < FEWEST or rows["N"].nunique() < FEWEST:
                continue
            design = _design(kernel, rows)
            value, low, high = _least_squares(design, rows)
            error = np.abs(design @ value / rows["latency_us"].to_numpy() - 1)
            terms = pd.DataFrame({"term": TERMS[kernel].keys(), "unit": TERMS[kernel].values()})
            found.append(terms.assign(
                kernel=kernel, launch=launch, value=value, low=low, high=high, problems=rows["problem"].nunique(),
                median_error=np.median(error), worst_error=error.max(),
            ))  # fmt: skip
    columns = ["kernel", "launch", "term", "unit", "value", "low", "high", "problems", "median_error", "worst_error"]
    return pd.concat(found)[columns].assign(**origin(run)) if found else pd.DataFrame(columns=columns)


def contributions(run, terms: pd.DataFrame, M: int = 1, shapes=STUDY_SHAPES) -> pd.DataFrame:
    """What each fitted term adds to the time of the simple and the tuned kernel at some shapes, in a graph.

    terms:   fit(run, M)
    returns: kernel, K, N, term, fitted_us, measured_us
    """
    table, found = programs(run, M), []
    for kernel, rows in terms[terms["launch"] == "graph"].groupby("kernel", sort=False):
        values = rows.set_index("term")["value"]
        shown = _fitted_rows(table, kernel)
        shown = shown[shown["backend"] == FAMILIES[kernel][0]].drop_duplicates(["K", "N"])
        shown = shown[at_shapes(shown, shapes)]
        parts = pd.DataFrame(_design(kernel, shown) * values[list(TERMS[kernel])].to_numpy(), columns=[*TERMS[kernel]])
        parts = parts.assign(kernel=kernel, K=shown["K"].to_numpy(), N=shown["N"].to_numpy(),
                             measured_us=shown["latency_us"].to_numpy())  # fmt: skip
        found.append(parts.melt(["kernel", "K", "N", "measured_us"], var_name="term", value_name="fitted_us"))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _fitted_rows(rows: pd.DataFrame, kernel: str) -> pd.DataFrame:
    """The rows of a family at the problems that count, problem by problem; none where too little was varied."""
    rows = rows[rows["backend"].isin(FAMILIES[kernel])]
    if kernel == "tuned" and not set(VARIED) <= set(rows["backend"]):
        return rows.iloc[:0]
    there = rows["backend"].isin(NEEDED[kernel]).groupby(rows["problem"]).transform("sum")
    return rows[there == len(NEEDED[kernel])].sort_values(["problem", "backend"])


def _design(kernel: str, rows: pd.DataFrame) -> np.ndarray:
    """One column per term of a kernel, in the units of TERMS."""
    weights = (rows["K"] * rows["N"] / 1e6).to_numpy()
    start = np.ones(len(rows))
    if kernel == "simple":
        return np.stack([start, rows["steps"].to_numpy(), weights], axis=1)
    walk, added = rows["weights_per_warp"].to_numpy() / 1e3, (rows["split_k"] > 1).to_numpy()
    backend = rows["backend"].to_numpy()
    unpacks, naively = backend != "int4-no-dequant", backend == "int4-naive-dequant"
    megabytes = rows["bytes_min"].to_numpy() / 1e6
    return np.stack([start, walk, added, megabytes, weights * unpacks, weights * naively], axis=1)


def _least_squares(design: np.ndarray, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Terms with their intervals: problems are drawn as a whole, with all their kernels."""
    scaled = design / rows["latency_us"].to_numpy()[:, None]  # relative errors: the target is 1
    starts = np.flatnonzero(~rows["problem"].duplicated().to_numpy())
    squares = np.add.reduceat(scaled[:, :, None] * scaled[:, None, :], starts)  # [problems, terms, terms]
    targets = np.add.reduceat(scaled, starts)

    def terms(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        """The terms [term, ...] of resamples [..., problems] of problem numbers."""
        drawn = drawn.astype(int)
        solved = np.linalg.pinv(squares[drawn].sum(axis=-3)) @ targets[drawn].sum(axis=-2)[..., None]
        return np.moveaxis(solved[..., 0], -1, 0)

    everything = np.arange(len(starts))
    return terms(everything), *interval_of(resample(terms, everything))

"""Every projection of every model against the best FP16: which cases INT4 wins, ties or loses, none left out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.models import MODELS, TENSOR_PARALLEL, possible_degrees, projections
from tinygemm.problem import GemmProblem
from tinygemm.report.base.intervals import best_fp16_over, interval_table, sample_matrix
from tinygemm.report.base.tables import BASELINE, in_mode, problem_of

FP16 = (BASELINE, "fp16-triton")
MODEL_M = (1, 2, 4, 8)
PROBLEM = ["M", "K", "N", "group_size"]
FASTER, TIE, SLOWER, NOT_TIMED, NOT_QUANTISABLE = "faster", "tie", "slower", "not timed", "not quantisable"


def every_projection(run, backend: str = "int4", tps=TENSOR_PARALLEL, m_list=MODEL_M) -> pd.DataFrame:
    """One row per model, degree, projection and M, whether it was timed or not.

    The best FP16 of a case is the faster of `fp16-cublas` and `fp16-triton`, chosen anew in every resample: the smaller
    of two noisy medians is a little too small, so the comparison leans against INT4.

    run:     runs.Run; of its cases those timed as a graph with a cold L2 and random operands
    returns: model, tp, layer, M, K, N, group_size (NaN: in none), state (faster, tie, slower: where the 95 % interval
             of the speedup lies; not timed, not quantisable), fp16_backend, fp16_us, int4_us, speedup, speedup_low,
             speedup_high, gpu, run_id
    """
    rows = pd.DataFrame(
        [
            (model.key, tp, layer.layer, M, layer.K, layer.N, layer.group_size)
            for model in MODELS.values()
            for tp in possible_degrees(model, tuple(tps))
            for layer in projections(model, tp)
            for M in m_list
        ],
        columns=["model", "tp", "layer", *PROBLEM],
    )
    timed = against_best_fp16(run, backend).drop(columns=PROBLEM)
    table = rows.assign(problem=[_problem(*row) for row in rows[PROBLEM].itertuples(index=False)])
    table = table.merge(timed, on="problem", how="left", validate="many_to_one").drop(columns="problem")
    state = table["state"].fillna(NOT_TIMED).where(table["group_size"].notna(), NOT_QUANTISABLE)
    return table.assign(state=state, gpu=run.gpu["name"], run_id=run.run_id)


def against_best_fp16(run, backend: str = "int4") -> pd.DataFrame:
    """INT4 against the best FP16 wherever both were timed in the same rounds, one row per problem of the run.

    returns: problem, M, K, N, group_size, state, fp16_backend, fp16_us, int4_us, speedup, speedup_low, speedup_high
    """
    cases = run.cases[(run.cases["status"] == "ok") & in_mode(run.cases)]
    cases = cases.assign(problem=problem_of(cases))
    ids = cases.pivot(index="problem", columns="backend", values="case_id").reindex(columns=[*FP16, backend])
    pairs = ids.astype("string").dropna(subset=[BASELINE, backend]).reset_index().rename_axis(columns=None)
    pairs[FP16[1]] = pairs[FP16[1]].fillna(pairs[BASELINE])  # a run without our FP16 kernel has one FP16 backend
    matrix = sample_matrix(cases, run.samples)
    operands = [*FP16, backend]
    result = interval_table(pairs, matrix, best_fp16_over, operands)
    medians = matrix.median(axis=1)
    times = [result[name].map(medians) for name in operands]
    shape = cases.loc[cases["backend"] == backend, ["problem", *PROBLEM]]
    result = result.drop(columns=operands).rename(
        columns={"value": "speedup", "low": "speedup_low", "high": "speedup_high"}
    )
    result = result.assign(
        fp16_backend=np.where(times[0] <= times[1], *FP16),
        fp16_us=np.minimum(times[0], times[1]),
        int4_us=times[2],
        state=np.select([result["speedup_low"] > 1, result["speedup_high"] < 1], [FASTER, SLOWER], TIE),
    )
    return shape.merge(result, on="problem", validate="one_to_one")


def distinct(table: pd.DataFrame) -> pd.DataFrame:
    """The timed rows of every_projection, each problem once: shared shapes must not count twice."""
    timed = table[table["state"].isin([FASTER, TIE, SLOWER])]
    return timed.drop_duplicates(PROBLEM)


def geometric_mean(ratios: pd.Series) -> float:
    """NaN without values."""
    return float(np.exp(np.log(ratios.astype(float)).mean()))


def _problem(M: int, K: int, N: int, group_size: float) -> str:
    """The problem as a case_id writes it; empty where no group divides K."""
    return "" if np.isnan(group_size) else str(GemmProblem(M, N, K, int(group_size)))

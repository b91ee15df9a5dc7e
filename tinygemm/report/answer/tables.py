"""One token of Llama-3-8B: the time of its linear layers with each kernel, their bytes, and the M where INT4 stops."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.models import MODELS, Model, projections
from tinygemm.problem import GemmProblem
from tinygemm.report.base.tables import BASELINE, copy_bandwidth_gb_s, origin, primary
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict.model import CostModel
from tinygemm.report.regimes import tables as regimes

MODEL = MODELS["llama-3-8b"]
BACKENDS = (BASELINE, "fp16-triton", "aten-int4mm", "int4-serial", "int4")
FP16 = (BASELINE, "fp16-triton")
GROUP_SIZE = 128
# the seven linear layers of a block before engines fuse them: how often a token calls each weight, as (K, N)
UNFUSED = {(4096, 1024): 2, (4096, 4096): 2, (4096, 14336): 2, (14336, 4096): 1}


def times(run, table: pd.DataFrame, fitted: CostModel | None, backends=BACKENDS) -> pd.DataFrame:
    """The time of all linear layers of one token, M = 1, in a CUDA graph with cold weights: one row per backend.

    lm_head stays in FP16, in the library, with every backend. What the run did not time is predicted.

    table:   report_table(run), or its rows at M = 1
    fitted:  costmodel.fit(run), or None: then nothing is predicted
    returns: backend, layers_ms, head_ms (NaN without a prediction), ms (their sum), speedup (over the library's FP16),
             floor_ms (the bytes at the speed of a copy; NaN without one), predicted (projections of a block that were
             not timed), gpu, run_id; no row for a backend of which a projection is neither timed nor predicted
    """
    problems = [(GemmProblem(1, each.N, each.K, GROUP_SIZE), MODEL.layers) for each in projections(MODEL)]
    head = GemmProblem(1, MODEL.vocab, MODEL.hidden, -1)
    head_ms, _ = _calls_ms(primary(table), fitted, BASELINE, [(head, 1)])
    found = []
    for backend in backends:
        layers_ms, predicted = _calls_ms(primary(table), fitted, backend, problems)
        bits = 16.0 if backend in FP16 else problems[0][0].int4_bits_per_weight()
        moved = sum(calls * problem.bytes_min(bits) for problem, calls in problems)
        moved += 0 if np.isnan(head_ms) else head.bytes_min(16)
        found.append({
            "backend": backend, "layers_ms": layers_ms, "head_ms": head_ms, "ms": np.nansum([layers_ms, head_ms]),
            "floor_ms": moved / copy_bandwidth_gb_s(table) / 1e6, "predicted": predicted,
        })  # fmt: skip
    rows = pd.DataFrame(found).dropna(subset=["layers_ms"])
    fp16 = rows.loc[rows["backend"] == BASELINE, "ms"]
    rows = rows.assign(speedup=(fp16.iloc[0] if len(fp16) else np.nan) / rows["ms"])
    return rows.assign(**origin(run)).reset_index(drop=True)


def gains(table: pd.DataFrame) -> pd.Series:
    """The speedup of the fused INT4 kernel over the library's FP16, over the linear layers of a token, by M.

    table:   report_table(run)
    returns: index M, ascending; empty where the run did not time the four weights at several M
    """
    rows = regimes.by_tokens(table, tuple(UNFUSED))
    wide = rows.pivot(index=["K", "N"], columns=["backend", "M"], values="latency_us_p50").reindex(list(UNFUSED))
    calls = np.array(list(UNFUSED.values()))
    token = (wide * calls[:, None]).sum(axis=0, skipna=False).unstack("backend")
    token = token.reindex(columns=[BASELINE, "int4-fused"]).dropna()
    return (token[BASELINE] / token["int4-fused"]).iloc[: None if len(token) > 1 else 0]


def most_tokens(gain: pd.Series) -> tuple[float, int]:
    """Up to how many tokens in flight INT4 pays.

    gain:    gains(table)
    returns: the M at which INT4 takes as long as FP16, interpolated; infinite where INT4 still wins at the largest M,
             NaN without gains or where INT4 loses at once; and the largest M that was timed
    """
    if gain.empty:
        return np.nan, 0
    return np.inf if gain.iloc[-1] > 1 else regimes.crossing(gain), int(gain.index.max())


def about(m_pays: float) -> int:
    """A number of tokens to the digits that its interpolation allows: to five, and small ones to one."""
    return 5 * round(m_pays / 5) if m_pays > 7.5 else round(m_pays)


def weight_gb(model: Model = MODEL, bits: float = 16.0) -> float:
    """Memory of all weights in 1e9 bytes: the linear layers at `bits`, lm_head and an embedding of its size in FP16."""
    linear = model.layers * sum(each.K * each.N for each in projections(model))
    return (linear * bits / 8 + 2 * model.vocab * model.hidden * 2) / 1e9


def _calls_ms(rows: pd.DataFrame, fitted: CostModel | None, backend: str, calls) -> tuple[float, int]:
    """Time of (problem, how often) in ms, NaN if one is neither timed nor predicted; and how many are predicted."""
    mine = rows[rows["backend"] == backend].set_index(["M", "K", "N"])["latency_us_p50"]
    total, predicted = 0.0, 0
    for problem, times_called in calls:
        latency = mine.get((problem.M, problem.K, problem.N), np.nan)
        if np.isnan(latency):
            latency, predicted = _predicted_us(fitted, backend, problem), predicted + 1
        total += times_called * latency / 1e3
    return total, predicted


def _predicted_us(fitted: CostModel | None, backend: str, problem: GemmProblem) -> float:
    if fitted is None or "graph" not in getattr(fitted.backends.get(backend), "spread", {}):
        return np.nan
    return float(costmodel.predict(fitted, [problem], None, (backend,), ("graph",))["latency_us"].iloc[0])

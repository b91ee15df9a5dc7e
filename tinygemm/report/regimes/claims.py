"""Claims: INT4 pays off everywhere on the map of K and N, and never on the wrong side of the crossover."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict, for_all
from tinygemm.report.base.words import shape_name
from tinygemm.report.regimes import tables as regimes
from tinygemm.report.regimes.tables import LEEWAY
from tinygemm.report.speedup.claims import SUBJECT


def of_run(run, m_list=(1, 8)) -> dict[str, Verdict]:
    """map_M<m> for the tuned and map_M<m>_static for the simple kernel against cuBLAS, map_M<m>_best for the tuned one
    against the best FP16; and switch, the choice between fusing and dequantising first."""
    rows, found = regimes.speedups(run), {"switch": switches_well(regimes.selection(run))}
    for M in m_list:
        found[f"map_M{M}"] = faster_everywhere(rows, "int4", "cuBLAS", M)
        found[f"map_M{M}_static"] = faster_everywhere(rows, "int4-static", "cuBLAS", M)
        found[f"map_M{M}_best"] = faster_everywhere(rows, "int4", "best FP16", M)
    return found


def faster_everywhere(rows: pd.DataFrame, kernel: str, against: str, M: int) -> Verdict:
    """An INT4 kernel is faster than FP16 at every point of the grid of K and N.

    rows: regimes.speedups(run)
    """
    fp16 = {"cuBLAS": "FP16 in cuBLAS", "best FP16": "the best FP16"}[against]
    claim = f"INT4 is faster than {fp16} everywhere on the map, M = {M}"
    at = regimes.grid(rows[rows["against"] == against], M)
    at = at[at["kernel"] == kernel]
    if at.empty:
        return Verdict(claim, UNDECIDED, f"The run did not time {kernel} and FP16 on a grid of K and N.", {})
    state = for_all(at["low"] > 1, at["high"] < 1)
    wins, losses = int((at["low"] > 1).sum()), int((at["high"] < 1).sum())
    worst, best = at.loc[at["value"].idxmin()], at.loc[at["value"].idxmax()]
    ties = len(at) - wins - losses
    sentence = (
        f"{SUBJECT.get(kernel, kernel)} is faster at {wins} of {len(at)} points and slower at {losses}"
        f"{f', {ties} cannot be told apart' if ties else ''}: from {worst['value']:.2f}× at {shape_name(worst)} "
        f"to {best['value']:.2f}× at {shape_name(best)}."
    )
    numbers = {"points": len(at), "wins": wins, "losses": losses, "worst": worst["value"], "best": best["value"]}
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def switches_well(rows: pd.DataFrame) -> Verdict:
    """The kernel that the library selects never takes more than LEEWAY times the better of its two paths.

    rows: regimes.selection(run)
    """
    claim = f"The library's choice is never more than {LEEWAY - 1:.0%} slower than the better of its two paths"
    rows = rows.dropna(subset=["low"])
    if rows.empty:
        return Verdict(claim, UNDECIDED, "The run did not time int4, int4-fused and dequant-fp16 side by side.", {})
    state = for_all(rows["high"] < LEEWAY, rows["low"] > LEEWAY)
    worst = rows.loc[rows["value"].idxmax()]
    verb = {HOLDS: "stays within that", FAILS: "misses that", UNDECIDED: "cannot be told to stay within that"}[state]
    sentence = (
        f"Over {len(rows)} cases, M from {rows['M'].min():.0f} to {rows['M'].max():.0f}, it {verb}: at worst it takes "
        f"{worst['value']:.2f} times as long (95 % interval {worst['low']:.2f} to {worst['high']:.2f}), at "
        f"{shape_name(worst)} and M = {worst['M']:.0f}."
    )
    numbers = {"cases": len(rows)} | {f"worst_{name}": worst[name] for name in ("value", "low", "high", "M", "K", "N")}
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})

"""Claims about a run: the answer of the counters in every regime that was profiled."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.bounds import at_most, case_name, listed
from tinygemm.report.base.claims import UNDECIDED, Verdict, for_all
from tinygemm.report.base.tables import BASELINE, SHAPE
from tinygemm.report.base.words import shape_name
from tinygemm.report.bottleneck.tables import MARGIN, ROUTE

MOST_TRAFFIC = 1.05
NO_COUNTERS = "This run has no such counters."


def of_limiters(rows: pd.DataFrame) -> dict[str, Verdict]:
    """The verdicts of the chapter: shift, latency, traffic, static.

    rows: limiters.with_static(limiters.readings(run), file)
    """
    return {
        "shift": limiter_shifts_everywhere(rows),
        "latency": latency_limits(rows),
        "traffic": bytes_move_once(rows),
        "static": counts_agree(rows),
    }


def limiter_shifts_everywhere(rows: pd.DataFrame, backend: str = "int4", M: int = 1) -> Verdict:
    """The bottleneck shift of finding B in every regime: DRAM limits FP16 there, and something else limits INT4."""
    claim = f"Profiled alone, DRAM limits FP16 and something else the tuned INT4 kernel, whatever the shape, M = {M}"
    if rows.empty:
        return Verdict(claim, UNDECIDED, NO_COUNTERS, {})
    sides = [rows[(rows["backend"] == name) & (rows["M"] == M)] for name in (BASELINE, backend)]
    both = sides[0].merge(sides[1], on=SHAPE, suffixes=("_fp16", "_int4"))
    if both.empty:
        return Verdict(claim, UNDECIDED, NO_COUNTERS, {})
    fp16, int4 = (both[f"limiter_{side}"] == "DRAM" for side in ("fp16", "int4"))
    confirmed = fp16 & ~int4 & both["sure_fp16"] & both["sure_int4"]
    refuted = (~fp16 & both["sure_fp16"]) | (int4 & both["sure_int4"])
    told = [
        f"{shape_name(row)} ({_short(row['limiter_fp16'])}{_mark(row['sure_fp16'])} in FP16, "
        f"{_short(row['limiter_int4'])}{_mark(row['sure_int4'])} in INT4)"
        for _, row in both.iterrows()
    ]
    numbers = {"n": float(len(both)), "n_confirmed": float(confirmed.sum()), "n_refuted": float(refuted.sum())}
    return Verdict(claim, for_all(confirmed, refuted), f"What limits them: {listed(told)}.", numbers)


def latency_limits(rows: pd.DataFrame, backend: str = "int4", M: int = 1) -> Verdict:
    """No unit is busy for 60 % of the tuned kernel's time: it waits."""
    claim = f"Profiled alone, the tuned INT4 kernel keeps no unit of the GPU busy for most of its time, M = {M}"
    mine = rows[(rows["backend"] == backend) & (rows["M"] == M)] if len(rows) else rows
    if mine.empty:
        return Verdict(claim, UNDECIDED, NO_COUNTERS, {})
    waits = mine["limiter"].str.startswith("latency")
    told = [f"{shape_name(row)}: {row['limiter']}{_mark(row['sure'])}" for _, row in mine.iterrows()]
    numbers = {"n": float(len(mine)), "n_latency": float(waits.sum())}
    state = for_all(waits & mine["sure"], ~waits & mine["sure"])
    return Verdict(claim, state, f"What limits it: {listed(told)}.", numbers)


def bytes_move_once(rows: pd.DataFrame) -> Verdict:
    """DRAM traffic of the INT4 kernels against the least that the product needs, where one tile holds all tokens."""
    claim = f"With one tile of tokens the INT4 kernels move every byte once: at most {MOST_TRAFFIC:g} times the least"
    if rows.empty:
        return Verdict(claim, UNDECIDED, NO_COUNTERS, {})
    mine = rows[rows["backend"].str.startswith("int4") & (rows["form"] != ROUTE) & (rows["M"] <= rows["block_m"])]
    mine = mine.assign(value=mine["traffic_ratio"])
    names = [f"{case_name(row)}, {row['backend']}" for _, row in mine.iterrows()]
    return at_most(claim, mine.assign(name=names, low=float("nan"), high=float("nan")), MOST_TRAFFIC, NO_COUNTERS)


def counts_agree(rows: pd.DataFrame) -> Verdict:
    """Instructions executed lie between the main loop of the compiled kernel and that with all the rest run once."""
    claim = "The instructions that run are those that the compiled kernel has"
    known = rows.dropna(subset=["agrees"]) if len(rows) else rows
    if known.empty:
        missing = "This run did not count instructions, or its launch configs have no static counts."
        return Verdict(claim, UNDECIDED, missing, {})
    agrees = known["agrees"].astype(bool)
    told = [
        f"{row['per_weight']:.2f} per weight at {case_name(row)}, {row['backend']}, where the machine code says "
        f"{row['static_low']:.2f} to {row['static_high']:.2f}"
        for _, row in known[~agrees if (~agrees).any() else agrees].iterrows()
    ]
    numbers = {"n": float(len(known)), "n_agree": float(agrees.sum())}
    sentence = f"Executed, give or take {MARGIN:.0%} for another compiler: {listed(told)}."
    return Verdict(claim, for_all(agrees, ~agrees), sentence, numbers)


def _short(limiter: str) -> str:
    return limiter.split(":")[0]


def _mark(sure: bool) -> str:
    """Counters that nearly say otherwise do not decide."""
    return "" if sure else " (?)"

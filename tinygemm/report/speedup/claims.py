"""The three findings of the earlier study, and what fewer bits gain, as claims about a run."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict, for_all
from tinygemm.report.base.tables import (
    BASELINE,
    SHAPE,
    breakdown,
    counters_table,
    in_mode,
    only,
    paired,
    primary,
    report_table,
    suite,
)
from tinygemm.report.base.words import shape_name
from tinygemm.report.bottleneck.tables import COPY_FRACTION, limited_by_bytes

# A projection is wide when it expands (the up and gate projections of an FFN, N >= 2 K) and narrow when it shrinks to a
# quarter or less (the KV projections of grouped-query attention). The rest, N close to K, belongs to neither claim.
WIDE_N_PER_K = 2
NARROW_N_PER_K = 1 / 4

SUBJECT = {"int4": "The tuned INT4 kernel", "int4-static": "The simple INT4 kernel", "aten-int4mm": "aten-int4mm"}


def wide_helps(table: pd.DataFrame, backend: str = "int4", M: int = 1) -> Verdict:
    """A: INT4 is faster than FP16 at every projection of the run with N >= 2 K.

    table: report_table(run)
    """
    claim = f"INT4 helps wide FFN shapes, M = {M}"
    rows = _speedups(table, backend, M)
    rows = rows[rows["N"] >= WIDE_N_PER_K * rows["K"]]
    state = for_all(rows["speedup_vs_fp16_low"] > 1, rows["speedup_vs_fp16_high"] < 1)
    if rows.empty:
        return Verdict(claim, state, f"The run has no timing of {backend} with N of at least 2 K.", {})
    worst, best = _extremes(rows)
    span = (
        f"{worst.speedup_vs_fp16:.2f}× to {best.speedup_vs_fp16:.2f}×, where the bytes allow {best.ideal_speedup:.2f}×"
    )
    answer = {
        HOLDS: f"is faster than FP16 at every wide projection measured, {_shapes(rows)}: {span}",
        FAILS: f"is slower than FP16 at {shape_name(worst)}: {_interval(worst)}",
        UNDECIDED: f"cannot be told apart from FP16 at {shape_name(worst)}: {_interval(worst)}",
    }[state]
    numbers = _numbers("worst", worst) | _numbers("best", best)
    numbers |= {"ideal_speedup": float(best.ideal_speedup), "n_shapes": float(len(rows))}
    return Verdict(claim, state, f"{_subject(backend)} {answer}.", numbers)


def bottleneck_shifts(
    counters: pd.DataFrame | None,
    backend: str = "int4",
    M: int = 1,
    K: int = 4096,
    N: int = 14336,
    table: pd.DataFrame | None = None,
) -> Verdict:
    """B: the bottleneck moves: the bytes limit FP16, and something else limits INT4.

    Decided by the rate at which calls in a row move their bytes: from COPY_FRACTION of the speed of a copy on, the
    bytes limit them. Counters are of one call alone, from an idle GPU to an idle GPU, so they stand beside it.

    counters: counters_table(run), or None for a run without counters
    table:    report_table(run), for the rate at which timed calls move their bytes
    """
    claim = f"The bottleneck shifts: the bytes limit FP16, something else limits INT4, M = {M}, {shape_name((K, N))}"
    rates = _rates(table, backend, (M, K, N))
    pair = _counter_pair(counters, backend, (M, K, N))
    numbers = {}
    if pair is not None:
        for name, row in zip(("fp16", "int4"), pair, strict=True):
            numbers |= {f"{name}_{part}": float(row[f"frac_{part}"]) for part in ("dram", "sm")}
        numbers["dram_shift"] = numbers["fp16_dram"] - numbers["int4_dram"]
    if rates is None:
        missing = f"The run did not time {BASELINE}, {backend} and a copy at {shape_name((K, N))}."
        return Verdict(claim, UNDECIDED, missing, numbers)
    fp16, int4 = (rates.loc[name] for name in (BASELINE, backend))
    margins = [(fp16["low"] - COPY_FRACTION, fp16["high"] - COPY_FRACTION)]
    margins.append((COPY_FRACTION - int4["high"], COPY_FRACTION - int4["low"]))
    state = for_all(pd.Series([least > 0 for least, _ in margins]), pd.Series([most < 0 for _, most in margins]))
    subject = _subject(backend)
    sentence = (
        f"In a row, FP16 moves its bytes at {fp16['rate']:.0%} of the speed of a copy, and {subject[0].lower()}"
        f"{subject[1:]} at {int4['rate']:.0%}: {_limited(fp16, int4)}."
    )
    if pair is not None:
        sentence += f" Profiled alone, FP16 {_use(pair[0])}, and {subject[0].lower()}{subject[1:]} {_use(pair[1])}."
    numbers |= {"fp16_rate": float(fp16["rate"]), "int4_rate": float(int4["rate"])}
    return Verdict(claim, state, sentence, numbers)


def narrow_loses(table: pd.DataFrame, backend: str = "int4", M: int = 1) -> Verdict:
    """First part of C: INT4 is slower than FP16 at every projection of the run with N <= K / 4.

    table: report_table(run)
    """
    claim = f"INT4 loses on narrow projections, M = {M}"
    rows = _speedups(table, backend, M)
    rows = rows[rows["N"] <= NARROW_N_PER_K * rows["K"]]
    state = for_all(rows["speedup_vs_fp16_high"] < 1, rows["speedup_vs_fp16_low"] > 1)
    if rows.empty:
        return Verdict(claim, state, f"The run has no timing of {backend} with N of at most K / 4.", {})
    worst, best = _extremes(rows)
    answer = {
        HOLDS: f"is slower than FP16 at every narrow projection measured, {_shapes(rows)}: at best {_interval(best)}",
        FAILS: f"is faster than FP16 at {shape_name(best)}: {_interval(best)}",
        UNDECIDED: f"cannot be told apart from FP16 at {shape_name(best)}: {_interval(best)}",
    }[state]
    numbers = _numbers("worst", worst) | _numbers("best", best) | {"n_shapes": float(len(rows))}
    return Verdict(claim, state, f"{_subject(backend)} {answer}.", numbers)


def dequantisation_decides(parts: pd.DataFrame, tuned: pd.DataFrame, backend: str = "int4", M: int = 1) -> Verdict:
    """Second part of C: where INT4 loses on a narrow projection, it would win if dequantisation were free.

    Judged at the narrow projection where INT4 does worst, by two experiments. `int4-no-dequant` is the tuned kernel
    without its dequantisation: if even that loses to FP16, dequantisation is not the cause. `int4-naive-dequant` is the
    tuned kernel that unpacks as the simple one does, its scales still applied to sums: where that wins, dequantisation
    alone does not make the simple one lose.

    parts: breakdown(run, backend)        tuned: breakdown(run)
    """
    claim = f"Dequantisation is why INT4 loses on narrow projections, M = {M}"
    kernel = ["dequant_in_kernel_us", "dequant_in_kernel_us_low", "dequant_in_kernel_us_high", "dequant_share"]
    naive = ["naive_us", "speedup_naive_low", "speedup_naive_high"]
    control = tuned[["problem", "speedup_low", "fused_us", *kernel, *naive]]
    parts = parts.drop(columns=[*kernel, *naive])
    rows = parts.merge(control, on="problem", suffixes=("", "_tuned"), validate="one_to_one")
    rows = rows[(rows["M"] == M) & (rows["N"] <= NARROW_N_PER_K * rows["K"])].dropna(
        subset=["speedup_low", "speedup_without_dequant_low", "speedup_low_tuned"]
    )
    if rows.empty:
        return Verdict(claim, UNDECIDED, f"The run did not time {backend}, int4-no-dequant and int4 side by side.", {})
    row = rows.loc[rows["speedup"].idxmin()]
    numbers = {
        "fp16_us": row["fp16_us"],
        "fused_us": row["fused_us"],
        "tuned_us": row["fused_us_tuned"],
        "no_dequant_us": row["no_dequant_us"],
        "load_only_us": row["load_only_us"],
        "dequant_us": row["dequant_in_kernel_us"],
        "dequant_share": row["dequant_share"],
        "speedup": row["speedup"],
        "speedup_without_dequant": row["speedup_without_dequant"],
        "N": row["N"],
        "K": row["K"],
    }
    state, answer = _cause(row)
    sentence = f"At {shape_name(row)} {answer}. {_dequantisation(row)}."
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def fewer_bits_help_narrow(run, M: int = 1) -> Verdict:
    """D: at every narrow projection of the run, fewer bits alone make the kernel faster.

    What is gained over cuBLAS may be the kernel's doing; against `fp16-triton`, its FP16 reference, only
    the number of bits differs.
    """
    claim = f"On narrow projections INT4 is faster than FP16 weights in the same kernel structure, M = {M}"
    cases = run.cases[in_mode(run.cases) & (run.cases["M"] == M)]
    rows = paired(cases, run.samples, "fp16-triton", "int4")
    rows = rows[rows["N"] <= NARROW_N_PER_K * rows["K"]].sort_values("N")
    if rows.empty:
        return Verdict(claim, UNDECIDED, "The run did not time int4 and fp16-triton side by side at N <= K / 4.", {})
    state = for_all(rows["low"] > 1, rows["high"] < 1)
    spans = [
        f"{row['value']:.2f}× at {shape_name(row)} ({row['low']:.2f} to {row['high']:.2f})"
        for _, row in rows.iterrows()
    ]
    sentence = f"Against FP16 weights in the same kernel structure, INT4 is {' and '.join(spans)} as fast."
    worst, best = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    numbers = {f"{name}_{column}": float(row[column]) for name, row in (("worst", worst), ("best", best))
               for column in ("value", "low", "high", "K", "N")}  # fmt: skip
    return Verdict(claim, state, sentence, numbers)


def narrow_loses_to_dequantisation(loses: Verdict, cause: Verdict) -> Verdict:
    """C: both parts together; it holds only if both do, and fails if either does."""
    claim = "INT4 loses on narrow projections because dequantisation is not amortised"
    states = pd.Series([loses.state, cause.state])
    state = for_all(states == HOLDS, states == FAILS)
    numbers = loses.numbers | {f"cause_{name}": value for name, value in cause.numbers.items()}
    return Verdict(claim, state, f"{loses.sentence} {cause.sentence}", numbers)


def _dequantisation(row: pd.Series) -> str:
    """The effect of leaving the dequantisation out of the tuned kernel."""
    times = f"{row['no_dequant_us']:.2f} µs instead of {row['fused_us_tuned']:.2f} µs"
    if row["dequant_in_kernel_us_low"] > 0:
        return f"Without dequantisation the tuned kernel takes {times}, {row['dequant_share']:.0%} less"
    return f"Without dequantisation the tuned kernel is no faster: {times}"


def _cause(row: pd.Series) -> tuple[str, str]:
    """State of the claim about the cause, and the clause that says why."""
    now, without = f"{row['speedup']:.2f}×", f"{row['speedup_without_dequant']:.2f}× without dequantisation"
    if row["speedup_low"] > 1:
        return FAILS, f"there is no loss to explain: {now}"
    if row["speedup_high"] >= 1:
        return UNDECIDED, f"it is not certain that there is a loss: {now}, and {without}"
    if row["speedup_low_tuned"] > 1:
        return _by_naive_dequantisation(row, now)
    if row["speedup_without_dequant_low"] > 1:
        return HOLDS, f"the loss, {now}, would be a win: {without}"
    if row["speedup_without_dequant_high"] < 1:
        return FAILS, f"the loss, {now}, would stay a loss: {without}"
    return UNDECIDED, f"the loss, {now}, would become a tie: {without}"


def _by_naive_dequantisation(row: pd.Series, now: str) -> tuple[str, str]:
    """The test of naive dequantisation where the tuned kernel wins: does it make the kernel lose?"""
    times = f"{row['naive_us']:.2f} µs against {row['fp16_us']:.2f} µs of FP16"
    if pd.isna(row["speedup_naive_low"]):
        untimed = "the tuned kernel wins with its own dequantisation, and the run did not time it with the naive one"
        return UNDECIDED, f"{untimed}: what makes the loss, {now}, is open"
    if row["speedup_naive_low"] > 1:
        wins = f"the tuned kernel wins even when it shifts, masks and converts as the simple one does, {times}"
        return FAILS, f"{wins}; so dequantisation alone does not make the loss of the simple kernel, {now}"
    if row["speedup_naive_high"] >= 1:
        return (
            UNDECIDED,
            f"with naive dequantisation the tuned kernel is level with FP16, {times}: what makes the loss, {now}, "
            "is open",
        )
    return HOLDS, f"naive dequantisation alone turns the win of the tuned kernel into a loss, {times}; here it is {now}"


def _speedups(table: pd.DataFrame, backend: str, M: int) -> pd.DataFrame:
    rows = primary(table)
    return rows[(rows["backend"] == backend) & (rows["M"] == M)].dropna(subset=["speedup_vs_fp16_low"]).sort_values("N")


def _extremes(rows: pd.DataFrame):
    return rows.loc[rows["speedup_vs_fp16"].idxmin()], rows.loc[rows["speedup_vs_fp16"].idxmax()]


def _numbers(prefix: str, row) -> dict[str, float]:
    columns = {"speedup": "speedup_vs_fp16", "low": "speedup_vs_fp16_low", "high": "speedup_vs_fp16_high"}
    columns |= {"latency_us": "latency_us_p50", "K": "K", "N": "N"}
    return {f"{prefix}_{name}": float(row[column]) for name, column in columns.items()}


def _counter_pair(counters: pd.DataFrame | None, backend: str, shape: tuple[int, int, int]):
    if counters is None or not {"frac_dram", "frac_sm"} <= set(counters.columns):
        return None
    rows = counters[(counters[SHAPE] == list(shape)).all(axis=1) & (counters["l2_state"] == "cold")].dropna(
        subset=["frac_dram", "frac_sm"]
    )
    sides = [rows[rows["backend"] == name] for name in (BASELINE, backend)]
    return None if any(side.empty for side in sides) else [side.iloc[0] for side in sides]


def _rates(table: pd.DataFrame | None, backend: str, shape: tuple[int, int, int]) -> pd.DataFrame | None:
    """At which fraction of the copy bandwidth FP16 and a backend move their bytes: rate, low, high; None if unknown."""
    if table is None or "frac_peak_bw" not in table:
        return None
    rows = primary(table)
    rows = rows[(rows[SHAPE] == list(shape)).all(axis=1) & rows["backend"].isin((BASELINE, backend))]
    rows = rows.dropna(subset=["frac_peak_bw", "latency_us_low"]).drop_duplicates("backend").set_index("backend")
    if len(rows) < 2:
        return None
    bytes_us = rows["frac_peak_bw"] * rows["latency_us_p50"]
    low, high = bytes_us / rows["latency_us_high"], bytes_us / rows["latency_us_low"]
    return pd.DataFrame({"rate": rows["frac_peak_bw"], "low": low, "high": high})


def _limited(fp16: pd.Series, int4: pd.Series) -> str:
    """The limits of the two, in words."""
    bytes_limit = {"FP16": limited_by_bytes(fp16["rate"]), "INT4": limited_by_bytes(int4["rate"])}
    limited = [name for name, yes in bytes_limit.items() if yes]
    return f"the bytes limit {' and '.join(limited)}" if limited else "the bytes limit neither"


def _use(row: pd.Series) -> str:
    return f"keeps DRAM {row['frac_dram']:.0%} busy and the SMs {row['frac_sm']:.0%}"


def _subject(backend: str) -> str:
    return SUBJECT.get(backend, backend)


def _shapes(rows: pd.DataFrame) -> str:
    return ", ".join(shape_name(row) for _, row in rows.iterrows())


def _interval(row) -> str:
    low, high = row["speedup_vs_fp16_low"], row["speedup_vs_fp16_high"]
    return f"{row['speedup_vs_fp16']:.2f}× (95 % interval {low:.2f} to {high:.2f})"


def of_run(run) -> dict[str, Verdict]:
    """Every verdict on the suite `decode` of a run at M = 1: A, B, C (and the parts of C, C_loses and C_cause) for the
    tuned kernel; the same keys with `_static` for the simple one; and D for the tuned kernel alone."""
    whole = only(run, run.cases["M"].isin((0, 1)) & in_mode(run.cases))
    run = suite(whole, "decode")
    table, tuned = report_table(run), breakdown(whole)  # naive dequantisation is timed by another suite
    counters = counters_table(run) if len(run.counters) else None
    verdicts = {"D": fewer_bits_help_narrow(run)}
    for suffix, backend in {"": "int4", "_static": "int4-static"}.items():
        loses = narrow_loses(table, backend)
        cause = dequantisation_decides(breakdown(run, backend), tuned, backend)
        verdicts |= {
            f"A{suffix}": wide_helps(table, backend),
            f"B{suffix}": bottleneck_shifts(counters, backend, table=table),
            f"C{suffix}": narrow_loses_to_dequantisation(loses, cause),
            f"C_loses{suffix}": loses,
            f"C_cause{suffix}": cause,
        }
    return verdicts

"""Kernel or bits: which of the two makes up most of what INT4 gains over cuBLAS, on narrow and on wide projections."""

from __future__ import annotations

import pandas as pd

from tinygemm.problem import REPORT_SHAPES
from tinygemm.report.base.claims import UNDECIDED, Verdict, for_all
from tinygemm.report.base.tables import at_shapes
from tinygemm.report.base.words import shape_name
from tinygemm.report.decomposition import tables as decomposition
from tinygemm.report.speedup.claims import NARROW_N_PER_K, WIDE_N_PER_K

MOST = 1 / 2  # of the logarithm of the speedup: the larger of two factors


def of_run(run, M: int = 1) -> dict[str, Verdict]:
    """kernel_narrow and bits_wide at one M, judged at the report's projections, or at all of a run without them."""
    shares = decomposition.shares(run, M)
    projections = at_shapes(shares, REPORT_SHAPES)
    shares = shares[projections] if projections.any() else shares
    return {"kernel_narrow": kernel_makes_narrow(shares, M), "bits_wide": bits_make_wide(shares, M)}


def kernel_makes_narrow(shares: pd.DataFrame, M: int = 1) -> Verdict:
    """At every projection with N <= K / 4, the kernel is the larger factor of the speedup over cuBLAS.

    shares: decomposition.shares(run, M)
    """
    claim = f"On narrow projections most of the gain is the kernel's, M = {M}"
    rows = shares[shares["N"] <= NARROW_N_PER_K * shares["K"]]
    return _most(claim, rows, rows["share_low"] > MOST, rows["share_high"] < MOST)


def bits_make_wide(shares: pd.DataFrame, M: int = 1) -> Verdict:
    """At every projection with N >= 2 K, fewer bits are the larger factor of the speedup over cuBLAS.

    shares: decomposition.shares(run, M)
    """
    claim = f"On wide projections most of the gain comes from fewer bits, M = {M}"
    rows = shares[shares["N"] >= WIDE_N_PER_K * shares["K"]]
    return _most(claim, rows, rows["share_high"] < MOST, rows["share_low"] > MOST)


def _most(claim: str, rows: pd.DataFrame, confirmed: pd.Series, refuted: pd.Series) -> Verdict:
    if rows.empty:
        return Verdict(claim, UNDECIDED, "The run did not time cuBLAS, our FP16 kernel and INT4 at such a shape.", {})
    gained = rows["gain_low"] > 1
    state = for_all(confirmed & gained, refuted & gained)
    numbers = {}
    for name, row in (("smallest", rows.loc[rows["N"].idxmin()]), ("largest", rows.loc[rows["N"].idxmax()])):
        numbers |= {f"{name}_{column}": float(row[column]) for column in ("K", "N", "gain", "share")}
        numbers |= {f"{name}_kernel": float(row["gain"] ** row["share"])}
        numbers |= {f"{name}_bits": float(row["gain"] ** (1 - row["share"]))}
    parts = [_factors(row) for _, row in rows.sort_values(["N", "K"]).iterrows()]
    doubt = " The larger factor is not the same, or not certain, everywhere." if state == UNDECIDED else ""
    listed = "; ".join(parts if len(parts) < 4 else [parts[0], "…", parts[-1]])
    return Verdict(claim, state, f"The gain over cuBLAS as kernel times bits: {listed}.{doubt}", numbers)


def _factors(row: pd.Series) -> str:
    """`4096×1024: 1.76× = 1.70 × 1.04`, or that there is no gain to divide."""
    kernel, bits = row["gain"] ** row["share"], row["gain"] ** (1 - row["share"])
    product = f"{shape_name(row)}: {row['gain']:.2f}× = {kernel:.2f} · {bits:.2f}"
    return product if row["gain_low"] > 1 else f"{product}, no certain gain"

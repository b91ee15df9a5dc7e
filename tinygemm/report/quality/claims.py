"""The cost of rounding to 4 bits, as claims about the encoder's table and a run."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict, for_all
from tinygemm.report.base.words import number
from tinygemm.report.quality.tables import USUAL_GROUP

SEARCHES = {"full-range": "searched", "min-max": "min-max searched"}
NEGLIGIBLE = 0.1  # of the rounding error: squares add up, so it changes the whole error by less than 1 %


def of_quality(model: pd.DataFrame, run) -> dict[str, Verdict]:
    """The verdicts about quality: search, groups, kernel.

    model: tables.model()
    run:   a recorded run, for what the kernel adds of its own
    """
    return {"search": search_loses_less(model), "groups": small_groups_lose_less(model), "kernel": kernel(model, run)}


def search_loses_less(model: pd.DataFrame) -> Verdict:
    """Full range and min-max lose less in the layers' outputs with a search than without, at every group size."""
    claim = "Searching its scale makes a rule lose less in the layers' outputs"
    errors = model.set_index(["rule", "group_size"])
    pairs = [(errors.loc[(form, size)], errors.loc[(searched, size)])
             for form, searched in SEARCHES.items()
             for size in model["group_size"].dropna().unique()
             if (form, size) in errors.index and (searched, size) in errors.index]  # fmt: skip
    if not pairs:
        return Verdict(claim, UNDECIDED, "The table has no row with a search and without.", {})
    kept = pd.Series([found["output_error_percent"] / closed["output_error_percent"] for closed, found in pairs])
    times = pd.Series([found["cpu_seconds"] / closed["cpu_seconds"] for closed, found in pairs])
    seconds = max(found["cpu_seconds"] for _, found in pairs)
    numbers = {
        "n": len(pairs), "least_saved": 1 - kept.max(), "most_saved": 1 - kept.min(), "times_as_long": times.median(),
        "cpu_seconds": seconds,
    }  # fmt: skip
    least, most = (number(error - 1, "+.0%") for error in (kept.min(), kept.max()))
    sentence = (
        f"A search changes the error of the outputs by {least} to {most} and takes up to {seconds:.0f} CPU seconds."
    )
    return Verdict(claim, for_all(kept < 1, kept >= 1), sentence, _floats(numbers))


def small_groups_lose_less(model: pd.DataFrame) -> Verdict:
    """By the default rule, each larger group loses more in the layers' outputs than the smaller one."""
    claim = "Smaller groups lose less"
    rows = model[model["rule"] == "full-range"]
    rows = rows.sort_values("group_size", key=lambda sizes: sizes.replace(-1, float("inf")))
    errors = rows["output_error_percent"].reset_index(drop=True)
    if len(errors) < 2:
        return Verdict(claim, UNDECIDED, "The table has fewer than two group sizes.", {})
    steps = errors.diff().dropna()
    usual = rows[rows["group_size"] == USUAL_GROUP]
    numbers = {"least_percent": errors.iloc[0], "most_percent": errors.iloc[-1]}
    if len(usual):
        numbers |= {
            "usual_percent": usual["output_error_percent"].iloc[0], "usual_cosine": usual["cosine_mean"].iloc[0],
            "usual_recall_percent": usual["recall_percent"].iloc[0],
        }  # fmt: skip
    sentence = (
        f"From groups of {rows['group_size'].iloc[0]:.0f} to the largest ones, the error of the layers' outputs goes "
        f"from {errors.iloc[0]:.1f} % to {errors.iloc[-1]:.1f} %."
    )
    return Verdict(claim, for_all(steps > 0, steps <= 0), sentence, _floats(numbers))


def kernel(model: pd.DataFrame, run) -> Verdict:
    """The kernel's own error beside that of rounding, measured on the run's GPU against the float64 product.

    Both are relative RMS errors of outputs. The kernel's is that of `int4` over the codes' exact product.
    """
    claim = "The kernel's own error is small beside that of rounding"
    cases = run.cases
    fused = cases[cases["form"] != "dequantise"]  # the other path multiplies in cuBLAS
    own = fused.loc[(fused["backend"] == "int4") & (fused["status"] == "ok") & (fused["dtype"] == "float16"), "rms_err"]
    own, rounding = own.dropna(), model.loc[model["rule"] != "float16", "output_error_percent"]
    if own.empty or rounding.empty:
        return Verdict(claim, UNDECIDED, "This run has no checked case of `int4` in float16.", {})
    worst, least = 100 * own.max(), rounding.min()
    state = HOLDS if worst < NEGLIGIBLE * least else FAILS
    numbers = {"own_percent": worst, "rounding_percent": least, "ratio": least / worst, "n_cases": len(own)}
    sentence = (
        f"Against float64 the fused kernel is off by at most {worst:.2f} % (RMS, {len(own)} cases); rounding costs the "
        f"encoder's layers {least:.1f} % or more."
    )
    return Verdict(claim, state, sentence, _floats(numbers))


def _floats(numbers: dict) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items()}

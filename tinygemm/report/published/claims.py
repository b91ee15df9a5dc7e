"""The claim about other people's numbers: our kernel gains at least what theirs gain on their GPU."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, UNDECIDED, Verdict, for_all
from tinygemm.report.base.words import bracket, shape_name


def at_least_published(compared: pd.DataFrame, alone: pd.DataFrame | None = None) -> Verdict:
    """On the GPU of every published speedup, measured or projected, our kernel gains at least as much over FP16.

    compared: literature.against(rows)
    alone:    literature.one_call_alone(table, compared), which the sentence adds and which does not decide
    """
    claim = "On the GPUs of the literature our kernel would gain at least what the published kernels gain"
    if compared.empty:
        return Verdict(claim, UNDECIDED, "This run has nothing to set beside published speedups.", {})
    above, below = compared["ours_low"] >= compared["high"], compared["ours_high"] < compared["low"]
    state = for_all(above, below)
    open_ = len(compared) - above.sum() - below.sum()
    sentence = (
        f"Beside {len(compared)} published speedups of kernels that compute the whole product, ours is above "
        f"{above.sum()}, below {below.sum()}, and cannot be told apart from {open_}. That is ours in CUDA graphs; the "
        "sources time in ways of their own."
    )
    ratio = compared["ours"] / compared["value"]
    worst = compared.loc[ratio.idxmin()]
    if state == FAILS:
        sentence += f" Farthest below: {_case(worst)}."
    elif open_:
        sentence += f" Closest: {_case(worst)}."
    numbers = {"cases": len(compared), "above": above.sum(), "below": below.sum(), "open": open_, "least": ratio.min()}
    if alone is not None and len(alone):
        under = alone[alone["alone"] < alone["low"]]
        numbers |= {"alone": len(alone), "alone_below": len(under)}
        sentence += (
            f" By `triton.testing.do_bench`, one call alone, ours is below {len(under)} of the {len(alone)} values "
            "that were published on this GPU at shapes timed so."
        )
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def _case(row: pd.Series) -> str:
    return (
        f"{row['backend']} on {row['gpu_name']} at {shape_name(row)}, M = {row['M']}: published {row['value']:.2f}×, "
        f"ours {row['ours']:.2f}×{bracket(row['ours_low'], row['ours_high'])}"
    )

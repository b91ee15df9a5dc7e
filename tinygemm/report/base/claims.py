"""A claim: a state, the sentence that answers it, and the numbers behind the sentence."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class Verdict:
    """A claim and what the run says about it.

    state:    "holds", "does not hold" or "undecided" (a tie, an interval that covers the boundary, or no data)
    sentence: the answer in words, with its numbers
    numbers:  plain floats for the text: latencies in us, speedups as ratios, shares in 0..1
    """

    claim: str
    state: str
    sentence: str
    numbers: dict[str, float]


def for_all(confirmed: pd.Series, refuted: pd.Series) -> str:
    """A claim about every row: one clear counterexample refutes it, only clear agreement of all confirms it."""
    if refuted.any():
        return FAILS
    return HOLDS if len(confirmed) and confirmed.all() else UNDECIDED

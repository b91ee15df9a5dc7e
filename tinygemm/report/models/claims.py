"""The claim of a user with a model: no projection gets slower by quantising it."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import UNDECIDED, Verdict, for_all
from tinygemm.report.base.words import bracket, shape_name
from tinygemm.report.models.tables import FASTER, NOT_QUANTISABLE, SLOWER, TIE, distinct, geometric_mean

NAMED = 8  # weights that the sentence lists; the table on the page has all


def never_slower(table: pd.DataFrame) -> Verdict:
    """INT4 is faster than the best FP16 at every projection of the model table, at every degree and M.

    table: projections.every_projection(run)
    """
    wanted = table[table["state"] != NOT_QUANTISABLE]
    problems = len(wanted.drop_duplicates(["M", "K", "N", "group_size"]))
    tokens = sorted(set(table["M"]))
    claim = f"INT4 is never slower than FP16 on any projection of the models, M = {min(tokens)} to {max(tokens)}"
    rows = distinct(table)
    if rows.empty:
        return Verdict(claim, UNDECIDED, "The run timed no projection of the models with INT4 beside FP16.", {})
    missing = problems - len(rows)
    faster, tie, slower = (rows[rows["state"] == state] for state in (FASTER, TIE, SLOWER))
    state = for_all(wanted["state"] == FASTER, wanted["state"] == SLOWER)
    worst, mean = rows.loc[rows["speedup"].idxmin()], geometric_mean(rows["speedup"])
    sentence = f"Of {len(rows)} distinct cases timed, the INT4 kernel is faster than the best FP16 in {len(faster)}"
    sentence += f", tied in {len(tie)} and slower in {len(slower)}; geometric mean {mean:.2f}×, least {_case(worst)}."
    if missing:
        sentence += f" The run did not time {missing} of {problems} cases."
    if len(slower):
        sentence += f" Slower: {_named(slower)}."
    elif len(tie):
        sentence += f" Tied: {_named(tie)}."
    numbers = {
        "cases": problems, "timed": len(rows), "faster": len(faster), "tied": len(tie), "slower": len(slower),
        "geometric_mean": mean, "least": worst["speedup"], "most": rows["speedup"].max(),
    }  # fmt: skip
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def _named(rows: pd.DataFrame) -> str:
    """The cases gathered by weight, the worst first: `0.68× to 0.72× at 4096×768, M = 1, 8 (qkv_proj of ...)`."""
    weights = [group for _, group in rows.sort_values("speedup").groupby(["K", "N", "group_size"], sort=False)]
    names = []
    for group in weights[:NAMED]:
        least, most = group["speedup"].iloc[0], group["speedup"].iloc[-1]
        span = f"{least:.2f}×" if len(group) == 1 else f"{least:.2f}× to {most:.2f}×"
        tokens = ", ".join(str(M) for M in sorted(group["M"]))
        names.append(f"{span} at {shape_name(group.iloc[0])}, M = {tokens} ({_where(group.iloc[0])})")
    rest = len(weights) - len(names)
    return "; ".join(names) + (f"; and {rest} more weights, all in the table" if rest > 0 else "")


def _case(row: pd.Series) -> str:
    span = f"{row['speedup']:.2f}×{bracket(row['speedup_low'], row['speedup_high'])}"
    return f"{span} at {shape_name(row)}, M = {row['M']} ({_where(row)})"


def _where(row: pd.Series) -> str:
    return f"{row['layer']} of {row['model']} on {row['tp']} GPU{'s' if row['tp'] > 1 else ''}"

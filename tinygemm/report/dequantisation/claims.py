"""Finding C decided per regime: the cause whose removal saves most of the time."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.words import bracket, number, shape_name
from tinygemm.report.dequantisation import tables as causes
from tinygemm.report.dequantisation.tables import CAUSES, REGIMES

REMOVED = {
    "dequantisation": "removing all dequantisation from the naive form",
    "too little parallelism": "splitting K",
    "launch": "replaying a CUDA graph instead of launching from Python",
}
OWN = "the lop3 dequantisation"  # the removal that says what the tuned kernel pays for its own
IN_GRAPH = tuple(cause for cause in CAUSES if cause != "launch")


def of_run(run, M: int = 1) -> dict[str, Verdict]:
    """cause_<regime>, called from Python; cause_<regime>_graph, with the launch gone already."""
    rows, found = causes.removals(run, M), {}
    for regime in REGIMES:
        found[f"cause_{regime}"] = dequantisation_comes_first(rows, regime, tuple(CAUSES))
        found[f"cause_{regime}_graph"] = dequantisation_comes_first(rows, regime, IN_GRAPH)
    return found


def dequantisation_comes_first(rows: pd.DataFrame, regime: str, candidates: tuple[str, ...]) -> Verdict:
    """Of the candidate causes, dequantisation is the one whose removal saves the largest share of the time.

    It holds if dequantisation saves most, its interval excludes zero and those of the others lie below it. It fails if
    another cause saves more, with an interval above that of dequantisation and above zero.

    Called from Python, every removal is timed from Python: the host hides what a kernel saves behind it.

    rows: causes.removals(run, M)
    """
    shape = REGIMES[regime]
    in_graph = "launch" not in candidates
    where = "in a CUDA graph" if in_graph else "called from Python"
    name = shape_name(shape)
    claim = f"At the {regime} projection, {name}, naive dequantisation is the largest cost of INT4, {where}"
    kind = "cause" if in_graph else "from_python"
    here = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1]) & rows[kind].isin(candidates)]
    here = here.drop_duplicates(kind).set_index(kind).dropna(subset=["low"])
    if missing := [cause for cause in candidates if cause not in here.index]:
        return Verdict(
            claim,
            UNDECIDED,
            f"The run did not vary {_and(missing)} at {name}{'' if in_graph else ' on a steady host'}.",
            {},
        )
    here = here.sort_values("value", ascending=False)
    first, dequantisation = here.iloc[0], here.loc["dequantisation"]
    others = here.drop(index="dequantisation")
    if first["low"] > 0 and first.name == "dequantisation" and (others["high"] < first["low"]).all():
        state = HOLDS
    elif ((others["low"] > 0) & (others["low"] > dequantisation["high"])).any():
        state = FAILS
    else:
        state = UNDECIDED
    shares = [f"{REMOVED[cause]} saves {_percent(row)}" for cause, row in here.iterrows()]
    sentence = f"{shares[0][0].upper()}{shares[0][1:]} of the time; {'; '.join(shares[1:])}. {_answer(here, where)}"
    numbers = {f"{_key(cause)}_{end}": float(row[end]) for cause, row in here.iterrows()
               for end in ("value", "low", "high")}  # fmt: skip
    own = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1]) & (rows["removal"] == OWN)]
    if in_graph and len(own):
        numbers["own_value"] = float(own["value"].iloc[0])
    return Verdict(claim, state, sentence, numbers)


def _answer(here: pd.DataFrame, where: str) -> str:
    """The cause, by the intervals of the first and of those that reach it."""
    first = here.iloc[0]
    if first["low"] <= 0:
        return f"So no removal certainly saves time {where}."
    level = [cause for cause, row in here.iterrows() if row["high"] >= first["low"]]
    if len(level) > 1:
        return f"So {_and(level)} cannot be told apart {where}."
    return f"So {where} it is {first.name}." if first.name != "launch" else f"So {where} it is the launch."


def _percent(row: pd.Series) -> str:
    return f"{number(row['value'], '.0%')}{bracket(row['low'], row['high'], '.0%')}"


def _key(cause: str) -> str:
    return cause.replace(" ", "_")


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

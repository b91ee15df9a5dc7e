"""Sentences on what two runs share and lack, that the page and the command share."""

from __future__ import annotations

import math

import pandas as pd

from tinygemm.digest import same_code
from tinygemm.report.base import style
from tinygemm.report.base.bounds import listed
from tinygemm.report.base.words import span
from tinygemm.report.compare import tables as compared
from tinygemm.runs import Run


def takeaway(run: Run, others: list[Run], rows: pd.DataFrame) -> str:
    """The gain of INT4 on every GPU, and the runs of another version of our kernel.

    rows: compared.speedups([run, *others])
    """
    gains = [
        f"{span(rows.loc[rows['name'] == each.gpu['name'], 'speedup'], '.1f', '×')} on the {_gpu(each)}"
        for each in (run, *others)
    ]
    shared = len(rows[["K", "N"]].drop_duplicates())
    told = f"At one token and the {shared} weights that all runs timed, INT4's speedup is {' and '.join(gains)}."
    for age, later in (("older", False), ("newer", True)):
        names = [
            _gpu(each)
            for each in others
            if not same_code(run.provenance, each.provenance) and (each.run_id > run.run_id) == later
        ]
        if names:
            told += f" The kernel of the {' and '.join(names)} run is {age}: part of the difference is the kernel's."
    return told


def _gpu(run: Run) -> str:
    return run.gpu["name"].removeprefix("NVIDIA ")


def summary(a: Run, b: Run, cases: pd.DataFrame) -> list[str]:
    """The cases compared, and the limits of that: one sentence each.

    cases: compared.shared_cases(a, b)
    """
    first, second = compared.names(a, b)
    if cases.empty:
        return [f"{first} and {second} have no timed case in common: no time can be compared.", *_limits(a, b)]
    said = [
        f"{len(cases):,} cases were timed in both runs. A ratio above 1 means that {first} is faster than {second}."
    ]
    ratio = cases.drop_duplicates("backend").set_index("backend")["ratio"]
    if "copy" in ratio:
        said.append(f"{first} copies memory {ratio['copy']:.2f} times as fast as {second}.")
    if "empty-node" in ratio:
        said.append(f"An empty graph node takes {1 / ratio['empty-node']:.2f} times as long on {first}.")
    return said + _limits(a, b)


def intervals(spread: float) -> str:
    """The coverage of the intervals of ratios.

    spread: compared.widest_spread(a, b)
    """
    if math.isnan(spread):
        return (
            "Intervals cover the scatter within both runs. How far two runs of one GPU lie apart is not in them: no "
            "second run that compares is recorded."
        )
    return (
        f"Intervals cover the scatter within both runs and {spread:.1%} between two runs of one GPU and one code, as "
        "measured."
    )


def verdicts(found: pd.DataFrame) -> str:
    """The number of claims that changed. found: compared.verdicts(a, b)"""
    counts = found["outcome"].value_counts()
    changed, same, one = (
        int(counts.get(outcome, 0)) for outcome in (compared.CHANGED, compared.SAME, compared.ONE_DECIDES)
    )
    return (
        f"Of {len(found)} claims both runs decide {changed + same}: {same} alike, {changed} differently. "
        f"One run alone decides {one}."
    )


def _limits(a: Run, b: Run) -> list[str]:
    said = []
    for prefix, name in zip("ab", compared.names(a, b), strict=True):
        if alone := compared.only_one_timed(a, b)[prefix]:
            said.append(f"Only {name} timed: {listed([style.name(backend) for backend in alone])}.")
    old = [name for run, name in zip((a, b), compared.names(a, b), strict=True) if not run.settled]
    if old and a.settled != b.settled:
        said.append(
            f"The run of {old[0]} has an older schema: its graphs were timed in whatever state earlier launches left, "
            "which can move times by some percent."
        )
    if not same_code(a.provenance, b.provenance):
        older, newer = compared.names(a, b)[:: 1 if a.run_id < b.run_id else -1]
        said.append(
            f"Our own kernels in the run of {older} are not known to be those of {newer}, which is later, so their "
            "ratios mix code and GPU."
        )
    return said

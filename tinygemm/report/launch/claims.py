"""Claims about a run: the effect of launching on the gain of INT4."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.bounds import at_least, at_most, listed, named
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict, for_all
from tinygemm.report.base.host import slow_groups
from tinygemm.report.base.words import shape_name
from tinygemm.report.launch import tables as launch


def of_launch(run, table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdicts of the chapter: hides, host, overlap.

    table: report_table(run)
    """
    return {
        "hides": launch_hides_the_gain(
            launch.gains(table), [(K, N) for M, K, N in sorted(slow_groups(table)) if M == 1]
        ),
        "host": host_costs_no_more(launch.host_comparison(run)),
        "overlap": overlap_gains(launch.overlaps(run)),
    }


def launch_hides_the_gain(rows: pd.DataFrame, slow=()) -> Verdict:
    """At every shape where INT4 gains in a graph, it loses when launched from Python.

    rows: launch.gains(table)
    slow: (K, N) that are not among them because the host was slow
    """
    claim = "INT4, faster than FP16 in a CUDA graph, is slower when launched one by one from Python, M = 1"
    rows = rows[rows["graph_low"] > 1] if len(rows) else rows
    if rows.empty:
        missing = "This run has no shape at which INT4 gains in a graph and which was timed from a steady host, too."
        return Verdict(claim, UNDECIDED, missing, {})
    hidden, kept = rows["eager_high"] < 1, rows["eager_low"] > 1
    state = for_all(hidden, kept)
    told = {
        True: [_both(row) for _, row in rows[hidden].sort_values("eager").iterrows()],
        False: [_both(row) for _, row in rows[kept].sort_values("eager").iterrows()],
    }
    parts = []
    if told[True]:
        parts.append(f"Slower than FP16 from Python, faster in a graph, the worst first: {listed(told[True])}.")
    if told[False]:
        parts.append(f"Faster in both, the least gain first: {listed(told[False])}.")
    if rest := len(rows) - int(hidden.sum()) - int(kept.sum()):
        parts.append(f"A tie from Python: {rest} of {len(rows)} shapes.")
    if slow:
        shapes = ", ".join(map(shape_name, slow))
        parts.append(f"Left out, because the host was slow there: {shapes}.")
    numbers = {"n": len(rows), "n_hidden": hidden.sum(), "n_kept": kept.sum()}
    numbers |= {"worst_eager": rows["eager"].min(), "best_eager": rows["eager"].max()}
    return Verdict(claim, state, " ".join(parts), {name: float(value) for name, value in numbers.items()})


def host_costs_no_more(rows: pd.DataFrame) -> Verdict:
    """An eager call of the tuned kernel takes the host no longer than one of PyTorch's own INT4 kernel.

    rows: launch.host_comparison(run)
    """
    claim = "An eager call of the tuned kernel costs the host no more than one of PyTorch's INT4 kernel"
    missing = "This run did not time `int4` and `aten-int4mm` from Python on a steady host."
    verdict = at_most(claim, named(rows), 1.0, missing)
    if rows.empty:
        return verdict
    row = rows.iloc[0]
    answer = {HOLDS: "no more", FAILS: "more", UNDECIDED: "as much, within the interval"}[verdict.state]
    sentence = (
        f"At {shape_name(row)}, where the device has least to do, a call from Python takes {row['left_us']:.1f} µs "
        f"against {row['right_us']:.1f} µs of `aten-int4mm`, {answer}: {row['value']:.2f} times as long "
        f"(95 % interval {row['low']:.2f} to {row['high']:.2f})."
    )
    return Verdict(
        claim, verdict.state, sentence, {name: float(row[name]) for name in ("left_us", "right_us", "value")}
    )


def overlap_gains(rows: pd.DataFrame, backend: str = "int4") -> Verdict:
    """Programmatic dependent launch makes every call of a chain shorter.

    rows: launch.overlaps(run)
    """
    claim = "Starting a call before the one before has finished makes the tuned kernel faster at every shape, M = 1"
    mine = rows[rows["backend"] == backend] if len(rows) else rows
    return at_least(claim, named(mine), 1.0, "This run did not time `int4-serial`.")


def _both(row: pd.Series) -> str:
    return f"{shape_name(row)} ({row['eager']:.2f}× from Python, {row['graph']:.2f}× in a graph)"

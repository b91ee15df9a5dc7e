"""The INT4 kernel to use on a GPU, and its lead over the next one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.backends import with_serial
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style, tables
from tinygemm.report.base.contrasts import geometric_mean
from tinygemm.report.base.intervals import sample_matrix
from tinygemm.report.base.words import bracket
from tinygemm.report.compare.tables import NORMAL, newest_others, spread_of_runs
from tinygemm.report.peers import tables as peers

TWINS = {serial: backend for backend, serial in with_serial().items()}  # one kernel, named by that which overlaps
OURS = {"overlap": "int4", "serial": "int4-serial"}
TOKENS = (1, 8)  # in flight: the headline's, and the most that every peer was timed at


def of_gpus(run, tokens: tuple[int, ...] = TOKENS) -> list[str]:
    """The advice for each GPU that was measured: that of `run`, then the newest run of every other GPU.

    tokens: M to name
    """
    widened = spread_of_all(run)
    return [advice(each, nearest(each, widened, tokens)) for each in [run, *newest_others(run)]]


def spread_of_all(run) -> float:
    """The relative standard deviation of one run: the largest of those known of `run` and of every other GPU's."""
    return np.nanmax([0.0, *map(spread_of_runs, [run, *newest_others(run)])])


def nearest(run, spread: float = 0.0, tokens: tuple[int, ...] = TOKENS) -> pd.DataFrame:
    """The fastest other INT4 kernel beside ours, over the projections of the earlier study in the mean.

    A kernel counts where the run timed it at all four.

    spread:  relative standard deviation of one run, which the interval covers beside the scatter of the samples
    tokens:  values of M
    returns: M, ours ("overlap" or "serial"), backend, value (geometric mean of its time over ours), low, high
    """
    found = []
    for how, ours in OURS.items():
        rows = peers.contest(run, quoted=None, ours=ours)
        rows = rows[rows["backend"].isin(peers.PEERS) & rows["M"].isin(tokens)]
        matrix = sample_matrix(run.cases[run.cases["case_id"].isin({*rows["left_id"], *rows["right_id"]})], run.samples)
        means = [
            {"M": M, "ours": how, "backend": backend} | geometric_mean(of, matrix)
            for (M, backend), of in rows.groupby(["M", "backend"])
            if len(of) == len(STUDY_SHAPES)
        ]
        found += [min(at, key=lambda mean: mean["value"]) for M in tokens if (at := [m for m in means if m["M"] == M])]
    table = pd.DataFrame(found, columns=["M", "ours", "backend", "value", "low", "high"])
    further = np.exp(np.sqrt(2) * NORMAL * spread)
    return table.assign(low=table["low"] / further, high=table["high"] * further)


def advice(run, rows: pd.DataFrame) -> str:
    """The kernel to use on the GPU of a run, the next best one, the ratio of their times, and what was timed.

    rows: nearest(run)
    """
    gpu = run.gpu["name"].removeprefix("NVIDIA ")
    if rows.empty:
        return f"**{gpu}:** no other INT4 kernel was timed at the four projections."
    return f"**{gpu}: {best(rows)}.** {ratios(rows)} {_source(run)}"


def lead(rows: pd.DataFrame) -> str:
    """The answer of the chapter in one sentence. rows: nearest(run)"""
    if rows.empty:
        return "This run timed no other INT4 kernel beside ours."
    if (rows["value"] < 1).any():
        return f"The fastest INT4 kernel timed here is {best(rows)}; tokens and overlap decide."
    mean = rows.groupby("ours")["value"].mean()
    less = "; where calls cannot overlap, its lead is smaller" if mean.get("serial", np.inf) < mean["overlap"] else ""
    return f"Our kernel is the fastest INT4 kernel timed here{less}."


def ratios(rows: pd.DataFrame) -> str:
    """A sentence for each M on the kernel nearest to ours. rows: nearest(run)"""
    return " ".join(_at(M, of.set_index("ours")) for M, of in rows.groupby("M"))


def best(rows: pd.DataFrame) -> str:
    """The kernel to use, or both where neither wins in every condition. rows: nearest(run)"""
    lost = rows[rows["value"] < 1]
    if lost.empty:
        return "our kernel"
    names = ", ".join(dict.fromkeys(map(plain_name, lost["backend"])))
    return names if len(lost) == len(rows) else f"our kernel or {names}"


def _at(M: int, rows: pd.DataFrame) -> str:
    """The nearest kernel at one M, with and without overlap."""
    where, usual = "At one token" if M == 1 else f"At {M} tokens", rows.iloc[0]
    rank = "the next best" if usual["value"] >= 1 else "the best"
    told = f"{where} {rank}, {plain_name(usual['backend'])}, takes {_ratio(usual)} our time"
    if len(rows) == 1:
        return f"{told}."
    serial = rows.loc["serial"]
    other = (
        "" if plain_name(serial["backend"]) == plain_name(usual["backend"]) else f" ({plain_name(serial['backend'])})"
    )
    return f"{told}, or {_ratio(serial)}{other} where calls cannot overlap."


def _ratio(row: pd.Series) -> str:
    return f"{row['value']:.2f}×{bracket(row['low'], row['high'])}"


def plain_name(backend: str) -> str:
    """The library alone: `PyTorch`, whatever it stores and whether its calls overlap."""
    return style.name(TWINS.get(backend, backend)).split(", ")[-1].removesuffix(" (aten)")


def _source(run) -> str:
    """Which kernels were timed, and when, where that is not the kernel of this checkout."""
    timed = run.cases.loc[run.cases["status"] == "ok", "backend"]
    names = dict.fromkeys(plain_name(peer) for peer in peers.PEERS if peer in set(timed))
    when = run.provenance["started"][:10]
    old = "" if tables.has_todays_kernels(run) else f" on {when}, with an older kernel of ours"
    return f"Timed against {', '.join(names)}{old}."

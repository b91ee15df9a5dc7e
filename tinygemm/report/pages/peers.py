"""What the chapter on peers and targets puts on its page: every case in a table, with quoted times marked."""

from __future__ import annotations

import pandas as pd

from tinygemm.report import peers, style
from tinygemm.report.words import interval_texts, shape_names


def contest(rows: pd.DataFrame) -> pd.DataFrame:
    """All cases of peers.contest, one row per problem: shape, M, int4_us, one column of text per other kernel, best
    (name of the best peer), value and interval (best peer / int4)."""
    best = peers.best_peers(rows)
    others = [backend for backend in (*peers.PEERS, peers.CONTEXT) if backend in set(rows["backend"])]
    texts = rows.assign(text=[_time(row) for _, row in rows.iterrows()])
    wide = texts.pivot(index="problem", columns="backend", values="text").reindex(best["problem"])
    result = best.assign(
        shape=shape_names(best),
        best=best["backend"].map(style.name),
        interval=interval_texts(best),
    )
    return result.assign(**{name: wide[name].fillna("–").to_numpy() for name in others})


def contest_columns(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Columns of `contest` for pages.table: those kernels that were timed or quoted."""
    others = [backend for backend in (*peers.PEERS, peers.CONTEXT) if backend in set(rows["backend"])]
    columns = {"shape": ("K×N", ""), "M": ("M", ".0f"), "int4_us": ("tuned, µs", ".2f")}
    columns |= {name: (f"{style.name(name)}, µs", "") for name in others}
    return columns | {"value": ("best peer / tuned", ".2f"), "interval": ("95 % interval", "")}


def reads(run) -> pd.DataFrame:
    """One row per shape and M: shape, then for each kind of reads the kernel's time, theirs, and the share reached."""
    parts = []
    for name, backend in {"overlap": peers.OVERLAPPING, "serial": peers.SERIAL}.items():
        rows = peers.fraction_of_reads(run, backend).set_index(["M", "K", "N"])
        parts.append(rows[["left_us", "right_us", "value"]].add_prefix(f"{name}_"))
    both = pd.concat(parts, axis=1).sort_index().reset_index()
    return both.assign(shape=shape_names(both))


def ratio_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a comparison with their shape, and their interval in words."""
    shape = shape_names(rows)
    return rows.assign(shape=shape, interval=interval_texts(rows))


def _time(row: pd.Series) -> str:
    return f"{row['other_us']:.2f}" if row["kind"] == "measured" else f"*{row['other_us']:.2f}* (quoted)"

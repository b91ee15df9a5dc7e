"""Text and tables of the chapter on published numbers: latencies beside ours, what the method does, all values."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report.base import style
from tinygemm.report.base.page import table
from tinygemm.report.base.words import shape_name, shape_names
from tinygemm.report.published.tables import MEASURED

LAUNCH = {
    "graph": "as a CUDA graph",
    "primed": "as a CUDA graph after a dependent launch",
    "eager": "launched from Python",
    "do_bench": "by triton.testing.do_bench",
}
PUBLISHED_NAMES = {"fp16-cublas": "FP16", "tiny-gemm": "earlier study", "marlin": "Marlin", "tileops": "TileOPs"}
L2 = {"cold": "a cold L2", "warm": "a warm L2", "hot": "a hot L2"}


def latencies(rows: pd.DataFrame) -> Markdown:
    """Published latencies beside ours; a sentence where the run has nothing to set beside them.

    rows: literature.latencies(table, model, published)
    """
    if rows.empty:
        return Markdown("*This run has nothing to set beside the published latencies.*")
    same = ["gpu_name", "K", "N", "ours", "launch", "ours_us", "low_us", "high_us", "kind"]
    shown = pd.DataFrame([_latency_row(group) for _, group in rows.groupby(same, sort=False)])
    columns = {"gpu": ("GPU", ""), "shape": ("K×N", ""), "theirs": ("published, µs", ""), "ours": ("ours, µs", "")}
    caption = (
        "Published latencies at M = 1, and ours at the same shape, launched as the source launched; what was not "
        "measured is in italics"
    )
    return table(shown, columns, "tab-published-latencies", caption)


def method_moves_it(rows: pd.DataFrame, K: int = 4096, N: int = 4096, M: int = 1) -> Markdown:
    """One sentence: what the choice of method alone does to a speedup of this run.

    rows: literature.by_method(table), at this M, K and N
    """
    if len(rows) < 2:
        return Markdown(f"*This run timed {shape_name((K, N))} in one way only.*")
    spans = [
        f"{row.speedup:.2f}× ({row.low:.2f} to {row.high:.2f}) {LAUNCH.get(row.launch, row.launch)} with "
        f"{L2.get(row.l2_state, row.l2_state)}"
        for row in rows.itertuples()
    ]
    return Markdown(
        f"In this run the same two kernels, FP16 by cuBLAS and our INT4, at {shape_name((K, N))} and M = {M} give a "
        f"speedup of {', '.join(spans[:-1])} and {spans[-1]}."
    )


def all_published(values: pd.DataFrame) -> Markdown:
    """Every quoted value in a folded table.

    values: published.load()
    """
    shown = values.assign(
        shape=shape_names(values),
        read=values["digitised"].map({True: "figure", False: "printed"}),
        source=[f"{{cite:p}}`{key}`" for key in values["source_key"]],
        where=values["note"].str.replace("|", "\\|"),
    )
    columns = {
        "source": ("source", ""), "gpu": ("GPU", ""), "M": ("M", ""), "shape": ("K×N", ""), "backend": ("kernel", ""),
        "quantity": ("quantity", ""), "value": ("value", ",.4g"), "read": ("read from", ""), "method": ("method", ""),
        "where": ("note", ""),
    }  # fmt: skip
    body = table(shown, columns, "tab-published", "Every value quoted in this report that others measured").data
    return Markdown(f"::::{{dropdown}} All {len(values)} published values\n\n{body}\n\n::::")


def _latency_row(group: pd.DataFrame) -> dict[str, str]:
    """Every published latency that the same latency of ours stands beside."""
    row = group.iloc[0]
    how = ", from Python" if row["launch"] == "eager" else ""
    ours = f"{style.name(row['ours'])}{how}: {row['ours_us']:,.1f} ({row['low_us']:,.1f} to {row['high_us']:,.1f})"
    theirs = [
        f"{PUBLISHED_NAMES.get(backend, backend)}: {value:,.1f}"
        for backend, value in zip(group["backend"], group["published_us"], strict=True)
    ]
    return {
        "gpu": row["gpu_name"].removeprefix("NVIDIA "),
        "shape": shape_name((row["K"], row["N"])),
        "theirs": "; ".join(theirs),
        "ours": ours if row["kind"] == MEASURED else f"*{ours}*, {row['kind']}",
    }

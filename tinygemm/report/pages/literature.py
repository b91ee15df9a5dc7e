"""What the chapter on published numbers puts on its page: latencies beside ours, what the method does, all values."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report import style
from tinygemm.report.literature import MEASURED
from tinygemm.report.pages.shared import table

LAUNCH = {
    "graph": "as a CUDA graph",
    "eager": "launched from Python",
    "do_bench": "by triton.testing.do_bench",
}
L2 = {"cold": "a cold L2", "warm": "a warm L2", "hot": "a hot L2"}


def latencies(rows: pd.DataFrame) -> Markdown:
    """Published latencies beside ours; a sentence where the run has nothing to set beside them.

    rows: literature.latencies(table, model, published)
    """
    if rows.empty:
        return Markdown("*This run has nothing to set beside the published latencies.*")
    shown = rows.assign(
        gpu=rows["gpu_name"].str.removeprefix("NVIDIA "),
        shape=[style.shape_name(shape) for shape in zip(rows["K"], rows["N"], strict=True)],
        theirs="`" + rows["backend"] + "`",
        mine="`" + rows["ours"] + "`",
        interval=[f"{low:,.1f} to {high:,.1f}" for low, high in zip(rows["low_us"], rows["high_us"], strict=True)],
        kind=rows["kind"].where(rows["kind"] == MEASURED, "*" + rows["kind"] + "*"),
        source=[f"{{cite:p}}`{key}`" for key in rows["source_key"]],
    )
    columns = {
        "gpu": ("GPU", ""), "shape": ("K×N", ""), "theirs": ("published", ""), "published_us": ("µs", ",.1f"),
        "mine": ("ours", ""), "ours_us": ("µs", ",.1f"), "interval": ("interval or band, µs", ""), "kind": ("", ""),
        "source": ("source", ""),
    }  # fmt: skip
    return table(shown, columns, "tab-published-latencies", "Published latencies at M = 1, and ours at the same shape")


def method_moves_it(rows: pd.DataFrame, K: int = 4096, N: int = 4096, M: int = 1) -> Markdown:
    """One sentence: what the choice of method alone does to a speedup of this run.

    rows: literature.by_method(table), at this M, K and N
    """
    if len(rows) < 2:
        return Markdown(f"*This run timed {K}×{N} in one way only.*")
    spans = [
        f"{row.speedup:.2f}× ({row.low:.2f} to {row.high:.2f}) {LAUNCH.get(row.launch, row.launch)} with "
        f"{L2.get(row.l2_state, row.l2_state)}"
        for row in rows.itertuples()
    ]
    return Markdown(
        f"In this run the same two kernels, FP16 by cuBLAS and our INT4, at {K}×{N} and M = {M} give a speedup of "
        f"{', '.join(spans[:-1])} and {spans[-1]}."
    )


def all_published(values: pd.DataFrame) -> Markdown:
    """Every quoted value in a folded table.

    values: published.load()
    """
    shown = values.assign(
        shape=[style.shape_name(shape) for shape in zip(values["K"], values["N"], strict=True)],
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

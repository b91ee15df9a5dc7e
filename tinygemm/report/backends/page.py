"""The appendix on backends: what each one is, how it was launched, and how its results were checked."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.backends import BACKENDS
from tinygemm.report.base import style
from tinygemm.report.base.page import _sources, folded
from tinygemm.report.kernel import page as checks

CONTENDERS = {
    "backend": ("Backend", ""),
    "what": ("What it is", ""),
    "bits": ("Bits per weight", ".3f"),
    "source": ("Config from", ""),
    "timed": ("Timed", ",.0f"),
    "not_timed": ("Not timed", ",.0f"),
}
ERRORS = {
    "name": ("Backend", ""),
    "dtype": ("Activations", ""),
    "checked": ("Cases checked", ",.0f"),
    "mismatch": ("Mismatches", ",.0f"),
    "rms_err": ("Worst RMS error", ".1e"),
    "max_err": ("Largest single error", ".1e"),
}


def contenders(run) -> pd.DataFrame:
    """One row per backend of a run: backend, what, bits (at the group size of most cases), source (of its launch
    configs; of many kinds only the first word), timed, not_timed (cases)."""
    cases = run.cases.assign(timed=run.cases["status"] == "ok")
    rows = cases.groupby("backend", sort=False).agg(
        bits=("bits_per_weight", lambda bits: bits.mode().min()),
        source=("config_source", _sources),
        timed=("timed", "sum"),
        all_cases=("timed", "size"),
    )
    rows = rows.reindex(style.in_order(rows.index)).reset_index()
    return rows.assign(
        what=[BACKENDS[name].what if name in BACKENDS else "–" for name in rows["backend"]],
        bits=rows["bits"].where(rows["bits"] > 0),
        not_timed=rows["all_cases"] - rows["timed"],
        backend="`" + rows["backend"] + "`",
    )


def backend_table(run) -> Markdown:
    """Every backend of the run, folded."""
    caption = "Backends of the run; bits include scales, the last columns count cases"
    return folded("Every backend of the run", contenders(run), CONTENDERS, "tab-contenders", caption)


def error_table(table: pd.DataFrame) -> Markdown:
    """The error of every backend, folded.

    table: report_table(run)
    """
    caption = "Errors against the float64 reference, in units of its RMS"
    return folded("Errors of every backend", checks.errors(table), ERRORS, "tab-errors", caption)

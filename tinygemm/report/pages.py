"""What a chapter puts on its page beside figures: verdict cards, numbered tables, and the numbers its prose quotes."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from myst_nb import glue

from tinygemm.report import tables
from tinygemm.report.verdicts import FAILS, HOLDS, UNDECIDED, Verdict

BADGE = {HOLDS: "bdg-success", FAILS: "bdg-danger", UNDECIDED: "bdg-warning"}


def quote(values: dict, prefix: str = "") -> None:
    """Make each value available to the prose as {glue:text}`prefix-key`; numbers as plain floats, words as they are."""
    for key, value in values.items():
        name = f"{prefix}-{key}" if prefix else key
        glue(name, value if isinstance(value, str) else float(value), display=False)


def card(letter: str, verdicts: dict[str, Verdict]) -> Markdown:
    """A finding with its state and sentence for each kernel.

    letter:   "A", "B" or "C"
    verdicts: verdicts.of_run(run)
    """
    tuned, simple = verdicts[letter], verdicts[f"{letter}_static"]
    lines = [f"- {_badge(verdict)} {verdict.sentence}" for verdict in (tuned, simple)]
    return Markdown("\n".join([f":::{{admonition}} {letter}. {tuned.claim}", ":class: finding", "", *lines, ":::"]))


def claim(verdict: Verdict) -> Markdown:
    """One claim, its state and its sentence, as a line of text."""
    return Markdown(f"**{verdict.claim}** {_badge(verdict)}\n\n{verdict.sentence}")


def table(frame: pd.DataFrame, columns: dict[str, tuple[str, str]], name: str, caption: str) -> Markdown:
    """A numbered table of the page.

    columns: column of `frame` -> (heading with its unit, format specification), in the order shown; a missing value is a dash
    name:    label, for {numref}
    """
    cells = {heading: [_cell(value, spec) for value in frame[column]] for column, (heading, spec) in columns.items()}
    alignment = ["left" if frame[column].dtype.kind not in "iuf" else "right" for column in columns]
    body = pd.DataFrame(cells).to_markdown(index=False, colalign=alignment, disable_numparse=True)
    return Markdown(f"```{{table}} {caption}\n:name: {name}\n\n{body}\n```")


def conditions(run) -> pd.DataFrame:
    """Under which conditions a run was measured: one row per condition, columns `condition` and `value`."""
    gpu, software, timed = run.gpu, run.provenance["software"], run.cases[run.cases["status"] == "ok"]
    summary = tables.report_table(run)
    rows = {
        "GPU": f"{gpu['name']}, {gpu['sm_count']} SMs, {gpu['l2_bytes'] / 2**20:.0f} MiB L2",
        "Power limit": _known(gpu.get("power_limit_w"), "{:.0f} W"),
        "ECC": {True: "on", False: "off", None: "not reported"}[gpu.get("ecc")],
        "Clocks": ("locked" if gpu.get("clocks_locked") else "not locked") + _clocks(timed),
        "Driver, CUDA": f"{_known(gpu.get('driver'))}, {_known(software.get('cuda'))}",
        "PyTorch, Triton, Python": ", ".join(_known(software.get(name)) for name in ("torch", "triton", "python")),
        "Nsight Compute": _known(software.get("ncu")),
        "Copy bandwidth, measured": f"{tables.copy_bandwidth_gb_s(summary):,.0f} GB/s, read and written",
        "Empty graph node, measured": f"{tables.empty_node_us(summary):.2f} µs",
        "Samples of one case": _span(timed["n_samples"]),
        "Recorded": f"{run.provenance['started']}, run `{run.run_id}`, commit `{run.provenance['commit'][:7]}`",
    }
    return pd.DataFrame({"condition": list(rows), "value": list(rows.values())})


def facts(run) -> dict:
    """What every chapter may quote about its run: GPU, run id, copy bandwidth, empty node, counts of cases."""
    summary = tables.report_table(run)
    status = run.cases["status"]
    return {
        "gpu": run.gpu["name"],
        "run_id": run.run_id,
        "copy_tb_s": tables.copy_bandwidth_gb_s(summary) / 1e3,
        "empty_node_us": tables.empty_node_us(summary),
        "cases": len(run.cases),
        "timed": (status == "ok").sum(),
        "samples": len(run.samples),
    }


def _badge(verdict: Verdict) -> str:
    return f"{{{BADGE[verdict.state]}}}`{verdict.state}`"


def _cell(value, spec: str) -> str:
    if pd.isna(value):
        return "–"
    return format(value, spec)


def _known(value, pattern: str = "{}") -> str:
    return "not reported" if value is None else pattern.format(value)


def _clocks(timed: pd.DataFrame) -> str:
    clocks = timed["sm_clock_mhz"].dropna()
    return f"; SM clock while timing {_span(clocks)} MHz" if len(clocks) else ""


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"

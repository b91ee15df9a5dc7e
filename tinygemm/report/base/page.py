"""The parts of a page beside figures: verdict cards, numbered tables, and the numbers its prose quotes."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from myst_nb import glue
from tabulate import tabulate

from tinygemm.hardware import GPUS
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.contrasts import primary_cases
from tinygemm.report.base.words import number

# neutral words in one neutral colour: a refuted claim of somebody else is no bad news
BADGE = {HOLDS: "supported", FAILS: "refuted", UNDECIDED: "open"}


def quote(values: dict, prefix: str = "") -> None:
    """Make each value available to the prose as {glue:text}`prefix-key`; numbers as plain floats, words as they are."""
    for key, value in values.items():
        name = f"{prefix}-{key}" if prefix else key
        glue(name, value if isinstance(value, str) else float(value), display=False)


def takeaway(text: str) -> Markdown:
    """The message of a chapter: one box at its head."""
    return Markdown(f":::{{admonition}} Takeaway\n:class: takeaway\n\n{text}\n:::")


def card(verdict: Verdict, refuted: str) -> Markdown:
    """A finding under a heading in the indicative, with the claim that was judged and the sentence that answers it.

    refuted: the heading where the run refutes the claim: what is so instead
    """
    heading = {HOLDS: verdict.claim, FAILS: refuted, UNDECIDED: f"Open: {verdict.claim}"}[verdict.state]
    # the badge stands beside what it judges: the heading of a refuted claim says the opposite of it
    judged = f"Claim: *{verdict.claim}*: {badge(verdict)}" if verdict.state == FAILS else badge(verdict)
    return Markdown(f":::{{admonition}} {heading}\n:class: finding\n\n{judged} {verdict.sentence}\n:::")


def badge(verdict: Verdict) -> str:
    """The state of a verdict as a word."""
    return f"{{bdg-muted}}`{BADGE[verdict.state]}`"


def table(frame: pd.DataFrame, columns: dict[str, tuple[str, str]], name: str, caption: str) -> Markdown:
    """A numbered table of the page.

    columns: column of `frame` -> (heading with its unit, format specification), in the order shown; NaN is a dash
    name:    label, for {numref}
    """
    headings = [heading for heading, _ in columns.values()]
    alignment = ["right" if frame[column].dtype.kind in "iuf" else "left" for column in columns]
    shown = [[_cell(row[column], spec) for column, (_, spec) in columns.items()] for _, row in frame.iterrows()]
    body = tabulate(shown, headings, tablefmt="pipe", colalign=alignment if shown else None, disable_numparse=True)
    return Markdown(f"```{{table}} {caption}\n:name: {name}\n\n{body}\n```")


def conditions(run, table: pd.DataFrame) -> pd.DataFrame:
    """Under which conditions a run was measured: one row per condition, columns `condition` and `value`.

    table: tables.report_table(run)
    """
    gpu, software, timed = run.gpu, run.provenance["software"], run.cases[run.cases["status"] == "ok"]
    rows = {
        "GPU": f"{gpu['name']}, {gpu['sm_count']} SMs, {gpu['l2_bytes'] / 2**20:.0f} MiB L2",
        "Power limit": _known(gpu.get("power_limit_w"), "{:.0f} W"),
        "ECC": {True: "on", False: "off", None: "not reported"}[gpu.get("ecc")],
        "Clocks": ("locked" if gpu.get("clocks_locked") else "not locked") + _clocks(timed),
        "Driver, CUDA": f"{_known(gpu.get('driver'))}, {_known(software.get('cuda'))}",
        "PyTorch, Triton, Python": ", ".join(_known(software.get(name)) for name in ("torch", "triton", "python")),
        "Nsight Compute": "did not profile this run" if run.counters.empty else _known(software.get("ncu")),
        "Copy bandwidth, measured": f"{tables.copy_bandwidth_gb_s(table):,.0f} GB/s, read and written",
        "Empty graph node, measured": f"{tables.empty_node_us(table):.2f} µs",
        "Graphs timed": "without a dependent launch before" if run.settled else "whatever was launched before",
        "Samples of one case": _span(timed["n_samples"]),
        "Kernels": tables.kernels(run),
        "Recorded": f"{run.provenance['started']}, run `{run.run_id}`, commit `{run.provenance['commit'][:7]}`",
    }
    return pd.DataFrame({"condition": list(rows), "value": list(rows.values())})


def facts(run, table: pd.DataFrame) -> dict:
    """The facts that every chapter may quote about its run: GPU, run id, copy bandwidth, empty node, counts of cases.

    table: tables.report_table(run)
    """
    status, spec = run.cases["status"], GPUS.get(run.gpu["key"])
    return {
        "gpu": run.gpu["name"],
        "peak_source": spec.source.split(";")[0] if spec else "of this GPU none is known here, so none is drawn",
        "run_id": run.run_id,
        "copy_tb_s": tables.copy_bandwidth_gb_s(table) / 1e3,
        "empty_node_us": tables.empty_node_us(table),
        "cases": len(run.cases),
        "timed": (status == "ok").sum(),
        "samples": len(run.samples),
    }


def shown(draw, rows: pd.DataFrame, *more, lacking: str, **options):
    """A figure of some rows; where the run has none, the sentence that says what it did not time.

    draw: a figure function whose first argument is `rows`
    """
    return draw(rows, *more, **options) if len(rows) else lacks(lacking)


def folded(title: str, rows: pd.DataFrame, columns: dict, name: str, caption: str) -> Markdown:
    """A long table that a click unfolds; where the run has no rows, the sentence that says so."""
    return dropdown(title, table(rows, columns, name, caption)) if len(rows) else lacks(f"what this table has: {title}")


def by_rule(run, suite: str) -> Markdown:
    """The number of cases of the tuned kernel in a suite that ran in a launch config that was not searched for them."""
    cases = primary_cases(tables.suite(run, suite).cases)
    source = cases.loc[cases["backend"] == "int4", "config_source"]
    asked = {part["name"] for part in run.provenance["parameters"].get("suites", [])}
    if suite not in asked or source.empty:
        return Markdown("*This run did not time the tuned kernel there.*")
    return Markdown(
        f"Of {len(source)} cases of the tuned kernel here, {(source == 'table').sum()} ran in a launch config that was "
        f"searched for that weight and number of tokens; the others took that of the nearest one that was, by the "
        f"library's rule, which need not be the fastest ({{doc}}`C_cases`)."
    )


def lacks(what: str) -> Markdown:
    """The sentence in place of something that the run did not time."""
    return Markdown(f"*This run did not time {what}.*")


def dropdown(title: str, content: Markdown) -> Markdown:
    """Content that a click unfolds: the whole of a table of which the chapter shows the point."""
    return Markdown(f"::::{{dropdown}} {title}\n\n{content.data}\n::::")


def _sources(values: pd.Series) -> str:
    found = sorted(set(filter(None, values)))
    if len(found) > 3:
        found = sorted({name.split()[0].rstrip(",") for name in found})
    return "; ".join(found) or "–"


def _cell(value, spec: str) -> str:
    if pd.isna(value):
        return "–"
    return number(value, spec) if spec else format(value)


def _known(value, pattern: str = "{}") -> str:
    return "not reported" if value is None else pattern.format(value)


def _clocks(timed: pd.DataFrame) -> str:
    clocks = timed["sm_clock_mhz"].dropna()
    return f"; SM clock while timing {_span(clocks)} MHz" if len(clocks) else ""


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def run_table(run, rows: pd.DataFrame) -> Markdown:
    """Under which conditions a run was measured, folded.

    rows: tables.report_table(run)
    """
    columns = {"condition": ("Condition", ""), "value": ("Value", "")}
    return folded("How this run was measured", conditions(run, rows), columns, "tab-run", "How this run was measured")

"""The first screen of README.md: its figure and its findings, written from a recorded run and never by hand."""

from __future__ import annotations

from pathlib import Path

from tinygemm.report import evidence, figures, tables, verdicts
from tinygemm.report.verdicts import FAILS, HOLDS, Verdict

FIGURE = "book/_static/headline.svg"
BEGIN, END = "<!-- findings: written by `make headline` -->", "<!-- end of findings -->"


def write(root: Path, run) -> None:
    """Draw the figure and put the findings of `run` between the marks of README.md; the same run, the same bytes."""
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    figures.save(figures.headline(tables.report_table(run)), root / FIGURE)
    readme.write_text(f"{before}{BEGIN}\n{findings(run)}{END}{after}", encoding="utf-8")


def findings(run) -> str:
    """The figure, the conditions and one line per finding, as Markdown."""
    found = verdicts.of_run(run)
    rows = [
        ("A. INT4 helps wide FFN shapes", "A", _speedups),
        ("B. The counters show the bottleneck shift", "B", _dram),
        ("C. INT4 loses on narrow projections, for want of amortised dequantisation", "C", _speedups),
    ]
    lines = [
        f"| {claim} | {_cell(found, key, words)} | {_cell(found, key + '_static', words)} |"
        for claim, key, words in rows
    ]
    return "\n".join([
        f"![Speedup of INT4 over FP16 at four decode projections on an {run.gpu['name']}]({FIGURE})",
        "",
        f"Measured on an {run.gpu['name']} at M = 1 with FP16 activations, one scale per 128 weights, cold L2,"
        f" CUDA graph (run `{run.run_id}`; the kernels are {tables.kernels(run)}):",
        "",
        "| An earlier study's finding | tuned INT4 kernel | simple INT4 kernel |",
        "|---|---|---|",
        *lines,
        "",
        " ".join(filter(None, [found["D"].sentence, evidence.primed_words(tables.report_table(run))])),
        "",
    ])  # fmt: skip


def _cell(found: dict[str, Verdict], key: str, words) -> str:
    """State and numbers; where INT4 loses, but not to dequantisation, that is said: the claim then fails by half."""
    loses, cause = (found.get(key.replace("C", part)) for part in ("C_loses", "C_cause"))
    half = loses and loses.state == HOLDS and cause.state == FAILS
    reason = ", slower, but not by dequantisation alone" if half else ""
    return f"**{found[key].state}**{words(found[key].numbers)}{reason}"


def _speedups(numbers: dict[str, float]) -> str:
    if "worst_speedup" not in numbers:
        return ""
    return f": {numbers['worst_speedup']:.2f}× to {numbers['best_speedup']:.2f}× FP16"


def _dram(numbers: dict[str, float]) -> str:
    if "fp16_dram" not in numbers:
        return ""
    alone = f": profiled alone, DRAM busy {numbers['fp16_dram']:.0%} in FP16, {numbers['int4_dram']:.0%} in INT4"
    if "int4_rate" not in numbers:
        return alone
    return f"{alone}; in a row, {numbers['fp16_rate']:.0%} and {numbers['int4_rate']:.0%} of the speed of a copy"

"""Text and tables of the first page: the answer, the reader's case, and the tables of findings and caveats."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.report.answer import figures
from tinygemm.report.answer import words as answer
from tinygemm.report.base import page as shared
from tinygemm.report.base import tables
from tinygemm.report.base.page import lacks, table
from tinygemm.report.base.words import bracket
from tinygemm.report.predict.page import no_model

FINDINGS = {"claim": ("Its claim", ""), "finding": ("What we find", ""), "why": ("Why", "")}
WAYS = {"how": ("Our INT4 kernel over FP16, M = 1", ""), "range": ("Speedup", "")}


def sentence(found: answer.Answer) -> Markdown:
    """The answer: whether, by how much and how far INT4 pays off, and the two words that this needs."""
    return Markdown(f"{answer.sentence(found)}\n\n{answer.terms()}")


def case(found: answer.Answer) -> Markdown:
    """Llama-3-8B on an A10G as a card, with the way to a case of one's own."""
    if found.case is None:
        return no_model()
    lines = [f"* {line}" for line in answer.case_lines(found.case)]
    lines.append(f"* Another model, GPU or M: {{doc}}`02_models`, or\n  `{answer.COMMAND}`. {answer.beyond()}")
    body = "\n".join(lines)
    return Markdown(f":::{{admonition}} {answer.case_title(found.case)}\n:class: case\n\n{body}\n:::")


def findings(found: answer.Answer) -> Markdown:
    """The earlier study's three findings as a table of three rows."""
    return table(found.findings, FINDINGS, "tab-findings", "Three findings, tested with a tuned kernel")


def ways(found: answer.Answer) -> Markdown:
    """Every way in which the run timed the kernel, and the comparison with the faster FP16 kernel."""
    if found.ways.empty:
        return lacks("the projections of the earlier study")
    names = [answer.way_name(row) for row in found.ways.itertuples()]
    spans = [answer.way_span(row) for row in found.ways.itertuples()]
    rows = pd.DataFrame({"how": [name[0].upper() + name[1:] for name in names], "range": spans})
    return table(rows, WAYS, "tab-ways", f"The speedup in every way that this run timed it, {answer.of_study()}")


def conditions(found: answer.Answer, run) -> Markdown:
    """The conditions of the run: one line, and everything in a fold."""
    rows = shared.conditions(run, tables.report_table(tables.only(run, run.cases["backend"].isin(tables.IDEALS))))
    columns = {"condition": ("Condition", ""), "value": ("Value", "")}
    everything = table(rows, columns, "tab-conditions", "How the run of this report was measured")
    return Markdown(f"{found.conditions}\n\n{shared.dropdown('All conditions', everything).data}")


def token(found: answer.Answer) -> Figure | Markdown:
    """The linear layers of one token with each kernel."""
    return shared.shown(figures.one_token, found.token, lacking="the linear layers of Llama 3 8B")


def takeaway(found: answer.Answer) -> Markdown:
    """Advice for the GPU that was measured, and for the one of the earlier study."""
    speedup = found.token.set_index("backend")["speedup"].get("int4", np.nan)
    advised = "quantise every projection but `lm_head`" if speedup > 1 else "ask for your model before you quantise"
    told = [f"On the {found.gpu.removeprefix('NVIDIA ')}: {advised}."]
    if (case := found.case) is not None:
        totals, name = case.advice.totals, case.advice.gpu.removeprefix("NVIDIA ")
        how = "Projected for" if case.projected else "On"
        told.append(
            f"{how} an {name}: {totals['speedup']:.1f}×"
            f"{bracket(totals['speedup_low'], totals['speedup_high'], '.1f')} per token at M = 1. Key and value alone: "
            f"{case.kv['share']:.0%} of a token."
        )
    return shared.takeaway(" ".join(told))

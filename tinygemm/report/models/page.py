"""Text and tables of the chapter on a user's model: advice, and every case in one table."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.digest import same_code
from tinygemm.hardware import gpu_spec
from tinygemm.model_config import model_named
from tinygemm.report.base.page import table
from tinygemm.report.base.tables import GROUP_SIZE
from tinygemm.report.base.words import bracket, shape_names
from tinygemm.report.compare.tables import newest_others
from tinygemm.report.models import advice
from tinygemm.report.models.tables import NOT_QUANTISABLE, NOT_TIMED, SLOWER, TIE
from tinygemm.report.predict.model import PREDICTED, CostModel
from tinygemm.report.predict.page import no_model

# the answer first: a phone shows the first few columns
ADVICE = {
    "layer": ("projection", ""),
    "gain": ("speedup over cuBLAS", ""),
    "quantise": ("quantise?", ""),
    "shape": ("K×N", ""),
    "fp16": ("FP16 (cuBLAS), µs", ""),
    "int4": ("INT4, µs", ""),
    "limiter": ("limit of INT4", ""),
}


def advise(fitted: CostModel | None, model: str, name: str, gpu: str = "", M: int = 1, tp: int = 1) -> Markdown:
    """A table of advice and the totals of a token; a sentence where the run cannot answer.

    fitted: pages.model_of(run)         name: label of the table
    gpu:    the key of another GPU; "": the one of the run
    """
    if fitted is None:
        return no_model()
    try:
        found = advice.advise(fitted, model_named(model), gpu_spec(gpu) if gpu else None, M, tp)
    except ValueError as error:
        return Markdown(f"*No advice from this run: {error}.*")
    rows = pd.DataFrame([_advice_row(row) for row in found.rows.itertuples()])
    what, source = advice.heading(found)
    shown = table(rows, ADVICE, name, f"Advice for {what}; predicted values in italics").data
    return Markdown(f"{shown}\n\n{' '.join(advice.sentences(found))} The numbers are {source}.")


def tested(run) -> Markdown:
    """The GPUs on which a projection of the tuned kernel was held against a measurement of the same kernel."""
    names = [other.gpu["name"] for other in newest_others(run) if same_code(run.provenance, other.provenance)]
    if not names:
        return Markdown("No value of the tuned kernel on a second GPU is among these tests.")
    return Markdown(f"The tuned kernel was also measured on the {' and '.join(names)}: the tests include that.")


def every_case(cases: pd.DataFrame) -> Markdown:
    """Every projection of every model in a folded table: one row per model, degree and projection, one column per M.

    cases: projections.every_projection(run)
    """
    cases = cases.assign(cell=[_cell(row) for row in cases.itertuples()])
    keys = ["model", "tp", "layer", "K", "N"]
    order = cases[keys].drop_duplicates()
    wide = cases.pivot(index=keys, columns="M", values="cell").reset_index()
    wide = order.merge(wide, on=keys, validate="one_to_one")
    size = wide.merge(cases.drop_duplicates(keys), on=keys, validate="one_to_one")["group_size"]
    wide = wide.assign(shape=shape_names(wide) + size.map(_grouped))
    tokens = sorted(set(cases["M"]))
    columns = {"model": ("model", ""), "tp": ("GPUs", ""), "layer": ("projection", ""), "shape": ("K×N", "")}
    columns |= {M: (f"M = {M}", "") for M in tokens}
    caption = "Speedup of INT4 over the best FP16, with its 95 % interval; bold: FP16 is faster; (tie): not told apart"
    body = table(wide, columns, "tab-every-case", caption).data
    return Markdown(f"::::{{dropdown}} All {len(cases)} cases\n\n{body}\n\n::::")


def _grouped(group_size: float) -> str:
    return "" if pd.isna(group_size) or group_size == GROUP_SIZE else f", groups of {group_size:.0f}"


def _advice_row(row) -> dict[str, str]:
    """The cells of the table: predicted numbers in italics, a group size where it is not the usual one."""
    numbers = {
        "fp16": f"{row.fp16_us:,.1f}",
        "int4": "–" if pd.isna(row.int4_us) else f"{row.int4_us:,.1f}",
        "gain": _interval(row.speedup, row.speedup_low, row.speedup_high),
    }
    if row.kind == PREDICTED:
        numbers = {name: text if text == "–" else f"*{text}*" for name, text in numbers.items()}
    words = {"layer": f"`{row.layer}`", "shape": f"{row.K}×{row.N}{_grouped(row.group_size)}"}
    return words | numbers | {"limiter": row.limiter, "quantise": row.quantise}


def _interval(value: float, low: float, high: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}×{bracket(low, high)}"


def _cell(row) -> str:
    if row.state in (NOT_TIMED, NOT_QUANTISABLE):
        return row.state
    text = _interval(row.speedup, row.speedup_low, row.speedup_high)
    return {SLOWER: f"**{text}**", TIE: f"{text} (tie)"}.get(row.state, text)

"""The view of a reader: tables read back from the page with a value of its own in every column, and badges by state."""

import re

import pytest
import synthetic

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import page, tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.words import bracket
from tinygemm.report.dequantisation import page as dequantisation_page
from tinygemm.report.token import page as token_page

PLANTED = {
    "fp16-cublas": 40.0, "int4": 20.0, "int4-no-dequant": 15.0, "int4-load-only": 10.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A run in which a backend takes its planted time at the first projection, and a tenth more at each one after."""
    truth, factors = synthetic.Truth(), {}
    for place, (K, N) in enumerate(STUDY_SHAPES):
        for backend, us in PLANTED.items():
            planted = us * 1.1**place
            factors |= {(backend, K, N): planted / truth.latency_us(backend, GemmProblem(1, N, K))}
    run = synthetic.load(
        tmp_path_factory.mktemp("run"), truth=synthetic.Truth(factors=factors, noise=1e-3, drift=0.0), m_list=(1,),
        shapes=STUDY_SHAPES, backends=tuple(PLANTED), modes=(("graph", "cold"),), counters=False,
    )  # fmt: skip
    return tables.report_table(run)


def shown(markdown):
    """Headings and cells of a table, cell by cell as text."""
    lines = [line for line in markdown.data.splitlines() if line.startswith("|")]
    headings, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return headings, rows


def column(headings, word):
    (place,) = [place for place, heading in enumerate(headings) if word in heading]
    return place


def test_the_table_of_weights_has_floor_and_time_of_each_side_under_its_own_heading(table):
    headings, rows = shown(token_page.weight_table(table))
    assert [row[1] for row in rows] == [f"{K}×{N}" for K, N in STUDY_SHAPES]
    for place, (row, (K, N)) in enumerate(zip(rows, STUDY_SHAPES, strict=True)):
        floors = [at for at, heading in enumerate(headings) if "floor" in heading]
        for word, backend, floor in (("library", "fp16-cublas", floors[0]), ("ours", "int4", floors[1])):
            assert float(row[column(headings, word)]) == pytest.approx(PLANTED[backend] * 1.1**place, abs=0.06)
            problem = GemmProblem(1, N, K)
            bits = 16.0 if backend == "fp16-cublas" else problem.int4_bits_per_weight()
            truth = synthetic.Truth()
            expected = problem.bytes_min(bits) / (truth.copy_gb_s * 1e3) + truth.empty_us
            assert float(row[floor]) == pytest.approx(expected, rel=0.02, abs=0.06)


def test_two_worked_numbers_are_the_bytes_the_floor_and_the_time(table):
    lines = token_page.worked(table).data.splitlines()
    assert len(lines) == 2
    for line, shape in zip(lines, (STUDY_SHAPES[0], STUDY_SHAPES[2]), strict=True):
        place = STUDY_SHAPES.index(shape)
        told = [float(us) for us in re.findall(r"\*\*([\d.]+) µs\*\*", line)]
        assert told == pytest.approx([PLANTED[b] * 1.1**place for b in ("fp16-cublas", "int4")], abs=0.06)


def test_the_table_of_what_is_left_out_has_every_kernel_under_its_own_heading(table):
    headings, rows = shown(dequantisation_page.twin_table(table))
    for place, row in enumerate(rows):
        for word, backend in {
            "weight-read": "int4-load-only",
            "multipl": "int4-no-dequant",
            "dequantises": "int4",
        }.items():
            planted = PLANTED[backend] * 1.1**place
            assert float(row[column(headings, word)]) == pytest.approx(planted, rel=5e-3)
        assert row[column(headings, "dequantisation")] == "25%"


@pytest.mark.parametrize(
    ("state", "word", "heading"),
    [(HOLDS, "supported", "It wins"), (FAILS, "refuted", "It does not win"), (UNDECIDED, "open", "Open: It wins")],
)
def test_a_card_has_the_finding_as_its_heading_and_a_neutral_badge(state, word, heading):
    said = page.card(Verdict("It wins", state, "Sentence.", {}), "It does not win").data
    assert said.splitlines()[0] == f":::{{admonition}} {heading}"
    assert f"{{bdg-muted}}`{word}`" in said
    assert ("Claim: *It wins*: {bdg-muted}`refuted`" in said) == (state == FAILS), (
        "what was refuted is named where the heading denies it"
    )
    assert "Sentence." in said


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(1.0, 1.2, " (1.00 to 1.20)"), (1.0, 1.009, ""), (1.0, 1.011, " (1.00 to 1.01)"), (0.001, 0.0014, ""),
     (float("nan"), 1.0, ""), (0.991, 1.004, " (0.99 to 1.00)"), (0.101, 0.1049, "")],
)  # fmt: skip
def test_an_interval_is_printed_where_it_says_something(low, high, told):
    """Nothing within half a percent of its middle, nothing of equal ends as written."""
    assert bracket(low, high) == told

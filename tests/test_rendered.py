"""What a reader sees: tables read back from the page with a value of its own in every column, and badges by state."""

import json

import pytest
import synthetic
from conftest import ROOT

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import page, tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.dequantisation import page as dequantisation_page
from tinygemm.report.speedup import page as speedup_page

PLANTED = {
    "fp16-cublas": 40.0, "int4-static": 30.0, "int4": 20.0, "int4-no-dequant": 15.0, "int4-load-only": 10.0,
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


def shown(table, function):
    """Headings and cells of the table on a page that is made by `<module>.<function>`, cell by cell as text."""
    cells = [
        "".join(cell["source"])
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    (source,) = [cell for cell in cells if f".{function}(table)" in cell]
    names = {"table": table, "page": page, "speedup_page": speedup_page, "dequantisation_page": dequantisation_page}
    lines = [line for line in eval(source, names).data.splitlines() if line.startswith("|")]
    headings, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return headings, rows


def column(headings, word):
    (place,) = [place for place, heading in enumerate(headings) if word in heading]
    return place


def test_the_table_of_projections_has_every_kernel_under_its_own_heading(table):
    headings, rows = shown(table, "projections")
    assert [row[0] for row in rows] == [f"{K}×{N}" for K, N in STUDY_SHAPES]
    for place, row in enumerate(rows):
        for word, backend in {"FP16": "fp16-cublas", "simple": "int4-static", "tuned": "int4"}.items():
            at = column(headings, word)
            assert float(row[at]) == pytest.approx(PLANTED[backend] * 1.1**place, rel=5e-3)
            if backend != "fp16-cublas":  # its speedup stands beside it
                assert float(row[at + 1]) == pytest.approx(PLANTED["fp16-cublas"] / PLANTED[backend], abs=0.011)


def test_the_table_of_what_is_left_out_has_every_kernel_under_its_own_heading(table):
    headings, rows = shown(table, "twins")
    for place, row in enumerate(rows):
        for word, backend in {
            "weight-read": "int4-load-only",
            "multipl": "int4-no-dequant",
            "dequantises": "int4",
        }.items():
            planted = PLANTED[backend] * 1.1**place
            assert float(row[column(headings, word)]) == pytest.approx(planted, rel=5e-3)
        assert row[column(headings, "dequantisation")] == "25%"


@pytest.mark.parametrize(("state", "role"), [(HOLDS, "success"), (FAILS, "danger"), (UNDECIDED, "warning")])
def test_a_state_has_the_badge_of_its_colour(state, role):
    """The class of the badge on the page follows from the role: `{bdg-success}` is of class `sd-bg-success`."""
    other = Verdict("claim", HOLDS if state != HOLDS else FAILS, "Sentence.", {})
    said = page.card("A", {"A": Verdict("claim", state, "Sentence.", {}), "A_static": other}).data
    assert f"{{bdg-{role}}}`{state}`" in said


def test_a_card_says_which_kernel_each_answer_is_of():
    both = {"A": Verdict("claim", HOLDS, "First.", {}), "A_static": Verdict("claim", FAILS, "Second.", {})}
    lines = [line for line in page.card("A", both).data.splitlines() if line.startswith("{bdg-")]
    assert [("tuned kernel" in line, "simple kernel" in line) for line in lines] == [(True, False), (False, True)]
    assert [line.split()[-1] for line in lines] == ["First.", "Second."]
    assert "kernel" not in page.card("A", {"A": both["A"]}).data

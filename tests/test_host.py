"""A slow host: its groups are named by one function, and no card, table, figure or sentence rests on them."""

import dataclasses

import pytest
import synthetic

from tinygemm.problem import REPORT_SHAPES, STUDY_SHAPES
from tinygemm.report.base import host, tables
from tinygemm.report.base.claims import FAILS, UNDECIDED
from tinygemm.report.dequantisation import claims as dequantisation_claims
from tinygemm.report.dequantisation import tables as causes
from tinygemm.report.gains import ladder, launch, launch_claims, launch_figures, launch_page
from tinygemm.report.predict import model as costmodel
from tinygemm.report.published import tables as literature
from tinygemm.report.trust import tables as evidence
from tinygemm.report.trust import ways

BACKENDS = (
    "fp16-cublas", "fp16-triton", "int4", "int4-serial", "int4-load-only", "int4-no-dequant", "int4-naive-dequant",
    "int4-no-split", "aten-int4mm",
)  # fmt: skip
NARROWEST, SQUARE = REPORT_SHAPES[0], STUDY_SHAPES[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    truth = synthetic.Truth(noise=0.002, drift=0.0, host_us=14.0)
    return synthetic.load(
        tmp_path_factory.mktemp("run"), truth=truth, m_list=(1,), shapes=REPORT_SHAPES, backends=BACKENDS,
        modes=(("graph", "cold"), ("eager", "cold")), counters=False,
    )  # fmt: skip


def on_a_slow_host(run, *shapes, factor=1.6):
    """The run in which every call from Python of some groups took longer, whatever was called."""
    cases = run.cases[(run.cases["launch"] == "eager") & tables.at_shapes(run.cases, shapes)]
    latency = run.samples["latency_us"]
    latency = latency.where(~run.samples["case_id"].isin(cases["case_id"]), factor * latency)
    return dataclasses.replace(run, samples=run.samples.assign(latency_us=latency))


@pytest.fixture(scope="module")
def slow(run):
    return on_a_slow_host(run, NARROWEST, SQUARE)


@pytest.fixture(scope="module")
def table(slow):
    return tables.report_table(slow)


def test_the_planted_groups_are_named_and_no_other(run, table):
    assert host.slow_groups(tables.report_table(run)) == set()
    assert host.slow_groups(table) == {(1, *NARROWEST), (1, *SQUARE)}


def test_a_run_keeps_every_graph_and_the_times_from_python_of_steady_groups(slow):
    kept, mine = host.steady_run(slow).cases, slow.cases
    assert (kept["launch"] == "graph").sum() == (mine["launch"] == "graph").sum()
    left_out = mine[~mine["case_id"].isin(kept["case_id"])]
    assert set(zip(left_out["K"], left_out["N"], strict=True)) == {NARROWEST, SQUARE}
    assert set(left_out["backend"]) == set(BACKENDS)


def test_without_the_kernel_that_tells_nothing_is_left_out(run):
    bare = tables.only(run, run.cases["backend"] != host.ALIKE)
    assert len(host.steady_run(bare).cases) == len(bare.cases)


def test_cards_and_tables_of_the_chapter_take_other_groups(slow, table):
    found = launch_claims.of_launch(slow, table)
    assert found["hides"].numbers["n"] == len(REPORT_SHAPES) - 2
    assert "4096×4096" in found["hides"].sentence.split("Left out")[1]
    assert not {NARROWEST, SQUARE} & set(launch.gains(table)[["K", "N"]].itertuples(index=False, name=None))
    for row in (launch.host_costs(table).iloc[0], launch.host_comparison(slow).iloc[0]):
        assert (row["K"], row["N"]) == REPORT_SHAPES[1], "the smallest weight of a steady host"
    assert launch.host_bound(table)["host_us"] == pytest.approx(14.0, rel=0.02)


def test_a_step_with_a_slow_group_has_no_sum_from_python_and_says_why(run, table):
    step, steady = launch.decode_step(table), launch.decode_step(tables.report_table(run))
    assert steady.notna().all(axis=None)
    assert step.set_index("projection")["int4_eager"].isna().tolist() == [False, True, False, False, True, True]
    assert step["int4_graph"].notna().all()
    assert "4096×4096" in launch_page.token(step).data
    assert "ms from Python" in launch_page.token(steady).data


def test_where_every_group_of_a_question_is_slow_the_verdict_is_open(run):
    every = on_a_slow_host(run, NARROWEST, SQUARE)
    every = tables.only(every, tables.at_shapes(every.cases, (NARROWEST, SQUARE, REPORT_SHAPES[2], REPORT_SHAPES[1])))
    asked = tables.only(
        every, (every.cases["backend"] == host.ALIKE) | tables.at_shapes(every.cases, (NARROWEST, SQUARE))
    )
    found = launch_claims.of_launch(asked, tables.report_table(asked))
    assert launch_claims.of_launch(run, tables.report_table(run))["hides"].state == FAILS
    assert (found["hides"].state, found["host"].state) == (UNDECIDED, UNDECIDED)


def test_other_chapters_leave_the_slow_groups_out_too(slow, table):
    rows = causes.removals(slow)
    assert not tables.at_shapes(rows[rows["from_python"] != ""], [SQUARE]).any()
    assert dequantisation_claims.of_run(slow)["cause_square"].state == UNDECIDED
    assert dequantisation_claims.of_run(slow)["cause_square_graph"].state != UNDECIDED
    steps = ladder.steps(slow)
    assert not tables.at_shapes(steps[steps["step"].str.contains("launch|eager")], [SQUARE]).any()
    errors = evidence.errors(slow)
    assert set(errors.loc[errors["way"] == "eager", "N"]) == {1024, 14336, 4096}
    assert not tables.at_shapes(errors[errors["way"] == "eager"], [SQUARE]).any()
    assert set(literature.by_method(table)["launch"]) == {"graph"}
    seen = costmodel.observations(slow)
    assert not tables.at_shapes(seen[seen["launch"] == "eager"], [SQUARE]).any()
    seen = ways.speedups(slow)
    assert not tables.at_shapes(seen[seen["way"].str.contains("Python")], [SQUARE]).any()


def test_no_figure_shows_a_time_of_a_slow_group(run, slow, table):
    drawn, usual = (launch_figures.launch_gain(of) for of in (table, tables.report_table(run)))
    assert len(drawn.axes[0].get_yticks()) == len(usual.axes[0].get_yticks()) - 2
    (ax,) = launch_figures.host_floor(table).axes
    assert 512 not in {x for line in ax.lines for x in line.get_xdata()}

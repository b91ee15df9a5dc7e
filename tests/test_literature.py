"""Published numbers beside ours: never in each other's place, and a verdict that either side can win."""

from dataclasses import replace

import pandas as pd
import pytest
import synthetic

from tinygemm import published
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.predict import against_published
from tinygemm.report.predict import model as costmodel
from tinygemm.report.published import figures as published_figures
from tinygemm.report.published import tables as literature
from tinygemm.report.published.claims import at_least_published

KEYS = ["gpu", "M", "K", "N", "backend"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return synthetic.load(tmp_path_factory.mktemp("run"), m_list=(1, 8), n_samples=12)


@pytest.fixture(scope="module")
def table(run):
    return tables.report_table(run)


@pytest.fixture(scope="module")
def model(run):
    return costmodel.fit(run)


@pytest.fixture(scope="module")
def rows(table, model):
    return literature.beside(table, model, published.load())


def test_every_published_speedup_is_there_unchanged(rows):
    quoted = published.load()
    quoted = quoted[quoted["quantity"] == "speedup"]
    shown = rows[rows["kind"] == "published"]
    assert shown[KEYS].to_numpy().tolist() == quoted[KEYS].to_numpy().tolist()
    assert shown["value"].tolist() == quoted["value"].tolist()
    assert shown["source_key"].ne("").all()


def test_a_value_read_off_a_figure_has_its_reading_error(rows):
    shown = rows[rows["kind"] == "published"]
    width = shown["high"] - shown["low"]
    assert (width[shown["digitised"]] > 0.09).all()
    assert (width[~shown["digitised"].astype(bool)] == 0).all()


def test_measured_rows_are_of_this_run_and_its_gpu_only(rows, table):
    measured = rows[rows["kind"] == "measured"]
    assert set(measured["gpu_name"]) == {"NVIDIA H200"}
    primary = tables.primary(table).set_index(["backend", "M", "K", "N"])["speedup_vs_fp16"]
    for row in measured.itertuples():
        assert row.value == primary[row.backend, row.M, row.K, row.N]


def test_projections_are_to_the_gpus_of_the_sources_and_have_a_band(rows):
    projected = rows[rows["kind"] == "projected"]
    assert {"rtx-3090", "a100", "h100", "a10", "a10g"} == set(projected["gpu"])
    assert (projected["low"] < projected["value"]).all()
    assert (projected["value"] < projected["high"]).all()


def test_without_a_model_nothing_is_projected_and_the_figure_still_stands(table):
    rows = literature.beside(table, None, published.load())
    assert set(rows["kind"]) == {"published", "measured"}
    verdict = at_least_published(literature.against(rows))
    assert (verdict.state, verdict.numbers) == (UNDECIDED, {})
    assert published_figures.published_speedups(rows).axes


def test_on_a_gpu_of_the_literature_ours_is_measured_not_projected(tmp_path):
    here = synthetic.load(tmp_path, gpu="a10g", m_list=(1,), n_samples=12, modes=(("graph", "cold"),))
    rows = literature.beside(tables.report_table(here), costmodel.fit(here), published.load())
    ours = literature.of_ours(rows)
    assert set(ours.loc[ours["gpu"] == "a10g", "kind"]) == {"measured"}
    assert set(ours.loc[ours["gpu"] != "a10g", "kind"]) == {"projected"}
    assert not ours.duplicated(["gpu", "M", "K", "N"]).any()


def test_a_gpu_that_nobody_knows_is_quoted_and_not_projected(table, model):
    quoted = published.load().assign(gpu="abacus")
    assert set(literature.beside(table, model, quoted)["kind"]) == {"published", "measured"}


def test_a_kernel_that_computes_a_part_is_no_bar(rows):
    assert "tiny-gemm" not in set(literature.against(rows)["backend"])


# --- the verdict ----------------------------------------------------------------------------------------------------


def with_int4(model, factor):
    """The model with a tuned kernel that takes `factor` times as long."""
    int4 = model.backends["int4"]
    terms = {name: getattr(int4.terms, name) * factor for name in ("start_us", "token_us", "serial_ns", "weight_ps")}
    terms["efficiency"] = int4.terms.efficiency / factor
    slower = replace(int4, terms=replace(int4.terms, **terms))
    return replace(model, backends=model.backends | {"int4": slower})


def judge(table, model):
    return at_least_published(literature.against(literature.beside(table, model, published.load())))


def test_a_much_faster_kernel_holds_and_a_much_slower_one_fails(table, model):
    faster, slower = judge(table, with_int4(model, 0.3)), judge(table, with_int4(model, 4.0))
    assert faster.state == HOLDS
    assert faster.numbers["above"] == faster.numbers["cases"]
    assert slower.state == FAILS
    assert slower.numbers["below"] > 0
    assert "Farthest below: " in slower.sentence


def test_a_band_that_covers_a_published_value_leaves_it_undecided(rows):
    compared = literature.against(rows).head(1).copy()
    compared[["ours", "ours_low", "ours_high"]] = compared["value"].iloc[0], 0.5, 9.0
    assert at_least_published(compared).state == UNDECIDED


def test_one_call_alone_stands_beside_values_of_the_same_gpu_and_decides_nothing(tmp_path):
    """Planted: on this GPU in a graph 3.7 times at most, and by do_bench at half the speed of FP16."""
    slow = synthetic.Truth(factors={"int4": 0.4})
    modes = (("graph", "cold"), ("do_bench", "cold"))
    here = synthetic.load(tmp_path, gpu="a10g", truth=slow, m_list=(1,), n_samples=12, modes=modes, counters=False)
    table = tables.report_table(here)
    timed = table[(table["launch"] == "do_bench") & (table["backend"] == "int4")]
    ours = timed.set_index(["M", "K", "N"])["speedup_vs_fp16"]
    shape = {"M": 1, "K": 4096, "N": 4096}
    value = ours[1, 4096, 4096]
    quoted = [
        {
            "gpu_name": "NVIDIA A10G",
            "backend": "x",
            "low": value * times,
            "high": value * times,
            "value": value * times,
            "ours": 9.0,
            "ours_low": 9.0,
            "ours_high": 9.0,
            **shape,
        }
        for times in (0.9, 1.1)
    ]
    compared = pd.DataFrame([*quoted, quoted[1] | {"gpu_name": "NVIDIA A10"}])
    alone = literature.one_call_alone(table, compared)
    verdict = at_least_published(compared, alone)
    assert alone["alone"].tolist() == [value, value]
    assert (verdict.numbers["alone"], verdict.numbers["alone_below"]) == (2, 1)
    assert verdict.state == at_least_published(compared).state == HOLDS


# --- latencies and method -------------------------------------------------------------------------------------------


def test_latencies_stand_beside_the_same_kernel_where_the_run_has_it(table, model):
    rows = literature.latencies(table, model, published.load())
    fp16 = rows[rows["backend"] == "fp16-cublas"]
    assert set(fp16["ours"]) == {"fp16-cublas"}
    assert set(rows.loc[rows["backend"] == "marlin", "ours"]) == {"int4"}
    assert set(rows.loc[rows["gpu_name"] == "NVIDIA H200", "kind"]) == {"predicted"}
    assert set(fp16["kind"]) == {"projected"}
    assert "dequant-only" not in set(rows["backend"])


def test_a_published_shape_that_the_run_timed_on_that_gpu_is_measured(table, model):
    quoted = published.load()
    quoted = quoted[quoted["source_key"] == "tileops1874"].assign(K=4096, N=4096)
    rows = literature.latencies(table, model, quoted)
    assert set(rows["kind"]) == {"measured"}
    truth = synthetic.Truth().latency_us("int4", synthetic.GemmProblem(1, 4096, 4096))
    assert rows["ours_us"].iloc[0] == pytest.approx(truth, rel=0.03)


def test_without_a_model_only_what_was_timed_has_a_latency(table):
    assert literature.latencies(table, None, published.load()).empty


def test_the_method_alone_moves_a_speedup(table):
    rows = literature.by_method(table).set_index(["launch", "l2_state"])["speedup"]
    assert set(rows.index) == {("graph", "cold"), ("graph", "hot"), ("eager", "cold"), ("eager", "hot")}
    problem, truth = synthetic.GemmProblem(1, 4096, 4096), synthetic.Truth()
    for launch, l2_state in rows.index:
        expected = [truth.latency_us(name, problem, launch, l2_state) for name in ("fp16-cublas", "int4")]
        assert rows[launch, l2_state] == pytest.approx(expected[0] / expected[1], rel=0.03)


def test_a_time_by_wall_clock_is_projected_from_python_as_the_scores_do(table, model):
    """One function decides for both pages: what is scored a hit lies inside the band that the table prints."""
    quoted = published.load()
    shown = literature.latencies(table, model, quoted)
    ours = shown[(shown["source_key"] == "zhan2025tinygemm") & (shown["kind"] == "projected")]
    assert set(ours["launch"]) == {"eager"}
    assert set(shown.loc[shown["source_key"] == "tileops1874", "launch"]) == {"graph"}
    scored = against_published.compare(model, quoted[quoted["quantity"] == "latency_us"])
    keys = ["source_key", "M", "K", "N", "backend"]
    both = scored.merge(shown[shown["ours"] == shown["backend"]], on=keys)
    assert len(both) >= 4
    for ours, theirs in (("launch_x", "launch_y"), ("predicted", "ours_us"), ("low", "low_us"), ("high", "high_us")):
        assert both[ours].tolist() == both[theirs].tolist()
    inside = both["published_us"].between(both["low_us"], both["high_us"])
    assert inside.tolist() == (both["result"] == "hit").tolist()

"""The chapter on one token, and what pages say of a run: planted times, bytes and decode steps come out again."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import synthetic

from tinygemm.models import MODELS, projections
from tinygemm.problem import REPORT_SHAPES, STUDY_SHAPES, GemmProblem
from tinygemm.report.base import page, tables
from tinygemm.report.gains import page as gains
from tinygemm.report.peers import page as peers
from tinygemm.report.regimes import page as regimes
from tinygemm.report.token import figures
from tinygemm.report.token import page as token
from tinygemm.report.trust import page as trust
from tinygemm.report.trust import tables as evidence

MODEL = MODELS["llama-3-8b"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    backends = ("fp16-cublas", "fp16-triton", "int4", "int4-serial")
    return synthetic.load(tmp_path_factory.mktemp("run"), m_list=(1,), shapes=REPORT_SHAPES, backends=backends)


def test_layers_of_a_token_are_the_planted_times_of_its_projections(run):
    rows = token.by_projection(run, tables.report_table(run))
    assert set(rows["backend"]) == {"fp16-cublas", "fp16-triton", "int4", "int4-serial"}
    truth = synthetic.Truth()
    for backend, of in rows.groupby("backend"):
        planted = sum(truth.latency_us(backend, GemmProblem(1, each.N, each.K)) for each in projections(MODEL))
        assert of["ms"].sum() == pytest.approx(MODEL.layers * planted / 1e3, rel=0.02)


def test_nearness_to_the_floor_is_that_of_the_planted_times(run):
    table, truth = tables.report_table(run), synthetic.Truth()
    found = token.of_floors(table)
    for place, (K, N) in (("narrow", STUDY_SHAPES[0]), ("wide", STUDY_SHAPES[2])):
        for name, backend, bits in (("fp16", "fp16-cublas", 16), ("int4", "int4", 4.125)):
            problem = GemmProblem(1, N, K)
            floor = problem.bytes_min(bits) / truth.copy_gb_s / 1e3 + tables.empty_node_us(table)
            assert found[f"{place}_{name}"] == pytest.approx(floor / truth.latency_us(backend, problem), rel=0.02)


def test_shares_of_the_gain_are_of_its_factors_and_no_part_is_more_than_all(run):
    found = gains.facts(run, tables.report_table(run))
    for place in ("narrow", "wide"):
        whole = found[f"{place}_bits"] * found[f"{place}_rest"]
        share = min(1, max(0, math.log(found[f"{place}_bits"]) / math.log(whole)))
        assert found[f"{place}_bits_share"] == pytest.approx(share)
        assert found[f"{place}_rest_share"] == pytest.approx(1 - share)


def test_bytes_of_a_token_are_every_weight_once_and_lm_head_in_fp16(run):
    found = token.facts(tables.report_table(run))
    weights = MODEL.layers * sum(each.K * each.N for each in projections(MODEL))
    head = 2 * MODEL.vocab * MODEL.hidden
    assert found["fp16_gb"] == pytest.approx((2 * weights + head) / 1e9, rel=0.01)
    assert found["int4_gb"] == pytest.approx((4.125 / 8 * weights + head) / 1e9, rel=0.01)
    assert found["fp16_ms"] == pytest.approx(1e3 * found["fp16_gb"] / synthetic.Truth().copy_gb_s, rel=0.02)
    assert found["products"] == 129


def stepped(run, rows):
    """The run with whole decode steps of 4,000 us in FP16 and 2,000 us in INT4 beside an unusual one."""
    steps = pd.DataFrame(rows, columns=["case_id", "model", "backend", "batch", "context", "status"])
    us = {"fp16-cublas": 4000.0, "int4": 2000.0}
    samples = [(case, us[backend] + more) for case, _, backend, *_ in rows for more in (-10.0, 0.0, 500.0)]
    samples = pd.DataFrame(samples, columns=["case_id", "step_us"])
    return SimpleNamespace(run=run, steps=steps, step_samples=samples, gpu=run.gpu, run_id=run.run_id)


def test_a_whole_step_is_shown_where_the_run_measured_one_and_the_layers_where_not(run):
    rows = [
        (f"llama-3-8b/b{batch}/c{context}/{host}/{backend}{option}", "llama-3-8b", backend, batch, context, "ok")
        for batch, context, host, option in ((1, 512, "lean", ""), (1, 64, "lean", ""), (8, 512, "lean", ""),
                                             (1, 512, "lean", "/eager"))
        for backend in ("fp16-cublas", "int4")
    ]  # fmt: skip
    whole = token.whole_steps(stepped(run, rows))
    assert whole["context"].tolist() == [512, 512, 64, 64]
    assert whole.loc[whole["context"] == 512].set_index("backend")["ms"].to_dict() == {"fp16-cublas": 4.0, "int4": 2.0}
    fig = figures.whole_step(whole[whole["context"] == 512])
    assert [bar.get_width() for bar in fig.axes[0].patches] == [4.0, 2.0]
    assert "2.00×" in fig.get_label()
    assert "whole" in token.what_parts_hold(stepped(run, rows)).data
    assert token.whole_steps(run).empty
    assert "linear layers only" in token.what_parts_hold(run).data


def test_factors_that_the_prose_quotes_are_the_planted_ones(run):
    found, truth = gains.facts(run, tables.report_table(run)), synthetic.Truth()
    for name, (K, N) in (("narrow", STUDY_SHAPES[0]), ("wide", STUDY_SHAPES[2])):
        us = {
            b: truth.latency_us(b, GemmProblem(1, N, K)) for b in ("fp16-cublas", "fp16-triton", "int4", "int4-serial")
        }
        assert found[f"{name}_bits"] == pytest.approx(us["fp16-triton"] / us["int4"], rel=0.02)
        assert found[f"{name}_rest"] == pytest.approx(us["fp16-cublas"] / us["fp16-triton"], rel=0.02)
        assert found[f"{name}_overlap"] == pytest.approx(us["int4-serial"] / us["int4"], rel=0.02)


def test_the_rule_is_the_spread_within_and_between(run):
    """Planted: another run of the same code in which every case takes 3 % longer."""
    halves = evidence.halves(run)
    assert "No second run" in trust.rule(run, halves, halves.iloc[:0]).data
    other = halves.assign(ratio=1.03, unchanged=True)
    told = trust.rule(run, halves, other).data
    assert "±3.0% between runs" in told
    half = (halves["new_high"] - halves["new_low"]) / (halves["new_high"] + halves["new_low"])
    assert f"±{half.quantile(0.95):.1%} within the run" in told
    strangers = trust.rule(run, halves, other.assign(backend="fp16-cublas")).data
    assert "not among them" in strangers
    assert "not among them" not in told


def test_a_peer_far_slower_than_the_fastest_is_named():
    rows = pd.DataFrame({
        "problem": "p", "M": 1, "K": 4096, "N": 1024, "kind": "measured",
        "backend": ["aten-int4mm", "gemlite"], "other_us": [4.0, 12.0],
    })  # fmt: skip
    assert "12.0 µs at 4096×1024, M = 1" in peers.odd_ones(rows).data
    assert peers.odd_ones(rows.assign(other_us=[4.0, 5.0])) is None


def test_what_a_run_lacks_is_said_by_what_would_show_it(tmp_path):
    bare = synthetic.load(tmp_path, m_list=(1,), shapes=[(2048, 2048)], backends=("int4",), counters=False)
    table = tables.report_table(bare)
    shown = [token.in_parts(bare, table), token.worked(table), gains.steps(bare), gains.two_calls(table)]
    shown += [gains.overlap(bare), gains.launched(table), regimes.best_map(regimes.regimes.speedups(bare))]
    shown.append(page.folded("a table", pd.DataFrame({"a": []}), {"a": ("A", "")}, "tab-a", "A"))
    for each in shown:
        assert "did not time" in each.data

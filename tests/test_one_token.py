"""The chapter on one token, and what pages say of a run: planted times, bytes and decode steps come out again."""

import dataclasses
import math
import re
import shutil

import pandas as pd
import pytest
import synthetic
import synthetic_steps

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


# --- decode steps beside the run --------------------------------------------------------------------------------------


@pytest.fixture
def beside(run, tmp_path):
    """The run in a folder of its own, beside which decode steps are written."""
    path = tmp_path / run.gpu["key"] / run.run_id
    shutil.copytree(run.path, path)
    return dataclasses.replace(run, path=path)


def test_steps_are_the_newest_of_this_gpu_and_those_of_several_gpus_stand_apart(beside, tmp_path):
    assert token.steps_of(beside) is None
    synthetic_steps.load(tmp_path, "0100")
    newest = synthetic_steps.load(tmp_path, "0200")
    shared = synthetic_steps.load(tmp_path, "0300", tp=2)
    synthetic_steps.load(tmp_path, "0400", gpu="a10g")
    assert token.steps_of(beside).run_id == newest.run_id
    assert token.steps_of(beside, shared=True).run_id == shared.run_id
    assert token.steps_of(newest) is newest


def test_a_whole_step_is_the_planted_one_in_parts_with_what_bounds_it(beside, tmp_path):
    rows = token.whole_steps(synthetic_steps.load(tmp_path))
    assert set(rows["context"]) == {512}
    lean = rows[(rows["host"] == "lean") & (rows["batch"] == 1)]
    assert lean.set_index("backend")["ms"].to_dict() == {name: us / 1e3 for name, us in synthetic_steps.US.items()}
    fig = token.in_parts(beside, tables.report_table(beside))
    ax = fig.axes[0]
    widths = [bar.get_width() for bar in ax.patches]
    expected = [share * us / 1e3 for us in sorted(synthetic_steps.US.values(), reverse=True)
                for share in synthetic_steps.SHARES.values()]  # fmt: skip
    assert sorted(widths) == pytest.approx(sorted(expected))
    assert "2.00×" in fig.get_label()
    (limit,) = {line.get_xdata()[0] for line in ax.lines}
    assert limit == pytest.approx(4.0 * (0.25 + 0.75 * 4.125 / 16))


def test_steps_without_a_profile_are_whole_bars(beside, tmp_path):
    synthetic_steps.load(tmp_path, profiled=False)
    table = tables.report_table(beside)
    bars = token.in_parts(beside, table).axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == sorted(us / 1e3 for us in synthetic_steps.US.values())
    assert "Measured" not in token.what_parts_hold(beside, table).data


def cells(table) -> list[list[str]]:
    """The rows of a table without its head."""
    lines = [line for line in table.data.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_sets_transformers_beside_the_lean_model(beside, tmp_path):
    synthetic_steps.load(tmp_path)
    rows = cells(token.steps_table(beside))
    assert [row[0] for row in rows] == ["1"] * 4 + ["8"] * 4
    of_int4 = next(row for row in rows if row[0] == "1" and row[2] == "2.00")
    copy_gb_s = synthetic_steps.COPY_BYTES / synthetic_steps.COPY_US / 1e3
    case = synthetic_steps.StepCase("llama-3-8b", "int4", 1, 512)
    read = synthetic_steps.weight_bytes(case.arch, "int4") + synthetic_steps.lm_head_bytes(case)
    of_copy = 100 * (read + synthetic_steps.kv_bytes(case)) / 2000e3 / copy_gb_s
    assert of_int4[2:] == ["2.00", "2.00", "500", f"{of_copy:.0f}", "10.0", "4.00", "1.50"]
    others = [row[7] for row in rows]
    assert sum(cell in ("6.00", "6.40", "4.00", "4.20") for cell in others) == 4, "fp16 and int4 alone have both hosts"


def test_the_int4_step_is_foretold_from_products_timed_alone(beside, tmp_path):
    synthetic_steps.load(tmp_path)
    told = token.what_parts_hold(beside, tables.report_table(beside)).data
    truth = synthetic.Truth()
    alone = sum(truth.latency_us("int4", GemmProblem(1, each.N, each.K)) for each in projections(MODEL))
    head = 2 * (MODEL.vocab * MODEL.hidden + MODEL.vocab + MODEL.hidden) / truth.copy_gb_s / 1e3
    foretold = (MODEL.layers * alone + head) / 1e3 + 4.0 * 0.25
    found = float(re.search(r"make ([\d.]+) ms", told)[1])
    assert found == pytest.approx(foretold, rel=0.02)
    assert "**2.00 ms**" in told


def test_what_several_gpus_share_stands_beside_one(beside, tmp_path):
    assert token.shared_table(beside) is None
    synthetic_steps.load(tmp_path, "0300", tp=2)
    assert "2.40" in token.shared_table(beside).data
    synthetic_steps.load(tmp_path)
    assert next(row for row in cells(token.shared_table(beside)) if "2.40" in row) == [
        "2", "1", figures.label("fp16-cublas"), "4.00", "2.40", "1.67", "0.40", "–",
    ]  # fmt: skip


def test_without_steps_the_layers_are_shown_and_what_a_token_is_projected_from_is_said(run):
    table = tables.report_table(run)
    assert token.whole_steps(token.steps_of(run)).empty
    assert token.steps_table(run) is None
    told = token.what_parts_hold(run, table).data
    assert "linear layers only" in told
    assert "projects" in told
    bars = token.in_parts(run, table).axes[0].patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(token.by_projection(run, table)["ms"].sum())


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
    assert f"±{half.quantile(0.95):.1%}" in told
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
    quoted = rows.assign(kind=["measured", "quoted"], backend=["aten-int4mm", "marlin"])
    assert "One peer" in (told := peers.odd_ones(quoted).data)
    assert "Marlin (quoted) 12.0 µs" in told
    third = pd.concat([rows, rows.tail(1).assign(backend="marlin")])
    assert "One peer" not in peers.odd_ones(third).data


def test_what_a_run_lacks_is_said_by_what_would_show_it(tmp_path):
    bare = synthetic.load(tmp_path, m_list=(1,), shapes=[(2048, 2048)], backends=("int4",), counters=False)
    table = tables.report_table(bare)
    shown = [token.in_parts(bare, table), token.worked(table), gains.steps(bare), gains.two_calls(table)]
    shown += [gains.overlap(bare), gains.launched(table), regimes.best_map(regimes.regimes.speedups(bare))]
    shown.append(page.folded("a table", pd.DataFrame({"a": []}), {"a": ("A", "")}, "tab-a", "A"))
    for each in shown:
        assert "did not time" in each.data

"""Every projection of every model: nothing is left out, the best FP16 is the bar, and one slower case is named."""

import numpy as np
import pytest
import synthetic

from tinygemm import models
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.models import tables as projections
from tinygemm.report.models.claims import NAMED, never_slower

BACKENDS = ("fp16-cublas", "fp16-triton", "int4")
SHAPES = models.decode_shapes()
NARROW = (4096, 768)  # qkv_proj of llama-3-8b and mistral-7b on 8 GPUs


def write(root, factors=None, shapes=SHAPES, m_list=(1, 8), backends=BACKENDS, **more):
    """A run of the projections in which INT4 wins everywhere, but for the planted factors."""
    return synthetic.load(
        root, truth=synthetic.Truth(factors={"int4": 0.7} | (factors or {})), shapes=shapes, m_list=m_list,
        backends=backends, modes=(("graph", "cold"),), n_samples=12, counters=False, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return projections.every_projection(write(tmp_path_factory.mktemp("run")), m_list=(1, 8))


def at(table, K, N):
    return table[(table["K"] == K) & (table["N"] == N)]


def test_every_model_degree_projection_and_m_has_its_row(table):
    expected = {
        (model.key, tp, layer.layer, M)
        for model in models.MODELS.values()
        for tp in models.possible_degrees(model)
        for layer in models.projections(model, tp)
        for M in (1, 8)
    }
    assert set(table[["model", "tp", "layer", "M"]].itertuples(index=False, name=None)) == expected
    assert len(table) == len(expected)


def test_a_weight_that_no_group_divides_is_said_to_be_so(table):
    rows = table[table["state"] == projections.NOT_QUANTISABLE]
    assert set(rows[["model", "tp", "layer"]].itertuples(index=False, name=None)) == {("qwen2.5-72b", 8, "down_proj")}
    assert rows["speedup"].isna().all()


def test_other_group_sizes_than_128_are_found(table):
    assert (at(table, 448, 896)["state"] == projections.FASTER).all()
    assert set(at(table, 7392, 8192)["group_size"]) == {32}


def test_the_bar_is_the_faster_of_both_fp16_kernels(table):
    truth = synthetic.Truth()
    for row in at(table, *NARROW).itertuples():
        problem = synthetic.GemmProblem(row.M, row.N, row.K)
        times = {name: truth.latency_us(name, problem) for name in BACKENDS}
        times["int4"] *= 0.7
        assert row.fp16_backend == min(("fp16-cublas", "fp16-triton"), key=times.get)
        best = min(times["fp16-cublas"], times["fp16-triton"])
        assert row.speedup == pytest.approx(best / times["int4"], rel=0.03)
        assert row.speedup_low < row.speedup < row.speedup_high
        assert row.fp16_us / row.int4_us == pytest.approx(row.speedup)


def test_cublas_is_the_bar_where_it_is_the_faster_one(tmp_path):
    run = write(tmp_path, {"fp16-cublas": 0.2}, shapes=[NARROW], m_list=(1,))
    rows = projections.against_best_fp16(run)
    assert rows["fp16_backend"].tolist() == ["fp16-cublas"]
    assert rows["state"].tolist() == ["slower"]


def test_a_run_without_our_fp16_kernel_is_held_against_cublas(tmp_path):
    run = write(tmp_path, shapes=[NARROW], m_list=(1,), backends=("fp16-cublas", "int4"))
    assert projections.against_best_fp16(run)["fp16_backend"].tolist() == ["fp16-cublas"]


def test_shapes_that_models_share_count_once(table):
    once = projections.distinct(table)
    assert len(once) == 2 * len(SHAPES)
    assert len(once) < (table["state"] == projections.FASTER).sum()
    assert projections.geometric_mean(once["speedup"]) == pytest.approx(np.exp(np.log(once["speedup"]).mean()))


# --- the verdict ----------------------------------------------------------------------------------------------------


def test_never_slower_holds_where_every_case_is_faster(table):
    verdict = never_slower(table)
    assert verdict.state == HOLDS
    assert verdict.numbers["timed"] == verdict.numbers["cases"] == verdict.numbers["faster"] == 2 * len(SHAPES)
    assert all(type(value) is float for value in verdict.numbers.values())
    assert "Slower:" not in verdict.sentence


def test_one_slower_projection_refutes_it_and_is_named_with_its_model(tmp_path):
    run = write(tmp_path, {("int4", *NARROW): 3.0}, m_list=(1,))
    verdict = never_slower(projections.every_projection(run, m_list=(1,)))
    assert verdict.state == FAILS
    assert verdict.numbers["slower"] == 1
    assert "at 4096×768, M = 1 (qkv_proj of llama-3-8b on 8 GPUs)" in verdict.sentence.split("Slower: ")[1]


def test_a_tie_leaves_it_undecided_and_is_named(tmp_path):
    truth, problem = synthetic.Truth(), synthetic.GemmProblem(1, NARROW[1], NARROW[0])
    level = truth.latency_us("fp16-triton", problem) / truth.latency_us("int4", problem)
    run = write(tmp_path, {("int4", *NARROW): level}, m_list=(1,))
    verdict = never_slower(projections.every_projection(run, m_list=(1,)))
    assert verdict.state == UNDECIDED
    assert verdict.numbers["tied"] == 1
    assert "Tied: " in verdict.sentence


def test_cases_that_were_not_timed_leave_it_undecided_and_are_counted(tmp_path):
    run = write(tmp_path, shapes=[NARROW, (4096, 4096)], m_list=(1,))
    verdict = never_slower(projections.every_projection(run, m_list=(1,)))
    assert verdict.state == UNDECIDED
    assert f"did not time {len(SHAPES) - 2} of {len(SHAPES)} cases" in verdict.sentence


def test_a_slower_case_refutes_it_even_where_others_were_not_timed(tmp_path):
    run = write(tmp_path, {"int4": 4.0}, shapes=[NARROW], m_list=(1,))
    assert never_slower(projections.every_projection(run, m_list=(1,))).state == FAILS


def test_a_run_without_any_projection_says_so(tmp_path):
    run = write(tmp_path, shapes=[(4096, 512)], m_list=(1,))
    verdict = never_slower(projections.every_projection(run))
    assert (verdict.state, verdict.numbers) == (UNDECIDED, {})
    assert "timed no projection" in verdict.sentence


def test_counterexamples_are_gathered_by_weight_the_worst_first(tmp_path):
    run = write(tmp_path, {"int4": 4.0} | {("int4", *NARROW): 9.0})
    sentence = never_slower(projections.every_projection(run, m_list=(1, 8))).sentence.split("Slower: ")[1]
    assert sentence.split(";")[0].endswith("at 4096×768, M = 1, 8 (qkv_proj of llama-3-8b on 8 GPUs)")
    assert sentence.count("M = ") == NAMED
    assert f"and {len(SHAPES) - NAMED} more weights" in sentence

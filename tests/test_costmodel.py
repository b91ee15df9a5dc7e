"""The latency model: it finds planted terms again, is honest about what it never saw, and scales as physics says."""

import dataclasses

import numpy as np
import pandas as pd
import planted
import pytest
import synthetic
from derived import also

from tinygemm.hardware import gpu_spec
from tinygemm.problem import GemmProblem
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.predict import claims as judge
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict import projection as extrapolate
from tinygemm.report.predict.terms import Fitted, Terms, device_us, parts_us

H200 = planted.H200
LARGE = GemmProblem(1, 28672, 8192)
UNSEEN = (
    GemmProblem(1, 4096, 4096),
    GemmProblem(8, 1024, 7168),
    GemmProblem(16, 14336, 2048),
    GemmProblem(2, 256, 8192),
)


@pytest.fixture(scope="module")
def model():
    return costmodel.fit(planted.table(), H200)


def exact(backend, problem, launch="graph"):
    fitted = planted.TRUTH[backend]
    device = device_us(fitted, problem.M, problem.K, problem.N, fitted.bits, H200)
    return float(costmodel.eager_us(fitted.terms, device) if launch == "eager" else device)


@pytest.mark.parametrize("backend", planted.TRUTH)
@pytest.mark.parametrize("launch", ["graph", "eager"])
def test_shapes_that_were_never_seen_are_predicted_as_the_planted_terms_say(model, backend, launch):
    rows = costmodel.predict(model, UNSEEN, backends=[backend], launches=[launch])
    assert list(rows["kind"]) == ["predicted"] * len(UNSEEN)
    expected = [exact(backend, problem, launch) for problem in UNSEEN]
    np.testing.assert_allclose(rows["latency_us"], expected, rtol=0.05)
    assert ((rows["low_us"] <= rows["latency_us"]) & (rows["latency_us"] <= rows["high_us"])).all()


@pytest.mark.parametrize(
    ("backend", "terms"),
    [
        (
            "fp16-cublas",
            {"start_us": 0.1, "serial_ns": 0.3, "longest_k": 0.2, "overlap": 0.3, "efficiency": 0.02, "host_us": 0.05},
        ),
        ("int4", {"start_us": 0.1, "token_us": 0.2, "efficiency": 0.02, "host_us": 0.05}),
        ("int4-static", {"start_us": 0.5, "serial_ns": 0.15, "efficiency": 0.02}),
    ],
)
def test_planted_terms_are_found_again(model, backend, terms):
    found, true = model.backends[backend].terms, planted.TRUTH[backend].terms
    for name, tolerance in terms.items():
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=tolerance), name


def test_how_programs_are_cut_counts_only_where_all_are_cut_alike(model):
    assert model.backends["int4-static"].cut == (64, 1)
    assert model.backends["int4"].cut is None


def test_a_walk_that_is_split_grows_no_longer_and_one_that_is_cut_alike_always_does():
    """Twice the K is twice the walk, until programs share it."""
    walks = {"serial_ns": 40.0, "longest_k": 4096.0}
    free = dataclasses.replace(planted.TRUTH["fp16-cublas"], terms=dataclasses.replace(Terms(), **walks))
    cut = dataclasses.replace(free, cut=(64, 1))
    for fitted, expected in ((free, [0.5, 1.0, 1.0]), (cut, [0.5, 4.0, 7.0])):
        serial = parts_us(fitted, 1, np.array([2048, 16384, 28672]), 4096, 16, H200)["serial"]
        np.testing.assert_allclose(serial, 40.0 * 4.096 * np.array(expected), rtol=0.01)


def test_a_walk_that_may_be_split_is_a_term_of_those_alone_whose_programs_are_not_cut_alike(model):
    table = costmodel.terms_table(model)
    listed = set(table.loc[table["term"] == "longest_k", "backend"])
    assert listed == {"fp16-cublas", "int4", "int4-serial"}
    assert {"int4-static"} == {name for name, fitted in model.backends.items() if fitted.cut}
    assert {"start_us", "serial_ns", "host_us"} <= set(table.loc[table["backend"] == "int4-static", "term"])


def test_noise_widens_the_band_and_hardly_moves_the_prediction():
    noisy = costmodel.fit(planted.table(noise=0.05), H200)
    rows = costmodel.predict(noisy, UNSEEN, backends=["int4"], launches=["graph"])
    np.testing.assert_allclose(rows["latency_us"], [exact("int4", problem) for problem in UNSEEN], rtol=0.08)
    low, high = noisy.backends["int4"].spread["graph"]
    assert low < 0.97
    assert high > 1.03


# --- leave one shape out --------------------------------------------------------------------------------------------


def test_a_planted_outlier_is_missed_alone_and_fails_the_claim():
    odd = {("int4", 4096, 2048): 1.6}
    left_out = costmodel.leave_one_out(planted.table(factors=odd), H200)
    graph = left_out[(left_out["backend"] == "int4") & (left_out["launch"] == "graph")]
    is_odd = (graph["K"] == 4096) & (graph["N"] == 2048)
    np.testing.assert_allclose(graph.loc[is_odd, "error"], 1 / 1.6 - 1, atol=0.05)
    assert graph.loc[~is_odd, "error"].abs().max() < 0.12
    verdict = judge.predicts(left_out)
    assert verdict.state == FAILS
    assert "(int4, M = " in verdict.sentence
    assert "4096×2048)" in verdict.sentence


def test_without_the_outlier_the_claim_holds_and_without_shapes_it_is_undecided():
    left_out = costmodel.leave_one_out(planted.table(), H200)
    verdict = judge.predicts(left_out)
    assert verdict.state == HOLDS
    assert verdict.numbers["cases"] == len(planted.TRUTH) * len(planted.SHAPES) * 3
    few = costmodel.leave_one_out(planted.table(shapes=planted.SHAPES[:3]), H200)
    assert judge.predicts(few).state == UNDECIDED


# --- what is measured, what is refused ------------------------------------------------------------------------------


def test_the_very_case_of_the_run_is_given_as_measured_with_its_interval(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), n_samples=9, counters=False)
    model = costmodel.fit(run)
    problems = [GemmProblem(1, 1024, 4096), GemmProblem(1, 1024, 4096, 64), GemmProblem(1, 1000, 4096)]
    rows = costmodel.predict(model, problems, backends=["int4"], launches=["graph"])
    assert list(rows["kind"]) == ["measured", "predicted", "predicted"]
    samples = run.samples[run.samples["case_id"] == "int4/M1-K4096-N1024-g128/graph-cold"]["latency_us"]
    assert rows["latency_us"][0] == samples.median()
    assert rows["low_us"][0] < rows["latency_us"][0] < rows["high_us"][0]
    assert list(rows.columns) == ["M", "K", "N", "backend", "launch", "latency_us", "low_us", "high_us", "kind"]
    elsewhere = costmodel.predict(model, problems, gpu_spec("a10g"), ["int4"], ["graph"])
    assert set(elsewhere["kind"]) == {"predicted"}


@pytest.mark.parametrize("change", [{"l2_state": "hot"}, {"status": "mismatch"}, {"group_size": 64}, {"M": 64}])
def test_cases_of_another_kind_do_not_enter_the_fit(change):
    rows = planted.table()
    strange = rows[rows["backend"] != "copy"].assign(latency_us_p50=1e6, **change)
    assert costmodel.observations(_stack(rows, strange))["latency_us"].max() < 1e6


def test_zeros_as_operands_do_not_enter_the_fit():
    rows = planted.table()
    both = _stack(rows.assign(operands="random"), rows.assign(operands="zeros", latency_us_p50=1e6))
    assert costmodel.observations(both)["latency_us"].max() < 1e6


def _stack(*frames):
    return pd.concat(frames, ignore_index=True)


def test_too_few_shapes_give_no_model():
    with pytest.raises(ValueError, match="no backend was timed at 4 shapes"):
        costmodel.fit(planted.table(shapes=planted.SHAPES[:3]), H200)


def test_what_the_model_does_not_describe_is_refused(model):
    with pytest.raises(ValueError, match=r"the model has no gemlite; it has fp16-cublas, int4"):
        costmodel.predict(model, UNSEEN, backends=["gemlite"])
    with pytest.raises(ValueError, match=r"M17-K4096-N4096-g128: the model describes decode, M of 1 to 16"):
        costmodel.predict(model, [GemmProblem(17, 4096, 4096)])


def test_a_gpu_without_published_figures_goes_by_what_its_run_recorded(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), n_samples=5, counters=False)
    run.provenance["gpu"] = run.gpu | {"key": "h1", "name": "NVIDIA H1"}
    spec = costmodel.spec_of(run)
    assert (spec.key, spec.sm_count, spec.compute_capability) == ("h1", 132, (9, 0))
    assert spec.dram_gb_s == pytest.approx(synthetic.Truth().copy_gb_s, rel=0.03)
    copy = run.cases["backend"] == "copy"
    primed = also(run, copy, 0.5, launch="primed")
    assert costmodel.spec_of(primed).dram_gb_s == spec.dram_gb_s, "the copy is that of the primary number"


# --- projections ----------------------------------------------------------------------------------------------------


def one_term(base, **terms):
    """A model of one backend whose time is one term; the others are as short as the bounds allow."""
    least = {f.name: f.metadata["low"] for f in dataclasses.fields(Terms)}
    least |= {"efficiency": 0.9, "overlap": 8.0, "longest_k": 1e6} | terms
    fitted = Fitted("gemlite", Terms(**least), 4.125, 0, None, 9, {"graph": (0.95, 1.05)})
    return dataclasses.replace(base, backends={"gemlite": fitted}, overlap_us=0.0)


def projected(model, spec):
    return costmodel.predict(model, [LARGE], spec, launches=["graph"]).iloc[0]


@pytest.mark.parametrize(
    ("terms", "change", "factor"),
    [
        ({}, {"dram_gb_s": 2400.0}, 2.0),
        ({}, {"dram_gb_s": 9600.0}, 0.5),
        ({}, {"sm_count": 66}, 1.0),
        ({}, {"inline_ecc": True}, 1 / 0.875),
        ({"start_us": 30.0, "efficiency": 1e3}, {"boost_clock_mhz": 990}, 2.0),
        ({"start_us": 30.0, "efficiency": 1e3}, {"dram_gb_s": 2400.0}, 1.0),
        ({"serial_ns": 40.0}, {"boost_clock_mhz": 990}, 2.0),
        ({"serial_ns": 40.0}, {"sm_count": 66}, 1.0),
        ({"serial_ns": 40.0, "longest_k": 4096.0}, {"boost_clock_mhz": 990}, 2.0),
        ({"weight_ps": 1e3}, {"sm_count": 66}, 2.0),
        ({"weight_ps": 1e3}, {"boost_clock_mhz": 3960}, 0.5),
    ],
)
def test_a_projection_scales_with_what_its_term_depends_on(model, terms, change, factor):
    alone = one_term(model, **terms)
    here, there = projected(alone, H200), projected(alone, dataclasses.replace(H200, key="other", **change))
    assert there["latency_us"] == pytest.approx(factor * here["latency_us"], rel=0.02)


def test_the_band_of_another_gpu_is_wider_than_that_of_the_measured_one(model):
    alone = one_term(model)
    here, there = projected(alone, H200), projected(alone, dataclasses.replace(H200, key="other"))
    assert there["latency_us"] == pytest.approx(here["latency_us"])
    assert there["high_us"] / there["latency_us"] > 1.1 > here["high_us"] / here["latency_us"]
    assert there["low_us"] < here["low_us"]


def test_an_assumption_that_moves_both_sides_alike_cancels_in_a_speedup(model):
    shapes = {"M": np.array([1]), "K": np.array([8192]), "N": np.array([28672])}
    fp16, spec = model.backends["fp16-cublas"], gpu_spec("a10g")
    _, low, high = extrapolate.ratio_band(model, fp16, fp16, shapes, (16, 16), "graph", spec)
    alone = extrapolate.band(model, fp16, shapes, 16, "graph", spec)
    assert high[0] / low[0] < np.exp(alone[1] + alone[2])[0]


def test_a_kernel_that_overlaps_its_launch_loses_that_on_an_older_gpu(model):
    assert model.overlap_us == pytest.approx(0.8, abs=0.1)
    older = dataclasses.replace(H200, key="older", compute_capability=(8, 0))
    newer = dataclasses.replace(H200, key="newer")
    fitted = model.backends["int4"]
    model = dataclasses.replace(
        model, backends=model.backends | {"humming": dataclasses.replace(fitted, backend="humming")}
    )
    lost = {
        b: projected_at(model, b, older) - projected_at(model, b, newer) for b in ("int4", "humming", "fp16-cublas")
    }
    assert lost["int4"] == pytest.approx(model.overlap_us, rel=0.01)
    assert lost["humming"] == pytest.approx(lost["int4"]), "a peer that overlaps loses that, too"
    assert lost["fp16-cublas"] == 0


def projected_at(model, backend, spec):
    return costmodel.predict(model, UNSEEN[:1], spec, [backend], ["graph"])["latency_us"][0]


def test_every_assumption_is_listed_and_the_measured_gpu_assumes_nothing(model):
    listed = extrapolate.assumptions(model, gpu_spec("a10g"))
    assert len(listed) == len(extrapolate.KNOBS)
    assert (listed["low"] < listed["high"]).all()
    assert "525 GB/s usable" in listed["value"][0]
    assert extrapolate.assumptions(model, H200).empty
    assert not extrapolate.assumptions(model, gpu_spec("h100"))["assumption"].str.contains("ECC").any()

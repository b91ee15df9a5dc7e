"""The method's errors: each planted error is found with its size, and two runs agree only if they do."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import synthetic
from derived import also, primary, slowed

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style, tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.gains import launch_page
from tinygemm.report.published import page as published_page
from tinygemm.report.trust import claims as trust_claims
from tinygemm.report.trust import figures as trust_figures
from tinygemm.report.trust import page as trust_page
from tinygemm.report.trust import tables as evidence
from tinygemm.runs import LAUNCHES

BACKENDS = ("fp16-cublas", "int4", "aten-int4mm")
MODES = (("graph", "cold"),)
CHANGES = {
    "hot L2": {"l2_state": "hot"},
    "warm L2": {"l2_state": "warm"},
    "zeros": {"operands": "zeros"},
    "do_bench": {"launch": "do_bench"},
    "eager": {"launch": "eager"},
    "primed": {"launch": "primed"},
}


def load(root, minute="2026-11-23T1412Z", seed=0, factors=None, **settings):
    truth = synthetic.Truth(drift=0.002, noise=0.002, factors=factors or {})
    settings = {"shapes": STUDY_SHAPES, "m_list": (1, 2, 4), "backends": BACKENDS, "modes": MODES} | settings
    return synthetic.load(root, truth=truth, counters=False, minute=minute, seed=seed, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(tmp_path_factory.mktemp("run"))


def otherwise(run, way, factor, keep=None):
    """The run, its products timed in another way as well."""
    for backend in ("fp16-cublas", "int4"):
        run = also(run, primary(run, backend), factor, keep=keep, **{"operands": "random"} | CHANGES[way])
    return run


def judge(run, within=None, between=None):
    empty = evidence.halves(run).iloc[:0]
    within, between = (empty if rows is None else rows for rows in (within, between))
    return trust_claims.of_evidence(evidence.errors(run), within, between, evidence.beside_others(run))


# --- ways of timing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", CHANGES)
def test_every_way_is_compared_with_the_primary_number(run, way):
    changed = otherwise(run, way, 0.8, keep=12)
    rows = evidence.errors(changed)
    assert set(rows["way"]) == {way}
    assert len(rows) == 2 * len(STUDY_SHAPES)
    np.testing.assert_allclose(rows["value"], 0.8, rtol=0.01)
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()
    mean = evidence.mean_errors(changed, rows)
    assert set(mean["backend"]) == {"fp16-cublas", "int4"}
    np.testing.assert_allclose(mean["value"], 0.8, rtol=0.01)


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize(("factor", "state"), [(0.9, HOLDS), (1.1, HOLDS), (1.01, FAILS), (1.05, UNDECIDED)])
def test_an_error_matters_if_it_is_clearly_larger_than_five_percent(run, way, factor, state):
    verdict = judge(otherwise(run, way, factor))[way]
    assert verdict.state == state


def test_an_error_of_a_way_that_was_not_timed_is_undecided(run):
    found = judge(run)
    assert {found[way].state for way in CHANGES} == {UNDECIDED}


# --- what was launched before ---------------------------------------------------------------------------------------


def test_both_states_have_their_speedup(tmp_path):
    """0.3 us less for every node: that helps FP16 less than INT4 in proportion, so the speedup rises."""
    run = load(tmp_path, m_list=(1,), modes=(("graph", "cold"), ("primed", "cold"), ("eager", "cold")))
    table = tables.report_table(run)
    rows = evidence.primed_speedups(table)
    assert list(zip(rows["K"], rows["N"], strict=True)) == sorted(STUDY_SHAPES)
    times = table[table["M"] == 1].set_index(["backend", "launch", "K", "N"])["latency_us_p50"]
    for _, row in rows.iterrows():
        for mode in ("graph", "primed"):
            expected = np.divide(*(times[backend, mode, row["K"], row["N"]] for backend in ("fp16-cublas", "int4")))
            assert row[mode] == pytest.approx(expected, rel=1e-6)
    assert (rows["primed"] > rows["graph"]).all()
    told = trust_page.primed(table).data
    fresh, primed = (f"{rows[mode].min():.2f}× to {rows[mode].max():.2f}×" for mode in ("graph", "primed"))
    assert told.index(fresh) < told.index(primed)


def test_every_way_and_every_launch_mode_has_its_words():
    assert set(trust_figures.WORDS) == set(evidence.WAYS) == set(CHANGES)
    assert set(published_page.LAUNCH) == set(style.LAUNCH_WORDS) == set(LAUNCHES)


def test_a_run_without_primed_graphs_says_so(run):
    table = tables.report_table(run)
    assert "did not time" in trust_page.primed(table).data
    assert "did not time" in launch_page.primed(table).data


def test_an_empty_node_is_told_in_both_states_and_is_no_other_ideal(run):
    table = tables.report_table(run)
    primed = table[table["backend"].isin(["copy", "empty-node"])].assign(launch="primed")
    primed["latency_us_p50"] *= 0.5
    primed["achieved_gb_s"] *= 2
    both = pd.concat([table, primed], ignore_index=True)
    assert tables.empty_node_us(both) == tables.empty_node_us(table) == 2 * tables.empty_node_us(both, "primed")
    assert tables.copy_bandwidth_gb_s(both) == tables.copy_bandwidth_gb_s(table)
    assert f"{tables.empty_node_us(both, 'primed'):.2f} µs where" in launch_page.primed(both).data


def test_runs_of_older_schemas_compare_like_with_like_among_themselves_only(run, tmp_path):
    again = load(tmp_path, seed=7)
    older = dataclasses.replace(run, provenance=run.provenance | {"schema_version": 2})
    assert run.settled
    assert not older.settled
    assert evidence.agreement(again, run)["unchanged"].any()
    mixed = evidence.agreement(again, older)
    assert not mixed["unchanged"].any()
    assert evidence.agreement(dataclasses.replace(again, provenance=older.provenance), older)["unchanged"].any()
    assert older.run_id in trust_page.no_likeness([older], [mixed]).data
    assert older.run_id not in trust_page.no_likeness([run], [evidence.agreement(again, run)]).data
    assert "settled" in trust_page.launched_before(run).data
    assert "schema 2" in trust_page.launched_before(older).data


# --- beside other contenders ----------------------------------------------------------------------------------------


def test_the_orders_of_a_round_are_told_apart(run):
    """Planted: of three contenders, the second takes a tenth longer in rounds 1, 4, 7, ..., which have one order."""
    problem = "M2-K4096-N1024-g128"
    names = [name for name in run.cases["case_id"] if problem in name]
    mine = (run.samples["case_id"] == names[1]) & (run.samples["sample"] % 3 == 1)
    slower = run.samples["latency_us"].where(~mine, 1.1 * run.samples["latency_us"])
    planted = dataclasses.replace(run, samples=run.samples.assign(latency_us=slower))
    rows = evidence.orders(planted).set_index(["problem", "backend"])
    assert set(rows["contenders"]) == {3}
    assert len(rows) == len(run.cases) - 2, "all but copy and empty node"
    at = (problem, names[1].split("/")[0])
    assert rows.loc[at, "by_order"] == pytest.approx(1.1, rel=0.01)
    np.testing.assert_allclose(rows["by_order"].drop(at), 1, atol=0.01)
    np.testing.assert_allclose(rows["by_time"], 1, atol=0.01)
    told = trust_page.orders(planted).data
    assert f"half of {len(rows)} cases" in told
    assert "10% at most" in told
    few = dataclasses.replace(run, samples=run.samples[run.samples["sample"] < 5])
    assert "enough samples" in trust_page.orders(few).data


def test_a_kernel_without_x_is_compared_with_itself_in_other_groups(tmp_path):
    """Planted: the group of M = 2 adds a fifth at one weight; at the others all groups agree."""
    steady = load(tmp_path, backends=("fp16-cublas", "int4", "int4-load-only"))
    assert judge(steady)["beside"].state == HOLDS
    at = primary(steady, "int4-load-only") & (steady.cases["M"] == 2) & (steady.cases["N"] == 1024)
    run = slowed(steady, at, 1.2)
    fewer = run.cases["case_id"] != "int4/M2-K4096-N1024-g128/graph-cold"
    run = dataclasses.replace(run, cases=run.cases[fewer].reset_index(drop=True))
    rows = evidence.beside_others(run)
    assert set(rows["backend"]) == {"int4-load-only"}, "others depend on M"
    assert set(rows["n"]) == {3}
    worst = rows.loc[rows["value"].idxmax()]
    assert (worst["K"], worst["N"]) == (4096, 1024)
    assert worst["value"] == pytest.approx(1.2, rel=0.02)
    assert (worst["left_contenders"], worst["right_contenders"]) == (2, 3)
    assert worst["apart_us"] == pytest.approx(worst["right_us"] * 0.2, rel=0.1)
    assert worst["low"] <= worst["value"] <= worst["high"]
    verdict = judge(run)["beside"]
    assert verdict.state == FAILS
    assert "4096×1024 (int4-load-only" in verdict.sentence
    table = trust_page.beside(rows)
    assert list(table["value"]) == sorted(rows["value"], reverse=True)
    assert "have 2 backends or more" in trust_page.beside_scope(run, rows).data


def test_another_config_is_another_kernel(tmp_path, run):
    steady = load(tmp_path, backends=("fp16-cublas", "int4-load-only"))
    cases = steady.cases.assign(split_k=steady.cases["split_k"].mask(steady.cases["M"] == 2, 77))
    rows = evidence.beside_others(dataclasses.replace(steady, cases=cases))
    assert set(rows["n"]) == {2}
    assert judge(run)["beside"].state == UNDECIDED, "no kernel without x"


# --- the same again -------------------------------------------------------------------------------------------------


def test_halves_of_a_steady_run_agree_and_those_of_a_drifting_one_do_not(run):
    assert judge(run, within=evidence.halves(run))["steady"].state == HOLDS
    late = run.samples["sample"] >= 15
    drifting = run.samples.assign(latency_us=run.samples["latency_us"] * np.where(late, 1.02, 1.0))
    rows = evidence.halves(dataclasses.replace(run, samples=drifting))
    verdict = judge(run, within=rows)["steady"]
    assert verdict.state == FAILS
    assert verdict.numbers["shift"] == pytest.approx(0.02, rel=0.1)


def test_halves_have_what_a_comparison_of_runs_has(run):
    """A page takes none of them where there is no older run."""
    assert list(evidence.halves(run)) == list(evidence.agreement(run, run))


def test_older_runs_are_those_of_the_same_gpu_before_this_one(tmp_path):
    first, second, third = (
        load(tmp_path, minute=minute, shapes=STUDY_SHAPES[:1], m_list=(1,))
        for minute in ("2026-11-22T1000Z", "2026-11-23T1000Z", "2026-11-24T1000Z")
    )
    load(tmp_path, minute="2026-11-22T1100Z", gpu="a10g", shapes=STUDY_SHAPES[:1], m_list=(1,))
    assert [other.run_id for other in evidence.older_runs(third)] == [second.run_id, first.run_id]
    assert evidence.older_runs(first) == []


def test_two_runs_of_the_same_code_agree_and_a_slower_gpu_does_not(run, tmp_path):
    again = load(tmp_path / "again", seed=7)
    rows = evidence.agreement(again, run)
    assert len(rows) == len(run.cases[run.cases["status"] == "ok"])
    assert judge(run, between=rows)["repeated"].state == HOLDS
    throttled = slowed(again, again.cases["status"] == "ok", 1.03)
    verdict = judge(run, between=evidence.agreement(throttled, run))["repeated"]
    assert verdict.state == FAILS
    assert verdict.numbers["shift"] == pytest.approx(0.03, rel=0.1)
    assert judge(run)["repeated"].state == UNDECIDED


def test_a_kernel_that_changed_between_the_runs_is_no_error_of_the_method(run, tmp_path):
    faster = load(tmp_path / "faster", seed=7, factors={"int4": 0.7})
    assert judge(run, between=evidence.agreement(faster, run))["repeated"].state == FAILS, "of the same kernels"
    faster = dataclasses.replace(faster, provenance=faster.provenance | {"kernel_code_sha256": "of other kernels"})
    rows = evidence.agreement(faster, run)
    assert judge(run, between=rows)["repeated"].state == HOLDS
    table = trust_page.by_backend(rows).set_index("backend")
    assert table.loc["int4", "middle"] == pytest.approx(0.7, rel=0.01)
    assert table.loc["int4", "code"] == "no case"
    assert table.loc["aten-int4mm", "code"] == "every case"


def test_the_same_backend_in_another_variant_is_not_the_same_code(run, tmp_path):
    again = load(tmp_path / "again", seed=7)
    aten = again.cases["backend"] == "aten-int4mm"
    cases = again.cases.assign(config_source=again.cases["config_source"].where(~aten, "inner_k_tiles=2"))
    rows = evidence.agreement(dataclasses.replace(again, cases=cases), run)
    assert not rows.loc[rows["backend"] == "aten-int4mm", "unchanged"].any()
    assert rows.loc[rows["backend"] == "fp16-cublas", "unchanged"].all()


def test_the_spread_that_intervals_leave_out_is_the_planted_one(run, tmp_path):
    """Every case of both runs is off by its own 1 %, which no sample of either can show."""

    def off(run, seed):
        own = 1 + 0.01 * np.random.default_rng(seed).standard_normal(len(run.cases))
        factor = run.samples["case_id"].map(dict(zip(run.cases["case_id"], own, strict=True)))
        return dataclasses.replace(run, samples=run.samples.assign(latency_us=run.samples["latency_us"] * factor))

    again = load(tmp_path / "again", seed=7)
    pairs = [evidence.agreement(off(again, 2 * i), off(run, 2 * i + 1)) for i in range(6)]  # few cases each
    assert np.mean([evidence.spread(rows)["beyond"] for rows in pairs]) == pytest.approx(0.01, rel=0.15)
    assert evidence.spread(evidence.halves(run))["beyond"] < 0.001


def test_cases_of_one_problem_count_as_one_where_they_go_together():
    """All of a problem inside or none: as uncertain as if each problem were one case."""
    problems = pd.DataFrame({"problem": np.repeat(np.arange(50), 8), "inside": np.repeat(np.arange(50) % 2, 8)})
    together = problems.assign(
        ratio=1.0, overlap=True, **{f"{side}_{end}": 1.0 for side in ("new", "old") for end in ("us", "low", "high")}
    )
    assert evidence.spread(together)["inside_error"] == pytest.approx((0.25 / 50) ** 0.5)
    alone = together.assign(problem=np.arange(400))
    assert evidence.spread(alone)["inside_error"] == pytest.approx((0.25 / 400) ** 0.5)


def test_a_backend_is_judged_by_what_compares_like_with_like(run, tmp_path):
    """At one token the second run chose another layout, and is slower with it: no error of the method."""
    again = load(tmp_path / "again", seed=7)
    other = (again.cases["backend"] == "fp16-cublas") & (again.cases["M"] == 1)
    slower = slowed(again, other, 1.5)
    layouts = slower.cases["config_source"].where(~other, "layout=other")
    rows = evidence.agreement(dataclasses.replace(slower, cases=slower.cases.assign(config_source=layouts)), run)
    table = trust_page.by_backend(rows).set_index("backend")
    unlike = rows[(rows["backend"] == "fp16-cublas") & (rows["M"] == 1)]
    assert table.loc["fp16-cublas", "high"] < 1.1 < unlike["ratio"].min()
    assert table.loc["fp16-cublas", "n"] - table.loc["fp16-cublas", "unchanged"] >= len(unlike) > 0


def test_repeats_name_their_runs_and_the_days_between(run, tmp_path):
    later = load(tmp_path / "later", minute="2026-11-25T1412Z")
    table = trust_page.repeats(later, evidence.halves(later), [run], [evidence.agreement(later, run)])
    assert run.run_id in table.loc[1, "pair"]
    assert table.loc[1, "days"] == 0, "synthetic runs start at the same time"


def test_clocks_are_told_or_said_to_be_unread(run):
    assert "SM clock 1,980 MHz" in trust_page.clocks(run).data
    blind = run.cases.assign(sm_clock_mhz=np.nan, power_w=np.nan, temp_c=np.nan)
    assert "could not read" in trust_page.clocks(dataclasses.replace(run, cases=blind)).data

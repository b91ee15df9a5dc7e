"""The limit of a kernel: the rule case by case, the counters it reads, and the verdicts that rest on it."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import synthetic
from derived import counted

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.limits import claims as limits_claims
from tinygemm.report.limits import figures as limits_figures
from tinygemm.report.limits import page as limits_page
from tinygemm.report.limits import tables as limiters
from tinygemm.report.limits.tables import limiter

BACKENDS = ("fp16-cublas", "int4-static", "int4")
MODES = (("graph", "cold"),)
NAN = float("nan")
L2 = "lts__throughput.avg.pct_of_peak_sustained_elapsed"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
WAITS = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return load(tmp_path_factory.mktemp("run"))


def load(root, **truth):
    return synthetic.load(
        root, m_list=(1,), shapes=STUDY_SHAPES, backends=BACKENDS, modes=MODES, truth=synthetic.Truth(**truth)
    )


def at(rows, backend, K=4096, N=14336):
    return rows[(rows["backend"] == backend) & (rows["K"] == K) & (rows["N"] == N)].iloc[0]


# --- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("busy", "stalls", "programs_per_sm", "answer"),
    [
        ({"dram": 0.84, "l2": 0.40, "sm": 0.30}, {}, NAN, "DRAM"),
        ({"dram": 0.60, "sm": 0.30}, {}, NAN, "DRAM"),
        ({"dram": 0.62, "l2": 0.80, "sm": 0.30}, {}, NAN, "L2"),
        ({"dram": 0.79, "l2": 0.80, "sm": 0.30}, {}, NAN, "DRAM"),
        ({"dram": 0.57, "l2": 0.63, "sm": 0.30}, {}, NAN, "latency"),
        ({"dram": 0.62, "sm": 0.75, "tensor": 0.70, "issue": 0.3}, {}, NAN, "tensor cores"),
        ({"dram": 0.62, "sm": 0.75, "tensor": 0.20, "issue": 0.7}, {}, NAN, "issue slots"),
        ({"dram": 0.62, "sm": 0.75, "tensor": 0.20, "issue": 0.3}, {}, NAN, "SM"),
        ({"dram": 0.59, "sm": 0.30, "issue": 0.9}, {}, NAN, "latency"),
        ({"dram": 0.47, "sm": 0.30}, {"long_scoreboard": 0.5, "barrier": 0.2}, NAN, "latency: waiting for memory"),
        ({"dram": 0.47, "sm": 0.30}, {"long_scoreboard": 0.2, "barrier": 0.5}, NAN, "latency: waiting at a barrier"),
        ({"dram": 0.47, "sm": 0.30}, {"selected": 0.6, "not_selected": 0.3, "wait": 0.1}, NAN,
         "latency: waiting out fixed latencies"),
        ({"dram": 0.47, "sm": 0.30, "warps": 0.2}, {"long_scoreboard": 0.5}, 3.4,
         "latency: waiting for memory, few warps"),
        ({"dram": 0.01, "sm": 0.05, "warps": 0.06}, {"long_scoreboard": 0.5}, 0.12,
         "latency: fewer programs than SMs, few warps"),
        ({"dram": 0.34, "sm": 0.20, "warps": 0.06}, {"long_scoreboard": 0.5}, 0.97,
         "latency: waiting for memory, few warps"),
        ({"dram": 0.47, "sm": 0.30, "warps": 0.2}, None, NAN, "latency: few warps"),
        ({"dram": NAN, "sm": NAN}, {}, NAN, "not known"),
    ],
)  # fmt: skip
def test_the_rule_names_the_limiter(busy, stalls, programs_per_sm, answer):
    assert limiter(busy, stalls, programs_per_sm) == answer


@pytest.mark.parametrize(
    ("busy", "sure"),
    [
        ({"dram": 0.84, "sm": 0.30}, True),
        ({"dram": 0.61, "sm": 0.30}, False),
        ({"dram": 0.59, "sm": 0.30}, False),
        ({"dram": 0.40, "sm": 0.39}, True),
        ({"dram": 0.84, "sm": 0.83}, False),
        ({"dram": 0.79, "l2": 0.80, "sm": 0.07}, True),
        ({"dram": 0.70, "l2": 0.81, "sm": 0.07}, False),
        ({"dram": NAN}, False),
    ],
)
def test_an_answer_that_two_points_could_change_is_not_sure(busy, sure):
    assert limiters.is_sure(busy) is sure


def test_the_rule_on_the_page_has_the_numbers_of_the_rule():
    text = limits_page.rule().data
    for number in (limiters.BOUND, limiters.FEW_WARPS):
        assert f"{number:.0%}" in text
    assert f"within {limiters.MARGIN * 100:.0f} points" in text


# --- what it reads --------------------------------------------------------------------------------------------------


def test_readings_are_the_planted_counters(run):
    rows = limiters.readings(run)
    assert len(rows) == 6, "three kernels at the narrow and the wide shape"
    assert at(rows, "int4")["dram"] == pytest.approx(0.55)
    assert at(rows, "int4")["warps"] == pytest.approx(0.35)
    assert at(rows, "fp16-cublas")["limiter"] == "DRAM"
    assert rows[["l2", "tensor", "per_weight"]].isna().all(axis=None), "not collected"


def test_readings_of_a_run_without_counters_are_no_rows(tmp_path):
    bare = synthetic.load(tmp_path, m_list=(1,), shapes=STUDY_SHAPES[:1], modes=MODES, counters=False)
    assert limiters.readings(bare).empty
    found = limits_claims.of_limiters(limiters.with_static(limiters.readings(bare), limiters.static_file("h200")))
    assert {verdict.state for verdict in found.values()} == {UNDECIDED}


def test_programs_per_sm_follow_from_the_launch_config(run):
    """112 tiles of 128 columns, four programs each, on 132 SMs; the simple kernel does not split K."""
    rows = limiters.readings(run)
    assert at(rows, "int4")["programs_per_sm"] == pytest.approx(14336 / 128 * 4 / 132)
    assert at(rows, "int4-static", N=1024)["programs_per_sm"] == pytest.approx(8 / 132)
    assert at(rows, "int4-static", N=1024)["limiter"].startswith("latency: fewer programs than SMs")
    assert np.isnan(at(rows, "fp16-cublas")["programs_per_sm"])


def test_metrics_are_found_by_the_name_that_ncu_gives_them(run):
    more = {L2: (40.0, "%"), TENSOR: (20.0, "%")} | {
        WAITS.format(reason): (value, "") for reason, value in {"long_scoreboard": 6.0, "barrier": 2.0}.items()
    }
    more["sm__maximum_warps_per_active_cycle_pct"] = (50.0, "%")
    more["smsp__inst_executed.sum"] = (1e6, "inst")
    more["sm__inst_executed_pipe_alu.sum"] = (5e5, "inst")
    rows = limiters.readings(counted(run, {"int4": more}))
    row = at(rows, "int4")
    assert row["l2"] == pytest.approx(0.40)
    assert row["tensor"] == pytest.approx(0.20)
    assert row["occupancy"] == pytest.approx(0.50)
    assert row["stall_long_scoreboard"] == pytest.approx(0.75)
    assert row["limiter"] == "latency: waiting for memory"
    assert row["per_weight"] == pytest.approx(32e6 / (4096 * 14336))
    assert row["pipe_alu"] == pytest.approx(16e6 / (4096 * 14336))


# --- machine code ---------------------------------------------------------------------------------------------------


def static_counts(run, tmp_path, low, high):
    """A file of static counts for the launch configs of the run."""
    rows = limiters.readings(run)
    rows = rows[rows["backend"] == "int4"]
    file = tmp_path / "static.csv"
    rows[limiters.STATIC].assign(per_weight=low, per_weight_high=high).to_csv(file, index=False)
    return file


@pytest.mark.parametrize(("low", "high", "state"), [(1.8, 2.2, HOLDS), (2.3, 2.6, FAILS), (1.0, 1.5, FAILS)])
def test_executed_and_static_counts_agree_within_the_range_of_the_machine_code(run, tmp_path, low, high, state):
    executed = {"int4": {"smsp__inst_executed.sum": (2 * 4096 * 14336 / 32, "inst")}}
    wide = counted(run, executed)
    narrow = wide.counters["case_id"].str.contains("N1024") & (wide.counters["metric"] == "smsp__inst_executed.sum")
    wide.counters.loc[narrow, "value"] *= 1024 / 14336
    rows = limiters.with_static(limiters.readings(wide), static_counts(wide, tmp_path, low, high))
    assert at(rows, "int4")["per_weight"] == pytest.approx(2)
    verdict = limits_claims.of_limiters(rows)["static"]
    assert verdict.state == state
    assert verdict.numbers["n"] == 2


def test_static_counts_of_another_launch_config_do_not_apply(run, tmp_path):
    file = static_counts(run, tmp_path, 1.8, 2.2)
    table = pd.read_csv(file)
    table.assign(split_k=table["split_k"] + 1).to_csv(file, index=False)
    rows = limiters.with_static(limiters.readings(run), file)
    assert rows["static_low"].isna().all()
    assert limits_claims.of_limiters(rows)["static"].state == UNDECIDED


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dram", "sm", "shift", "latency"),
    [
        ({"fp16-cublas": 0.84, "int4": 0.55}, {}, HOLDS, HOLDS),
        ({"fp16-cublas": 0.84, "int4": 0.75}, {}, FAILS, FAILS),
        ({"fp16-cublas": 0.30, "int4": 0.20}, {}, FAILS, HOLDS),
        ({"fp16-cublas": 0.84, "int4": 0.55}, {"int4": 0.8}, HOLDS, FAILS),
        ({"fp16-cublas": 0.84, "int4": 0.59}, {}, UNDECIDED, UNDECIDED),
    ],
)
def test_the_verdicts_follow_the_counters(tmp_path, dram, sm, shift, latency):
    planted = synthetic.Truth()
    run = load(tmp_path, dram=planted.dram | dram, sm=planted.sm | sm)
    found = limits_claims.of_limiters(limiters.with_static(limiters.readings(run), tmp_path / "absent.csv"))
    assert found["shift"].state == shift
    assert found["latency"].state == latency
    assert found["traffic"].state == HOLDS


def test_bytes_that_move_twice_are_seen(run):
    twice = run.counters["metric"].eq("dram__bytes_read.sum") & run.counters["case_id"].str.startswith("int4/")
    counters = run.counters.assign(value=run.counters["value"].where(~twice, 2 * run.counters["value"]))
    rows = limiters.readings(dataclasses.replace(run, counters=counters))
    verdict = limits_claims.of_limiters(limiters.with_static(rows, limiters.static_file("h200")))["traffic"]
    assert verdict.state == FAILS
    assert "int4" in verdict.sentence


# --- what the page shows --------------------------------------------------------------------------------------------


def test_an_answer_that_counters_nearly_deny_is_marked_in_the_table_and_in_the_figure(tmp_path):
    planted = synthetic.Truth()
    run = load(tmp_path, dram=planted.dram | {"int4": 0.59})
    rows = limiters.in_a_row(limiters.readings(run), tables.report_table(run))
    shown = limits_page.table(limiters.with_static(rows, tmp_path / "absent.csv"))
    drawn = [text.get_text() for text in limits_figures.limits(rows).axes[0].texts]
    for backend, marked in (("int4", True), ("fp16-cublas", False)):
        of_table = shown.loc[shown["backend"] == backend, "limit"]
        assert of_table.str.contains("(?)", regex=False).all() == marked
        assert all(any(limit.split(":")[0] in text for text in drawn) for limit in of_table)
    assert sum("(?)" in text for text in drawn) == (shown["backend"] == "int4").sum()


@pytest.mark.parametrize(("factor", "answer"), [(1.0, "not memory"), (0.6, "memory")])
def test_calls_in_a_row_are_limited_by_their_bytes_from_two_thirds_of_a_copy_on(tmp_path, factor, answer):
    run = load(tmp_path, factors={"int4": factor})
    table = tables.report_table(run)
    rows = limiters.in_a_row(limiters.readings(run), table)
    row = at(rows, "int4")
    assert row["rate"] == pytest.approx(table.set_index("case_id").loc[row["case_id"], "frac_peak_bw"])
    assert row["row_limiter"] == answer
    assert limiters.limited_by_bytes(row["rate"]) == (answer == "memory")


@pytest.mark.parametrize(("reread", "judged"), [(1.1, True), (1.5, False)])
def test_a_call_that_reads_bytes_again_has_no_rate_by_the_least_of_them(run, reread, judged):
    more = run.counters["metric"].str.match("dram__bytes_(read|write).sum") & run.counters["case_id"].str.startswith(
        "int4/"
    )
    value = run.counters["value"]
    again = dataclasses.replace(run, counters=run.counters.assign(value=value.where(~more, reread * value)))
    rows = limiters.in_a_row(limiters.readings(again), tables.report_table(again))
    shown = limits_page.table(limiters.with_static(rows, limiters.static_file("none")))
    assert at(rows, "int4")["traffic_ratio"] == pytest.approx(
        reread * at(limiters.readings(run), "int4")["traffic_ratio"]
    )
    assert (at(rows, "int4")["row_limiter"] != "") == judged
    assert (at(shown, "int4")["in_a_row"] != "–") == judged
    assert at(shown, "fp16-cublas")["in_a_row"] != "–"


def test_each_question_about_one_case_has_one_number(run):
    table = tables.report_table(run)
    asked = limits_page.four_numbers(limiters.readings(run), table)
    assert asked["question"].is_unique
    row = table[(table["backend"] == "int4") & (table["N"] == 14336)].iloc[0]
    assert asked["int4"].tolist() == [
        f"{synthetic.Truth().dram['int4']:.0%}",
        f"{row['frac_peak_bw']:.0%}",
        f"{row['frac_floor']:.0%}",
        "–",
    ]
    assert limits_page.four_numbers(pd.DataFrame(), table)["int4"].iloc[0] == "–"


def test_a_run_without_counters_shows_those_of_the_newest_profiled_run_beside_it_and_says_whose_they_are(tmp_path, run):
    """Planted: only the profiler's numbers are another run's; times on the page stay those of this run."""
    bare = synthetic.load(
        tmp_path,
        m_list=(1,),
        shapes=STUDY_SHAPES,
        backends=BACKENDS,
        modes=MODES,
        counters=False,
        minute="2026-11-24T0930Z",
    )
    assert limits_page.counted(run) is run
    assert limits_page.whose_counters(run, run) is None
    assert limits_page.counted(bare) is bare, "nothing beside it was profiled"
    profiled = load(tmp_path)
    found = limits_page.counted(bare)
    assert (found.run_id, len(found.counters)) == (profiled.run_id, len(profiled.counters))
    told = limits_page.whose_counters(bare, found).data
    assert found.gpu["name"] in told
    assert found.run_id in told
    cases, table = limiters.readings(found).assign(gpu="NVIDIA A10G"), tables.report_table(bare)
    asked = limits_page.four_numbers(cases, table)
    assert ["A10G" in question for question in asked["question"]] == [True, False, False, False]
    assert "A10G" in limits_page.alone(cases).data
    assert "A10G" not in limits_page.four_numbers(limiters.readings(found), table)["question"].str.cat()


def test_what_a_lone_call_waits_for_counts_shapes(tmp_path):
    waits = limits_page.alone(limiters.readings(load(tmp_path / "a", dram=synthetic.Truth().dram | {"int4": 0.3}))).data
    busy = limits_page.alone(limiters.readings(load(tmp_path / "b", dram=synthetic.Truth().dram | {"int4": 0.9}))).data
    assert re.search(r"At (\d) of (\d)", waits).groups() == ("2", "2")
    assert re.search(r"At (\d) of (\d)", busy).groups() == ("0", "2")

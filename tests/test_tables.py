"""Tables: what is planted in a synthetic run comes out of the pipeline."""

import numpy as np
import pandas as pd
import pytest
import synthetic

from tinygemm.problem import REPORT_SHAPES, STUDY_SHAPES, GemmProblem
from tinygemm.report.base import tables
from tinygemm.report.base.intervals import bootstrap_interval, interval_of, median, ratio_of_medians
from tinygemm.report.limits.counters import summarize_counters
from tinygemm.runs import load_run

NARROW, WIDE = GemmProblem(1, 1024, 4096), GemmProblem(1, 14336, 4096)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return synthetic.load(tmp_path_factory.mktemp("run"), m_list=(1, 8), shapes=STUDY_SHAPES)


@pytest.fixture(scope="module")
def table(run):
    return tables.report_table(run)


def case(table, backend, problem, launch="graph", l2_state="cold"):
    rows = table[table["case_id"] == f"{backend}/{problem}/{launch}-{l2_state}"]
    assert len(rows) == 1
    return rows.iloc[0]


def one_group(latencies: dict[str, list[float]], **extra):
    """Cases and samples of one problem, given each backend's samples."""
    identity = {backend: f"{backend}/M1-K64-N32-g32/graph-cold" for backend in latencies}
    shared = {"M": 1, "N": 32, "K": 64, "launch": "graph", "l2_state": "cold", "status": "ok"}
    shared |= {"operands": "random", "flops": 4096}
    cases = pd.DataFrame(
        [
            {"case_id": identity[b], "backend": b, "bytes_min": 1280, "n_samples": len(times)} | shared | extra
            for b, times in latencies.items()
        ]
    )
    rows = [(identity[b], i, t) for b, times in latencies.items() for i, t in enumerate(times)]
    return cases, pd.DataFrame(rows, columns=["case_id", "sample", "latency_us"])


# --- medians, intervals, rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["fp16-cublas", "int4-static", "int4", "aten-int4mm"])
@pytest.mark.parametrize("mode", [("graph", "cold"), ("eager", "hot")])
def test_the_median_is_the_planted_latency_and_lies_in_its_interval(table, backend, mode):
    planted = synthetic.Truth().latency_us(backend, WIDE, *mode)
    row = case(table, backend, WIDE, *mode)
    assert row["latency_us_p50"] == pytest.approx(planted, rel=0.02)
    assert row["latency_us_low"] <= row["latency_us_p50"] <= row["latency_us_high"]
    assert 0 < row["latency_us_high"] - row["latency_us_low"] < 0.05 * planted


def test_rates_follow_from_the_median_by_hand():
    cases, samples = one_group({"int4": [2.0, 4.0, 4.0]})
    row = tables.summarize(cases, samples).iloc[0]
    assert row["latency_us_p50"] == 4.0
    assert row["achieved_gb_s"] == pytest.approx(1280 / 4e-6 / 1e9)
    assert row["tflop_s"] == pytest.approx(4096 / 4e-6 / 1e12)


def test_bandwidth_is_a_fraction_of_the_copy_of_the_same_run(tmp_path):
    run = synthetic.load(tmp_path, truth=synthetic.Truth(copy_gb_s=500), m_list=(1,), shapes=[STUDY_SHAPES[2]])
    table = tables.report_table(run)
    assert tables.copy_bandwidth_gb_s(table) == pytest.approx(500, rel=0.01)
    row = case(table, "int4", WIDE)
    assert row["frac_peak_bw"] == pytest.approx(row["achieved_gb_s"] / 500, rel=0.01)
    assert case(table, "copy", "1GiB")["frac_peak_bw"] == 1


def test_the_median_of_an_even_number_of_samples_is_between_the_middle_two():
    values = np.array([[4.0, 1.0, 3.0, 100.0], [1.0, 1.0, 2.0, 2.0]])
    assert median(values).tolist() == np.median(values, axis=1).tolist() == [3.5, 1.5]


def test_an_interval_of_the_median_covers_the_truth_about_95_times_in_100():
    samples = np.random.default_rng(1).normal(10, 1, (600, 30))
    low, high = bootstrap_interval(median, samples)
    assert 0.91 < np.mean((low <= 10) & (high >= 10)) < 0.98


def test_the_ends_of_an_interval_cut_off_two_and_a_half_percent_each():
    resamples = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval_of(resamples) == pytest.approx((25.0, 975.0))
    np.testing.assert_allclose(interval_of(np.stack([resamples, resamples + 1])), [[25, 26], [975, 976]])


def test_intervals_are_the_same_every_time(run, table):
    again = tables.report_table(run)
    pd.testing.assert_frame_equal(table, again)


def test_one_sample_has_a_median_and_no_interval():
    row = tables.summarize(*one_group({"int4": [3.0]})).iloc[0]
    assert row["latency_us_p50"] == 3.0
    assert np.isnan(row["latency_us_low"])
    assert np.isnan(row["latency_us_high"])


def test_a_case_that_was_not_timed_keeps_its_row_without_numbers(tmp_path):
    """The ring serves up to 8 tokens."""
    run = synthetic.load(tmp_path, m_list=(16,), shapes=(STUDY_SHAPES[2],), modes=(("graph", "cold"),), n_samples=5)
    row = case(tables.report_table(run), "int4-ring", GemmProblem(16, 14336, 4096))
    assert row["status"] == "unsupported"
    assert row[["latency_us_p50", "achieved_gb_s", "speedup_vs_fp16", "frac_floor"]].isna().all()


def test_lost_samples_are_an_error_that_names_the_case():
    cases, samples = one_group({"int4": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match=r"int4/M1-K64-N32-g32/graph-cold: cases.csv says 3 samples, .* has 2"):
        tables.summarize(cases, samples.iloc[:2])


def test_a_case_listed_twice_is_an_error():
    cases, samples = one_group({"int4": [1.0, 2.0]})
    with pytest.raises(ValueError, match="int4/M1-K64-N32-g32/graph-cold is listed twice"):
        tables.summarize(pd.concat([cases, cases]), samples)


# --- speedups -------------------------------------------------------------------------------------------------------


def test_a_speedup_is_baseline_over_contender(table):
    truth = synthetic.Truth()
    row = case(table, "int4", WIDE)
    planted = truth.latency_us("fp16-cublas", WIDE) / truth.latency_us("int4", WIDE)
    assert row["speedup_vs_fp16"] == pytest.approx(planted, rel=0.02)
    assert row["speedup_vs_fp16_low"] < row["speedup_vs_fp16"] < row["speedup_vs_fp16_high"]


def test_the_baseline_is_exactly_one_times_itself(table):
    rows = table[(table["backend"] == "fp16-cublas")]
    assert (rows[["speedup_vs_fp16", "speedup_vs_fp16_low", "speedup_vs_fp16_high"]] == 1).all(axis=None)


def test_what_a_whole_round_shares_cancels_in_a_speedup():
    clock = np.random.default_rng(3).uniform(1, 2, 30)
    cases, samples = one_group({"fp16-cublas": list(20 * clock), "int4": list(5 * clock)})
    row = tables.speedups(cases, samples).set_index("case_id").loc["int4/M1-K64-N32-g32/graph-cold"]
    assert row["speedup"] == pytest.approx(4)
    assert row["speedup_low"] == pytest.approx(4)
    assert row["speedup_high"] == pytest.approx(4)
    shuffled = samples.assign(latency_us=[*20 * clock, *5 * clock[::-1]])
    row = tables.speedups(cases, shuffled).set_index("case_id").loc["int4/M1-K64-N32-g32/graph-cold"]
    assert row["speedup_high"] - row["speedup_low"] > 0.2


def test_a_group_without_baseline_has_no_speedup():
    cases, samples = one_group({"int4": [1.0, 2.0]})
    assert tables.speedups(cases, samples).empty


def test_launch_modes_and_cache_states_are_never_mixed_in_a_speedup(table):
    truth = synthetic.Truth()
    row = case(table, "int4", NARROW, "eager", "hot")
    modes = [truth.latency_us(backend, NARROW, "eager", "hot") for backend in ("fp16-cublas", "int4")]
    assert row["speedup_vs_fp16"] == pytest.approx(modes[0] / modes[1], rel=0.02)


def test_another_baseline_can_be_chosen(run):
    result = tables.speedups(run.cases, run.samples, baseline="int4-static").set_index("case_id")
    assert result.loc[f"int4-static/{WIDE}/graph-cold", "speedup"] == 1


def test_contenders_of_different_rounds_are_refused():
    cases, samples = one_group({"fp16-cublas": [1.0, 2.0, 3.0], "int4": [1.0, 2.0]})
    with pytest.raises(ValueError, match="were not timed in the same rounds"):
        tables.speedups(cases, samples)


def test_what_is_no_product_is_compared_with_nothing(table):
    rows = table[table["backend"].isin(tables.NO_PRODUCT)]
    assert rows[["speedup_vs_fp16", "ideal_speedup", "floor_us"]].isna().all(axis=None)


# --- ideals ---------------------------------------------------------------------------------------------------------


def test_the_floor_is_the_bytes_at_copy_speed_plus_an_empty_node(table):
    row = case(table, "int4", WIDE)
    by_hand = WIDE.bytes_min(4.125) / 4280e3 + 0.98
    assert row["floor_us"] == pytest.approx(by_hand, rel=0.01)
    assert row["frac_floor"] == pytest.approx(by_hand / row["latency_us_p50"], rel=0.01)


def test_the_ideal_speedup_is_the_ratio_of_bytes(table):
    ideal = case(table, "int4", WIDE)["ideal_speedup"]
    assert ideal == pytest.approx(WIDE.bytes_min(16) / WIDE.bytes_min(4.125))
    assert 3.85 < ideal < 16 / 4.125
    assert case(table, "fp16-cublas", WIDE)["ideal_speedup"] == 1


# --- breakdown, contrasts -------------------------------------------------------------------------------------------


def test_breakdown_finds_the_planted_cost_of_dequantisation(tmp_path):
    truth = synthetic.Truth(factors={("int4", 4096, 14336): 2.0})
    run = synthetic.load(tmp_path, truth=truth, m_list=(1,), shapes=STUDY_SHAPES)
    row = tables.breakdown(run).set_index("problem").loc[str(WIDE)]
    fused, reads = truth.latency_us("int4", WIDE), truth.latency_us("int4-no-dequant", WIDE)
    assert row["dequant_in_kernel_us"] == pytest.approx(fused - reads, rel=0.05)
    assert row["dequant_in_kernel_us_low"] < fused - reads < row["dequant_in_kernel_us_high"]
    assert row["dequant_share"] == pytest.approx(1 - reads / fused, rel=0.05)
    assert row["dequant_only_us"] == pytest.approx(truth.latency_us("dequant-only", WIDE), rel=0.02)
    assert row["dequant_fp16_us"] == pytest.approx(truth.latency_us("dequant-fp16", WIDE), rel=0.02)
    assert row["speedup_without_dequant"] == pytest.approx(truth.latency_us("fp16-cublas", WIDE) / reads, rel=0.02)


def test_every_column_of_the_breakdown_is_the_backend_that_it_names(tmp_path):
    """Planted: a time of its own for every backend."""
    columns = {
        "fp16_us": "fp16-cublas", "fused_us": "int4", "no_dequant_us": "int4-no-dequant",
        "naive_us": "int4-naive-dequant", "load_only_us": "int4-load-only", "dequant_only_us": "dequant-only",
        "dequant_fp16_us": "dequant-fp16",
    }  # fmt: skip
    truth, least = synthetic.Truth(), GemmProblem(1, 4096, 4096)
    planted = {column: 10.0 * 1.5**place for place, column in enumerate(columns)}
    factors = {columns[column]: us / truth.latency_us(columns[column], least) for column, us in planted.items()}
    run = synthetic.load(
        tmp_path, truth=synthetic.Truth(factors=factors), m_list=(1,), shapes=[(4096, 4096)],
        backends=tuple(columns.values()), modes=(("graph", "cold"),), counters=False,
    )  # fmt: skip
    parts = tables.breakdown(run)
    assert {name for name in parts if name.endswith("_us")} - {"dequant_in_kernel_us"} == set(columns)
    for column, us in planted.items():
        assert parts[column].item() == pytest.approx(us, rel=0.03), column
    assert parts["speedup"].item() == pytest.approx(planted["fp16_us"] / planted["fused_us"], rel=0.03)
    assert parts["speedup_naive"].item() == pytest.approx(planted["fp16_us"] / planted["naive_us"], rel=0.03)


def test_breakdown_leaves_out_what_was_not_measured(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), shapes=STUDY_SHAPES, backends=("fp16-cublas", "int4"))
    parts = tables.breakdown(run)
    assert len(parts) == len(STUDY_SHAPES)
    assert parts[["load_only_us", "dequant_only_us", "dequant_in_kernel_us", "dequant_share"]].isna().all(axis=None)
    assert parts["speedup"].notna().all()


# --- counters -------------------------------------------------------------------------------------------------------


def counters_of(*kernels: dict, case_id="fp16-cublas/M1-K64-N32-g32/graph-cold", call=0):
    rows = [
        {
            "case_id": case_id,
            "launch": i,
            "call": call,
            "kernel_name": f"k{i}",
            "metric": metric,
            "value": v,
            "unit": unit,
        }
        for i, kernel in enumerate(kernels)
        for metric, (v, unit) in kernel.items()
    ]
    return pd.DataFrame(rows)


DURATION, DRAM, READ = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
)


def test_kernels_of_one_call_add_up_and_percentages_are_weighted_by_duration():
    rows = counters_of(
        {DURATION: (9000, "nsecond"), DRAM: (80, "%"), READ: (7.5, "Mbyte")},
        {DURATION: (1, "usecond"), DRAM: (20, "%"), READ: (500, "Kbyte")},
    )
    row = summarize_counters(rows).iloc[0]
    assert row["n_kernels"] == 2
    assert row["counter_us"] == pytest.approx(10)
    assert row["dram_read_bytes"] == pytest.approx(8e6)
    assert row["frac_dram"] == pytest.approx((0.8 * 9 + 0.2 * 1) / 10)


@pytest.mark.parametrize(
    ("unit", "value"),
    [("nsecond", 2.5e6), ("ns", 2.5e6), ("usecond", 2500), ("us", 2500), ("msecond", 2.5), ("ms", 2.5),
     ("second", 2.5e-3), ("s", 2.5e-3)],
)  # fmt: skip
def test_one_duration_is_the_same_in_every_unit(unit, value):
    assert summarize_counters(counters_of({DURATION: (value, unit)})).iloc[0]["counter_us"] == pytest.approx(2500)


@pytest.mark.parametrize(
    ("unit", "value"),
    [("byte", 2.5e9), ("B", 2.5e9), ("Kbyte", 2.5e6), ("KB", 2.5e6), ("Mbyte", 2500), ("MB", 2500), ("Gbyte", 2.5),
     ("GB", 2.5)],
)  # fmt: skip
def test_one_amount_of_bytes_is_the_same_in_every_unit(unit, value):
    assert summarize_counters(counters_of({READ: (value, unit)})).iloc[0]["dram_read_bytes"] == pytest.approx(2.5e9)


def test_calls_are_not_added_up_but_their_median_is_taken():
    calls = [counters_of({DURATION: (us, "us"), READ: (100 * us, "byte")}, call=i) for i, us in enumerate((10, 12, 90))]
    row = summarize_counters(pd.concat(calls)).iloc[0]
    assert row["n_kernels"] == 1
    assert row["counter_us"] == pytest.approx(12)
    assert row["dram_read_bytes"] == pytest.approx(1200)


def test_ratios_are_weighted_not_added_and_unknown_metrics_keep_their_name():
    stalled = "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
    rows = counters_of(
        {DURATION: (1, "us"), "launch__waves": (100, ""), "sm__x.sum": (5, "inst"), stalled: (8, "inst")},
        {DURATION: (3, "us"), "launch__waves": (20, ""), "sm__x.sum": (7, "inst"), stalled: (4, "inst")},
    )
    row = summarize_counters(rows).iloc[0]
    assert row["launch__waves"] == pytest.approx(40)
    assert row["sm__x.sum"] == 12
    assert row["stalled_wait"] == pytest.approx(5), "warps per issue are a ratio, though their unit is that of a count"


def test_several_kernels_without_durations_cannot_be_weighted():
    with pytest.raises(ValueError, match=r"needs gpu__time_duration.sum of each"):
        summarize_counters(counters_of({DRAM: (80, "%")}, {DRAM: (20, "%")}))


def test_one_kernel_needs_no_duration():
    assert summarize_counters(counters_of({DRAM: (80, "%")})).iloc[0]["frac_dram"] == pytest.approx(0.8)


def test_counters_join_the_case_that_was_profiled(run):
    table = tables.counters_table(run)
    assert set(table["backend"]) == {"fp16-cublas", "int4-static", "int4"}
    row = case(table, "fp16-cublas", NARROW)
    assert row["n_kernels"] == 2
    assert row["frac_dram"] == pytest.approx(synthetic.Truth().dram["fp16-cublas"])
    assert row["traffic_ratio"] == pytest.approx(1)
    assert row["latency_us_p50"] == case(tables.report_table(run), "fp16-cublas", NARROW)["latency_us_p50"]


def test_counters_of_an_unknown_case_are_an_error(run, tmp_path):
    strange = run.counters.assign(case_id=run.counters["case_id"].str.replace("int4/", "int5/"))
    with pytest.raises(ValueError, match=r"int5/.*not a case of cases.csv"):
        tables.counters_table(type(run)(run.path, run.provenance, run.cases, run.samples, strange))


def test_ratio_of_medians_is_not_the_median_of_ratios():
    left, right = np.array([[1.0, 2.0, 9.0]]), np.array([[1.0, 4.0, 3.0]])
    assert ratio_of_medians(left, right)[0] == pytest.approx(2 / 3)


# --- the suites of a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A run of the whole plan of a report."""
    from tinygemm.harness.plan import SweepPlan

    return load_run(synthetic.write_plan(tmp_path_factory.mktemp("planned"), SweepPlan.from_parameters()))


@pytest.mark.parametrize("name", ["decode", "causes", "method", "formats"])
def test_a_suite_is_what_its_part_of_the_plan_would_have_measured_alone(planned, name):
    from tinygemm.harness.plan import SweepPlan, groups

    alone = {case_id for group in groups(SweepPlan.from_parameters(suites=name)) for case_id in group.case_ids}
    part = tables.suite(planned, name)
    assert set(part.cases["case_id"]) == alone
    assert len(alone) < len(planned.cases)
    assert set(part.samples["case_id"]) <= alone


def test_a_run_without_suites_is_its_own_only_suite(run):
    assert tables.suite(run, "decode") is run


def test_a_run_of_the_whole_plan_gives_a_table_and_verdicts_on_decode_alone(planned):
    from tinygemm.report.gains import claims as gains_claims

    table = tables.report_table(planned)
    assert len(table) == len(planned.cases)
    assert tables.primary(table).groupby(["backend", "M", "K", "N"]).size().max() == 1
    wide = gains_claims.of_run(planned)["A"]
    assert wide.numbers["n_shapes"] == sum(N >= 2 * K for K, N in REPORT_SHAPES)
    assert len(tables.counters_table(planned)) > len(tables.counters_table(tables.suite(planned, "decode")))


# --- modes, operands, group sizes -----------------------------------------------------------------------------------


def test_zeros_and_warm_caches_are_groups_of_their_own(tmp_path):
    """A baseline that was timed on random operands is no baseline for zeros."""
    modes = (("graph", "cold"), ("graph", "warm"), ("graph", "cold", "zeros"), ("do_bench", "cold"))
    truth = synthetic.Truth(zeros=0.5)
    run = synthetic.load(tmp_path, truth=truth, m_list=(1,), shapes=[STUDY_SHAPES[2]], modes=modes)
    table = tables.report_table(run)
    by_id = table.set_index("case_id")["latency_us_p50"]
    zeros, random = (by_id[f"int4/{WIDE}/graph-cold{suffix}"] for suffix in ("-zeros", ""))
    assert zeros == pytest.approx(0.5 * random, rel=0.02)
    assert tables.primary(table)["case_id"].str.endswith("graph-cold").all()
    speedup = table[table["backend"] == "int4"].set_index(["launch", "l2_state", "operands"])["speedup_vs_fp16"]
    assert speedup["graph", "cold", "zeros"] == pytest.approx(speedup["graph", "cold", "random"], rel=0.02)
    assert speedup.notna().all()
    assert len(tables.breakdown(run)) == 1
    assert len(tables.paired(run.cases, run.samples, "fp16-cublas", "int4")) == len(modes)


def test_the_primary_number_of_a_product_is_one_row_however_many_group_sizes_were_timed(table):
    other = table[(table["backend"] == "int4") & tables.in_mode(table)]
    other = other.assign(case_id=other["case_id"].str.replace("-g128/", "-g32/"))
    alone = other.head(1).assign(K=2880, case_id="int4/M1-K2880-N1024-g32/graph-cold")
    rows = tables.primary(pd.concat([table, other, alone], ignore_index=True))
    assert set(rows["case_id"]) == {*tables.primary(table)["case_id"], *alone["case_id"]}

"""The decomposition: planted factors come out of it, multiply to the total, and decide between kernel and bits."""

import numpy as np
import pytest
import synthetic

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import contrasts, tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.base.intervals import ratio_of_medians
from tinygemm.report.base.words import bracket
from tinygemm.report.gains import factors, ladder, ladder_figures, timeline_figures
from tinygemm.report.gains import kernel_or_bits as verdicts
from tinygemm.report.gains import page as gains_page

NARROW, _, WIDE, _ = STUDY_SHAPES
BACKENDS = ("fp16-cublas", "fp16-triton", "int4", "int4-no-dequant", "int4-load-only")
MODES = (("graph", "cold"), ("eager", "cold"))


@pytest.fixture
def load(tmp_path):
    def load(factors=None, backends=BACKENDS, modes=MODES, **kwargs):
        truth = synthetic.Truth(factors=factors or {}, **kwargs)
        return synthetic.load(
            tmp_path, truth=truth, m_list=(1,), shapes=STUDY_SHAPES, backends=backends, modes=modes, counters=False
        )

    return load


def of(steps, shape):
    return steps[(steps["K"] == shape[0]) & (steps["N"] == shape[1])]


def test_every_step_is_the_planted_ratio_within_its_interval(load):
    steps, truth = ladder.steps(load()), synthetic.Truth()
    for K, N in STUDY_SHAPES:
        rows = of(steps, (K, N)).set_index("step")
        for step, ((left, left_launch), (right, right_launch)) in ladder.PATH.items():
            problem = GemmProblem(1, N, K)
            planted = truth.latency_us(left, problem, left_launch) / truth.latency_us(right, problem, right_launch)
            assert rows.loc[step, "value"] == pytest.approx(planted, rel=0.02)
            assert rows.loc[step, "low"] < rows.loc[step, "value"] < rows.loc[step, "high"]


def test_the_factors_of_a_path_multiply_to_the_total_within_its_interval(load):
    steps = ladder.steps(load())
    for shape in STUDY_SHAPES:
        rows = of(steps, shape)
        path = ladder.path(rows)
        assert list(path["step"]) == list(ladder.PATH)
        total = rows.set_index("step").loc["total with launch"]
        assert total["low"] <= path["value"].prod() <= total["high"]
        between_graphs = rows.set_index("step").loc["total"]
        assert between_graphs["low"] <= path["value"].drop("launch").prod() <= between_graphs["high"]
        np.testing.assert_array_equal(path["right_us"].iloc[:-1], path["left_us"].iloc[1:])


@pytest.mark.parametrize(("factor", "told"), [(1.0, "In none of 4 cases"), (1.5, "In 4 of 4 cases")])
def test_where_the_kernel_is_slower_without_dequantisation_the_page_says_so(load, factor, told):
    assert told in factors.slower_without(ladder.steps(load({"int4-no-dequant": factor}))).data


@pytest.mark.parametrize(
    ("factor", "step"), [("fp16-triton", "kernel"), ("int4-load-only", "weight-read bound"), ("int4", "dequantise")]
)
def test_a_slower_contender_moves_the_step_that_leads_to_it_and_no_step_before(load, tmp_path, factor, step):
    before = of(ladder.steps(load()), WIDE).set_index("step")["value"]
    truth = synthetic.Truth(factors={factor: 2.0})
    slower = synthetic.load(tmp_path / "slower", truth=truth, m_list=(1,), shapes=STUDY_SHAPES, counters=False,
                            backends=BACKENDS, modes=MODES)  # fmt: skip
    after = of(ladder.steps(slower), WIDE).set_index("step")["value"]
    order = list(ladder.PATH)
    assert after[step] == pytest.approx(before[step] / 2, rel=0.03)
    for earlier in order[: order.index(step)]:
        assert after[earlier] == pytest.approx(before[earlier], rel=0.03)


def test_the_path_goes_over_the_harder_ceiling_where_it_was_timed(load):
    path = ladder.path(of(ladder.steps(load(backends=(*BACKENDS, "int4-load-only-serial"))), WIDE))
    assert list(path["step"])[2:4] == ["weight-read bound, serial", "multiply, wait, serial"]
    assert list(path["label"]) == list(ladder.PATH)


def test_a_path_without_eager_calls_starts_in_a_graph_and_one_with_a_gap_is_none(load, tmp_path):
    steps = ladder.steps(load(modes=MODES[:1], backends=[*BACKENDS[:3], "int4-load-only"]))
    assert list(ladder.path(of(steps, WIDE))["step"]) == ["kernel", "weight-read bound", "dequantise, multiply"]
    gap = synthetic.load(tmp_path / "gap", m_list=(1,), shapes=[WIDE], backends=("fp16-cublas", "int4"), modes=MODES)
    steps = ladder.steps(gap)
    assert ladder.path(steps).empty
    assert factors.factors(steps).empty


def test_a_drift_that_rounds_share_cancels_between_contenders_and_not_between_launch_modes(load):
    run = load(drift=0.1, noise=0.001)
    rows = of(ladder.steps(run), WIDE).set_index("step")
    width = (rows["high"] - rows["low"]) / rows["value"]
    assert width["kernel"] < 0.005
    assert width["launch"] > 0.02


def test_cases_of_one_group_with_other_counts_of_samples_are_compared_independently(load):
    run = load()
    short = run.cases["backend"] == "int4"
    cases = run.cases.assign(n_samples=run.cases["n_samples"].mask(short, 9))
    samples = run.samples[~(run.samples["case_id"].isin(cases.loc[short, "case_id"]) & (run.samples["sample"] >= 9))]
    uneven = type(run)(run.path, run.provenance, cases, samples, run.counters)
    frame = contrasts.pairs(contrasts.timed(uneven), {"a": ("fp16-cublas", "graph"), "b": ("int4", "graph")})
    row = contrasts.contrast(uneven, frame, ["a", "b"], ratio_of_medians).iloc[0]
    assert row["low"] < row["value"] < row["high"]


def test_zeros_are_no_operands_of_a_comparison(load):
    run = load()
    zeros = run.cases.assign(operands="zeros")
    assert contrasts.timed(type(run)(run.path, run.provenance, zeros, run.samples, run.counters)).empty


# --- kernel or bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("twin", "narrow", "wide"),
    [(1.0, HOLDS, HOLDS), (3.2, FAILS, HOLDS), (0.4, HOLDS, FAILS)],
    ids=["as planted", "a slow twin", "a fast twin"],
)
def test_the_larger_factor_follows_the_twin(load, twin, narrow, wide):
    found = verdicts.of_run(load({"fp16-triton": twin}))
    assert (found["kernel_narrow"].state, found["bits_wide"].state) == (narrow, wide)
    truth, problem = synthetic.Truth(), GemmProblem(1, WIDE[1], WIDE[0])
    bits = twin * truth.latency_us("fp16-triton", problem) / truth.latency_us("int4", problem)
    assert found["bits_wide"].numbers["largest_bits"] == pytest.approx(bits, rel=0.02)


def test_no_gain_leaves_nothing_to_divide(load):
    found = verdicts.of_run(load({("int4", *NARROW): 5.0}))["kernel_narrow"]
    assert found.state == UNDECIDED
    assert "no certain gain" in found.sentence


def test_kernel_or_bits_is_undecided_without_the_twin(load):
    found = verdicts.of_run(load(backends=("fp16-cublas", "int4")))
    assert {verdict.state for verdict in found.values()} == {UNDECIDED}


def test_every_decode_case_is_in_the_table_with_its_interval(load):
    run = load()
    shown = factors.factors(ladder.steps(run))
    assert len(shown) == len(STUDY_SHAPES)
    value, low, high = (ladder.shares(run).set_index("problem").loc["M1-K4096-N14336-g128", f"gain{end}"]
                        for end in ("", "_low", "_high"))  # fmt: skip
    cell = shown.set_index("shape").loc["4096×14336", "total"]
    assert cell == f"{value:.2f}{bracket(low, high)}"
    assert tables.pd.DataFrame(shown).notna().all(axis=None)


# --- kernel, overlap, bits ------------------------------------------------------------------------------------------


STEPS = (*BACKENDS, "int4-serial")


def test_the_steps_of_both_orders_multiply_to_the_whole_gain(load):
    rows, truth = ladder.three_steps(load(backends=STEPS)), synthetic.Truth()
    for K, N in STUDY_SHAPES:
        problem = GemmProblem(1, N, K)
        whole = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
        here = of(rows, (K, N))
        assert here.groupby("order", sort=False)["step"].agg(list).to_dict() == {
            "bits last": ["kernel and overlap", "bits"],
            "overlap last": ["kernel and bits", "overlap"],
        }
        assert here.groupby("order")["value"].prod().to_numpy() == pytest.approx(whole, rel=0.03)


def test_a_serial_fp16_kernel_splits_the_first_step_in_two(load):
    """Planted: without overlap our FP16 kernel takes a quarter longer."""
    run = load(backends=STEPS)
    cases = run.cases[run.cases["backend"] == "fp16-triton"]
    serial = cases.assign(
        backend="fp16-triton-serial", case_id=cases["case_id"].str.replace("fp16-triton/", "fp16-triton-serial/")
    )
    samples = run.samples[run.samples["case_id"].isin(cases["case_id"])]
    samples = samples.assign(
        case_id=samples["case_id"].str.replace("fp16-triton/", "fp16-triton-serial/"),
        latency_us=1.25 * samples["latency_us"],
    )
    together = [tables.pd.concat(parts, ignore_index=True) for parts in ((run.cases, serial), (run.samples, samples))]
    more = type(run)(run.path, run.provenance, *together, run.counters)
    rows = of(ladder.three_steps(more), WIDE)
    first = rows[rows["order"] == "bits last"].set_index("step")["value"]
    assert list(first.index) == ["kernel", "overlap", "bits"]
    assert first["overlap"] == pytest.approx(1.25, rel=1e-3)


def test_an_order_of_which_an_end_was_not_timed_is_left_out(load):
    run = load()
    assert set(ladder.three_steps(run)["order"]) == {"bits last"}
    assert ladder.three_steps(tables.only(run, run.cases["backend"] != "fp16-triton")).empty


def test_bars_of_the_steps_are_their_times(load):
    rows = of(ladder.three_steps(load(backends=STEPS)), NARROW)
    (ax,) = ladder_figures.three_steps(rows).axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    assert bars == [pytest.approx((row.left_us, row.right_us)) for row in rows.itertuples()]


def test_the_timeline_has_the_measured_distance_between_two_calls(load):
    """Planted: a serial kernel that takes twice as long as the overlapping one."""
    run = load({"int4-serial": 2.0}, backends=STEPS)
    lanes, truth = timeline_figures.lanes(tables.report_table(run)), synthetic.Truth()
    problem = GemmProblem(1, NARROW[1], NARROW[0])
    for row in lanes.itertuples():
        factor = 2.0 if row.backend == "int4-serial" else 1.0
        assert row.period_us == pytest.approx(factor * truth.latency_us(row.backend, problem), rel=0.02)
    lanes = lanes.set_index("backend")
    assert lanes.loc["int4", "call_us"] == lanes.loc["int4-serial", "period_us"]
    lines = [ax.collections[0].get_segments()[0][0, 0] for ax in timeline_figures.timeline(lanes.reset_index()).axes]
    assert lines == pytest.approx(lanes["period_us"].tolist())


def test_a_run_without_the_serial_kernel_has_no_timeline(load):
    table = tables.report_table(load())
    assert timeline_figures.lanes(table).empty
    assert "did not time" in gains_page.two_calls(table).data

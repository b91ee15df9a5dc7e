"""Verdicts: each planted answer gives its verdict, and the opposite answer gives the opposite one."""

import numpy as np
import pytest
import synthetic

from tinygemm.problem import REPORT_SHAPES, STUDY_SHAPES
from tinygemm.report.base import claims as claim
from tinygemm.report.base import tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.gains import claims as gains_claims
from tinygemm.report.limits import page as limits_page

NARROW, WIDE = STUDY_SHAPES[0], STUDY_SHAPES[2]
BACKENDS = ("fp16-cublas", "int4-static", "int4", "int4-no-dequant", "int4-load-only", "fp16-triton")


@pytest.fixture
def judge(tmp_path):
    """The verdicts of a run with planted factors; the untouched run has A, B true and C false."""

    def judge(factors=None, shapes=STUDY_SHAPES, backends=BACKENDS, counters=True, **truth):
        truth = synthetic.Truth(factors=factors or {}, **truth)
        run = synthetic.load(
            tmp_path, truth=truth, m_list=(1,), shapes=shapes, backends=backends, counters=counters,
            modes=(("graph", "cold"),),
        )  # fmt: skip
        return gains_claims.of_run(run)

    return judge


def test_every_verdict_is_given_for_both_kernels_with_plain_floats(judge):
    found = judge()
    parts = ("A", "B", "C", "C_loses", "C_cause")
    assert set(found) == {f"{part}{kernel}" for part in parts for kernel in ("", "_static")} | {"D"}
    for verdict in found.values():
        assert verdict.state in (HOLDS, FAILS, UNDECIDED)
        assert verdict.sentence.endswith(".")
        assert verdict.numbers
        assert all(type(value) is float for value in verdict.numbers.values())


# --- A --------------------------------------------------------------------------------------------------------------


def test_wide_helps_holds_where_int4_is_faster_at_every_wide_shape(judge):
    verdict = judge(shapes=REPORT_SHAPES)["A"]
    assert verdict.state == HOLDS
    assert verdict.numbers["n_shapes"] == 3
    truth, problem = synthetic.Truth(), synthetic.GemmProblem(1, 8192, 4096)
    worst = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
    assert verdict.numbers["worst_speedup"] == pytest.approx(worst, rel=0.02)
    assert "4096×8192, 4096×14336, 4096×28672" in verdict.sentence


def test_wide_helps_fails_with_one_slower_wide_shape(judge):
    verdict = judge({("int4", 4096, 8192): 4.0}, shapes=REPORT_SHAPES)["A"]
    assert verdict.state == FAILS
    assert verdict.numbers["worst_N"] == 8192
    assert "slower than FP16 at 4096×8192" in verdict.sentence


def test_wide_helps_is_undecided_on_a_tie(judge):
    truth, problem = synthetic.Truth(), synthetic.GemmProblem(1, WIDE[1], WIDE[0])
    tie = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
    found = judge({("int4", *WIDE): tie}, noise=0.05)
    assert found["A"].state == UNDECIDED
    assert "cannot be told apart" in found["A"].sentence
    assert found["A_static"].state == HOLDS


def test_a_slow_narrow_shape_does_not_speak_about_wide_ones(judge):
    assert judge({("int4", *NARROW): 5.0})["A"].state == HOLDS


def test_wide_helps_is_undecided_without_a_wide_shape(judge):
    assert judge(shapes=[NARROW], counters=False)["A"].state == UNDECIDED


# --- B --------------------------------------------------------------------------------------------------------------


# factors of the times of FP16 and INT4 at the wide projection, which the untouched run moves at 0.9 and 0.6 of a copy
@pytest.mark.parametrize(
    ("fp16", "int4", "state", "limited"),
    [
        (1.0, 1.0, HOLDS, "the bytes limit FP16"),
        (1.0, 0.6, FAILS, "the bytes limit FP16 and INT4"),
        (3.0, 1.0, FAILS, "the bytes limit neither"),
        (3.0, 0.6, FAILS, "the bytes limit INT4"),
    ],
)
@pytest.mark.parametrize("int4_dram", [0.20, 0.80])
def test_bottleneck_shift_follows_the_clock_whatever_the_counters_of_a_lone_call_say(
    judge, fp16, int4, state, limited, int4_dram
):
    dram = {"fp16-cublas": 0.84, "int4": int4_dram, "int4-static": 0.29}
    sm = {"fp16-cublas": 0.27, "int4": 0.37, "int4-static": 0.34}
    verdict = judge({("fp16-cublas", *WIDE): fp16, ("int4", *WIDE): int4}, dram=dram, sm=sm)["B"]
    assert verdict.state == state
    assert f"{limited}." in verdict.sentence
    assert (verdict.numbers["int4_rate"] > 2 / 3) == (int4 < 1)
    assert verdict.numbers["dram_shift"] == pytest.approx(0.84 - int4_dram)
    assert f"DRAM {int4_dram:.0%} busy" in verdict.sentence, "the lone call stands beside it"


@pytest.mark.parametrize(
    ("fp16", "int4", "limit", "told"),
    [(0.9, 0.9, "bandwidth", "both"), (0.9, 0.5, "other than bandwidth", "FP16 alone"),
     (0.5, 0.5, "other than bandwidth", "neither"), (0.5, 0.9, "bandwidth", "INT4 alone")],
)  # fmt: skip
def test_page_of_limits_begins_with_what_the_rates_say(fp16, int4, limit, told):
    shift = Verdict("", UNDECIDED, "", {"fp16_rate": fp16, "int4_rate": int4})
    assert limit in limits_page.answer(shift)
    assert ("other than" in limits_page.answer(shift)) == ("other than" in limit)
    for word in (told, f"{fp16:.0%}", f"{int4:.0%}"):
        assert word in limits_page.takeaway(shift).data
    lacking = Verdict("", UNDECIDED, "It was not timed.", {})
    assert "did not time" in limits_page.answer(lacking)
    assert lacking.sentence in limits_page.takeaway(lacking).data


def test_bottleneck_shift_at_the_line_itself_is_undecided(judge):
    truth, problem = synthetic.Truth(), synthetic.GemmProblem(1, WIDE[1], WIDE[0])
    rate = problem.bytes_min(4.125) / truth.latency_us("int4", problem) / 1e3 / truth.copy_gb_s
    verdict = judge({("int4", *WIDE): rate / (2 / 3)}, noise=0.05)["B"]
    assert verdict.numbers["int4_rate"] == pytest.approx(2 / 3, abs=0.03)
    assert verdict.state == UNDECIDED


def test_bottleneck_shift_is_decided_without_counters(judge):
    verdict = judge(counters=False)["B"]
    assert verdict.state == HOLDS
    assert "fp16_dram" not in verdict.numbers


def test_bottleneck_shift_is_open_where_the_shape_was_not_timed(judge):
    assert judge(shapes=[NARROW])["B"].state == UNDECIDED


# --- C --------------------------------------------------------------------------------------------------------------


def test_a_win_on_narrow_shapes_refutes_the_loss_and_leaves_nothing_to_explain(judge):
    found = judge()
    assert found["C_loses"].state == FAILS
    assert found["C_cause"].state == FAILS
    assert "no loss to explain" in found["C_cause"].sentence
    assert found["C"].state == FAILS


def test_a_loss_that_free_dequantisation_would_win_back_confirms_the_claim(judge):
    found = judge({("int4", *NARROW): 3.0})
    assert found["C_loses"].state == HOLDS
    assert found["C_cause"].state == HOLDS
    assert found["C"].state == HOLDS
    assert found["C"].numbers["cause_speedup_without_dequant"] > 1 > found["C"].numbers["cause_speedup"]


def test_a_loss_that_stays_without_dequantisation_has_another_cause(judge):
    found = judge({("int4", *NARROW): 4.0, ("int4-no-dequant", *NARROW): 3.5})
    assert found["C_loses"].state == HOLDS
    assert found["C_cause"].state == FAILS
    assert "would stay a loss" in found["C_cause"].sentence
    assert found["C"].state == FAILS


NAIVE = (*BACKENDS, "int4-naive-dequant")


def test_the_simple_kernel_loses_for_another_reason_where_the_tuned_one_wins_with_its_dequantisation(judge):
    found = judge(backends=NAIVE)
    assert found["C_loses_static"].state == HOLDS
    assert found["C_cause_static"].state == FAILS
    assert (
        "the tuned kernel wins even when it shifts, masks and converts as the simple one does"
        in found["C_cause_static"].sentence
    )


def test_the_simple_kernel_loses_by_dequantisation_where_the_tuned_one_loses_with_the_same(judge):
    found = judge({("int4-naive-dequant", *NARROW): 4.0}, backends=NAIVE)
    assert found["C_loses"].state == FAILS, "with its own dequantisation the tuned kernel wins"
    assert found["C_cause_static"].state == HOLDS
    assert found["C_static"].state == HOLDS


def test_a_tuned_kernel_that_wins_by_another_dequantisation_decides_nothing(judge):
    found = judge()
    assert found["C_loses_static"].state == HOLDS
    assert found["C_cause_static"].state == UNDECIDED
    assert "did not time it with the naive one" in found["C_cause_static"].sentence


def test_naive_dequantisation_that_is_level_with_fp16_decides_nothing(judge):
    truth, problem = synthetic.Truth(), synthetic.GemmProblem(1, NARROW[1], NARROW[0])
    tie = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4-naive-dequant", problem)
    found = judge({("int4-naive-dequant", *NARROW): tie}, backends=NAIVE, noise=0.05)
    assert found["C_loses_static"].state == HOLDS
    assert found["C_cause_static"].state == UNDECIDED


def test_the_simple_kernel_loses_by_dequantisation_where_the_tuned_one_does_too(judge):
    assert judge({("int4", *NARROW): 3.0})["C_static"].state == HOLDS


def test_a_tie_on_a_narrow_shape_decides_nothing(judge):
    truth, problem = synthetic.Truth(), synthetic.GemmProblem(1, NARROW[1], NARROW[0])
    tie = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
    found = judge({("int4", *NARROW): tie}, noise=0.05)
    assert found["C_loses"].state == UNDECIDED
    assert found["C_cause"].state == UNDECIDED
    assert found["C"].state == UNDECIDED


def test_the_cause_is_undecided_without_the_experiment(judge):
    found = judge({("int4", *NARROW): 3.0}, backends=("fp16-cublas", "int4-static", "int4"))
    assert found["C_loses"].state == HOLDS
    assert found["C_cause"].state == UNDECIDED
    assert found["C"].state == UNDECIDED


def test_the_numbers_of_the_cause_are_the_planted_ones(judge):
    truth = synthetic.Truth(factors={("int4", *NARROW): 3.0})
    problem = synthetic.GemmProblem(1, NARROW[1], NARROW[0])
    numbers = judge(truth.factors)["C_cause"].numbers
    fused, reads = truth.latency_us("int4", problem), truth.latency_us("int4-no-dequant", problem)
    assert numbers["dequant_us"] == pytest.approx(fused - reads, rel=0.03)
    assert numbers["dequant_share"] == pytest.approx(1 - reads / fused, rel=0.03)


def test_a_claim_about_all_rows_needs_agreement_and_falls_by_one_counterexample():
    yes, no = np.array([True, True]), np.array([False, False])
    mixed = np.array([True, False])
    state = claim.for_all
    series = tables.pd.Series
    assert state(series(yes), series(no)) == HOLDS
    assert state(series(mixed), series(no)) == UNDECIDED
    assert state(series(mixed), series(~mixed)) == FAILS
    assert state(series([], dtype=bool), series([], dtype=bool)) == UNDECIDED


@pytest.mark.parametrize(("factor", "words"), [(1.3, "the tuned kernel is no faster: "), (0.9, " % less")])
def test_what_leaving_dequantisation_out_does_is_said_as_measured(judge, factor, words):
    sentence = judge({("int4-no-dequant", *NARROW): factor})["C_cause"].sentence
    assert words.replace(" %", "%").strip() in sentence


@pytest.mark.parametrize(
    ("factors", "state"), [({"fp16-triton": 3.0}, HOLDS), ({("fp16-triton", *NARROW): 0.2}, FAILS)]
)
def test_fewer_bits_help_only_if_they_beat_fp16_in_the_same_structure(judge, factors, state):
    assert judge(factors)["D"].state == state


def test_whether_fewer_bits_help_is_undecided_without_the_fp16_twin(judge):
    assert judge(backends=("fp16-cublas", "int4-static", "int4"))["D"].state == UNDECIDED

"""The six steps: planted steps come out as factors, and a step that loses turns the verdict."""

import dataclasses

import pytest
import synthetic
from derived import primary, slowed

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.kernel import claims as kernel_claims
from tinygemm.report.kernel import figures as kernel_figures
from tinygemm.report.kernel import steps_page
from tinygemm.report.kernel import tables as steps

NARROW, _, WIDE, _ = STUDY_SHAPES
SHAPES, TOKENS, BACKENDS, MODES = synthetic.LADDER
TRUTH = synthetic.Truth(noise=0.002, factors={"int4": 0.95})  # so that the last step gains at M = 8, too


def load(root, backends=BACKENDS):
    return synthetic.load(
        root, m_list=TOKENS, shapes=SHAPES, backends=backends, modes=MODES, counters=False,
        truth=TRUTH,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A ladder whose every step gains; the last one is another form, the ring."""
    return load(tmp_path_factory.mktemp("run"))


def at(run, backend, shape, M=1):
    cases = run.cases
    return primary(run, backend) & (cases["K"] == shape[0]) & (cases["N"] == shape[1]) & (cases["M"] == M)


def judge(run):
    return kernel_claims.of_steps(steps.rungs(run))


# --- the table ------------------------------------------------------------------------------------------------------


def test_a_factor_is_the_planted_time_before_over_the_time_with_the_step(run):
    rows, truth = steps.rungs(run), TRUTH
    assert len(rows) == len(STUDY_SHAPES) * len(TOKENS) * len(steps.STEPS)
    order = list(steps.STEPS)
    for _, row in rows[rows["step"] > 0].iterrows():
        problem = GemmProblem(row["M"], row["N"], row["K"])
        before, after = (truth.latency_us(order[step], problem) for step in (row["step"] - 1, row["step"]))
        assert row["factor"] == pytest.approx(before / after, rel=0.01)
        assert row["factor_low"] < row["factor"] < row["factor_high"]
        assert row["latency_us"] == pytest.approx(after, rel=0.02)


def test_factors_multiply_to_the_total_and_shares_are_of_the_reads(run):
    rows = steps.rungs(run)
    total = steps.totals(rows).set_index("problem")
    product = rows.groupby("problem")["factor"].prod()
    assert (product / total["total"]).to_numpy() == pytest.approx(1)
    truth, problem = TRUTH, GemmProblem(1, WIDE[1], WIDE[0])
    reads, serial, int4 = (truth.latency_us(b, problem) for b in ("int4-load-only", "int4-load-only-serial", "int4"))
    row = total.loc["M1-K4096-N14336-g128"]
    assert row["of_reads"] == pytest.approx(reads / int4, rel=0.01)
    first = rows[(rows["problem"] == row.name) & (rows["step"] == 0)].iloc[0]
    static = TRUTH.latency_us("int4-static", problem)
    assert first["of_reads"] == pytest.approx(serial / static, rel=0.01), "both wait for the call before"


def test_the_step_that_passes_fp16_follows_the_times(run):
    label = list(steps.STEPS.values())
    first = slowed(run, primary(run, "fp16-cublas"), 100)
    assert set(steps.totals(steps.rungs(first))["passes"]) == {label[0]}
    never = slowed(run, primary(run, "fp16-cublas"), 0.01)
    assert steps.totals(steps.rungs(never))["passes"].isna().all()
    assert "with the step none (4096×1024," in steps_page.whole(steps.rungs(never)).data


def test_a_problem_without_one_of_the_steps_is_left_out(run):
    cases = run.cases[~at(run, "int4-step-early", WIDE)]
    rows = steps.rungs(dataclasses.replace(run, cases=cases))
    assert "M1-K4096-N14336-g128" not in set(rows["problem"])
    assert "M8-K4096-N14336-g128" in set(rows["problem"])


# --- the verdicts ---------------------------------------------------------------------------------------------------


def test_every_step_gains_until_one_loses_and_is_named(run):
    verdict = judge(run)["steps"]
    assert verdict.state == HOLDS
    assert verdict.numbers["n"] == len(STUDY_SHAPES) * len(TOKENS) * (len(steps.STEPS) - 1)
    lost = slowed(run, at(run, "int4-step-early", NARROW), 2)
    verdict = judge(lost)["steps"]
    assert verdict.state == FAILS
    assert "4096×1024, M = 1 (overlap)" in verdict.sentence
    assert verdict.numbers["n_failed"] == 1


def test_a_step_that_changes_nothing_decides_nothing(run):
    rows = steps.rungs(run)
    gains = rows["backend"].eq("int4-splitk")
    rows.loc[gains, ["factor", "factor_low", "factor_high"]] = 1.0, 0.99, 1.01
    assert kernel_claims.every_step_gains(rows).state == UNDECIDED


def as_before(run, factor=1.0):
    """The run in which the library selects the form of the step before, at M = 8, in the very same config."""
    same = run.cases["backend"].eq("int4") & run.cases["M"].eq(8)
    cases = run.cases.assign(form=run.cases["form"].mask(same, "splitk"))
    return slowed(dataclasses.replace(run, cases=cases), same, factor)


def test_the_same_kernel_twice_is_no_step_whatever_its_two_times(run):
    other = as_before(run, 1.2)
    rows = steps.rungs(other)
    assert set(rows.loc[rows["same"], "backend"]) == {"int4"}
    assert set(rows.loc[rows["same"], "M"]) == {8}
    verdict = kernel_claims.of_steps(rows)["steps"]
    assert verdict.state == HOLDS, "the ring gains at M = 1, and at M = 8 there is no ring"
    assert f"Left out: {len(STUDY_SHAPES)} cases" in verdict.sentence
    assert "another kernel" in steps_page.again(steps.rungs(run)).data
    said = steps_page.again(rows).data
    assert "in 4 of the cases" in said
    assert (steps_page.gains(rows).set_index("M").loc[8, "better of two forms"] == "same kernel").all()


def test_an_early_start_is_no_step_where_the_gpu_has_none(run, tmp_path):
    older = synthetic.load(
        tmp_path, gpu="a10g", m_list=TOKENS, shapes=SHAPES, backends=BACKENDS, modes=MODES, counters=False, truth=TRUTH
    )
    rows = steps.rungs(slowed(older, primary(older, "int4-step-early"), 1.2))
    assert set(rows.loc[rows["same"], "backend"]) == {"int4-step-early"}
    assert not steps.rungs(run)["same"].any()
    early = steps.gains(rows)["backend"] == "int4-step-early"
    assert not early.any()


def test_the_largest_step_is_the_first_until_another_is_larger(run):
    slow = slowed(run, primary(run, "int4-static"), 10)
    verdict = judge(slow)["first"]
    assert verdict.state == HOLDS
    assert verdict.numbers["n_first"] == len(STUDY_SHAPES) * len(TOKENS)
    naive = slowed(slow, at(run, "int4-step-naive", WIDE) | at(run, "int4-static", WIDE), 30)
    verdict = judge(naive)["first"]
    assert verdict.state == FAILS
    assert "lop3 dequantisation:" in verdict.sentence
    assert "at 4096×14336, M = 1" in verdict.sentence.split("lop3 dequantisation:")[1]
    table = steps_page.gains(steps.rungs(naive)).set_index(["shape", "M"])
    assert table.loc[("4096×14336", 1), "lop3 dequantisation"].startswith("**")
    assert table.loc[("4096×14336", 8), "K split, flat loads"].startswith("**")


# --- what a run may lack --------------------------------------------------------------------------------------------


def test_a_run_without_the_ladder_says_so_everywhere(tmp_path):
    rows = steps.rungs(load(tmp_path, backends=("fp16-cublas", "int4-static", "int4", "int4-load-only")))
    assert rows.empty
    assert {verdict.state for verdict in kernel_claims.of_steps(rows).values()} == {UNDECIDED}
    for said in (steps_page.whole(rows), steps_page.again(rows)):
        assert "did not time every step" in said.data
    assert steps_page.gains(rows).empty
    with pytest.raises(ValueError, match="no rows"):
        kernel_figures.ladder(rows)


def test_a_ladder_without_its_reads_and_fp16_is_drawn_and_told(tmp_path):
    rows = steps.rungs(load(tmp_path, backends=tuple(steps.STEPS)))
    assert len(rows)
    assert rows[["reads_us", "reads_serial_us", "fp16_us"]].isna().all(axis=None)
    assert len(kernel_figures.ladder(rows).axes) == len(STUDY_SHAPES)
    said = steps_page.whole(rows).data
    assert "a factor of" in said
    assert "weight-read" not in said
    assert "FP16" not in said
    with pytest.raises(ValueError, match="M = 3"):
        kernel_figures.ladder(rows, M=3)


def test_the_steps_are_the_suite_that_the_harness_times():
    from tinygemm.harness.suites import LADDER_BACKENDS

    assert {*steps.STEPS, *steps.BESIDE} == set(LADDER_BACKENDS) == set(BACKENDS)

"""Ratios of two cases: the planted value inside the interval, rounds drawn together only where they were shared."""

import numpy as np
import pytest
import synthetic
from derived import also, primary

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base.contrasts import compare, geometric_mean, primary_cases, timed_cases
from tinygemm.report.base.intervals import sample_matrix
from tinygemm.report.base.tables import problem_of

MODES = (("graph", "cold"), ("eager", "cold"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return synthetic.load(tmp_path_factory.mktemp("run"), m_list=(1, 8), shapes=STUDY_SHAPES, modes=MODES)


def sides(run, left, right):
    cases = primary_cases(run.cases)
    cases = cases.assign(problem=problem_of(cases))
    return (cases[cases["backend"] == name] for name in (left, right))


def test_the_planted_ratio_lies_in_its_interval(run):
    rows = compare(run, *sides(run, "fp16-cublas", "int4"), ["problem", "M", "K", "N"])
    assert len(rows) == 2 * len(STUDY_SHAPES)
    truth = synthetic.Truth()
    for _, row in rows.iterrows():
        problem = GemmProblem(row["M"], row["N"], row["K"])
        planted = truth.latency_us("fp16-cublas", problem) / truth.latency_us("int4", problem)
        assert row["value"] == pytest.approx(planted, rel=0.01)
        assert row["low"] < row["value"] < row["high"]
        assert row["left_us"] / row["right_us"] == pytest.approx(row["value"])


def test_what_a_whole_round_shares_cancels_only_within_a_group(run):
    """The drift of a round is several times the noise: drawn apart, it widens the interval."""
    together = compare(run, *sides(run, "fp16-cublas", "int4"), ["problem"])
    cases = timed_cases(run.cases)
    int4 = cases[(cases["backend"] == "int4") & (cases["launch"] == "graph")]
    other_rounds = compare(run, int4[int4["M"] == 8], int4[int4["M"] == 1], ["K", "N"])
    widths = [((rows["high"] - rows["low"]) / rows["value"]).median() for rows in (together, other_rounds)]
    assert widths[1] > 1.5 * widths[0]


def test_cases_with_different_numbers_of_samples_are_compared(run):
    fewer = also(run, primary(run, "int4"), factor=2, keep=7, backend="int4-searched")
    rows = compare(fewer, *sides(fewer, "int4-searched", "int4"), ["problem"])
    np.testing.assert_allclose(rows["value"], 2, rtol=0.06)
    assert rows[["low", "high"]].notna().all(axis=None)


def test_the_geometric_mean_is_that_of_the_ratios_and_surer_than_each(run):
    pairs = compare(run, *sides(run, "fp16-cublas", "int4"), ["problem"])
    matrix = sample_matrix(run.cases[run.cases["case_id"].isin({*pairs["left_id"], *pairs["right_id"]})], run.samples)
    mean = geometric_mean(pairs, matrix)
    assert mean["value"] == pytest.approx(np.exp(np.log(pairs["value"]).mean()))
    assert mean["low"] < mean["value"] < mean["high"]
    assert mean["high"] - mean["low"] < (pairs["high"] - pairs["low"]).max()


def test_a_case_that_stands_twice_in_its_place_is_refused(run):
    left, right = sides(run, "fp16-cublas", "int4")
    with pytest.raises(ValueError, match="merge"):
        compare(run, left, right, ["K", "N"])


def test_nothing_in_common_is_an_empty_table(run):
    left, right = sides(run, "fp16-cublas", "int4")
    rows = compare(run, left[left["M"] == 1], right[right["M"] == 8], ["problem"])
    assert rows.empty
    assert {"value", "low", "high", "left_us"} <= set(rows.columns)
    assert np.isnan(geometric_mean(rows, run.samples)["value"])

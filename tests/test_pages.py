"""Sentences of the pages that are computed: they say the numbers of the run, and say so where there are none."""

import synthetic

from tinygemm.problem import GemmProblem
from tinygemm.report import pages, tables


def test_the_walk_of_the_simple_kernel_is_told_by_three_times(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), backends=("fp16-cublas", "int4-static"))
    said = pages.serial_walk(tables.report_table(run)).data
    for N, K in ((512, 4096), (8192, 4096), (4096, 14336)):
        expected = synthetic.Truth().latency_us("int4-static", GemmProblem(1, N, K))
        assert any(
            abs(float(word) - expected) < 0.02 * expected for word in said.split() if word[0].isdigit() and "." in word
        )
    assert "16 times the weights" in said


def test_a_run_without_those_shapes_says_so(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), shapes=((4096, 1024),), backends=("fp16-cublas", "int4-static"))
    assert "did not time" in pages.serial_walk(tables.report_table(run)).data

"""Sentences of the pages that are computed: they say the numbers of the run, and say so where there are none."""

import dataclasses

import synthetic

from tinygemm.problem import GemmProblem
from tinygemm.report.backends import page as backends_page
from tinygemm.report.base import page, tables
from tinygemm.report.dequantisation import page as dequantisation_page
from tinygemm.runs import load_run


def test_the_walk_of_the_simple_kernel_is_told_by_three_times(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), backends=("fp16-cublas", "int4-static"))
    said = dequantisation_page.serial_walk(tables.report_table(run)).data
    for N, K in ((512, 4096), (8192, 4096), (4096, 14336)):
        expected = synthetic.Truth().latency_us("int4-static", GemmProblem(1, N, K))
        assert any(
            abs(float(word) - expected) < 0.02 * expected for word in said.split() if word[0].isdigit() and "." in word
        )
    assert "16 times the weights" in said


def test_a_run_without_those_shapes_says_so(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), shapes=((4096, 1024),), backends=("fp16-cublas", "int4-static"))
    assert "did not time" in dequantisation_page.serial_walk(tables.report_table(run)).data


def test_how_many_cases_ran_in_a_config_of_the_rule_is_counted(tmp_path):
    """Planted: every other case has its config from the rule."""
    from tinygemm.harness.plan import SweepPlan

    run = load_run(synthetic.write_plan(tmp_path, SweepPlan.from_parameters(suites="crossover")))
    mine = run.cases[run.cases["backend"] == "int4"]
    source = run.cases["config_source"].mask(run.cases.index.isin(mine.index[::2]), "rule")
    run = dataclasses.replace(run, cases=run.cases.assign(config_source=source))
    told = page.by_rule(run, "crossover").data
    assert f"Of {len(mine)} cases of the tuned kernel here, {len(mine) // 2} ran" in told
    assert "did not time" in page.by_rule(run, "models").data


def test_many_sources_of_configs_are_told_by_their_first_words(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,), backends=("int4",), counters=False)
    many = ["rule, ring", "rule, splitk", "table", "table, ring"]
    run.cases["config_source"] = [many[i % len(many)] for i in range(len(run.cases))]
    assert backends_page.contenders(run).set_index("backend").loc["`int4`", "source"] == "rule; table"

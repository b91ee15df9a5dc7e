"""Every backend that can be measured, or was, is described once, and figures can tell backends apart."""

import csv

import pytest

from tinygemm.backends import BACKENDS, CEILING, FP16, OURS, PEER, of_family, with_serial
from tinygemm.harness import registry, suites
from tinygemm.problem import GemmProblem
from tinygemm.report.answer import tables as answer
from tinygemm.report.base import style
from tinygemm.report.predict import model
from tinygemm.runs import recorded_runs

RUNS = recorded_runs()


def test_every_backend_of_the_registry_is_described_and_no_other():
    assert set(BACKENDS) == set(registry.known_names())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_backend_of_a_recorded_run_is_described(path):
    with (path / "cases.csv").open(newline="", encoding="utf-8") as stream:
        assert {row["backend"] for row in csv.DictReader(stream)} <= set(BACKENDS)


@pytest.mark.parametrize("listed", [model.BACKENDS, answer.BACKENDS, suites.REPORT_BACKENDS, suites.LADDER_BACKENDS])
def test_lists_of_backends_name_described_ones(listed):
    assert set(listed) <= set(BACKENDS)


def test_each_backend_has_a_key_a_name_a_description_and_a_family():
    products = [each for each in BACKENDS.values() if each.family != CEILING]
    assert all(key == each.key and each.name and each.what for key, each in BACKENDS.items())
    assert len({each.name for each in BACKENDS.values()}) == len(BACKENDS)
    assert len({each.colour for each in products}) == len(products)


def test_families_and_the_registry_agree():
    problem = GemmProblem(1, 4096, 4096)
    assert set(of_family(CEILING)) == set(registry.CEILINGS)
    for name in of_family(FP16):
        assert registry.BACKENDS[name].bits_per_weight(problem, True) == 16
    for name in of_family(OURS, PEER):
        assert registry.BACKENDS[name].bits_per_weight(problem, True) < 5
        assert registry.BACKENDS[name].flops(problem) == problem.flops


def test_kernels_whose_calls_overlap_are_paired_with_the_same_kernel_without_overlap():
    kernels = ("int4", "int4-load-only", "humming", "fp16-triton")
    assert with_serial() == {name: f"{name}-serial" for name in kernels}
    assert set(with_serial().values()) <= set(BACKENDS)


def test_an_unknown_backend_is_drawn_under_its_own_name():
    assert style.name("somebody-else") == style.short_name("somebody-else") == "somebody-else"
    assert style.colour("somebody-else") == style.OTHER
    assert style.in_order(["somebody-else", "int4", "fp16-cublas", "copy"])[-1] == "somebody-else"
    assert style.in_order(["int4", "fp16-cublas"]) == ["fp16-cublas", "int4"]

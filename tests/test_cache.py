"""Results kept on disk: the same for the same data and code, made anew for others, and never in the way."""

import numpy as np
import pytest

from tinygemm.report.base import cache, intervals


@pytest.fixture
def counted(tmp_path):
    """A remembered function of a fresh store, and the arguments that it was computed for."""
    computed = []

    def total(values):
        computed.append(values)
        return float(values.sum())

    return cache.memory(tmp_path / "cache").cache(total), computed


def test_a_result_is_computed_once_for_equal_data(counted):
    total, computed = counted
    assert [total(np.arange(5.0)) for _ in range(3)] == [10, 10, 10]
    assert len(computed) == 1
    assert total(np.arange(6.0)) == 15
    assert len(computed) == 2


def test_other_code_has_other_results(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    first = cache.code_digest(tmp_path)
    assert cache.code_digest(tmp_path) == first
    (tmp_path / "report" / "b.py").write_text("y = 1\n", encoding="utf-8")
    assert cache.code_digest(tmp_path) != first


def test_results_of_old_code_are_removed(tmp_path):
    for index in range(6):
        (tmp_path / f"old{index}").mkdir()
    cache.memory(tmp_path)
    assert len(list(tmp_path.iterdir())) <= cache.KEPT + 1


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    double = cache.memory(tmp_path / "file" / "cache").cache(lambda x: 2 * x)
    assert double(4) == 8


def test_a_remembered_interval_is_that_of_its_samples():
    samples = np.random.default_rng(1).normal(10, 1, (3, 30))
    fresh = intervals.bootstrap_interval.func(intervals.median, samples)
    for _ in range(2):
        kept = intervals.bootstrap_interval(intervals.median, samples)
        assert all(np.array_equal(*pair) for pair in zip(kept, fresh, strict=True))

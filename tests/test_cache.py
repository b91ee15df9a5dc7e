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

    return cache.memory("tinygemm.problem", tmp_path / "cache").cache(total), computed


def test_a_result_is_computed_once_for_equal_data(counted):
    total, computed = counted
    assert [total(np.arange(5.0)) for _ in range(3)] == [10, 10, 10]
    assert len(computed) == 1
    assert total(np.arange(6.0)) == 15
    assert len(computed) == 2


@pytest.fixture
def package(tmp_path):
    """A package whose module `fit` imports `terms` at once and `late` inside a function; `page` is nobody's."""
    folder = tmp_path / "package"
    (folder / "base").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "base" / "__init__.py").touch()
    (folder / "fit.py").write_text(
        "from package.base import terms\n\ndef f():\n    import package.late\n", encoding="utf-8"
    )
    (folder / "base" / "terms.py").write_text("import numpy\nX = 1\n", encoding="utf-8")
    (folder / "late.py").write_text("import package.fit\n", encoding="utf-8")
    (folder / "page.py").write_text("import package.fit\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("file", ["fit.py", "base/terms.py", "late.py"])
def test_other_code_of_a_module_or_of_what_it_imports_has_other_results(package, file):
    first = cache.code_digest("package.fit", package.parent)
    assert cache.code_digest("package.fit", package.parent) == first
    (package / file).write_text((package / file).read_text(encoding="utf-8") + "y = 1\n", encoding="utf-8")
    assert cache.code_digest("package.fit", package.parent) != first


def test_code_that_a_module_does_not_import_leaves_its_results(package):
    first = cache.code_digest("package.fit", package.parent)
    (package / "page.py").write_text("other = 1\n", encoding="utf-8")
    assert cache.code_digest("package.fit", package.parent) == first


def test_results_of_old_code_are_removed(tmp_path):
    for index in range(6):
        (tmp_path / "tinygemm.problem" / f"old{index}").mkdir(parents=True)
    cache.memory("tinygemm.problem", tmp_path)
    assert len(list((tmp_path / "tinygemm.problem").iterdir())) <= cache.KEPT + 1


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    double = cache.memory("tinygemm.problem", tmp_path / "file" / "cache").cache(lambda x: 2 * x)
    assert double(4) == 8


def test_a_remembered_interval_is_that_of_its_samples():
    samples = np.random.default_rng(1).normal(10, 1, (3, 30))
    fresh = intervals.bootstrap_interval.func(intervals.median, samples)
    for _ in range(2):
        kept = intervals.bootstrap_interval(intervals.median, samples)
        assert all(np.array_equal(*pair) for pair in zip(kept, fresh, strict=True))


def test_a_statistic_whose_changes_would_not_be_noticed_is_refused():
    with pytest.raises(ValueError, match=r"mean must be a statistic of tinygemm\.report\.base\.intervals"):
        intervals.bootstrap_interval(np.mean, np.ones((3, 30)))


def test_an_interval_of_operands_timed_apart_is_wider_than_that_of_shared_rounds():
    """Planted: both operands follow the same clock, which cancels only where the same rounds are drawn."""
    clock = np.random.default_rng(1).normal(10, 1, (1, 40))
    paired = intervals.bootstrap_interval(intervals.ratio_of_medians, clock, 2 * clock)
    apart = intervals.independent_interval(intervals.ratio_of_medians, clock, 2 * clock)
    assert np.ravel(paired).tolist() == [0.5, 0.5]
    assert apart[0] < 0.49
    assert apart[1] > 0.51

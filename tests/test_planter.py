"""The planter: a fault is caught, missed or stale, and the checkout is left as it was."""

import planted_faults
import planted_gpu_faults
import pytest
from planter import Fault, PlantingError, copy_of, outcome, run_all

TESTS = """
from package.half import half

def test_half():
    assert half(4) == 2

def test_nothing():
    assert half
"""
SEEN, UNSEEN = ("tests/test_half.py::test_half",), ("tests/test_half.py::test_nothing",)
CAUGHT = Fault("a third", "package/half.py", "/ 2", "/ 3", SEEN)


@pytest.mark.parametrize(
    "fault", [*planted_faults.FAULTS, *planted_gpu_faults.FAULTS], ids=lambda fault: fault.name.replace(" ", "-")
)
def test_the_text_of_every_fault_stands_in_its_file_once(fault):
    text = (planted_faults.ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} times {fault.old!r}"


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "root"
    for folder in ("package", "tests", "data"):
        (root / folder).mkdir(parents=True)
    (root / "package" / "half.py").write_text("def half(x):\n    return x / 2\n", encoding="utf-8")
    (root / "tests" / "test_half.py").write_text(TESTS, encoding="utf-8")
    return root


def told(checkout, *faults):
    lines = []
    return run_all(faults, checkout, lines.append), [line.split()[0] for line in lines], lines[-1]


def test_a_fault_is_caught_missed_or_stale(checkout):
    missed = Fault("a third, unseen", "package/half.py", "/ 2", "/ 3", UNSEEN)
    stale = Fault("gone", "package/half.py", "/ 4", "/ 3", SEEN)
    ok, words, total = told(checkout, CAUGHT, missed, stale)
    assert not ok
    assert sorted(words[:-1]) == ["caught", "missed", "stale"]
    assert total == "3 planted: 1 caught, 1 missed, 1 stale"
    assert told(checkout, CAUGHT)[0]
    assert "/ 2" in (checkout / "package" / "half.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "tests", "message"),
    [
        ("x", "y", SEEN, "occurs 2 times"),
        ("/ 2", "/ 3", ("tests/test_half.py::test_gone",), "ended with code 4"),
        ("return x", "return (x", SEEN, "SyntaxError"),
    ],
    ids=["not once", "no such test", "cannot be imported"],
)
def test_what_decides_nothing_is_an_error(checkout, tmp_path, old, new, tests, message):
    copy = copy_of(checkout, tmp_path / "copy")
    with pytest.raises(PlantingError, match=message):
        outcome(Fault("", "package/half.py", old, new, tests), copy)
    assert (copy / "package" / "half.py").read_text(encoding="utf-8") == (checkout / "package" / "half.py").read_text(
        encoding="utf-8"
    )


def test_tests_that_fail_with_no_fault_planted_stop_everything(checkout):
    (checkout / "package" / "half.py").write_text("def half(x):\n    return x / 3\n", encoding="utf-8")
    ok, words, _ = told(checkout, Fault("a half", "package/half.py", "/ 3", "/ 2", SEEN))
    assert (ok, words) == (False, ["with"])


def test_a_copy_has_the_data_of_tests_and_links_the_recorded_ones(tmp_path):
    for name in ("data/run.csv", "tests/data/case.csv"):
        (tmp_path / "root" / name).parent.mkdir(parents=True)
        (tmp_path / "root" / name).write_text("a\n", encoding="utf-8")
    (tmp_path / "copy").mkdir()
    copy = copy_of(tmp_path / "root", tmp_path / "copy")
    assert (copy / "tests" / "data" / "case.csv").read_text(encoding="utf-8") == "a\n"
    assert (copy / "data").is_symlink()
    assert (copy / "data" / "run.csv").is_file()

"""The verdict of `make sanitize` on a sanitizer's report: clean only where every test ran and nothing was found."""

import re

import pytest
import sanitize

from tinygemm.digest import kernel_digest
from tinygemm.report.kernel import page as kernel_page

CLEAN = "38 passed in 50s\n========= ERROR SUMMARY: 0 errors\n"
REPORTS = {
    "clean": (CLEAN, 0, True, "no errors in 38 tests"),
    "clean race": (
        "38 passed, 2 skipped\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
        0,
        True,
        "no errors in 38 tests",
    ),
    "errors": (CLEAN.replace("0 errors", "3 errors"), 0, False, "3 errors"),
    "one error": (CLEAN.replace("0 errors", "1 error"), 0, False, "1 errors"),
    "hazards": (
        "38 passed\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n",
        0,
        False,
        "2 errors",
    ),
    "failed tests": ("1 failed, 37 passed\n========= ERROR SUMMARY: 0 errors\n", 1, False, "did not pass"),
    "no test ran": ("38 skipped\n========= ERROR SUMMARY: 0 errors\n", 0, False, "did not pass"),
    "no summary": ("38 passed\n", 0, False, "gave no summary"),
}


@pytest.mark.parametrize("case", REPORTS)
def test_a_report_is_clean_only_if_all_ran_and_nothing_was_found(case):
    output, exit_code, clean, words = REPORTS[case]
    assert (
        sanitize.verdict(output, exit_code) == (clean, pytest.approx(words))
        or words in sanitize.verdict(output, exit_code)[1]
    )
    found = sanitize.verdict(output, exit_code)
    assert found[0] is clean
    assert words in found[1]


@pytest.mark.parametrize(("summary", "exit_code"), [("0 errors", 0), ("2 errors", 1)])
def test_every_tool_is_run_and_the_exit_code_says_whether_all_were_clean(
    summary, exit_code, tmp_path, monkeypatch, capsys
):
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(
        f"#!/bin/sh\necho 38 passed\necho '========= ERROR SUMMARY: {summary}' $PYTORCH_NO_CUDA_MEMORY_CACHING\n",
        encoding="utf-8",
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert sanitize.main() == exit_code
    printed = capsys.readouterr().out
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"\n{tool} (" in printed
    assert printed.count("no errors in 38 tests") == (4 if exit_code == 0 else 0)


def test_a_machine_without_the_tool_is_told_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main() == 1
    assert "it comes with the CUDA toolkit" in capsys.readouterr().out


def test_what_the_page_shows_is_a_report_in_which_every_tool_was_clean():
    first, *lines = (sanitize.ROOT / "data" / "checks" / "sanitizer.txt").read_text(encoding="utf-8").splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d, NVIDIA .*driver .*compute-sanitizer .*torch .*triton ", first)
    assert len(lines) == len(sanitize.TOOLS)
    for line, (tool, finds) in zip(lines, sanitize.TOOLS.items(), strict=True):
        assert re.fullmatch(rf"{tool} \({re.escape(finds)}\): no errors in [1-9]\d* tests", line)


@pytest.mark.parametrize(("kernels", "sentence"), [
    ("", "is not recorded; it may have changed since."),
    (f", kernels {kernel_digest()[:12]}", "The kernels' code is the same today."),
    (", kernels 0123456789ab", "The kernels' code has changed since."),
])  # fmt: skip
def test_the_page_says_whether_the_kernels_are_those_that_were_checked(kernels, sentence, tmp_path):
    file = tmp_path / "sanitizer.txt"
    file.write_text(
        f"2026-11-25, NVIDIA H100, triton 3.6.0{kernels}\nmemcheck (x): no errors in 79 tests\n", encoding="utf-8"
    )
    text = kernel_page.sanitizers(file).data
    assert text.splitlines()[0].endswith(sentence)
    assert "* memcheck (x): no errors in 79 tests" in text


def test_a_report_says_which_kernels_it_is_of():
    assert sanitize.versions().endswith(f", kernels {kernel_digest()[:12]}")

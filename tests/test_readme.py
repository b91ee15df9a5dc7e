"""README.md: what it claims is what was measured, and its commands exist."""

from __future__ import annotations

import re
import shutil

import pytest
import synthetic
from conftest import ROOT

from tinygemm.hardware import gpu_spec
from tinygemm.report import readme
from tinygemm.report.answer import tables as one_token
from tinygemm.report.base import tables
from tinygemm.report.models import advice
from tinygemm.report.peers import choice
from tinygemm.report.predict import model as costmodel
from tinygemm.report.trust import ways
from tinygemm.runs import latest_run, load_run, recorded_runs

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
needs_run = pytest.mark.skipif(not recorded_runs(), reason="no recorded run yet")


def block(text: str) -> str:
    return text.split(readme.BEGIN)[1].split(readme.END)[0].strip()


@needs_run
def test_figure_and_findings_are_those_of_the_newest_run(tmp_path):
    shutil.copy2(README, tmp_path)
    readme.write(tmp_path, latest_run())
    assert block((tmp_path / "README.md").read_text(encoding="utf-8")) == block(TEXT), "run `make headline`"
    assert (tmp_path / readme.FIGURE).read_bytes() == (ROOT / readme.FIGURE).read_bytes(), "run `make headline`"


@needs_run
def test_numbers_of_the_first_screen_are_those_of_the_newest_run():
    run = latest_run()
    fitted = costmodel.fit(run)
    token = one_token.times(run, tables.report_table(run), fitted).set_index("backend")
    totals = advice.advise(fitted, one_token.MODEL, gpu_spec("a10g")).totals
    for backend in ("fp16-cublas", "int4"):
        assert f"{token.loc[backend, 'ms']:.1f} ms" in block(TEXT)
    assert f"**{token.loc['int4', 'speedup']:.1f} times**" in block(TEXT)
    assert f"{totals['fp16'] / 1e3:.1f} ms → {totals['advised'] / 1e3:.1f} ms" in block(TEXT)
    every_way = ways.spans(ways.speedups(run))
    for end in (every_way["low"].min(), every_way["high"].max()):
        assert f"{end:.1f}×" in block(TEXT)
    for row in choice.nearest(run, tokens=(1,)).itertuples():
        assert f"{row.value:.2f}×" in block(TEXT)


@pytest.mark.skipif(bool(recorded_runs()), reason="there is a recorded run to show")
def test_without_a_recorded_run_nothing_is_claimed():
    assert block(TEXT) == ""
    assert not (ROOT / readme.FIGURE).exists()


def test_no_measured_number_stands_outside_the_generated_findings():
    typed = TEXT.replace(block(TEXT), "") if block(TEXT) else TEXT
    assert not re.search(r"\d+(\.\d+)? ?(µs|ms|×|TB/s|GB/s|%)", typed)


def test_findings_follow_the_run_and_are_written_the_same_twice(tmp_path):
    run = load_run(synthetic.write_run(tmp_path, n_samples=7))
    slow = synthetic.Truth(factors={"int4": 4.0})
    worse = load_run(synthetic.write_run(tmp_path, n_samples=7, truth=slow, minute="2026-11-23T1500Z"))
    shutil.copy2(README, tmp_path)
    files = []
    for shown in (run, run, worse):
        readme.write(tmp_path, shown)
        files.append(((tmp_path / "README.md").read_text(encoding="utf-8"), (tmp_path / readme.FIGURE).read_bytes()))
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]
    assert files[0][1] != files[2][1]
    assert "**Yes" in files[0][0]
    assert "**No" in files[2][0]
    assert worse.run_id in files[2][0]
    assert run.run_id not in files[2][0]
    outside = [text.replace(block(text), "").split() for text, _ in files]
    assert outside[0] == outside[2] == TEXT.replace(block(TEXT) or "\0", "").split()


def test_readme_is_one_screen_and_shows_the_figure_first():
    lines = TEXT.splitlines()
    assert len(lines) <= 60
    assert len(TEXT.split()) <= 700
    assert lines[2] == readme.BEGIN
    assert lines[3].startswith("![") or not block(TEXT)


def test_every_make_target_and_file_it_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z][a-z-]*)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)|PARAMS=(\S+)", TEXT):
        name = next(filter(None, path))
        assert (ROOT / name).exists(), name


def test_every_command_it_names_exists(capsys):
    from tinygemm.cli import commands

    named = re.findall(r"tinygemm ([a-z-]+) (--.*?)(?: +#|$)", TEXT, re.MULTILINE)
    assert named
    for name, options in named:
        known = {spelling for option in commands.commands[name].params for spelling in option.opts}
        assert set(re.findall(r"--[a-z_-]+", options)) <= known


def test_code_example_of_the_readme_runs():
    torch = pytest.importorskip("torch")
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    names = {
        "weight": (torch.randn(64, 256, generator=generator) / 16).half(),
        "x": torch.randn(1, 256, generator=generator).half(),
        "model": torch.nn.Sequential(torch.nn.Linear(256, 64).half()),
    }
    from ptx import emulated

    with emulated():
        exec(example, names)
    expected = names["x"].double() @ names["weight"].double().T
    error = (names["y"].double() - expected) / expected.square().mean().sqrt()
    assert error.square().mean().sqrt() < 0.2  # the error of rounding weights to 4 bits, not of the kernel
    assert type(names["model"][0]).__name__ == "Int4Linear"


def test_nickname_of_pytorchs_kernel_is_explained_once():
    assert TEXT.count("nicknamed") == 1

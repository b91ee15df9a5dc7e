"""`step: true` in a parameter file: decode steps are measured after the sweep, and never at its cost."""

from __future__ import annotations

import types

import pytest
from test_step_suite import GPU, TINY, bench, case

from tinygemm import cli, runs, source
from tinygemm.cli import measure as command
from tinygemm.harness import registry, sweep
from tinygemm.harness.variant import Ceiling
from tinygemm.kernel import launches
from tinygemm.report.token import steps as recorded
from tinygemm.runs import RunWriter
from tinygemm.step import cases, measure, suite
from tinygemm.step.architecture import ARCHITECTURES, Architecture

PARAMETERS = {"suites": "decode", "m_list": "1", "shapes": "4096,1024", "backends": "int4"}


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path):
    """A GPU that only counts, a sweep that is sealed at once, and a matrix of two cases."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture(TINY, 1e4))
    monkeypatch.setattr(measure, "WARMUP", 0)
    monkeypatch.setattr(measure, "gc", types.SimpleNamespace(collect=int))
    monkeypatch.setattr(runs, "git_state", lambda: ("3fa9c1e" + "0" * 33, False))
    monkeypatch.setattr(runs, "software_versions", lambda: {"python": "3.12.3"})
    copy = Ceiling("copy", "1GiB", lambda: lambda: None, lambda call: None, 2 * 2**30, 10)
    monkeypatch.setitem(registry.CEILINGS, "copy", copy)
    monkeypatch.setattr(command, "require_gpu", lambda: "h200")
    monkeypatch.setattr(source.hardware, "live_gpu_key", lambda: "h200")
    monkeypatch.setattr(suite.hardware, "snapshot", lambda: GPU)
    monkeypatch.setattr(suite, "bench_of_this_gpu", lambda: bench(rep=1))
    monkeypatch.setattr(cases, "matrix", lambda tp=1: [case("fp16-cublas"), case("int4")])
    monkeypatch.setattr(
        sweep, "record", lambda plan, root, **settings: RunWriter.create(GPU, {}, "tinygemm record", root).finish()
    )


def record(tmp_path, text: str, code: int = 0) -> None:
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        cli.main(["record", "-f", str(tmp_path / "p.yaml"), "--data-root", str(tmp_path / "data")])
    assert bool(end.value.code) == bool(code)


def recorded_steps(tmp_path):
    return recorded.latest("h200", tmp_path / "data").steps


def test_steps_are_recorded_after_the_sweep_of_the_same_commit(tmp_path):
    record(tmp_path, "step: true\nstep_budget: 0\n")
    run = recorded.latest("h200", tmp_path / "data")
    assert run.steps["case_id"].tolist() == ["copy", case("fp16-cublas").case_id, case("int4").case_id]
    assert run.path.parent.parent.name == "steps"
    swept = runs.latest_run("h200", tmp_path / "data")
    assert swept.path.parent.parent == tmp_path / "data"
    assert swept.provenance["commit"] == run.provenance["commit"]


def test_a_notebook_that_measures_records_them_too_and_reads_the_sweep(tmp_path):
    root = str(tmp_path / "data")
    run = source.open_run("live", "h200", data_root=root, step=True, step_budget=0.0, **PARAMETERS)
    assert run.steps.empty
    assert len(recorded_steps(tmp_path)) == 3


@pytest.mark.parametrize("text", ["", "step: false\nstep_budget: 5\n"])
def test_no_step_is_measured_unless_it_is_asked_for(tmp_path, text):
    record(tmp_path, text)
    with pytest.raises(runs.RunError, match="no recorded decode steps"):
        recorded_steps(tmp_path)


def test_the_budget_leaves_out_what_does_not_fit_and_seals_the_rest(tmp_path, monkeypatch, capsys):
    seconds = iter(range(0, 10_000, 10))  # each look at the clock takes ten seconds
    monkeypatch.setattr(suite, "bench_of_this_gpu", lambda: bench(rep=1, now=lambda: next(seconds)))
    record(tmp_path, "step: true\nstep_budget: 1\n")
    assert recorded_steps(tmp_path)["case_id"].tolist() == ["copy"]
    assert "2 decode steps not started within 1 s" in capsys.readouterr().out


def test_a_failure_of_the_steps_costs_nothing_that_was_measured(tmp_path, monkeypatch, capsys):
    def fail():
        raise RuntimeError("the GPU fell off the bus")

    monkeypatch.setattr(suite, "bench_of_this_gpu", fail)
    record(tmp_path, "step: true\n", code=1)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "fell off the bus" in said
    assert "tinygemm step --out-dir" in said
    assert runs.latest_run("h200", tmp_path / "data").path.is_dir()
    with pytest.warns(UserWarning, match="fell off the bus"):
        source.open_run("live", "h200", data_root=str(tmp_path / "other"), step=True, **PARAMETERS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step: 1\n", "step must be true or false, got 1"),
        ('step: "true"\n', "step must be true or false, got 'true'"),
        ("step: true\nstep_budget: many\n", "step_budget must be a number of seconds"),
        ("step: true\nstep_budget: -1\n", "step_budget must be a number of seconds"),
        ("step: true\nstep_budget: .nan\n", "step_budget must be a number of seconds"),
        ("step_budget: true\n", "step_budget must be a number of seconds"),
        ("steps: true\n", "unknown parameter steps"),
    ],
)
def test_a_bad_value_is_named_before_anything_is_measured(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.setattr(sweep, "record", lambda *a, **k: pytest.fail("measured"))
    record(tmp_path, text, code=1)
    assert words in capsys.readouterr().err

"""The builder as a process: one at a time in a checkout, ended as a whole, and one line for what it cannot do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nbformat
import psutil
import pytest
from click.testing import CliRunner

from tinygemm.report import build, processes
from tinygemm.report.build import BuildError
from tinygemm.runs import RunError

HANGS = "import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(600)"
BUILD = (
    "import pathlib, sys; from tinygemm.report import build; build.ROOT = pathlib.Path(sys.argv.pop(1)); build.main()"
)
BOUND = 60  # seconds after which a process that should have ended counts as one that stays


def write_notebook(path, code: str) -> None:
    parameters = nbformat.v4.new_code_cell('source = "auto"\nrun_dir = ""', metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
    book.metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


@pytest.fixture
def checkout(tmp_path):
    """A checkout of one notebook that takes for ever, with a book that was built before."""
    write_notebook(tmp_path / "notebooks" / "00_answer.ipynb", HANGS)
    old = tmp_path / "_build" / "html" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("the old book", encoding="utf-8")
    return tmp_path


def wait_until(condition) -> bool:
    """Whether it comes true within the bound."""
    end = time.monotonic() + BOUND
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return done


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_ended_build_leaves_no_process_and_the_old_book(checkout, how):
    command = [sys.executable, "-c", BUILD, str(checkout)]
    builder = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
    try:
        hangs = checkout / "notebooks" / "started"
        assert wait_until(lambda: hangs.exists() or builder.poll() is not None)
        assert hangs.exists(), builder.stderr.read()
        started = psutil.Process(builder.pid).children(recursive=True)
        if how == signal.SIGKILL:
            builder.kill()
        else:
            os.killpg(builder.pid, how)  # as a terminal or `timeout` does
        _, told = builder.communicate(timeout=BOUND)
    finally:
        builder.kill()
    assert builder.returncode != 0
    assert len(started) >= 2, "a worker and its kernel"
    assert wait_until(lambda: all(map(ended, started))), [process for process in started if not ended(process)]
    assert how == signal.SIGKILL or len(told.strip().splitlines()) == 1, told
    assert (checkout / "_build" / "html" / "index.html").read_text(encoding="utf-8") == "the old book"


def test_a_second_build_of_a_checkout_is_refused_while_the_first_is_under_way(checkout):
    with processes.locked(checkout / "_build" / "lock"), pytest.raises(BuildError, match=rf"pid {os.getpid()}\b"):
        build.build(checkout)
    assert not (checkout / "notebooks" / "started").exists()


def test_the_lock_of_a_killed_build_is_free(checkout):
    file = checkout / "_build" / "lock"
    killed = "import os, pathlib, signal, sys; from tinygemm.report.processes import locked\n"
    killed += "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", killed, str(file)], check=False).returncode == -signal.SIGKILL
    assert file.read_text(encoding="utf-8").strip().isdigit()
    with processes.locked(file):
        pass


# --- what goes into the book ----------------------------------------------------------------------------------------


def executed(root, name: str, run_dir: str) -> None:
    """An executed notebook as papermill writes it, with the run that it was given."""
    write_notebook(root / "notebooks" / name, "")
    content = json.loads((root / "notebooks" / name).read_text(encoding="utf-8"))
    content["metadata"]["papermill"] = {"parameters": {"run_dir": run_dir} if run_dir else {}}
    (root / "book" / "executed").mkdir(parents=True, exist_ok=True)
    (root / "book" / "executed" / name).write_text(json.dumps(content), encoding="utf-8")


def test_notebooks_of_two_runs_make_no_book(tmp_path):
    executed(tmp_path, "01_problem.ipynb", "../data/h200/2026-11-25T1000Z-aaaaaaa")
    executed(tmp_path, "02_method.ipynb", str(tmp_path / "data" / "h200" / "2026-11-25T1000Z-aaaaaaa"))
    build.check_one_run(tmp_path)
    executed(tmp_path, "14_predict.ipynb", "../data/h100/2026-11-26T1000Z-bbbbbbb")
    with pytest.raises(BuildError, match=r"aaaaaaa in 01_problem, .*bbbbbbb in 14_predict"):
        build.build_book(tmp_path)


# --- what is built again --------------------------------------------------------------------------------------------


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    """A checkout of three notebooks of a run in data/, and what a build of it executes and makes pages of."""
    for name in ("00_answer", "01_problem", "02_method"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "pass")
    (tmp_path / "data" / "h200" / "run").mkdir(parents=True)
    (tmp_path / "data" / "h200" / "run" / "samples.csv").write_text("1", encoding="utf-8")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("x = 1", encoding="utf-8")
    (tmp_path / "_config.yml").write_text("title: book", encoding="utf-8")
    monkeypatch.setattr(build.runs, "DATA_ROOT", tmp_path / "data")
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(build, "live_gpu_key", lambda: None)
    pages = []

    def as_jupyter_book(command, **_):
        pages.append("pages")
        html = tmp_path / "_build" / "fresh" / "_build" / "html"
        html.mkdir(parents=True)
        (html / "index.html").touch()
        return subprocess.CompletedProcess(command, 0, "")

    def as_papermill(notebook, to, parameters, **_):
        """Every execution differs, as its times do."""
        content = json.loads(Path(notebook).read_text(encoding="utf-8"))
        content["metadata"]["papermill"] = {"parameters": parameters, "start_time": time.time_ns()}
        Path(to).write_text(json.dumps(content), encoding="utf-8")

    monkeypatch.setattr(build.subprocess, "run", as_jupyter_book)
    monkeypatch.setattr("papermill.execute_notebook", as_papermill)
    monkeypatch.setattr(processes, "workers", ThreadPoolExecutor)

    def built(**parameters) -> list[str]:
        """What this build made anew."""
        folder = tmp_path / "book" / "executed"
        before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.ipynb")}
        pages.clear()
        build.build(tmp_path, {"source": "recorded", "run_dir": "../data/h200/run"} | parameters)
        anew = [
            file.stem for file in sorted(folder.glob("*.ipynb")) if file.stat().st_mtime_ns != before.get(file.name)
        ]
        return anew + pages

    return tmp_path, built


ALL = ["00_answer", "01_problem", "02_method", "pages"]


def test_a_build_with_nothing_changed_makes_nothing_and_one_chapter_changed_only_that_chapter(chapters):
    root, built = chapters
    assert built() == ALL
    assert built() == []
    write_notebook(root / "notebooks" / "01_problem.ipynb", "pass  # other words")
    assert built() == ["01_problem", "pages"]
    (root / "_config.yml").write_text("title: another", encoding="utf-8")
    assert built() == ["pages"]
    (root / "book" / "references.bib").touch()
    assert built() == ["pages"]
    assert built() == []


@pytest.mark.parametrize("file", ["package/a.py", "data/h200/run/samples.csv", "package/configs.json"])
def test_other_code_or_data_makes_every_chapter_anew(chapters, file):
    root, built = chapters
    assert built() == ALL
    (root / file).write_text("another", encoding="utf-8")
    assert built() == ALL


def test_a_copy_that_another_program_executed_is_made_anew(chapters):
    root, built = chapters
    built()
    executed(root, "02_method.ipynb", "../data/h200/run")
    write_notebook(root / "notebooks" / "02_method.ipynb", "pass")
    assert built() == ["02_method", "pages"]


def test_a_build_that_measures_makes_everything_anew(chapters, monkeypatch):
    _, built = chapters
    built(source="auto")
    monkeypatch.setattr(build, "measures", lambda parameters: True)
    assert built(source="auto") == ALL


@pytest.mark.parametrize(
    ("parameters", "gpu", "measured"),
    [
        ({"source": "live"}, None, True),
        ({"source": "auto"}, "h200", True),
        ({}, "h200", True),
        ({"source": "auto"}, None, False),
        ({"source": "auto", "run_dir": "x"}, "h200", False),
        ({"source": "recorded"}, "h200", False),
    ],
)
def test_a_build_measures_where_it_is_told_to_or_finds_a_gpu(monkeypatch, parameters, gpu, measured):
    monkeypatch.setattr(build, "live_gpu_key", lambda: gpu)
    assert build.measures(parameters) is measured


# --- what cannot be built is one line -------------------------------------------------------------------------------


def refused(*arguments) -> str:
    """The one line that the builder says; exit code not zero."""
    result = CliRunner().invoke(build.main, [str(argument) for argument in arguments])
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def no_build(monkeypatch):
    """Parameters that pass are an error here."""
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("built"))


@pytest.mark.parametrize("name", ["no.yaml", "."])
def test_a_parameter_file_that_is_none_is_refused(no_build, tmp_path, name):
    assert str(tmp_path / name) in refused("-f", tmp_path / name)


def test_a_fault_in_the_parameter_file_is_refused_with_its_line(no_build, tmp_path):
    (tmp_path / "p.yaml").write_text("gpu: a10g\nrep:\t025\n\tm_list: 1\n", encoding="utf-8")
    assert f"{tmp_path / 'p.yaml'}:2: " in refused("-f", tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), os.strerror(errno.ENOSPC)),
        (BrokenProcessPool(), "was killed"),
        (RunError("no recorded run of l4"), "no recorded run of l4"),
        (ModuleNotFoundError("No module named 'papermill'", name="papermill"), "papermill is not installed"),
    ],
)
def test_what_goes_wrong_in_a_build_is_one_line(monkeypatch, checkout, error, words):
    def fails(*_):
        raise error

    monkeypatch.setattr(build, "ROOT", checkout)
    monkeypatch.setattr(build, "execute_all", fails)
    assert words in refused()
    with processes.locked(checkout / "_build" / "lock"):
        pass


def test_a_readme_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "latest_run", lambda: None)
    assert str(tmp_path / "README.md") in refused("--headline")


@pytest.mark.parametrize("blocked", ["_build", "book"])
def test_a_checkout_that_cannot_be_written_to_is_told_what_must_be_writable(monkeypatch, checkout, blocked):
    shutil.rmtree(checkout / "_build")
    (checkout / blocked).touch()
    monkeypatch.setattr(build, "ROOT", checkout)
    line = refused()
    assert str(checkout / "_build") in line
    assert str(checkout / "book" / "executed") in line

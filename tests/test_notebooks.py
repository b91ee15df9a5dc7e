"""The notebooks as they are stored, their parameters, and how a run of them fails."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import synthetic
import yaml
from conftest import ROOT

from tinygemm.hardware import gpu_spec, live_gpu_key
from tinygemm.report import build
from tinygemm.report.build import BuildError
from tinygemm.runs import latest_run, recorded_runs
from tinygemm.step.cases import asked_in

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted((ROOT / "notebooks" / "params").glob("*.yaml"))


def cells(notebook, kind="code"):
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell) -> str:
    return "".join(cell["source"])


def parameters_of(notebook) -> dict:
    (cell,) = [cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(cell)).body}


def each_notebook(function):
    return pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)(function)


@each_notebook
def test_notebook_is_stored_without_outputs_and_is_valid(notebook):
    nbformat.validate(nbformat.read(notebook, as_version=4))
    for cell in cells(notebook):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@each_notebook
def test_every_chapter_is_told_which_run_to_show_and_only_the_first_what_to_measure(notebook):
    first, mine = parameters_of(NOTEBOOKS[0]), parameters_of(notebook)
    assert {name: mine[name] for name in build.OF_CHAPTERS} == {name: first[name] for name in build.OF_CHAPTERS}
    assert notebook == NOTEBOOKS[0] or list(mine) == list(build.OF_CHAPTERS)


def sweep_of(parameters):
    from tinygemm.harness.sweep import SweepPlan

    where = {*build.OF_CHAPTERS, "data_root", "step", "step_budget"}  # and what is measured after the sweep
    return SweepPlan.from_parameters(**{name: value for name, value in parameters.items() if name not in where})


def test_default_sweep_is_what_the_harness_measures_for_the_report():
    assert sweep_of(parameters_of(NOTEBOOKS[0])) == sweep_of({})


@each_notebook
def test_notebook_holds_prose_and_short_cells_without_definitions(notebook):
    assert cells(notebook, "markdown")
    for cell in cells(notebook):
        code = source(cell)
        tree = ast.parse("\n".join(line for line in code.splitlines() if not line.startswith("%")))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
        assert len(code.splitlines()) <= 16, f"{notebook.name}: a cell of {len(code.splitlines())} lines"


@each_notebook
def test_every_figure_has_a_caption_and_a_label_and_stands_alone(notebook):
    for cell in cells(notebook):
        if figure := cell["metadata"].get("mystnb", {}).get("figure"):
            assert figure["caption"].rstrip().endswith(".")
            assert figure["name"].startswith("fig-")
            assert len(source(cell).splitlines()) == 1


@each_notebook
def test_what_is_shown_is_one_call_that_says_itself_what_a_run_lacks(notebook):
    for cell in cells(notebook):
        if "remove-input" in cell["metadata"].get("tags", []):
            (statement,) = ast.parse(source(cell)).body
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Call), source(cell)


@each_notebook
def test_prose_types_no_measured_number(notebook):
    """Times and ratios of the run reach the prose through glue; those of others are quoted, with their source."""
    measured = re.compile(r"(?<![\w.`])\d+(\.\d+)? ?(µs|TB/s|GB/s|×(?![\dN]))")
    for cell in cells(notebook, "markdown"):
        assert not (found := measured.search(source(cell))), f"{notebook.name}: {found.group()!r}"


@each_notebook
def test_notebook_opens_the_run_it_is_told_to(notebook):
    (call,) = [
        node
        for cell in cells(notebook)
        if "open_run(" in source(cell)
        for node in ast.walk(ast.parse(re.sub("^%.*", "", source(cell), flags=re.MULTILINE)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_run"
    ]
    given = [*(argument.id for argument in call.args), *(argument.value.id for argument in call.keywords)]
    assert given == list(parameters_of(notebook))


@pytest.mark.skipif(not recorded_runs(), reason="no recorded run yet")
def test_chapter_run_by_papermill_alone_from_anywhere_finds_the_newest_run(tmp_path):
    chapter = str(ROOT / "notebooks" / "01_token.ipynb")
    command = [sys.executable, "-m", "papermill", chapter, "out.ipynb", "-p", "source", "recorded", "-k", "python3"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert latest_run().gpu["name"] in (tmp_path / "out.ipynb").read_text(encoding="utf-8")


@pytest.mark.skipif(not recorded_runs(), reason="no recorded run yet")
def test_chapter_takes_a_parameter_file_that_also_says_what_to_measure(tmp_path):
    run = latest_run()
    params = yaml.safe_load((ROOT / "notebooks" / "params" / "a10g.yaml").read_text(encoding="utf-8"))
    params |= {"source": "recorded", "gpu": run.gpu["key"]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    chapter = str(ROOT / "notebooks" / "01_token.ipynb")
    command = [sys.executable, "-m", "papermill", chapter, "out.ipynb", "-f", "p.yaml", "-k", "python3"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert run.gpu["name"] in (tmp_path / "out.ipynb").read_text(encoding="utf-8")


@pytest.mark.skipif(live_gpu_key() == "a10g", reason="this machine has an A10G: it would measure")
@pytest.mark.skipif(bool(recorded_runs("a10g")), reason="there is a recorded run of an A10G to show")
def test_chapter_of_a_gpu_that_is_not_here_stops_with_one_sentence_instead_of_frames(tmp_path):
    chapter, params = ROOT / "notebooks" / "03_gains.ipynb", ROOT / "notebooks" / "params" / "a10g.yaml"
    command = [sys.executable, "-m", "papermill", str(chapter), str(tmp_path / "out.ipynb"), "-f", str(params)]
    done = subprocess.run([*command, "-k", "python3"], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode != 0
    cell = done.stderr.split("Exception encountered at")[1].strip().splitlines()
    assert len(cell) == 2, "where, and the sentence"
    assert "no recorded run of a10g" in cell[1]


@pytest.mark.parametrize("file", PARAMS, ids=lambda path: path.stem)
def test_parameter_file_names_its_gpu_and_only_parameters_that_exist(file):
    parameters = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert parameters["gpu"] == gpu_spec(file.stem).key, "named by the key of its GPU, or by an alias"
    build.check_parameters(NOTEBOOKS[0], parameters)
    assert asked_in(dict(parameters)) is None, "decode steps are measured where somebody says so"
    assert sweep_of(parameters) == sweep_of({}), "a chapter alone is not told what to measure, and measures the default"


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"m_lits": "1,2"}, "has no parameter 'm_lits'; it has source, gpu"),
        ({"rep": "30"}, "parameter 'rep' must be int, as 25 is; got str '30'"),
        ({"rep": True}, "parameter 'rep' must be int, as 25 is; got bool True"),
        ({"m_list": [1, 2]}, "parameter 'm_list' must be str, as '1,2,4,8,16' is; got list [1, 2]"),
        ({"counters": 1}, "parameter 'counters' must be bool, as True is; got int 1"),
    ],
)
def test_unknown_or_mistyped_parameter_is_refused_before_anything_runs(tmp_path, parameters, complaint):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    with pytest.raises(BuildError, match=re.escape(complaint)):
        build.build(tmp_path, parameters)
    assert not (tmp_path / "book").exists()


def test_failing_cell_is_named_and_leaves_no_chapter_behind(tmp_path):
    (tmp_path / "notebooks").mkdir()
    book = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell
    book.cells = [cell("a = 1", metadata={"tags": ["parameters"]}), cell("b = a"), cell("# why\nprint(1 / (b - 1))")]
    nbformat.write(book, tmp_path / "notebooks" / "04_wrong.ipynb")
    (tmp_path / "out" / ".aside").mkdir(parents=True)
    with pytest.raises(BuildError) as failure:
        build.execute(tmp_path / "notebooks" / "04_wrong.ipynb", tmp_path / "out", {})
    assert str(failure.value) == "notebooks/04_wrong.ipynb, cell [3] `# why`:\nZeroDivisionError: division by zero"
    assert not (tmp_path / "out" / "04_wrong.ipynb").exists()
    assert (tmp_path / "out" / ".aside" / "04_wrong.ipynb").exists()


@pytest.mark.skipif(live_gpu_key() == "a10g", reason="this machine has an A10G: it would measure")
def test_report_of_a_gpu_that_was_never_recorded_stops_with_one_sentence(tmp_path):
    synthetic.write_run(tmp_path / "data", shapes=((4096, 1024),), m_list=(1,), n_samples=3)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    parameters = yaml.safe_load((ROOT / "notebooks" / "params" / "a10g.yaml").read_text(encoding="utf-8"))
    with pytest.raises(BuildError) as failure:
        build.build(tmp_path, parameters | {"data_root": str(tmp_path / "data")})
    message = str(failure.value)
    assert message.startswith("notebooks/00_answer.ipynb, cell [")
    assert "no recorded run of a10g" in message
    assert list((tmp_path / "book" / "executed").glob("*.ipynb")) == []

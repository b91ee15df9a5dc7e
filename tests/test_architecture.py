"""The house: imports flow one way, the report needs no torch, modules stay small and say what they are."""

import ast
import io
import os
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "tinygemm").rglob("*.py"))

ACCELERATOR = ("torch", "triton")
HEAVY = ("tinygemm.kernel", "tinygemm.harness", "tinygemm.checkpoints", "tinygemm.step")  # packages that need them
LINES = 330  # of code: "about 300"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """The contracts of .importlinter, over the package in a folder."""
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", program, "--no-cache"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, encoding="utf-8", env=os.environ | {"COLUMNS": "200"}
    )


def test_imports_flow_one_way():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_see_wrong_arrows(tmp_path):
    wrong = {
        "report/base/tables.py": "from tinygemm.harness import sweep",
        "report/base/style.py": "def f():\n    from tinygemm.kernel.quant import pack",
        "report/readme.py": "import torch",
        "report/build.py": "from tinygemm.checkpoints import files",
        "kernel/linear.py": "from tinygemm.checkpoints import files",
        "kernel/gemm.py": "import tinygemm.report.readme",
        "kernel/quant.py": "from ..harness import sweep",
        "kernel/configs.py": "from tinygemm import metrics",
        "runs.py": "from tinygemm import cli",
        "problem.py": "from tinygemm.hardware import GPUS",
        "harness/plan.py": "from tinygemm.parameters import read_parameters",
        "of_no_layer.py": "",
    }
    copied = shutil.ignore_patterns("__pycache__", "*.json", "*.md")
    shutil.copytree(ROOT / "tinygemm", tmp_path / "tinygemm", ignore=copied)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for file, line in wrong.items():
        with (tmp_path / "tinygemm" / file).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    for file in wrong:
        module = ".".join(Path(file).with_suffix("").parts)
        assert module in done.stdout, (module, done.stdout)


def test_the_report_loads_where_torch_and_triton_are_absent():
    names = [name_of(path) for path in MODULES]
    light = [name for name in names if not name.startswith(HEAVY)]
    program = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ACCELERATOR!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {light!r}:
    importlib.import_module(name)
assert not {{name.split(".")[0] for name in sys.modules}} & set({ACCELERATOR!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def code_lines(source: str) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in skipped]
    lines = {number for token in tokens for number in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_small_and_starts_with_what_it_is(path):
    source = path.read_text(encoding="utf-8")
    if source.strip():
        first = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
        assert first.endswith("."), "the docstring starts with one sentence"
    assert path.name != "utils.py"
    assert code_lines(source) <= LINES


def test_code_lines_are_counted_without_comments_blanks_and_docstrings():
    assert code_lines('"""A.\n\nB.\n"""\n\n# c\nx = 1\n\n\ndef f():\n    """D."""\n    return """e\nf"""\n') == 4

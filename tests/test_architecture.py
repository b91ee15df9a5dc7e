"""The house: imports flow one way, the report needs no torch, modules stay small and say what they are."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "tinygemm").rglob("*.py"))

# what a layer may import of this project; the first layer that a module's name starts with is its own
LAYERS = {
    "tinygemm.problem": {"tinygemm.problem"},
    "tinygemm.models": {"tinygemm.problem", "tinygemm.models"},
    "tinygemm.hardware": {"tinygemm.problem", "tinygemm.hardware"},
    "tinygemm.digest": {"tinygemm.digest"},
    "tinygemm.provenance": {"tinygemm.provenance"},
    "tinygemm.text": set(),
    "tinygemm.runs": {
        "tinygemm.digest",
        "tinygemm.provenance",
        "tinygemm.problem",
        "tinygemm.hardware",
        "tinygemm.runs",
    },
    "tinygemm.kernel": {"tinygemm.problem", "tinygemm.hardware", "tinygemm.runs", "tinygemm.kernel"},
    "tinygemm.harness": {
        "tinygemm.problem",
        "tinygemm.models",
        "tinygemm.hardware",
        "tinygemm.digest",
        "tinygemm.runs",
        "tinygemm.text",
        "tinygemm.kernel",
        "tinygemm.harness",
    },
    "tinygemm.report.build": {  # a command beside `tinygemm`, and shares what commands share
        "tinygemm.runs",
        "tinygemm.report",
        "tinygemm.clitools",
        "tinygemm.parameters",
    },
    "tinygemm.published": {"tinygemm.runs"},
    "tinygemm.report": {
        "tinygemm.published",
        "tinygemm.problem",
        "tinygemm.models",
        "tinygemm.hardware",
        "tinygemm.digest",
        "tinygemm.provenance",
        "tinygemm.runs",
        "tinygemm.text",
        "tinygemm.report",
    },
    "tinygemm.clitools": set(),
    "tinygemm.parameters": set(),
    "tinygemm.commands_advise": {
        "tinygemm.models",
        "tinygemm.hardware",
        "tinygemm.runs",
        "tinygemm.report",
        "tinygemm.clitools",
    },
    "tinygemm.commands_equivalent": {"tinygemm.harness", "tinygemm.runs"},
    "tinygemm.commands_predict": {
        "tinygemm.problem",
        "tinygemm.hardware",
        "tinygemm.runs",
        "tinygemm.report",
        "tinygemm.clitools",
    },
    "tinygemm.dictionary": {"tinygemm.runs", "tinygemm.published", "tinygemm.report"},
}
TOP = {"tinygemm", "tinygemm.cli", "tinygemm.source"}  # may import everything, and nothing may import them
ACCELERATOR = ("torch", "triton")
LINES = 330  # of code: "about 300"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    """Absolute names of what a module imports, also inside functions; `from a import b` counts as a.b and as a."""
    found = set()
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    filter(None, [".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]), base])
                )
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "tinygemm" else {base}
    return found


def wrong_arrows(module: str, imported: set[str]) -> list[str]:
    """Imports of this project that the layer of a module does not allow."""
    if module in TOP:
        return []
    layer = next((layer for layer in LAYERS if module == layer or module.startswith(layer + ".")), None)
    assert layer, f"{module} belongs to no layer; place it in the design, then here"
    own = {name for name in imported if name == "tinygemm" or name.startswith("tinygemm.")}
    allowed = LAYERS[layer]
    return sorted(name for name in own if not any(name == to or name.startswith(to + ".") for to in allowed))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_flow_one_way(path):
    imported = imports_of(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
    assert wrong_arrows(name_of(path), imported) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tinygemm.report.base.tables", "from tinygemm.harness import sweep"),
        ("tinygemm.report.base.tables", "def f():\n    from tinygemm.kernel.quant import pack"),
        ("tinygemm.kernel.gemm", "import tinygemm.report.tables"),
        ("tinygemm.kernel.gemm", "from ..harness import sweep"),
        ("tinygemm.runs", "from tinygemm import cli"),
        ("tinygemm.problem", "from tinygemm.hardware import GPUS"),
    ],
)
def test_the_check_sees_a_wrong_arrow(module, source):
    assert wrong_arrows(module, imports_of(source, module))


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("tinygemm.report")], ids=name_of)
def test_the_report_never_mentions_the_accelerator_stack(path):
    roots = {name.split(".")[0] for name in imports_of(path.read_text(encoding="utf-8"), name_of(path))}
    assert not roots & set(ACCELERATOR)


def test_the_report_loads_where_torch_and_triton_are_absent():
    names = [name_of(path) for path in MODULES]
    light = [name for name in names if not name.startswith(("tinygemm.kernel", "tinygemm.harness"))]
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

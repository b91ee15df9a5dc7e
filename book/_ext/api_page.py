"""Write book/api.md from the docstrings of the public names, read as text: building the book needs no PyTorch."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path

# the installed package, wherever the book lies
PACKAGE = Path(find_spec("tinygemm").origin).parent
# a name, the file that defines it, and those of its methods that a user calls
NAMES = (
    ("quantize", "kernel/quant.py", ()),
    ("PackedInt4", "kernel/quant.py", ()),
    ("pack", "kernel/quant.py", ()),
    ("dequantize", "kernel/quant.py", ()),
    ("gemm", "kernel/gemm.py", ()),
    ("LaunchConfig", "kernel/configs.py", ()),
    ("Int4Linear", "kernel/linear.py", ("from_linear",)),
    ("quantize_model", "kernel/linear.py", ()),
    ("join_projections", "kernel/join.py", ()),
    ("parallelize", "kernel/parallel.py", ()),
    ("ColwiseInt4", "kernel/parallel.py", ()),
    ("RowwiseInt4", "kernel/parallel.py", ()),
    ("shard", "kernel/parallel.py", ()),
    ("load_checkpoint", "checkpoints/load.py", ()),
    ("save_checkpoint", "checkpoints/save.py", ()),
)
HEAD = """# Every name

Each name is explained by its docstring. Import `pack` from `tinygemm.kernel.quant`, `LaunchConfig` from
`tinygemm.kernel.configs`, and the others from `tinygemm`.
"""


def page(package: Path = PACKAGE) -> str:
    """The page: a heading, the signature and the docstring of every public name.

    raises: ValueError naming the file and a name that it does not define, or that has no docstring
    """
    return "\n".join([HEAD, *(_entry(package / file, name, methods) for name, file, methods in NAMES)])


def _entry(file: Path, name: str, methods: tuple[str, ...]) -> str:
    defined = _definitions(ast.parse(file.read_text(encoding="utf-8")))
    if name not in defined:
        raise ValueError(f"{file}: {name} of the API page is not defined here")
    node = defined[name]
    parts = [f"## `{name}`\n", _described(node, file)]
    parts += [_described(_definitions(node)[method], file) for method in methods]
    return "\n".join(parts)


def _definitions(node) -> dict[str, ast.AST]:
    return {each.name: each for each in node.body if isinstance(each, ast.FunctionDef | ast.ClassDef)}


def _described(node, file: Path) -> str:
    text = ast.get_docstring(node)
    if not text:
        raise ValueError(f"{file}:{node.lineno}: {node.name} is public and has no docstring")
    return f"```python\n{_signature(node)}\n```\n\n```text\n{text}\n```\n"


def _signature(node) -> str:
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){returns}"
    fields = [f"    {ast.unparse(each)}" for each in node.body if isinstance(each, ast.AnnAssign)]
    bases = ", ".join(map(ast.unparse, node.bases))
    return "\n".join([f"class {node.name}({bases}):" if bases else f"class {node.name}:", *(fields or ["    ..."])])


def setup(app) -> dict:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}


def _fill(app, document: str, source: list[str]) -> None:
    """Put the page in the place of api.md, which stands in the book's folder for its name alone."""
    if document == "api":
        source[0] = page()
        app.env.note_dependency(str(PACKAGE))


if __name__ == "__main__":
    sys.stdout.write(page())

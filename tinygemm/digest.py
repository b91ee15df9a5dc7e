"""Digest of the kernels: it follows what they compute, not how their source reads.

Two sources with one digest differ in comments, docstrings, names of local variables, formatting, imports, the order of
definitions and the files these stand in. A changed operation, constant, default, parameter or launch argument is
another digest. `data/equivalent.csv` names digests that differ and belong to kernels of equal machine code.
"""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

KERNEL = Path(__file__).resolve().parent / "kernel"
TRITON = tuple(f"triton/{file.name}" for file in sorted((KERNEL / "triton").glob("*.py")))
KERNELS = (*TRITON, "launches.py", "reference.py")  # and what they are launched with
CODE = (*KERNELS, "configs.py")  # and how a config is chosen
EQUIVALENT = KERNEL.parents[1] / "data" / "equivalent.csv"
EQUIVALENT_COLUMNS = ("old", "new", "proof")


class DigestError(ValueError):
    """A row of the table of equivalent digests that cannot be used; the message names file and line."""


@functools.cache
def kernel_digest(gpu: str | None = None, folder: Path = KERNEL, code: tuple[str, ...] = CODE) -> str:
    """The sha256 of the kernels, what they are launched with, and the launch configs of a GPU.

    gpu:    key of the GPU whose table of launch configs counts; all tables where it has none; None: no table
    folder: the kernel package to read
    code:   files in it
    """
    parts = list(definitions((folder / name).read_text(encoding="utf-8") for name in code))
    if gpu is not None:
        own = folder / "configs" / f"{gpu}.json"
        parts += map(_table, [own] if own.is_file() else sorted(own.parent.glob("*.json")))
    digest = hashlib.sha256()
    for part in sorted(hashlib.sha256(part.encode()).hexdigest() for part in parts):
        digest.update(part.encode())
    return digest.hexdigest()


def same_kernels(first: str | None, second: str | None, file: Path = EQUIVALENT) -> bool:
    """Tell whether two recorded digests are of kernels that compute the same, directly or by `data/equivalent.csv`.

    first, second: `kernel_sha256` of a run, or None where it is not recorded: then False
    raises: DigestError for a row of the file that has no proof
    """
    if first is None or second is None:
        return False
    reached, rows = {first}, equivalents(file)
    for _ in rows:  # a chain of renames has at most as many links as rows
        reached |= {end for pair in rows if reached & set(pair) for end in pair}
    return second in reached


def same_code(first: dict, second: dict) -> bool:
    """Tell whether two runs, by their provenance, are of kernels with the same code, in whatever launch configs.

    Runs from before the code had a digest of its own are compared by the one that covers launch configs, too.
    """
    one, other = (provenance.get("kernel_code_sha256") for provenance in (first, second))
    if None in (one, other):
        one, other = (provenance.get("kernel_sha256") for provenance in (first, second))
    return same_kernels(one, other)


@functools.cache
def equivalents(file: Path = EQUIVALENT) -> tuple[tuple[str, str], ...]:
    """The pairs (old, new) of digests in a table of equivalent ones; none where the file is missing.

    raises: DigestError naming file and line
    """
    if not file.is_file():
        return ()
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != EQUIVALENT_COLUMNS:
            raise DigestError(f"{file}, line 1: the columns must be {', '.join(EQUIVALENT_COLUMNS)}")
        pairs = []
        for row in reader:
            old, new, proof = (row[name] for name in EQUIVALENT_COLUMNS)
            if not (_is_digest(old) and _is_digest(new)):
                raise DigestError(
                    f"{file}, line {reader.line_num}: old and new must be sha256 digests of 64 hex digits"
                )
            if not (proof or "").strip():
                raise DigestError(
                    f"{file}, line {reader.line_num}: the proof is missing; `tinygemm equivalent` writes rows with one"
                )
            pairs.append((old, new))
    return tuple(pairs)


def definitions(sources: Iterable[str]) -> Iterator[str]:
    """The statements of modules, each in a canonical text: imports and docstrings left out, locals numbered."""
    for source in sources:
        for statement in _without_docstring(ast.parse(source).body):
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                yield json.dumps(_canonical(statement, {}))


def _canonical(node, names: dict[str, str]):
    """A syntax tree as nested lists that no version of Python writes otherwise; `names` renames what is local."""
    if isinstance(node, list):
        return [_canonical(child, names) for child in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not names:
        names = _locals(node)
    fields = []
    for field, value in ast.iter_fields(node):
        if field in ("ctx", "kind", "type_comment", "type_params"):  # no meaning, or not in every version
            continue
        if field == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            value = _without_docstring(value)
        if field == "id" or (field == "name" and isinstance(node, ast.FunctionDef)):
            value = names.get(value, value)
        fields.append([field, _canonical(value, names)])
    return [type(node).__name__, fields]


def _locals(function) -> dict[str, str]:
    """A number for every name that is bound inside an outermost function and is no parameter, in order of binding."""
    parameters = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    shared = {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}
    bound = dict.fromkeys(_bound(function.body))
    return {name: f"local {number}" for number, name in enumerate(n for n in bound if n not in parameters | shared)}


def _bound(body) -> Iterator[str]:
    """The names that statements bind, in the order of the source."""
    for statement in body:
        for node in _in_order(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.FunctionDef):
                yield node.name


def _in_order(node) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _without_docstring(body: list) -> list:
    first = body[0] if body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_text else body


def _table(file: Path) -> str:
    """All of a table of launch configs but the sentence about it; times count, for they decide between equal rows."""
    content = json.loads(file.read_text(encoding="utf-8"))
    decides = [file.stem, content["source"], content["rows"], content.get("dequantise_from_m", [])]
    return json.dumps(decides, sort_keys=True)


def _is_digest(text: str | None) -> bool:
    return text is not None and len(text) == 64 and set(text) <= set("0123456789abcdef")

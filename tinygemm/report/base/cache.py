"""Results kept on disk: an interval or a fit is computed once for the same data and code, whoever asks for it."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from joblib import Memory

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "_build" / "cache"
LIBRARIES = ("numpy", "pandas", "scipy")
KEPT = 3  # versions of the code of a module whose results stay


def code_digest(module: str, root: Path = ROOT) -> str:
    """The digest of everything but its arguments that a result depends on: code and libraries.

    module: dotted name; it counts with every module under `root` that it imports, directly or not
    """
    digest = hashlib.sha256(repr([metadata.version(name) for name in LIBRARIES]).encode())
    found, waiting = set(), [file_of(module, root)]
    while waiting:
        if (file := waiting.pop()) not in found:
            found.add(file)
            waiting += filter(None, (file_of(name, root) for name in imports(file)))
    for file in sorted(found):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def file_of(module: str, root: Path) -> Path | None:
    """The file of a module under `root`; None for any other name."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all that a file may import, wherever it does so; names inside modules are among them."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def memory(module: str, folder: Path = FOLDER, root: Path = ROOT) -> Memory:
    """The store of a module's results with today's code; it keeps nothing where the folder cannot be written to."""
    folder = folder / module
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return Memory(folder / code_digest(module, root) if os.access(folder, os.W_OK) else None, verbose=0)
    except OSError:
        return Memory(None, verbose=0)


def remembered(function):
    """Decorate a function of plain data: numbers, strings, arrays, tables, dataclasses, functions of its own module.

    A result is forgotten when the function's module changes, or a module that it imports.
    """
    return memory(function.__module__).cache(function)

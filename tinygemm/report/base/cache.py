"""Results kept on disk: an interval or a fit is computed once for the same data and code, whoever asks for it."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import shutil
import warnings
from importlib import metadata
from pathlib import Path

from joblib import Memory

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "_build" / "cache"
LIBRARIES = ("numpy", "pandas", "scipy")
warnings.filterwarnings("ignore", "Persisting input arguments")  # a busy machine; the book takes it for an error
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
            waiting += filter(None, (file_of(name, root) for name in imports(file.read_bytes())))
    for file in sorted(found):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def file_of(module: str, root: Path) -> Path | None:
    """The file of a module under `root`; None for any other name."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def imports(code: bytes) -> list[str]:
    """Dotted names of all that a module may import, wherever it does so; names inside modules are among them."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


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

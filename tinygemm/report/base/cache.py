"""Results kept on disk: an interval or a fit is computed once for the same data and code, whoever asks for it."""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib import metadata
from pathlib import Path

from joblib import Memory

PACKAGE = Path(__file__).resolve().parents[2]
FOLDER = PACKAGE.parent / "_build" / "cache"
LIBRARIES = ("numpy", "pandas", "scipy")
KEPT = 3  # versions of the code whose results stay


def code_digest(package: Path = PACKAGE) -> str:
    """The digest of everything but its arguments that a result depends on: the report's code and its libraries."""
    digest = hashlib.sha256(repr([metadata.version(name) for name in LIBRARIES]).encode())
    for file in sorted([*package.glob("*.py"), *(package / "report").rglob("*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def memory(folder: Path = FOLDER) -> Memory:
    """The store of today's code; one that keeps nothing where the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in others[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
        return Memory(folder / code_digest() if os.access(folder, os.W_OK) else None, verbose=0)
    except OSError:
        return Memory(None, verbose=0)


remembered = memory().cache  # decorates a function of plain data: numbers, strings, arrays, tables and dataclasses

"""Print what building and testing take on this machine: `make times`, some twenty minutes on two idle cores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planter import copy_of

ROOT = Path(__file__).resolve().parent.parent
BUILD = ("-m", "tinygemm.report.build")
ADVISE = ("-m", "tinygemm.cli", "advise", "--model", "llama-3-8b", "--gpu", "h200")
CHAPTER = "03_gains.ipynb"


def main() -> None:
    """Time builds and the command in a copy of the checkout that has no caches, then `make check` and `make test`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of(ROOT, Path(folder))
        python = (sys.executable,)
        told("report, nothing kept", copy, *python, *BUILD)
        told("report, nothing changed", copy, *python, *BUILD)
        change_prose(copy / "notebooks" / CHAPTER)
        told("report, words of one chapter changed", copy, *python, *BUILD)
        shutil.rmtree(copy / "book" / "executed")
        told("report, every chapter anew, fits and intervals kept", copy, *python, *BUILD)
        told("advise, for the first time", copy, *python, *ADVISE)
        told("advise, again", copy, *python, *ADVISE)
    told("make check", ROOT, "make", "check")
    told("make test", ROOT, "make", "test")


def told(what: str, folder: Path, *command: str) -> None:
    """Run a command in a checkout and print how long it took, and its exit code where that is not 0."""
    environment = os.environ | ({"PYTHONPATH": str(folder)} if folder != ROOT else {})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    code = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode
    print(f"{time.perf_counter() - start:7.1f} s  {what}{f' (exit code {code})' if code else ''}", flush=True)


def change_prose(notebook: Path) -> None:
    """Add a sentence to the last cell of text."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    text = next(cell for cell in reversed(content["cells"]) if cell["cell_type"] == "markdown")
    text["source"] = ["".join(text["source"]) + "\n\nOne more sentence."]
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

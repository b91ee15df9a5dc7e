"""Pages that appear only where they have something to show, as the notebook itself says when it is executed."""

from __future__ import annotations

import json
from pathlib import Path

SHOWN = {"executed/12_compare": "compare-shown"}  # page -> the name under which its notebook glues a number, 0: hide it


def setup(app) -> dict:
    app.connect("config-inited", hide, priority=901)  # right after the table of contents was read
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def hide(app, config) -> None:
    """Take the pages that have nothing to show out of the table of contents."""
    hidden = [page for page, name in SHOWN.items() if glued(Path(app.srcdir, f"{page}.ipynb"), name) == 0]
    contents = config.external_site_map
    for page in hidden:
        for document in contents.values():
            for part in document.subtrees:
                part.items = [item for item in part.items if item != page]
        contents.pop(page, None)
    config["exclude_patterns"] = config["exclude_patterns"] + [f"{page}.ipynb" for page in hidden]


def glued(notebook: Path, name: str) -> float | None:
    """The number that an executed notebook glued under a name; None where it did not, or is not there."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.is_file() else []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if output.get("metadata", {}).get("scrapbook", {}).get("name") == name:
            return float("".join(next(iter(output["data"].values()))))
    return None

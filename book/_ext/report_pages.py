"""What Jupyter Book lacks for this report: folded notebook parameters, and MathJax served by the site itself."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

FOLD = {"code_prompt_show": "Show the run's parameters", "code_prompt_hide": "Hide the run's parameters"}


def setup(app):
    app.connect("source-read", fold_parameters)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def fold_parameters(app, docname: str, source: list[str]) -> None:
    """Fold the cell that papermill injected; the defaults it overrides then need not show."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    tagged = {tag: cell for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
    shown = tagged.get("injected-parameters", tagged.get("parameters"))
    if shown is None:
        return
    if shown is not tagged.get("parameters"):
        tagged["parameters"]["metadata"]["tags"].append("remove-cell")
    shown["metadata"]["tags"].append("hide-input")
    shown["metadata"]["mystnb"] = FOLD
    source[0] = json.dumps(notebook)


def copy_mathjax(app, exception) -> None:
    """Copy the one MathJax file that pages load; in book/_static every page would load it, formulas or not."""
    if exception or app.builder.format != "html":
        return
    script = metadata.distribution("sphinx-mathjax-offline").locate_file(
        "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
    )
    target = Path(app.outdir, "_static", app.config.mathjax_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(script, target)

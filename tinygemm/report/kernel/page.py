"""Results of the checks of the kernel: errors of the run, sanitizers, random products."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from tinygemm.digest import kernel_digest
from tinygemm.report.base import style
from tinygemm.runs import DATA_ROOT


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """One row per backend that was checked: name, dtype, checked and mismatch (cases), worst rms_err and max_err."""
    checked = table.dropna(subset=["rms_err"])
    checked = checked.assign(mismatched=checked["status"] == "mismatch")
    rows = checked.groupby("backend", sort=False).agg(
        dtype=("dtype", "first"),
        checked=("case_id", "size"),
        mismatch=("mismatched", "sum"),
        rms_err=("rms_err", "max"),
        max_err=("max_err", "max"),
    )
    rows = rows.reindex(style.in_order(rows.index)).reset_index()
    return rows.assign(name=rows["backend"].map(style.name))


def sanitizers(file: Path = DATA_ROOT / "checks" / "sanitizer.txt") -> Markdown:
    """The last result of `make sanitize`: the day and the versions, then a line per tool, word for word."""
    conditions, *tools = file.read_text(encoding="utf-8").splitlines()
    checked = re.search(r", kernels (\w+)$", conditions)
    if checked is None:
        since = "Which version of the kernels' code that was is not recorded; it may have changed since."
    else:
        since = _since(checked[1])
    return Markdown("\n".join([f"Last run: {conditions}. {since}", "", *(f"* {tool}" for tool in tools)]))


def _since(digest: str) -> str:
    """Tell whether the kernels' code is still the one of a digest's first letters."""
    same = kernel_digest().startswith(digest)
    return f"The kernels' code {'is the same today' if same else 'has changed since'}."


def numerics(file: Path = DATA_ROOT / "checks" / "numerics.json") -> Markdown:
    """The last recorded result of `make numerics`: its conditions, then each route's worst error."""
    if not file.is_file():
        return Markdown("*No run of this check is recorded.*")
    found = json.loads(file.read_text(encoding="utf-8"))
    routes, software = found["routes"], found["software"]
    alone, rows = found["violations"] == 0, found["first_row_alone_and_among_eight"]
    lines = [
        f"Last run: {found['date']}, {found['gpu']}, driver {found['driver']}, torch {software['torch']}, "
        f"triton {software['triton']}, kernels {found['kernels']}. {_since(found['kernels'])} "
        f"In {found['seconds']:.0f} s it drew {found['problems']:,} problems, of which "
        f"{'none' if alone else format(found['violations'], ',')} broke the bound or gave other bits when repeated"
        f"{', alone or beside work on a second stream' if found['repeats_beside_work'] else ''}.",
        "",
    ]
    for name, route in routes.items():
        if route["outputs"]:
            lines.append(
                f"* {name}: {route['problems']:,} problems, {route['outputs']:,} outputs, "
                f"the worst error {route['worst_ratio']:.3f} of its bound"
            )
    if rows["compared"]:
        lines += [
            "",
            f"One token alone and as the first of eight had the same bits in {rows['equal']:,} of "
            f"{rows['compared']:,} problems; that is not promised, for another number of tokens may run in another "
            "launch config.",
        ]
    return Markdown("\n".join(lines))

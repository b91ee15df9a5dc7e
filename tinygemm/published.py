"""Values quoted from the literature: their schema, and the checks they must pass to be read."""

from __future__ import annotations

import csv
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tinygemm.runs import DATA_ROOT, column

FOLDER = DATA_ROOT / "published"
REFERENCES = DATA_ROOT.parent / "book" / "references.bib"
QUANTITIES = ("speedup", "latency_us", "frac_dram", "frac_sm")


@dataclass(frozen=True)
class Quoted:
    """One row of published/<source_key>.csv: one number that somebody else published. Field order is column order."""

    source_key: str = column("", "the source: its key in book/references.bib, and the name of the file")
    gpu: str = column("", "the GPU it was measured on, as data/<gpu>/ would name it")
    M: int = column("tokens", "rows of x")
    K: int = column("features", "input features")
    N: int = column("features", "output features")
    backend: str = column("", "which implementation; the names of cases.csv where they are the same code")
    quantity: str = column(
        "", "speedup (over FP16 of the same source), latency_us, frac_dram or frac_sm (fraction of peak, by ncu)"
    )
    value: float = column("of the quantity", "the number as published, milliseconds and percent converted")
    digitised: bool = column("", "yes: read off a figure, good to about 0.05 in a speedup; no: printed as a number")
    method: str = column("", "how the source measured, as far as it says")
    note: str = column("", "where in the source it stands, and what else a reader must know")


COLUMNS = [field.name for field in dataclasses.fields(Quoted)]
CASE = ["source_key", "gpu", "M", "K", "N", "backend", "quantity", "method"]  # one value each


def launch_of(method: str) -> str:
    """How a source launched what it timed: a wall clock sees the host, "eager"; whatever else does not, "graph"."""
    return "eager" if "wall clock" in method else "graph"


def load(folder: Path | None = None, references: Path | None = None) -> pd.DataFrame:
    """Every published value, file after file in the order of their names.

    folder:     where the CSVs lie; data/published without it
    references: the bibliography that knows every source_key; book/references.bib without it
    returns:    the columns of Quoted; digitised as bool
    raises:     ValueError naming the file, the line and what was expected
    """
    folder = folder or FOLDER
    known = set(
        re.findall(r"^@\w+\{\s*([^,\s]+)", (references or REFERENCES).read_text(encoding="utf-8"), re.MULTILINE)
    )
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ValueError(f"{folder}: no published values")
    rows = [_row(file, line, cells, known) for file in files for line, cells in _lines(file)]
    table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    if (twice := table[table.duplicated(CASE)]).size:
        row = twice.iloc[0]
        raise ValueError(f"{row.source_key}.csv: {row.backend} at M={row.M}, {row.K}×{row.N} is listed twice")
    return table


def _lines(file: Path):
    """Line numbers and rows of a CSV below its header; raises ValueError where a row is not as the header says."""
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream, strict=True)
        header = next(reader, [])
        if header != COLUMNS:
            raise ValueError(f"{file}:1: expected the columns {','.join(COLUMNS)}, got {','.join(header)}")
        for cells in reader:
            if len(cells) != len(COLUMNS):
                raise ValueError(f"{file}:{reader.line_num}: expected {len(COLUMNS)} cells, got {len(cells)}")
            yield reader.line_num, dict(zip(COLUMNS, cells, strict=True))


def _row(file: Path, line: int, cells: dict[str, str], known: set[str]) -> Quoted:
    def refuse(name: str, expected: str):
        raise ValueError(f"{file}:{line}: {name} must be {expected}, got {cells[name]!r}")

    if cells["source_key"] != file.stem:
        refuse("source_key", f"the name of the file, {file.stem}")
    if cells["source_key"] not in known:
        refuse("source_key", "a key of book/references.bib")
    if cells["quantity"] not in QUANTITIES:
        refuse("quantity", f"one of {', '.join(QUANTITIES)}")
    if cells["digitised"] not in ("yes", "no"):
        refuse("digitised", "yes or no")
    for name in ("gpu", "backend", "method"):
        if not cells[name].strip():
            refuse(name, "given")
    numbers: dict[str, float] = {}
    for name, kind, expected in (
        ("M", int, "a positive integer"),
        ("K", int, "a positive integer"),
        ("N", int, "a positive integer"),
        ("value", float, "a positive number"),
    ):
        try:
            numbers[name] = kind(cells[name])
        except ValueError:
            refuse(name, expected)
        if not 0 < numbers[name] < float("inf"):
            refuse(name, expected)
    return Quoted(**cells | numbers | {"digitised": cells["digitised"] == "yes"})

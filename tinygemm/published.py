"""Values quoted from the literature: their schema, and the checks they must pass to be read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tinygemm.rows import GIVEN, POSITIVE, POSITIVE_INTEGER, column, columns_of, one_of, read_rows, refuse
from tinygemm.runs import DATA_ROOT

FOLDER = DATA_ROOT / "published"
REFERENCES = DATA_ROOT.parent / "book" / "references.bib"
QUANTITIES = ("speedup", "latency_us", "frac_dram", "frac_sm")


@dataclass(frozen=True)
class Quoted:
    """One row of published/<source_key>.csv: one number that somebody else published. Field order is column order."""

    source_key: str = column("", "the source: its key in book/references.bib, and the name of the file")
    gpu: str = column("", "the GPU it was measured on, as data/<gpu>/ would name it", must=GIVEN)
    M: int = column("tokens", "rows of x", must=POSITIVE_INTEGER)
    K: int = column("features", "input features", must=POSITIVE_INTEGER)
    N: int = column("features", "output features", must=POSITIVE_INTEGER)
    backend: str = column("", "which implementation; the names of cases.csv where they are the same code", must=GIVEN)
    quantity: str = column(
        "",
        "speedup (over FP16 of the same source), latency_us, frac_dram or frac_sm (fraction of peak, by ncu)",
        must=one_of(*QUANTITIES),
    )
    value: float = column(
        "of the quantity", "the number as published, milliseconds and percent converted", must=POSITIVE
    )
    digitised: bool = column("", "yes: read off a figure, good to about 0.05 in a speedup; no: printed as a number")
    method: str = column("", "how the source measured, as far as it says", must=GIVEN)
    note: str = column("", "where in the source it stands, and what else a reader must know")


COLUMNS = columns_of(Quoted)
CASE = ["source_key", "gpu", "M", "K", "N", "backend", "quantity", "method"]  # one value each


def launch_of(method: str) -> str:
    """The launch mode of a source: "eager" where a wall clock sees the host, else "graph"."""
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
    table = pd.concat([_of_source(file, known) for file in files], ignore_index=True)
    if (twice := table[table.duplicated(CASE)]).size:
        row = twice.iloc[0]
        raise ValueError(f"{row.source_key}.csv: {row.backend} at M={row.M}, {row.K}×{row.N} is listed twice")
    return table


def _of_source(file: Path, known: set[str]) -> pd.DataFrame:
    """The rows of one file; raises ValueError where one is of another source, or of one without a reference."""
    table = read_rows(Quoted, file)
    for index, key in table["source_key"].items():
        if key != file.stem:
            refuse(file, index, "source_key", f"the name of the file, {file.stem}", key)
        if key not in known:
            refuse(file, index, "source_key", "a key of book/references.bib", key)
    return table

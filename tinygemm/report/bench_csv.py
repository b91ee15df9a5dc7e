"""Tables that `tinygemm bench` and `tinygemm breakdown` wrote, read back from CSV files to be drawn."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from tinygemm.report.base.tables import SHAPE
from tinygemm.text import read_unicode

# columns of numbers that figures draw: those that a table must have, and those that it may have
CASE_NUMBERS = ("latency_us_p50", "speedup_vs_fp16")
MORE_CASE_NUMBERS = (
    *("latency_us_low", "latency_us_high", "speedup_vs_fp16_low", "speedup_vs_fp16_high"),
    *("bits_per_weight", "floor_us", "ideal_speedup"),
)
PART_NUMBERS = ("fp16_us", "fused_us", "dequant_only_us")
MORE_PART_NUMBERS = ("no_dequant_us", "load_only_us", "dequant_fp16_us")


def read_bench(file: Path) -> pd.DataFrame:
    """The table that `tinygemm bench` writes: one row per case; an empty cell is a value that was not measured.

    raises: ValueError naming the file, the line and what was expected
    """
    return _read(file, "case_id", CASE_NUMBERS, MORE_CASE_NUMBERS)


def read_breakdown(file: Path) -> pd.DataFrame:
    """The table that `tinygemm breakdown` writes: one row per problem; raises as read_bench."""
    return _read(file, "problem", PART_NUMBERS, MORE_PART_NUMBERS)


def _read(file: Path, key: str, needed: tuple[str, ...], more: tuple[str, ...]) -> pd.DataFrame:
    """A table with one row per `key`, and a product in one of them at least."""
    header, rows, lines = _cells(file)
    needed = (*SHAPE, *needed)
    if twice := [name for name in needed if header.count(name) > 1]:
        raise ValueError(f"{file}:1: the column {twice[0]} stands there twice")
    if missing := [name for name in (key, *needed) if name not in header]:
        raise ValueError(f"{file}:1: the column {', '.join(missing)} is missing")
    texts = pd.DataFrame(rows, columns=header)
    for name in (*needed, *(name for name in more if name in header)):
        _check_numbers(texts[name].str.strip(), lines, file)
    if (repeated := texts[key].duplicated(keep=False) & (texts[key] != "")).any():
        name = texts.loc[repeated, key].iloc[0]
        first, second = [lines[i] for i in texts.index[texts[key] == name][:2]]
        raise ValueError(f"{file}: {name} stands in lines {first} and {second}; give one table per file")
    table = pd.read_csv(io.StringIO(texts.to_csv(index=False)))
    for name in SHAPE:
        if (broken := (table[name] % 1 != 0) & table[name].notna()).any():
            line = lines[broken.to_numpy().argmax()]
            raise ValueError(f"{file}:{line}: {name} must be a whole number, got {table[name][broken].iloc[0]}")
    if not (table[list(SHAPE)] > 0).all(axis=1).any():
        raise ValueError(f"{file}: no product in this table, a row whose {', '.join(SHAPE)} are above 0")
    return table


def _cells(file: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows below it that are not blank, and the line of each."""
    if not file.exists():
        raise ValueError(f"{file} does not exist")
    rows, lines, line = [], [], 1
    try:
        text = read_unicode(file)
        start = text.lstrip().partition("\n")[0]
        if "," not in start and (used := next((mark for mark in ";\t|" if mark in start), None)):
            raise ValueError(f"the separator is a comma, not {used!r}")
        reader = csv.reader(io.StringIO(text), strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(cells), lines.append(line)
            line = reader.line_num + 1
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: not a CSV: {error}") from None
    if len(rows) < 2:
        raise ValueError(f"{file}: no rows below the header; was the file cut off?")
    width = len(rows[0])
    for line, cells in zip(lines, rows, strict=True):
        if len(cells) != width:
            raise ValueError(f"{file}:{line}: {len(cells)} cells, the header has {width}; was the file cut off?")
    if not text.endswith("\n"):
        raise ValueError(f"{file}:{lines[-1]}: the last line does not end; was the file cut off?")
    return rows[0], rows[1:], lines[1:]


def _check_numbers(texts: pd.Series, lines: list[int], file: Path) -> None:
    """Raise where a cell of a column is neither empty nor a number that a measurement can be."""
    numbers = pd.to_numeric(texts, errors="coerce")
    bad = (texts != "") & ~((numbers >= 0) & np.isfinite(numbers))
    if bad.any():
        at = bad.idxmax()
        wanted = "a number" if np.isnan(numbers[at]) else "finite and not negative"
        raise ValueError(f"{file}:{lines[at]}: {texts.name} must be {wanted}, got {texts[at]!r}")

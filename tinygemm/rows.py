"""The one reader of CSVs with a schema: a frozen dataclass whose fields are columns with a unit and a meaning."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

FLAGS = {"yes": True, "no": False}


@dataclasses.dataclass(frozen=True)
class Must:
    """The rule for the values of a column beyond their type: in words, and as a test of one value."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE_INTEGER = Must("a positive integer", lambda value: value > 0)
POSITIVE = Must("a positive number", lambda value: 0 < value < float("inf"))
GIVEN = Must("given", lambda text: bool(text.strip()))


def one_of(*words: str) -> Must:
    return Must(f"one of {', '.join(words)}", lambda text: text in words)


def column(unit: str, meaning: str, default=dataclasses.MISSING, since: int = 1, must: Must | None = None):
    """A column with its unit and meaning, the two things its name cannot say.

    since: schema version that brought it; in older files every row has its default
    must:  what its values must be beyond their type
    """
    metadata = {"unit": unit, "meaning": meaning, "since": since, "must": must}
    return dataclasses.field(default=default, metadata=metadata)


def columns_of(row_type: type) -> list[str]:
    return [f.name for f in dataclasses.fields(row_type)]


def read_rows(row_type: type, file: Path, version: int | None = None, error: type[ValueError] = ValueError):
    """A CSV as a DataFrame with one column per field of `row_type`, in their order and of their types.

    row_type: its fields are made by `column`, of type str, int, float, bool (yes or no), or one of them `| None`
    version:  schema of the file; columns that came later are filled with their default; None: the newest
    error:    what is raised
    raises:   `error` naming the file, the line, the column and what was expected
    """
    fields = dataclasses.fields(row_type)
    later = {f.name: f.default for f in fields if version is not None and f.metadata["since"] > version}
    expected = [f.name for f in fields if f.name not in later]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would be cut
            table = pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, ValueError) as problem:
        raise error(_unreadable(file, problem)) from None
    if list(table.columns) != expected:
        raise error(f"{file}:1: columns are {', '.join(table.columns)}; expected {', '.join(expected)}")
    filled = {name: "" if default is None else str(default) for name, default in later.items()}
    table = table.assign(**filled)[columns_of(row_type)]
    return table.assign(**{f.name: _parsed(table[f.name], f, file, error) for f in fields})


def refuse(file: Path, index: int, name: str, expected: str, got: str, error: type[ValueError] = ValueError):
    """Raise about the value of a row; `index` counts the rows below the header from 0."""
    raise error(f"{file}:{index + 2}: {name} must be {expected}, got {got!r}")


def _unreadable(file: Path, problem: Exception) -> str:
    """The fault of a file that pandas refuses, with the first line that has more cells than the header."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            width = len(next(reader))
            for cells in reader:
                if len(cells) > width:
                    return f"{file}:{reader.line_num}: not a readable CSV: expected {width} cells, got {len(cells)}"
    except (OSError, ValueError, StopIteration, csv.Error):
        pass
    return f"{file}: not a readable CSV: {problem}"


def _parsed(text: pd.Series, field: dataclasses.Field, file: Path, error: type[ValueError]) -> pd.Series:
    """A column of text in the type its field declares; raises `error` naming the line of a value that is not of it."""
    must, type_ = field.metadata["must"], str(field.type)
    if type_ in ("str", "bool") and (missing := text[text.isna()]).size:
        raise error(f"{file}:{missing.index[0] + 2}: the row ends before {text.name}")
    if type_ == "bool":
        bad, values, words = ~text.isin(FLAGS), text.map(FLAGS), "yes or no"
    elif type_ == "str":
        bad, values, words = pd.Series(False, index=text.index), text, type_
    else:
        text = text.fillna("")
        values, words = pd.to_numeric(text, errors="coerce"), type_
        bad = values.isna() & ~((text == "") & type_.endswith("| None"))
        if type_.startswith("int"):
            bad |= values.notna() & (values % 1 != 0)
    if must:
        bad |= ~values.map(must.holds).astype(bool)
        words = must.words
    if bad.any():
        refuse(file, bad.idxmax(), str(text.name), words, text[bad.idxmax()], error)
    if type_ in ("str", "bool"):
        return values.astype(bool) if type_ == "bool" else values
    return values.astype("int64") if type_ == "int" else values.astype("float64")

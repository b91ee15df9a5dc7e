"""The text of a shape, an interval and a range of values on the pages."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base import style


def shape_name(shape) -> str:
    """`4096×14336`: K, then N.

    shape: (K, N), or a row that has both
    """
    K, N = (shape["K"], shape["N"]) if isinstance(shape, pd.Series | dict) else shape
    return f"{int(K)}×{int(N)}"


def shape_names(rows: pd.DataFrame) -> pd.Series:
    """The name of the shape of each row."""
    return pd.Series(map(shape_name, zip(rows["K"], rows["N"], strict=True)), index=rows.index, dtype="str")


def interval_texts(rows: pd.DataFrame, spec: str = ".2f", ends: tuple[str, str] = ("low", "high")) -> list[str]:
    """`1.02 to 1.05` for each row; a dash where a value has no interval.

    spec: format specification of both ends
    ends: columns
    """
    spans = zip(rows[ends[0]], rows[ends[1]], strict=True)
    return ["–" if pd.isna(low) else f"{low:{spec}} to {high:{spec}}" for low, high in spans]


def span(values: pd.Series, spec: str = ".1f", unit: str = "") -> str:
    """`1.2 to 3.4 µs`: the range of values; one number if both ends read the same, a dash if there is none."""
    known = values.dropna()
    if known.empty:
        return "–"
    low, high = (format(float(end), spec) for end in (known.min(), known.max()))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def spans(rows: pd.DataFrame, column: str, spec: str = ".1f", unit: str = "") -> str:
    """`FP16 (cuBLAS) 8.3 to 41.0 µs; INT4, tuned kernel 2.1 to 10.9 µs`: the range of a column for each backend."""
    of = {backend: rows.loc[rows["backend"] == backend, column] for backend in style.in_order(rows["backend"])}
    return "; ".join(f"{style.name(backend)} {span(values, spec, unit)}" for backend, values in of.items())

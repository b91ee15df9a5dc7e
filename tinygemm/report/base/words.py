"""The text of a shape, an interval and a range of values on the pages."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base import style

NARROW = 0.005  # relative half-width below which an interval is not printed: groups and runs differ by more


def shape_name(shape) -> str:
    """`4096×14336`: K, then N.

    shape: (K, N), or a row that has both
    """
    K, N = (shape["K"], shape["N"]) if isinstance(shape, pd.Series | dict) else shape
    return f"{int(K)}×{int(N)}"


def shape_names(rows: pd.DataFrame) -> pd.Series:
    """The name of the shape of each row."""
    return pd.Series(map(shape_name, zip(rows["K"], rows["N"], strict=True)), index=rows.index, dtype="str")


def number(value: float, spec: str = ".2f") -> str:
    """`−3%`: a number with a minus sign, and no sign at what rounds to zero."""
    text = format(value, spec)
    if not text.startswith("-"):
        return text
    return ("−" if any(digit in "123456789" for digit in text) else "") + text[1:]


def interval(low: float, high: float, spec: str = ".2f", unit: str = "") -> str:
    """`1.02 to 1.05`; empty where it says nothing: unknown, within ±0.5 % of its middle, or of equal ends as written.

    spec: format specification of both ends
    """
    if pd.isna(low) or pd.isna(high) or _near(low, high):
        return ""
    ends = [f"{number(end, spec)}{unit}" for end in (low, high)]
    return "" if ends[0] == ends[1] else " to ".join(ends)


def bracket(low: float, high: float, spec: str = ".2f", unit: str = "") -> str:
    """` (1.02 to 1.05)` behind a value, or nothing where `interval` says nothing."""
    text = interval(low, high, spec, unit)
    return f" ({text})" if text else ""


def interval_texts(rows: pd.DataFrame, spec: str = ".2f", ends: tuple[str, str] = ("low", "high")) -> list[str]:
    """`interval` for each row; a dash where a value has none.

    ends: columns
    """
    spans = zip(rows[ends[0]], rows[ends[1]], strict=True)
    return ["–" if pd.isna(low) else interval(low, high, spec) for low, high in spans]


def span(values: pd.Series, spec: str = ".1f", unit: str = "") -> str:
    """`1.2 to 3.4 µs`: the range of values; one number if both ends read the same or nearly so, a dash without any."""
    known = values.dropna()
    if known.empty:
        return "–"
    low, high = float(known.min()), float(known.max())
    ends = [number(end, spec) for end in (low, high)]
    if ends[0] == ends[1] or _near(low, high):
        return f"{number((low + high) / 2, spec)}{unit}"
    return f"{' to '.join(ends)}{unit}"


def spans(rows: pd.DataFrame, column: str, spec: str = ".1f", unit: str = "") -> str:
    """`FP16 (cuBLAS) 8.3 to 41.0 µs; INT4, tuned kernel 2.1 to 10.9 µs`: the range of a column for each backend."""
    of = {backend: rows.loc[rows["backend"] == backend, column] for backend in style.in_order(rows["backend"])}
    return "; ".join(f"{style.name(backend)} {span(values, spec, unit)}" for backend, values in of.items())


def _near(low: float, high: float) -> bool:
    """Tell whether both ends lie within ±0.5 % of their middle."""
    return high - low <= NARROW * abs(high + low)

"""How the tables of the pages write a shape and an interval."""

from __future__ import annotations

import pandas as pd


def shape_names(rows: pd.DataFrame) -> pd.Series:
    """`4096×14336` for each row: K, then N."""
    return rows["K"].astype(str) + "×" + rows["N"].astype(str)


def interval_texts(rows: pd.DataFrame, spec: str = ".2f", ends: tuple[str, str] = ("low", "high")) -> list[str]:
    """`1.02 to 1.05` for each row; a dash where a value has no interval.

    spec: format specification of both ends
    ends: columns
    """
    spans = zip(rows[ends[0]], rows[ends[1]], strict=True)
    return ["–" if pd.isna(low) else f"{low:{spec}} to {high:{spec}}" for low, high in spans]

"""The loss by rounding to 4 bits, as the page shows it; from data/quality, which `tinygemm quality` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from tinygemm.runs import DATA_ROOT

RULES = DATA_ROOT / "quality" / "rules.csv"
MODEL = DATA_ROOT / "quality" / "model.csv"
USUAL_GROUP = 128
OF_QUANTIZE = ("full-range", "searched", "min-max", "min-max searched")  # what `quantize` can do


def model(file: Path = MODEL) -> pd.DataFrame:
    """Every measured row of the encoder, as in the file; group_size -1 is per-channel, missing for float16."""
    return pd.read_csv(file)


def by_group_size(file: Path = MODEL) -> pd.DataFrame:
    """Nine rows: float16, then each group size by the default rule and by a search, symmetric."""
    table = model(file)
    chosen = table["rule"].isin(("full-range", "searched"))
    rows = table[chosen].sort_values(["group_size", "rule"], key=_in_order)
    return _shown(pd.concat([table[table["rule"] == "float16"], rows]))


def by_rule(file: Path = MODEL) -> pd.DataFrame:
    """One row per rule at groups of 128, in the order of the file."""
    return _shown(model(file).query("group_size == @USUAL_GROUP"))


def provenance(file: Path = MODEL) -> dict:
    """Package, version, texts and software behind the table of the encoder."""
    return json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))


def random_weights(file: Path = RULES, distributions: tuple[str, ...] = ("gauss", "t3")) -> pd.DataFrame:
    """Error in percent of random weights: a row per distribution and rule of `quantize`, a column per group size."""
    table = pd.read_csv(file)
    table = table[table["rule"].isin(OF_QUANTIZE) & table["distribution"].isin(distributions)]
    wide = table.pivot(index=["distribution", "rule"], columns="group_size", values="error_percent")
    rows = [(distribution, rule) for distribution in distributions for rule in OF_QUANTIZE]
    return wide.reindex(rows)[[32, 64, 128, -1]].rename(columns=_group).rename_axis(columns=None).reset_index()


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    groups = table["group_size"].map(lambda size: "" if pd.isna(size) else _group(int(size)))
    return table.assign(rule="`" + table["rule"] + "`", group=groups).reset_index(drop=True)


def _group(size: int) -> str:
    return "per-channel" if size == -1 else str(size)


def _in_order(values: pd.Series) -> pd.Series:
    """Group sizes from small to large, per-channel last."""
    return values.replace(-1, float("inf")) if values.name == "group_size" else values

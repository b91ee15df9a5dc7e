"""The table of the chapter on the kernel about rules for the scale of a group, from data/quality."""

from pathlib import Path

import pandas as pd

from tinygemm.runs import DATA_ROOT

FILE = DATA_ROOT / "quality" / "rules.csv"


def rules(file: Path = FILE) -> pd.DataFrame:
    """Error of each rule at groups of 128, in percent: rule, scale, one column per distribution; as in the file."""
    errors = pd.read_csv(file).query("group_size == 128")
    wide = errors.pivot(index=["rule", "scale"], columns="distribution", values="error_percent")
    wide = wide.reindex(errors[["rule", "scale"]].drop_duplicates().itertuples(index=False, name=None))
    wide = wide[list(errors["distribution"].unique())].reset_index().rename_axis(columns=None)
    return wide.assign(rule="`" + wide["rule"] + "`")

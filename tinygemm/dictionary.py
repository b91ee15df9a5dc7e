"""The data dictionary: data/README.md, generated from the schema in runs.py (`python -m tinygemm.dictionary`)."""

from __future__ import annotations

import dataclasses

from tinygemm.runs import DATA_ROOT, SCHEMA_VERSION, TABLES

README = DATA_ROOT / "README.md"

INTRODUCTION = """\
# Measurements

Every number of the report comes from a run in this folder: `<gpu>/<run_id>/`, such as
`h200/2026-11-23T1412Z-3fa9c1e/` (UTC minute, commit that measured). A run is written once by `tinygemm record` and
never edited: `provenance.json` holds the sha256 of every file. A run that differs from it is refused, and so is one
measured from uncommitted code (`-dirty`). Rates, speedups and quantiles are not stored: `tinygemm/report/tables.py`
derives them.

The schema is version {version}. This page is generated from it: `python -m tinygemm.dictionary`.

An empty cell means that the value does not apply or could not be read. `status` says what became of a case: only `ok`
has samples; a `mismatch` computes something else and was therefore not timed; `unsupported` says why in `message`.
"""

ROWS = {
    "cases.csv": "One row per backend, problem, launch mode and cache state.",
    "samples.csv": "One row per timed sample, in measured order, nothing removed.",
    "counters.csv": "One row per metric of each profiled kernel launch. Absent where counters could not be read.",
}

PROVENANCE = """\
## provenance.json

| key | meaning |
|---|---|
| `schema_version` | version of this schema |
| `run_id`, `command`, `parameters` | the run, how it was recorded, and what decided which cases were measured |
| `commit`, `dirty` | the code that measured, and whether it had uncommitted changes |
| `gpu` | name, compute capability, SMs, bytes of L2 and memory, power limit, ECC, MIG, clocks, driver |
| `software` | versions of Python, torch, triton, CUDA, ncu and the peers |
| `started`, `finished` | UTC |
| `files` | sha256 of every file of the run, and the row count of the tables |

What could not be read, or is not installed, is null. Host names, users, paths and serial numbers are not recorded.

## What is no run

`static/<gpu>.csv` holds instructions per weight, counted in the machine code of the kernels that get profiled:
`tinygemm static-cost --gpu <gpu>` compiles them without a GPU and writes it again. `earlier/` holds times that were
measured before runs were recorded, with method and note; the report quotes them as such.

## ncu/

The CSV files of Nsight Compute as it wrote them, from which counters.csv was read.
"""


def render() -> str:
    """The text of data/README.md."""
    parts = [INTRODUCTION.format(version=SCHEMA_VERSION)]
    for file, row_type in TABLES.items():
        lines = [f"## {file}", "", ROWS[file], "", "| column | unit | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(row_type):
            lines.append(f"| `{field.name}` | {field.metadata['unit']} | {field.metadata['meaning']} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, PROVENANCE])


if __name__ == "__main__":
    README.write_text(render())

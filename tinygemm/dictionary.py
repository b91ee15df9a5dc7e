"""The data dictionary: data/README.md, generated from the schema in runs.py (`python -m tinygemm.dictionary`)."""

from __future__ import annotations

import dataclasses

from tinygemm.published import Quoted
from tinygemm.runs import DATA_ROOT, SCHEMA_VERSION, TABLES

README = DATA_ROOT / "README.md"

INTRODUCTION = """\
# Measurements

Runs and published values lie here and never mix; "What is no run" lists the rest. Runs, in `<gpu>/<run_id>/`, were
measured by this project: every number that the report calls measured comes from one. Values in `published/` were
measured by others and are quoted, each with its source.

A run is named by the UTC minute and the commit that measured it: `<gpu>/<minute>-<commit>/`. It is written
once by `tinygemm record` and never edited: `provenance.json` holds the sha256 of every file. A run that differs from it
is refused, and so is one measured from uncommitted code (`-dirty`). Rates, speedups and quantiles are not stored:
`tinygemm/report/base/tables.py` derives them.

The schema is version {version}. This page is generated from it: `python -m tinygemm.dictionary`. Runs of an older
version stay readable: what they lack is filled in ({later}).

`steps/<gpu>/<run_id>/` holds runs of decode steps alone, which `tinygemm step --out-dir data/steps` writes: their
cases.csv and samples.csv are empty, and the report does not take them for runs of products.

An empty cell means that the value does not apply, is not finite or could not be read. `status` says what became of a
case: only `ok` has samples; a `mismatch` computes something else and was therefore not timed; `unsupported` says why in
`message`.
"""

ROWS = {
    "cases.csv": "One row per backend, problem, launch mode, cache state and kind of operands.",
    "samples.csv": "One row per timed sample, in measured order, nothing removed.",
    "counters.csv": "One row per metric of each profiled kernel launch. Absent where counters could not be read.",
    "steps.csv": "One row per decode step: a model, a backend, sequences and context. Absent where none was measured.",
    "step_samples.csv": "One row per timed sample of a step, in measured order, nothing removed.",
    "step_kernels.csv": "One row per kernel of a profiled step. Cases that could not be profiled have none.",
}

PROVENANCE = """\
## provenance.json

| key | meaning |
|---|---|
| `schema_version` | version of this schema |
| `run_id`, `command`, `parameters` | the run, how it was recorded, and what decided which cases were measured |
| `commit`, `dirty` | the code that measured, and whether it had uncommitted changes |
| `kernel_sha256` | digest of what kernels, their launches and launch configs compute (from schema 2 on) |
| `kernel_code_sha256` | the same without launch configs; runs of November 2026 do not have it |
| `gpu` | name, compute capability, SMs, bytes of L2 and memory, power limit, ECC, MIG, clocks, driver |
| `software` | versions of Python, torch, triton, CUDA, ncu and the peers |
| `started`, `finished` | UTC |
| `files` | sha256 of every file of the run, and the row count of the tables |

What could not be read, or is not installed, is null. Host names, users, paths and serial numbers are not recorded.

## What is no run

`static/<gpu>.csv` holds instructions per weight, counted in the machine code of the kernels that get profiled:
`tinygemm static-cost --gpu <gpu>` compiles them without a GPU and writes it again. `earlier/` holds times that were
measured before runs were recorded, with method and note; the report quotes them as such. `checks/sanitizer.txt` is
what `make sanitize` said last and `checks/numerics.json` what `make numerics` found; the page about the kernel shows
both. `equivalent.csv` ties digests of kernels that compute the same, each row with its proof: `tinygemm equivalent`.

`quality/` holds what rounding to 4 bits loses: `tinygemm quality` computes it again. `rules.csv` has the error of
each rule on random weights.

| column | unit | meaning |
|---|---|---|
| `rule` | | name of the rule, see below |
| `scale` | | the scale of a group, in words |
| `symmetric` | | True where a group has no zero of its own |
| `group_size` | weights | weights along K that share a scale; -1 is the whole K |
| `distribution` | | of the weights, see below |
| `error_percent` | % | Frobenius norm of the error over that of the weight |
| `output_error_percent` | % | the same of the product with Gaussian activations |
| `N`, `K` | features | shape of the weight |
| `seed` | | of the random weights |

`full-range` and `absmax` are rules of `quantize`, `min-max` is `symmetric=False`, and `searched` and `min-max searched`
are `search=True`. The other rules are not in the package: `half-quadratic` finds a zero between two codes, which the
packed format cannot hold (Badri and Shaji, 2023: Half-Quadratic Quantization of Large Machine Learning Models);
`half-quadratic integer` rounds it to a code.

`t5` and `t3` are Student's t with 5 and 3 degrees of freedom; in `outliers` one Gaussian weight in a thousand is ten
times as large; `shifted` is Gaussian with a mean of half its standard deviation.

`model.csv` has the same of a real model and its task: a sentence encoder finds docstrings whose first sentence was cut
off, among all of them. Weights are rounded and multiplied in float32, so the kernel adds nothing. `model.json` names
the package that ships the model, its version and digest, the texts, the recall in float32, and the software. The
package is no dependency: `tinygemm quality` uses it where it is installed and leaves the table as it is elsewhere. No
language model was found whose unrounded weights a package ships, so there is no perplexity. Of 128 queries, a share
near 60 % is known to about 4 points: `recall_percent` tells rules apart less well than the errors and cosines do.

| column | unit | meaning |
|---|---|---|
| `rule` | | as above; in `float16`, weights are rounded to that type alone |
| `bits_per_weight` | bit | of codes, scales and zeros, over all linear layers |
| `symmetric`, `group_size` | | as above |
| `weight_error_percent` | % | Frobenius norm of the error over that of the weights, all linear layers together |
| `output_error_percent` | % | the same of a layer's outputs without bias, inputs from the task; mean of the layers |
| `cosine_mean`, `cosine_least` | | between the embeddings of a text in float32 and with these weights |
| `same_answer_percent` | % | of the queries, those whose nearest text is the one that float32 finds |
| `recall_percent` | % | of the queries, those whose nearest text is the right one |
| `cpu_seconds` | s | to round all linear layers on one thread |

## ncu/

The CSV files of Nsight Compute as it wrote them, from which counters.csv was read.
"""

DEFECTS = """\
## Known defects of recorded runs

A run is not edited, and what was wrong with its measuring stays in it:

* `h100-80gb-hbm3/2026-11-25T1828Z-32c4e73` and `…/2026-11-25T2121Z-1cee41c`: in graphs, most calls of our kernels with
  `split_k` above 1 carry one node more, which zeroes their arrival counters and keeps the next call from starting
  early: some 2 us per call where nothing hides it, `int4-more-split` most of all. Their launch configs come from
  searches that timed most splits of K so, and that knew no programs of 16 warps: without these `fp16-triton` is much
  slower at narrow projections than in later runs.
* These two and `…/2026-11-26T0034Z-8906fa9`: where `int4` has a limit of registers, `int4-no-dequant` ran under one of
  168, which is often the slower one, and which a program of 16 warps cannot have: in the third run it was not timed at
  4096x2048, M = 4.
* All runs before schema 3, of the H100 those up to `…/2026-11-26T0105Z-1a93540`: once a kernel with dependent launch
  was launched from the host, kernels that do not overlap take some 0.35 us less as nodes of a graph. In which state a
  group was timed depended on the backends that were captured last. Of the suite `decode` of the H100, groups at
  4096x512, 4096x2048 and 4096x8192 with M above 1 and most at 4096x6144 and 4096x28672 have the longer times, the
  others the shorter ones. Whether an H200 does the same is not known; the groups of its run agree.
"""

PUBLISHED = """\
## published/

Values quoted from the literature, one file per source, one row per value. Unlike a run they may be corrected, when a
source corrects itself or was misread. `tinygemm/published.py` reads them and refuses a source that
`book/references.bib` does not have.
"""


def render() -> str:
    """The text of data/README.md."""
    later = [f for row_type in TABLES.values() for f in dataclasses.fields(row_type) if f.metadata["since"] > 1]
    told = ", ".join(f"`{f.name}` {'empty' if f.default is None else f.default}" for f in later)
    parts = [INTRODUCTION.format(version=SCHEMA_VERSION, later=told)]
    for file, row_type in TABLES.items():
        parts.append(f"## {file}\n\n{ROWS[file]}\n\n{_columns(row_type)}")
    return "\n".join([*parts, PROVENANCE, DEFECTS, PUBLISHED, _columns(Quoted)])


def _columns(row_type) -> str:
    """The columns of a table, each with its unit and meaning."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(row_type):
        lines.append(f"| `{field.name}` | {field.metadata['unit']} | {field.metadata['meaning']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    README.write_text(render(), encoding="utf-8")

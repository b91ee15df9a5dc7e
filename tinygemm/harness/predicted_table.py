"""The table of launch configs for a GPU that is not here: `python -m tinygemm.harness.predicted_table a10g`.

The rough model of the search ranks its candidates, with the compiler's own limit of registers beside those tried; of
each kernel the best one that spills nothing is taken.
"""

from __future__ import annotations

import functools
import itertools
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

from tinygemm.hardware import gpu_spec
from tinygemm.harness import candidates, static_cost
from tinygemm.kernel.configs import FORMS, PLAIN, YARDSTICKS, LaunchConfig, write_table
from tinygemm.problem import DECODE_M, REPORT_SHAPES, GemmProblem

ABOUT = (
    "from the rough model of tinygemm.harness.candidates.predicted_us, without what spills registers; nobody has "
    "timed it: `tinygemm tune` on this GPU replaces it"
)


def predict_table(gpu: str, path: Path) -> list[dict]:
    """Write the table for the shapes of the report; returns its rows: M, K, N, latency_us = 0 and config."""
    spec = gpu_spec(gpu)

    @functools.cache
    def spills(config: LaunchConfig, K: int) -> int:
        return static_cost.config_cost(config, GemmProblem(config.block_m, config.block_n, K), spec).spills

    rows = []
    forms = [form for form in (*FORMS, *YARDSTICKS) if form != "static"]
    for (K, N), M, form in itertools.product(sorted(REPORT_SHAPES), DECODE_M, forms):
        problem = GemmProblem(M, N, K)
        found = candidates.candidates_of(form, problem, spec.sm_count)
        configs = sorted(
            dict.fromkeys([*found, *(replace(config, max_registers=0) for config in found)]),
            key=lambda c: (candidates.predicted_us(c, problem, spec), c.split_k * c.num_warps, c),
        )
        if (config := next((c for c in configs if not spills(c, K)), None)) is not None:
            rows.append({"M": M, "K": K, "N": N, "latency_us": 0.0, "format": PLAIN, "config": config})
    write_table(path, rows, "predicted", ABOUT)
    return rows


if __name__ == "__main__":
    key = gpu_spec(sys.argv[1]).key
    predict_table(key, Path(str(resources.files("tinygemm.kernel"))) / "configs" / f"{key}.json")

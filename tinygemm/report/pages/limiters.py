"""What the chapter on limits puts on its page: the rule that names a limiter, and every counter in a table."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report import style
from tinygemm.report.limiters import BOUND, FEW_PROGRAMS, FEW_WARPS, MARGIN, PASSED_ON, ROUTE
from tinygemm.report.words import shape_names

COUNTERS = {
    "name": ("Kernel", ""),
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "dram": ("DRAM", ".0%"),
    "l2": ("L2", ".0%"),
    "sm": ("SM", ".0%"),
    "tensor": ("Tensor", ".0%"),
    "issue": ("Issue", ".0%"),
    "warps": ("Warps", ".0%"),
    "occupancy": ("Warps, at most", ".0%"),
    "programs_per_sm": ("Programs per SM", ".2f"),
    "traffic_ratio": ("Bytes / least", ".2f"),
    "limit": ("Limit", ""),
}
INSTRUCTIONS = {
    "name": ("Kernel", ""),
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "per_weight": ("Executed", ".2f"),
    "static_low": ("Main loop", ".2f"),
    "static_high": ("With all the rest once", ".2f"),
    "agreement": ("Agree", ""),
}


def rule() -> Markdown:
    """The rule by which limiters.limiter decides, with its numbers."""
    return Markdown(
        f"1. Of DRAM, L2 and SM, the busiest limits the kernel if it is busy for at least {BOUND:.0%} of the time. "
        f"If that is the SM, it is its tensor cores or its issue slots, where they are that busy, too. What DRAM sends "
        f"passes L2, so L2 is asked only where it is at least {PASSED_ON * 100:.0f} points busier than DRAM.\n"
        f"2. Otherwise *latency* limits it. The reason is that there are fewer than {FEW_PROGRAMS:g} programs for each "
        f"SM, or else what its warps wait for most. *Few warps* is added where less than {FEW_WARPS:.0%} of the "
        f"warps that an SM can hold are resident.\n\n"
        f"DRAM, L2 and SM are shares of the whole call; tensor cores, issue slots and warps are of the time in which "
        f"an SM is active. Where a counter is within {MARGIN * 100:.0f} points of naming another unit, or none, the "
        f"answer carries a question mark, and no claim rests on it."
    )


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """limiters.with_static(readings) with name, shape, limit (with its question mark) and agreement in words."""
    shape = shape_names(rows)
    mark = rows["sure"].map({True: "", False: " (?)"})
    words = rows["agrees"].map({True: "yes", False: "no"}).fillna("–")
    name = rows["backend"].map(style.name).where(rows["form"] != ROUTE, style.name("dequant-fp16") + " (as selected)")
    return rows.assign(name=name, shape=shape, limit=rows["limiter"] + mark, agreement=words)

"""Tables of what rounding to 4 bits loses in the layers of a small model."""

from __future__ import annotations

from IPython.display import Markdown

from tinygemm.report.base import page
from tinygemm.report.quality import tables

COLUMNS = {
    "rule": ("Rule", ""),
    "group": ("Group", ""),
    "output_error_percent": ("Error of outputs, %", ".1f"),
    "cosine_mean": ("Cosine of embeddings", ".4f"),
    "recall_percent": ("Right text found, %", ".1f"),
}


def by_group_size() -> Markdown:
    """FP16, then each group size by the default rule and by a search."""
    caption = "A small text encoder with its linear layers rounded, against FP16"
    return page.table(tables.by_group_size(), COLUMNS, "tab-quality", caption)


def by_rule() -> Markdown:
    """FP16, then each rounding rule at groups of 128."""
    caption = "The same encoder in groups of 128, by rounding rule"
    return page.table(tables.by_rule(), COLUMNS, "tab-quality-rules", caption)

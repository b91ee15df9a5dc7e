"""The figures of the report: a table in, a matplotlib Figure out, one function each; `save` writes PNG or SVG."""

from tinygemm.report.figures.causes import dequant_breakdown, percent_of_peak, roofline
from tinygemm.report.figures.decomposition import waterfall
from tinygemm.report.figures.interventions import cause_along, cause_removed, fitted_terms, time_along
from tinygemm.report.figures.literature import published_speedups
from tinygemm.report.figures.method import cold_vs_hot, correctness, launch_cost, samples_spread
from tinygemm.report.figures.models import never_slower
from tinygemm.report.figures.predict import (
    predicted_vs_measured,
    projected_speedups,
    published_vs_projected,
    terms_vs_n,
)
from tinygemm.report.figures.regimes import crossover, speedup_map
from tinygemm.report.figures.speed import bandwidth_vs_n, decode_latency, frac_of_floor, headline, speedup_vs_n
from tinygemm.report.style import save

__all__ = [
    "bandwidth_vs_n",
    "cause_along",
    "cause_removed",
    "cold_vs_hot",
    "correctness",
    "crossover",
    "decode_latency",
    "dequant_breakdown",
    "fitted_terms",
    "frac_of_floor",
    "headline",
    "launch_cost",
    "never_slower",
    "percent_of_peak",
    "predicted_vs_measured",
    "projected_speedups",
    "published_speedups",
    "published_vs_projected",
    "roofline",
    "samples_spread",
    "save",
    "speedup_map",
    "speedup_vs_n",
    "terms_vs_n",
    "time_along",
    "waterfall",
]

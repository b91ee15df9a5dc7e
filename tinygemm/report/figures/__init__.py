"""The figures of the report: a table in, a matplotlib Figure out, one function each; `save` writes PNG or SVG."""

from tinygemm.report.figures.causes import dequant_breakdown, percent_of_peak, roofline
from tinygemm.report.figures.decomposition import waterfall
from tinygemm.report.figures.evidence import method_errors, run_to_run
from tinygemm.report.figures.interventions import cause_along, cause_removed, time_along
from tinygemm.report.figures.launch import host_floor, launch_gain
from tinygemm.report.figures.limiters import instruction_mix, limits, roofline_regimes, stalls
from tinygemm.report.figures.literature import published_speedups
from tinygemm.report.figures.method import cold_vs_hot, correctness, launch_cost, samples_spread
from tinygemm.report.figures.models import never_slower
from tinygemm.report.figures.one_token import one_token
from tinygemm.report.figures.peers import fraction_of_reads, peer_times
from tinygemm.report.figures.predict import (
    predicted_vs_measured,
    projected_speedups,
    published_vs_projected,
    terms_vs_n,
)
from tinygemm.report.figures.regimes import crossover, speedup_map
from tinygemm.report.figures.speed import bandwidth_vs_n, decode_latency, frac_of_floor, speedup_vs_n
from tinygemm.report.figures.steps import ladder
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
    "frac_of_floor",
    "fraction_of_reads",
    "host_floor",
    "instruction_mix",
    "ladder",
    "launch_cost",
    "launch_gain",
    "limits",
    "method_errors",
    "never_slower",
    "one_token",
    "peer_times",
    "percent_of_peak",
    "predicted_vs_measured",
    "projected_speedups",
    "published_speedups",
    "published_vs_projected",
    "roofline",
    "roofline_regimes",
    "run_to_run",
    "samples_spread",
    "save",
    "speedup_map",
    "speedup_vs_n",
    "stalls",
    "terms_vs_n",
    "time_along",
    "waterfall",
]

"""Each finding as a computed claim: holds, does not hold, or undecided, with the sentence and the numbers behind it."""

from __future__ import annotations

from tinygemm.report.tables import breakdown, counters_table, in_mode, only, report_table, suite
from tinygemm.report.verdicts import causes, decomposition, regimes
from tinygemm.report.verdicts.claim import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.verdicts.evidence import of_evidence
from tinygemm.report.verdicts.findings import (
    bottleneck_shifts,
    dequantisation_decides,
    fewer_bits_help_narrow,
    narrow_loses,
    narrow_loses_to_dequantisation,
    wide_helps,
)
from tinygemm.report.verdicts.launch import of_launch
from tinygemm.report.verdicts.limiters import of_limiters
from tinygemm.report.verdicts.literature import at_least_published
from tinygemm.report.verdicts.models import never_slower
from tinygemm.report.verdicts.peers import of_peers
from tinygemm.report.verdicts.steps import of_steps

__all__ = [
    "FAILS",
    "HOLDS",
    "UNDECIDED",
    "Verdict",
    "at_least_published",
    "causes",
    "decomposition",
    "never_slower",
    "of_evidence",
    "of_launch",
    "of_limiters",
    "of_peers",
    "of_run",
    "of_steps",
    "regimes",
]


def of_run(run) -> dict[str, Verdict]:
    """Every verdict on the suite `decode` of a run at M = 1: A, B, C (and the parts of C, C_loses and C_cause) for the
    tuned kernel; the same keys with `_static` for the simple one; and D for the tuned kernel alone."""
    whole = only(run, run.cases["M"].isin((0, 1)) & in_mode(run.cases))
    run = suite(whole, "decode")
    table, tuned = report_table(run), breakdown(whole)  # naive dequantisation is timed by another suite
    counters = counters_table(run) if len(run.counters) else None
    verdicts = {"D": fewer_bits_help_narrow(run)}
    for suffix, backend in {"": "int4", "_static": "int4-static"}.items():
        loses = narrow_loses(table, backend)
        cause = dequantisation_decides(breakdown(run, backend), tuned, backend)
        verdicts |= {
            f"A{suffix}": wide_helps(table, backend),
            f"B{suffix}": bottleneck_shifts(counters, backend, table=table),
            f"C{suffix}": narrow_loses_to_dequantisation(loses, cause),
            f"C_loses{suffix}": loses,
            f"C_cause{suffix}": cause,
        }
    return verdicts

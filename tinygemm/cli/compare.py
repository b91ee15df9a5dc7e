"""`tinygemm compare`: two recorded runs side by side; needs no GPU and no torch."""

from __future__ import annotations

from pathlib import Path

import click

from tinygemm.cli.tools import OUTPUT_FILE
from tinygemm.files import check_writable, write_csv

SHOWN = {
    "backend": "backend", "K": "K", "N": "N", "a_us": "A_us", "b_us": "B_us", "ratio": "ratio", "ratio_low": "low",
    "ratio_high": "high", "a_speedup": "A_speedup", "b_speedup": "B_speedup",
}  # fmt: skip


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@click.option("--csv", type=OUTPUT_FILE, default=None, help="Where to write every case that both runs timed.")
@click.option("--allow-dirty", is_flag=True, help="Accept runs that were measured from uncommitted code.")
def compare(run_a, run_b, csv, allow_dirty):
    """Set RUN_A and RUN_B side by side: the same cases, the claims that changed, and where both come from.

    RUN is the folder of a recorded run, or a GPU such as h200, which stands for its newest run.
    """
    from tinygemm.report.base import style
    from tinygemm.report.compare import tables as compared
    from tinygemm.report.compare import words

    if csv:
        check_writable(csv)
    a, b = (_run(name, allow_dirty) for name in (run_a, run_b))
    names = compared.names(a, b)
    spread = compared.widest_spread(a, b)
    cases, found = compared.shared_cases(a, b, spread), compared.verdicts(a, b)
    lines = [f"{side}: {run.gpu['name']}, run {run.run_id}" for side, run in (("A", a), ("B", b))]
    lines += ["", *words.summary(a, b, cases)]
    if len(cases):
        lines += [words.intervals(spread), "", "By backend: time in B over time in A"]
        lines += [_text(compared.by_backend(cases))]
    if len(rows := compared.primary(cases)):
        rows = rows.assign(backend=[style.name(backend) for backend in rows["backend"]])
        lines += ["", "M = 1, CUDA graph, cold L2", _text(rows.rename(columns=SHOWN)[list(SHOWN.values())])]
    lines += ["", words.verdicts(found), *_changed(found[found["outcome"] == compared.CHANGED], names)]
    conditions = compared.provenance(a, b).rename(columns={"a": "A", "b": "B"})
    click.echo("\n".join([*lines, "", conditions.to_string(index=False, justify="left")]))
    if csv:
        write_csv(cases, csv)


def _run(name: str, allow_dirty: bool):
    from tinygemm import hardware, runs

    if Path(name).is_dir():
        return runs.load_run(name, allow_dirty=allow_dirty)
    key = hardware.full_key(name)
    if not runs.recorded_runs(key):
        raise ValueError(f"{name} is neither the folder of a recorded run nor a GPU of which data/ holds one")
    return runs.latest_run(key, allow_dirty=allow_dirty)


def _text(table) -> str:
    return table.to_string(index=False, na_rep="–", float_format="{:,.2f}".format)


def _changed(rows, names) -> list[str]:
    lines = []
    for row in rows.itertuples():
        lines += ["", row.claim, f"  {names[0]}: {row.a_state}. {row.a_sentence}"]
        lines += [f"  {names[1]}: {row.b_state}. {row.b_sentence}"]
    return lines

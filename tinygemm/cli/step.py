"""`tinygemm step`: a whole decode step of a model, timed on this machine's GPU."""

from __future__ import annotations

import dataclasses
import sys

import click

from tinygemm.cli.tools import FOLDER, OUTPUT_FILE, names_in, require_gpu
from tinygemm.files import check_writable, write_csv
from tinygemm.step import cases
from tinygemm.text import integers

FORMATS = {
    "ms": "{:.3f}", "tokens_per_s": "{:,.0f}", "speedup": "{:.2f}", "gb_per_s": "{:,.0f}", "of_copy": "{:.0%}",
    "product": "{:.0%}", "attention": "{:.0%}", "allreduce": "{:.0%}", "rest": "{:.0%}",
    "kernels": "{:.0f}", "memory_gb": "{:.1f}", "rel_err": "{:.1%}", "argmax_agreement": "{:.0%}",
}  # fmt: skip


@click.command()
@click.option("--model", default="", help=f"{', '.join(cases.ARCHITECTURES)}; the report's matrix without it.")
@click.option("--batch", default="1,8", help="Sequences, comma-separated.")
@click.option("--context", default="512", help="Tokens that each attends to, comma-separated.")
@click.option("--backend", "--backends", default="", help=f"Of {', '.join(cases.BACKENDS)}; all without it.")
@click.option("--host", type=click.Choice(list(cases.HOSTS)), help="Our lean model, or that of Hugging Face.")
@click.option("--attention", type=click.Choice(cases.HOSTS["lean"]), help="Of the lean model: one kernel, or torch's.")
@click.option("--compile/--no-compile", "compiled", default=True, help="By torch.compile, or eager modules.")
@click.option("--compiler-overlap/--no-compiler-overlap", default=True, help="Dependent launch in compiled kernels.")
@click.option("--tp", type=click.IntRange(min=1), default=1, help="GPUs that share the model, started by torchrun.")
@click.option("--rep", type=click.IntRange(min=1), default=25, help="Samples per case.")
@click.option("--budget", type=click.FloatRange(min=0), default=0, help="Seconds after which no case starts; 0: none.")
@click.option("--csv", type=OUTPUT_FILE, help="Where to write one row per case.")
@click.option(
    "--out-dir",
    type=FOLDER,
    help="Record a run in <out-dir>/<gpu>/<run_id>/, as in data/steps; a killed one is resumed.",
)
@click.option("--resume", type=FOLDER, help="Unfinished run to go on with; one of equal terms is found by itself.")
@click.option("--seal", is_flag=True, help="Finish the run when the budget ends, rather than leave it to be resumed.")
@click.option("--allow-dirty", is_flag=True, help="Record uncommitted code; the book refuses such a run.")
def step(tp, rep, budget, csv, out_dir, resume, seal, allow_dirty, **asked):
    """Time a decode step of a model: all layers, KV cache and lm_head in one CUDA graph, checked before it is timed."""
    from tinygemm.step import ranks

    wanted = _wanted(tp=tp, **asked)
    first = ranks.started(tp) == 0
    if csv:
        check_writable(csv)
    require_gpu()
    from tinygemm import runs
    from tinygemm.step import suite

    writer = None
    bench = suite.bench_of_this_gpu(tp)
    bench.rep = rep
    if first and (out_dir or resume):
        if not allow_dirty:
            runs.require_clean_tree("pass --allow-dirty")
        writer = suite.open_run(wanted, out_dir or resume.parent.parent, resume, " ".join(["tinygemm", *sys.argv[1:]]))
        click.echo(f"recording into {writer.path}")
    rows = suite.run(bench, wanted, budget, writer, **({"seen": _say} if first else {}))
    if first:
        report(rows, writer, csv, seal)


def _wanted(
    model: str, batch: str, context: str, backend: str, host: str | None, attention: str | None, tp: int, **others
):
    """The cases that the options name; raises ValueError naming what is unknown or not possible."""
    names = names_in(backend)
    if model:
        numbers = (integers(batch, "--batch"), integers(context, "--context"))
        wanted = cases.chosen(model, *numbers, names, host or "lean", tp=tp, **others)
    else:
        names = _known(names) or cases.BACKENDS
        wanted = [case for case in cases.matrix(tp) if case.backend in names and host in (None, case.host)]
    if attention:
        wanted = [
            dataclasses.replace(case, attention=attention) if host or case.host == "lean" else case for case in wanted
        ]
    return list(dict.fromkeys(wanted))


def report(rows, writer, csv, seal: bool) -> None:
    """Print the table, write what was asked for, and say what is left; exit code 1 where a case is wrong or failed."""
    import pandas as pd

    from tinygemm import runs, step_rows
    from tinygemm.report.token import steps as summary
    from tinygemm.rows import columns_of

    tables = (
        pd.DataFrame([dataclasses.astuple(row) for row in found], columns=columns_of(of))
        for found, of in (
            (rows.steps, step_rows.Step),
            (rows.samples, step_rows.StepSample),
            (rows.kernels, step_rows.StepKernel),
        )
    )
    if writer:
        tables = (runs.read_table(writer.path / name) for name in ("steps.csv", "step_samples.csv", "step_kernels.csv"))
    steps, samples, kernels = tables
    found = summary.table(steps, samples, kernels)
    shown = found[["case_id", *FORMATS]]
    formatters = {name: text.format for name, text in FORMATS.items()}
    click.echo(shown.to_string(index=False, formatters=formatters, na_rep="–"))
    if rows.profile_fault:
        click.echo(f"no profile: {rows.profile_fault}", err=True)
    if csv:
        write_csv(found, csv)
    if rows.not_started:
        click.echo(f"{len(rows.not_started)} cases not started within the budget: {rows.not_started[0].case_id}, ...")
    if writer and (seal or not rows.not_started):
        click.echo(writer.finish())
    elif writer:
        click.echo(f"go on with: tinygemm step --resume {writer.path}, and what was asked for")
    refused = steps[~steps["status"].isin(["ok", "unsupported"])]
    for row in steps[steps["message"] != ""].itertuples():
        click.echo(f"{row.case_id}: {row.status}: {row.message}", err=True)
    if len(refused):
        sys.exit(1)


def _say(step, samples) -> None:
    """One line per case, as soon as it is measured."""
    times = sorted(sample.step_us for sample in samples)
    if not times:
        click.echo(f"{step.case_id}: {step.status}: {step.message}")
        return
    us = times[len(times) // 2]
    error = "" if step.rel_err is None else f", logits {step.rel_err:.1%} apart, set up in {step.setup_s:.1f} s"
    click.echo(f"{step.case_id}: {us / 1000:.3f} ms{error}{', ' + step.message if step.message else ''}")


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := set(names) - set(cases.BACKENDS):
        raise ValueError(f"unknown backend {', '.join(sorted(unknown))}; known: {', '.join(cases.BACKENDS)}")
    return names

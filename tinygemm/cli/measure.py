"""`tinygemm bench`, `breakdown`, `record` and `tune`: what measures on this machine's GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import click

from tinygemm.cli.tools import (
    FOLDER,
    INPUT_FILE,
    OUTPUT_FILE,
    names_in,
    options,
    problems_of,
    require_gpu,
    shape_options,
)
from tinygemm.files import check_writable, is_stream, write, write_csv
from tinygemm.parameters import read_parameters
from tinygemm.step import cases

LAUNCH = "As a CUDA graph, as one after a dependent launch, call by call, or by do_bench; both: graph and eager."
L2 = "Weights from DRAM, from a rotation over 1.5 times the L2, or from L2; both: cold and hot."

timing_options = options(
    click.option("--rep", type=click.IntRange(min=1), default=25, help="Samples per case."),
    click.option("--warmup", type=click.IntRange(min=0), default=3, help="Rounds before them that are not kept."),
    click.option("--skip-correctness", is_flag=True, help="Do not compare with the float64 reference first."),
)


@click.command()
@shape_options
@timing_options
@click.option("--csv", type=OUTPUT_FILE, required=True, help="Where to write one row per case.")
@click.option(
    "--backend", "--backends", default="fp16-cublas,dequant-fp16,int4,copy,empty-node", help="Names, comma-separated."
)
@click.option(
    "--launch", type=click.Choice(["graph", "primed", "eager", "do_bench", "both"]), default="graph", help=LAUNCH
)
@click.option("--l2-state", type=click.Choice(["cold", "warm", "hot", "both"]), default="cold", help=L2)
def bench(csv, backend, launch, l2_state, **common):
    """Time backends at a list of shapes: latency, interval and speedup over FP16, one row per case."""
    launches = ("graph", "eager") if launch == "both" else (launch,)
    l2_states = ("cold", "hot") if l2_state == "both" else (l2_state,)
    run = _measure(csv, names_in(backend), launches, l2_states, **common)
    from tinygemm.report.base import tables

    table = tables.report_table(run)
    shown = ["backend", "problem", "launch", "l2_state", "latency_us_p50", "speedup_vs_fp16"]
    click.echo(
        table.loc[table["status"] == "ok", shown].to_string(index=False, float_format="{:.2f}".format, na_rep="")
    )
    write_csv(table, csv)
    _report_refusals(run.cases)


@click.command()
@shape_options
@timing_options
@click.option("--csv", type=OUTPUT_FILE, required=True, help="Where to write one row per shape.")
def breakdown(csv, **common):
    """Time what dequantisation costs, on its own and inside the fused kernel, one row per shape."""
    backends = ("fp16-cublas", "dequant-fp16", "dequant-only", "int4", "int4-no-dequant", "int4-load-only")
    run = _measure(csv, backends, ("graph",), ("cold",), **common)
    from tinygemm.report.base import tables

    write_csv(tables.breakdown(run), csv)
    _report_refusals(run.cases)


@click.command()
@click.option(
    "-f",
    "--params",
    type=INPUT_FILE,
    help="YAML: m_list, shapes, group_size, backends, suites, rep, warmup, counters, step, step_budget.",
)
@click.option("--suites", default="", help="Names such as decode,models; without it those of the file, or all.")
@click.option("--resume", type=FOLDER, help="Unfinished run to go on with; one of equal terms is found by itself.")
@click.option("--new", is_flag=True, help="Start a new run even so.")
@click.option("--data-root", type=FOLDER, help="Folder that holds <gpu>/<run_id>/; the project's data/ without it.")
@click.option("--allow-dirty", is_flag=True, help="Measure uncommitted code; the book refuses such a run.")
def record(params, suites, resume, new, data_root, allow_dirty):
    """Measure what the report explains and write it as a run in data/<gpu>/; a killed run can be resumed.

    With `step: true` in the file, whole decode steps are measured next, into data/steps/<gpu>/.
    """
    from tinygemm import hardware, runs
    from tinygemm.harness import sweep

    parameters = read_parameters(params) if params else {}
    gpu = hardware.full_key(parameters.pop("gpu", "auto"))
    root = data_root or Path(parameters.pop("data_root", "") or runs.DATA_ROOT)
    allow_dirty = parameters.pop("allow_dirty", False) or allow_dirty
    for name in ("source", "run_dir", "data_root"):
        parameters.pop(name, None)
    step_budget = cases.asked_in(parameters)
    if suites:
        parameters["suites"] = suites
    plan = sweep.SweepPlan.from_parameters(**parameters)
    here = require_gpu()
    if gpu not in ("auto", here):
        raise ValueError(f"{params} is for {gpu}, but this machine's GPU is {here}")
    if not allow_dirty:
        runs.require_clean_tree("pass --allow_dirty")
    if resume is None and not new:
        resume = runs.RunWriter.unfinished(here, plan.parameters(), root)
    command = " ".join(["tinygemm", *sys.argv[1:]])
    click.echo(sweep.record(plan, root, resume=resume, command=command, say=click.echo))
    if step_budget is not None:
        from tinygemm.step import suite

        try:
            click.echo(suite.record(root, step_budget, command, click.echo))
        except Exception as error:
            again = f"tinygemm step --out-dir {root / runs.STEPS}"
            raise ValueError(f"the sweep is recorded, its decode steps are not: {error}; go on with: {again}") from None


@click.command()
@click.option("--out", type=OUTPUT_FILE, help="Table to write; this GPU's own in tinygemm/kernel/configs/ without it.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Processes that compile; 0: one per core less one."
)
@click.option(
    "--shapes",
    default="",
    help="Only these weights, as 1,K,N;1,K,N;...: other rows of the table stay. The report's and the projections of "
    "public models without it.",
)
@click.option("--model", default="", help="Only this model's projections: a name, a config.json or its folder.")
@click.option("--tp", type=click.IntRange(min=1), help="GPUs that share the model.")
def tune(out, workers, shapes, model, tp):
    """Search launch configs on this machine's GPU and write the table that kernels read.

    The report's shapes are searched in full; for 2 and 4 tokens, among the winners for 1, 8 and 16. Variants of the
    winners are raced next, with other limits of registers or less requested at once. At the study's shapes they are
    also raced in BF16, with zeros, and in groups of 64 and 32, for 1 and 8 tokens. Projections of public models, and
    shapes far from all of these, get only the most promising configs, for 1, 8 and 16 tokens. With --shapes, only these
    weights are searched, in full and in all formats; with --model, only the most promising configs of its projections,
    those of the nearest weights in the table among them. Without either a search takes about a quarter of an hour.

    A config is raced among calls that overlap, and alone; the sum of both times counts.

    A search that was stopped goes on where it was, if it is asked for the same; another one begins anew.
    """
    from datetime import date

    from tinygemm import hardware, problem, runs

    if model and shapes:
        raise ValueError("--model and --shapes both say what to search: give one")
    if tp and not model:
        raise ValueError("--tp cuts the projections of --model, which is not given")
    key = require_gpu()
    if key not in hardware.GPUS:
        raise ValueError(f"tune ranks configs by the peaks of this machine's GPU, and none are known of {key}")
    spec = hardware.GPUS[key]
    out = out or Path(__file__).parents[1] / "kernel" / "configs" / f"{spec.key}.json"
    check_writable(out)
    if model and not out.is_file():
        raise ValueError(f"--model adds rows to a table, and {out.name} is none: search the report's shapes first")
    from tinygemm.harness import tune as search
    from tinygemm.kernel.configs import FORMS, YARDSTICKS
    from tinygemm.model_config import model_named

    weights = [(each.K, each.N) for each in problem.parse_shape_list(shapes)] if shapes else problem.REPORT_SHAPES
    others, in_formats = ((), weights) if shapes else (search.others(weights), problem.STUDY_SHAPES)
    if model:
        weights, others, in_formats = (), search.of_model(model_named(model), tp or 1), ()
    problems = [problem.GemmProblem(M, N, K) for K, N in dict.fromkeys(weights) for M in problem.DECODE_M]
    forms = [form for form in (*FORMS, *YARDSTICKS) if form != "static"]
    versions = runs.software_versions()
    about = (
        f"{spec.name}, driver {hardware.snapshot()['driver']}, torch {versions['torch']}, triton {versions['triton']}, "
        f"{date.today():%Y-%m-%d}: `tinygemm tune`, cold L2, CUDA graphs"
    )
    partial = None if is_stream(out) else out.with_name(f"{out.name}.partial")
    kept = out if (shapes or model) and out.is_file() else None
    settings = (about, workers, partial, kept, others, in_formats)
    write(out, lambda aside: search.tune(problems, forms, spec.key, aside, *settings))


def _measure(
    csv, backends, launches, l2_states, shape_list, group_size, asymmetric, rep, warmup, skip_correctness
) -> SimpleNamespace:
    """Cases and samples of a sweep over what was asked for; refuses a CSV that could not be written afterwards."""
    from tinygemm.harness import sweep

    check_writable(csv)
    plan = sweep.SweepPlan(
        problems_of(shape_list, group_size),
        symmetric=not asymmetric,
        backends=backends,
        launches=launches,
        l2_states=l2_states,
        rep=rep,
        warmup=warmup,
        verify=not skip_correctness,
        counters=False,
    )
    require_gpu()
    cases, samples = sweep.bench(plan)
    return SimpleNamespace(cases=cases, samples=samples)


def _report_refusals(cases) -> None:
    """Say which cases were not timed; exit code 1 if one of them is wrong or failed rather than unsupported."""
    refused = cases[cases["status"] != "ok"]
    for row in refused.itertuples():
        click.echo(f"{row.case_id}: {row.status}: {row.message}", err=True)
    if not refused["status"].isin(["unsupported"]).all():
        sys.exit(1)

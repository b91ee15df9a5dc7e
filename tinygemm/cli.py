"""`tinygemm ...`: measure, record, profile and plot; everything heavy is imported when it is needed."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import click

from tinygemm.clitools import OUTPUT_FILE
from tinygemm.clitools import check_writable as _check_writable
from tinygemm.clitools import in_words as _in_words
from tinygemm.clitools import is_stream as _is_stream
from tinygemm.clitools import option as _option
from tinygemm.clitools import options as _options
from tinygemm.clitools import show_everything as _show_everything
from tinygemm.clitools import write as _write
from tinygemm.clitools import write_csv as _write_csv
from tinygemm.clitools import write_text as _write_text
from tinygemm.commands_advise import advise
from tinygemm.commands_equivalent import equivalent
from tinygemm.commands_predict import predict
from tinygemm.parameters import read_parameters
from tinygemm.problem import GROUP_SIZES, STUDY_SHAPES

STUDY_SHAPE_LIST = ";".join(f"1,{K},{N}" for K, N in STUDY_SHAPES)
IMAGE_SUFFIXES = (".png", ".svg")
LAUNCH = "As a CUDA graph, as one after a dependent launch, call by call, or by do_bench; both: graph and eager."
L2 = "Weights from DRAM, from a rotation over 1.5 times the L2, or from L2; both: cold and hot."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def commands():
    """Measure decode GEMMs with packed INT4 weights against FP16, and draw what was measured."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what the user can mend becomes one line on stderr and exit code 1."""
    _show_everything()
    try:
        commands(arguments, prog_name="tinygemm")
    except ModuleNotFoundError as error:
        extra = "report" if error.name in ("matplotlib", "seaborn", "scipy") else "kernel"
        _fail(f"the package {error.name} is not installed (pip install -e '.[{extra}]')")
    except (ValueError, RuntimeError, OSError) as error:
        _fail(_in_words(error))


def _fail(message: str) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


# --- options that several commands share ----------------------------------------------------------------------------


INPUT_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

shape_options = _options(
    _option("shape_list", default=STUDY_SHAPE_LIST, help="Problems as M,K,N;M,K,N;..."),
    _option(
        "group_size", type=click.Choice([str(size) for size in GROUP_SIZES]), default="128", help="-1: the whole K."
    ),
    _option("asymmetric", is_flag=True, help="Quantise with a zero per group."),
)
timing_options = _options(
    _option("rep", type=click.IntRange(min=1), default=25, help="Samples per case."),
    _option("warmup", type=click.IntRange(min=0), default=3, help="Rounds before them that are not kept."),
    _option("skip_correctness", is_flag=True, help="Do not compare with the float64 reference first."),
)


# --- measuring ------------------------------------------------------------------------------------------------------


@commands.command()
@shape_options
@timing_options
@_option("csv", type=OUTPUT_FILE, required=True, help="Where to write one row per case.")
@_option(
    "backend", "--backends", default="fp16-cublas,dequant-fp16,int4,copy,empty-node", help="Names, comma-separated."
)
@_option("launch", type=click.Choice(["graph", "primed", "eager", "do_bench", "both"]), default="graph", help=LAUNCH)
@_option("l2_state", type=click.Choice(["cold", "warm", "hot", "both"]), default="cold", help=L2)
def bench(csv, shape_list, group_size, asymmetric, rep, warmup, skip_correctness, backend, launch, l2_state):
    """Time backends at a list of shapes: latency, interval and speedup over FP16, one row per case."""
    from tinygemm.harness import sweep

    _check_writable(csv)
    plan = sweep.SweepPlan(
        _problems(shape_list, group_size),
        symmetric=not asymmetric,
        backends=_names(backend),
        launches=("graph", "eager") if launch == "both" else (launch,),
        l2_states=("cold", "hot") if l2_state == "both" else (l2_state,),
        rep=rep,
        warmup=warmup,
        verify=not skip_correctness,
        counters=False,
    )
    _require_gpu()
    from tinygemm.report.base import tables

    cases, samples = sweep.bench(plan)
    table = tables.report_table(SimpleNamespace(cases=cases, samples=samples))
    shown = ["backend", "problem", "launch", "l2_state", "latency_us_p50", "speedup_vs_fp16"]
    click.echo(
        table.loc[table["status"] == "ok", shown].to_string(index=False, float_format="{:.2f}".format, na_rep="")
    )
    _write_csv(table, csv)
    _report_refusals(cases)


@commands.command()
@shape_options
@timing_options
@_option("csv", type=OUTPUT_FILE, required=True, help="Where to write one row per shape.")
def breakdown(csv, shape_list, group_size, asymmetric, rep, warmup, skip_correctness):
    """Time what dequantisation costs, on its own and inside the fused kernel, one row per shape."""
    from tinygemm.harness import sweep

    _check_writable(csv)
    plan = sweep.SweepPlan(
        _problems(shape_list, group_size),
        symmetric=not asymmetric,
        backends=("fp16-cublas", "dequant-fp16", "dequant-only", "int4", "int4-no-dequant", "int4-load-only"),
        launches=("graph",),
        l2_states=("cold",),
        rep=rep,
        warmup=warmup,
        verify=not skip_correctness,
        counters=False,
    )
    _require_gpu()
    from tinygemm.report.base import tables

    cases, samples = sweep.bench(plan)
    _write_csv(tables.breakdown(SimpleNamespace(cases=cases, samples=samples)), csv)
    _report_refusals(cases)


@commands.command()
@click.option(
    "-f",
    "--params",
    type=INPUT_FILE,
    help="YAML: m_list, shapes, group_size, backends, suites, rep, warmup, counters.",
)
@_option("suites", default="", help="Names such as decode,models; without it those of the file, or all.")
@click.option("--resume", type=FOLDER, help="Unfinished run to go on with; one of equal terms is found by itself.")
@click.option("--new", is_flag=True, help="Start a new run even so.")
@_option("data_root", type=FOLDER, help="Folder that holds <gpu>/<run_id>/; the project's data/ without it.")
@_option("allow_dirty", is_flag=True, help="Measure uncommitted code; the book refuses such a run.")
def record(params, suites, resume, new, data_root, allow_dirty):
    """Measure what the report explains and write it as a run in data/<gpu>/; a killed run can be resumed."""
    from tinygemm import hardware, runs
    from tinygemm.harness import sweep

    parameters = read_parameters(params) if params else {}
    gpu = hardware.full_key(parameters.pop("gpu", "auto"))
    root = data_root or Path(parameters.pop("data_root", "") or runs.DATA_ROOT)
    allow_dirty = parameters.pop("allow_dirty", False) or allow_dirty
    for name in ("source", "run_dir", "data_root"):
        parameters.pop(name, None)
    if suites:
        parameters["suites"] = suites
    plan = sweep.SweepPlan.from_parameters(**parameters)
    here = _require_gpu()
    if gpu not in ("auto", here):
        raise ValueError(f"{params} is for {gpu}, but this machine's GPU is {here}")
    if not allow_dirty:
        runs.require_clean_tree("pass --allow_dirty")
    if resume is None and not new:
        resume = runs.RunWriter.unfinished(here, plan.parameters(), root)
    command = " ".join(["tinygemm", *sys.argv[1:]])
    click.echo(sweep.record(plan, root, resume=resume, command=command, say=click.echo))


@commands.command()
@_option("out", type=OUTPUT_FILE, help="Table to write; this GPU's own in tinygemm/kernel/configs/ without it.")
@_option("workers", type=click.IntRange(min=0), default=0, help="Processes that compile; 0: one per core less one.")
@_option(
    "shapes",
    default="",
    help="Only these weights, as 1,K,N;1,K,N;...: other rows of the table stay. The report's and the projections of "
    "public models without it.",
)
def tune(out, workers, shapes):
    """Search launch configs on this machine's GPU and write the table that kernels read.

    The report's shapes are searched in full, for 2 and 4 tokens among what won for 1, 8 and 16. Then variants of what
    won there are raced, with other limits of registers or less requested at once, and at the study's shapes in BF16,
    with zeros, and in groups of 64 and 32, too, for 1 and 8 tokens. Of the projections of public models, and of shapes
    that none of all these is near, only what promises most is timed, for 1 and 8 tokens. With --shapes, these weights
    are searched in full and raced in all of these formats, and no others are. Without it a search takes about a quarter
    of an hour on an H100.

    A search that was stopped goes on where it was, if it is asked for the same; another one begins anew.
    """
    from datetime import date

    from tinygemm import hardware, problem, runs

    key = _require_gpu()
    if key not in hardware.GPUS:
        raise ValueError(f"tune ranks configs by the peaks of this machine's GPU, and none are known of {key}")
    spec = hardware.GPUS[key]
    out = out or Path(__file__).parent / "kernel" / "configs" / f"{spec.key}.json"
    _check_writable(out)
    from tinygemm.harness import tune as search
    from tinygemm.kernel.configs import FORMS, YARDSTICKS

    weights = [(each.K, each.N) for each in problem.parse_shape_list(shapes)] if shapes else problem.REPORT_SHAPES
    problems = [problem.GemmProblem(M, N, K) for K, N in dict.fromkeys(weights) for M in problem.DECODE_M]
    others, in_formats = ((), weights) if shapes else (search.others(weights), problem.STUDY_SHAPES)
    forms = [form for form in (*FORMS, *YARDSTICKS) if form != "static"]
    versions = runs.software_versions()
    about = (
        f"{spec.name}, driver {hardware.snapshot()['driver']}, torch {versions['torch']}, triton {versions['triton']}, "
        f"{date.today():%Y-%m-%d}: `tinygemm tune`, cold L2, CUDA graphs"
    )
    partial = None if _is_stream(out) else out.with_name(f"{out.name}.partial")
    kept = out if shapes and out.is_file() else None
    settings = (about, workers, partial, kept, others, in_formats)
    _write(out, lambda aside: search.tune(problems, forms, spec.key, aside, *settings))


# --- profiling ------------------------------------------------------------------------------------------------------


@commands.command()
@_option("backend", default="fp16-cublas", help="What to call.")
@_option("m", type=click.IntRange(min=1), default=1, help="Tokens.")
@_option("k", type=click.IntRange(min=1), default=4096, help="Input features.")
@_option("n", type=click.IntRange(min=1), default=14336, help="Output features.")
@_option("group_size", type=click.Choice([str(size) for size in GROUP_SIZES]), default="128", help="-1: the whole K.")
@_option("asymmetric", is_flag=True, help="Quantise with a zero per group.")
@_option("variant", default="", help="Of a backend with several: the config_source of a recorded case.")
@_option("calls", type=click.IntRange(min=1), default=3, help="Calls inside the profiler's range.")
def profile(backend, m, k, n, group_size, asymmetric, variant, calls):
    """Call one backend a few times between cudaProfilerStart and Stop: the target of ncu."""
    from tinygemm.harness import counters, registry
    from tinygemm.problem import GemmProblem

    if backend not in registry.BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(registry.BACKENDS)}")
    problem = GemmProblem(m, n, k, int(group_size))
    key = _require_gpu()
    counters.run_profiled(counters.Target("", backend, problem, not asymmetric, variant), key, calls)
    click.echo(f"{backend} {problem}: {calls} calls")


@commands.command()
@shape_options
@_option("backend", "--backends", default="fp16-cublas,int4", help="Names, comma-separated.")
@_option("out_dir", type=FOLDER, required=True, help="Folder for counters.csv and ncu's own CSVs.")
@_option("metrics", default="", help="ncu metrics, comma-separated; those of the report without it.")
@_option("kernel_name", default=None, help="Only kernels of this function name, as in ncu --kernel-name.")
@_option("dry_run", is_flag=True, help="Only print the ncu commands.")
def counters(shape_list, group_size, asymmetric, backend, out_dir, metrics, kernel_name, dry_run):
    """Build and run the ncu commands for backends and shapes, and collect the counters."""
    import shlex

    from tinygemm import runs
    from tinygemm.harness import counters as ncu
    from tinygemm.harness import registry

    names = _names(backend)
    if unknown := sorted(set(names) - set(registry.BACKENDS)):
        raise ValueError(f"unknown backend {', '.join(unknown)}; known: {', '.join(registry.BACKENDS)}")
    targets = [
        ncu.Target(runs.case_id(name, problem, "graph", "cold"), name, problem, not asymmetric)
        for problem in _problems(shape_list, group_size)
        for name in names
    ]
    settings = {"kernel_name": kernel_name, "metrics": tuple(_names(metrics)) or ncu.METRICS}
    if dry_run:
        for target in targets:
            command = ncu.ncu_command(target, Path(ncu.log_name(target)), **settings)
            click.echo(shlex.join([*(f"{name}={value}" for name, value in ncu.C_LOCALE.items()), *command]))
        return
    _require_gpu()
    rows, raw = ncu.collect(targets, say=click.echo, **settings)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in raw.items():
        _write_text(text, out_dir / name)
    _write_csv(_frame([dataclasses.asdict(row) for row in rows]), out_dir / "counters.csv")


@commands.command("static-cost")
@_option("gpu", required=True, help="Key of the GPU to compile for, such as h200 or a10g; it need not be here.")
@_option("csv", type=OUTPUT_FILE, help="Table to write; data/static/<gpu>.csv, which the report reads, without it.")
def static_cost(gpu, csv):
    """Count the instructions per weight of the kernels that get profiled, in their machine code; needs no GPU."""
    from tinygemm.hardware import gpu_spec
    from tinygemm.harness.static_table import static_rows
    from tinygemm.report.bottleneck.tables import static_file

    key = gpu_spec(gpu).key
    csv = csv or static_file(key)
    _check_writable(csv)
    _write_csv(_frame(static_rows(key)), csv)


# --- plotting -------------------------------------------------------------------------------------------------------


@commands.group()
def plot():
    """Draw figures from CSVs; needs no GPU."""


@plot.command()
@_option("csv", type=INPUT_FILE, required=True, help="What `tinygemm bench` wrote.")
@_option("out_dir", type=FOLDER, required=True, help="Folder for the figures.")
@_option("format", type=click.Choice([suffix[1:] for suffix in IMAGE_SUFFIXES]), default="png", help="Kind of image.")
def decode(csv, out_dir, format):
    """Plot A: speedup over FP16 against N, and the decode latencies."""
    from tinygemm.report import bench_csv
    from tinygemm.report.speedup import figures as speedup_figures

    table = bench_csv.read_bench(csv)
    products = table[(table["M"] > 0) & (table["K"] > 0)]
    K, M = int(products["K"].mode()[0]), int(products["M"].min())
    drawn = {
        "speedup_vs_n": speedup_figures.speedup_vs_n(table, K=K),
        "decode_latency": speedup_figures.decode_latency(table, M=M),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        _save(figure, out_dir / f"{name}.{format}")


@plot.command("breakdown")
@_option("csv", type=INPUT_FILE, required=True, help="What `tinygemm breakdown` wrote.")
@_option("out", type=OUTPUT_FILE, required=True, help="Image, .png or .svg.")
def plot_breakdown(csv, out):
    """Plot C: what dequantisation costs on its own and inside the fused kernel."""
    _check_image(out)
    from tinygemm.report import bench_csv
    from tinygemm.report.dequantisation import figures as dequantisation_figures

    table = bench_csv.read_breakdown(csv)
    _save(dequantisation_figures.dequant_breakdown(table, M=int(table.loc[table["M"] > 0, "M"].min())), out)


@plot.command("peak-compute")
@_option("fp16_csv", type=INPUT_FILE, required=True, help="ncu's CSV of the FP16 kernel.")
@_option("int4_csv", type=INPUT_FILE, required=True, help="ncu's CSV of the INT4 kernel.")
@_option("out", type=OUTPUT_FILE, required=True, help="Image, .png or .svg.")
def peak_compute(fp16_csv, int4_csv, out):
    """Plot B: percent of peak of compute and memory, FP16 and INT4."""
    _check_image(out)
    import pandas as pd

    from tinygemm.harness import counters as ncu
    from tinygemm.report.bottleneck import counters as combine
    from tinygemm.report.bottleneck import figures as bottleneck_figures

    parts = []
    for backend, file in (("fp16-cublas", fp16_csv), ("int4", int4_csv)):
        rows = _frame([dataclasses.asdict(row) for row in ncu.read_file(file, backend)])
        parts.append(combine.summarize_counters(rows).assign(backend=backend))
    _save(bottleneck_figures.percent_of_peak(pd.concat(parts, ignore_index=True)), out)


for command in (advise, predict, equivalent):
    commands.add_command(command)


# --- what they share ------------------------------------------------------------------------------------------------


def _problems(shape_list: str, group_size: str) -> tuple:
    from tinygemm.problem import parse_shape_list

    return tuple(parse_shape_list(shape_list, int(group_size)))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _require_gpu() -> str:
    """The key of this machine's GPU; raises RuntimeError that says what is missing."""
    from tinygemm import hardware

    if reason := hardware.cuda_unavailable_reason():
        raise RuntimeError(f"this command measures on a CUDA GPU, and {reason}")
    return hardware.live_gpu_key()


def _frame(rows: list[dict]):
    import pandas as pd

    return pd.DataFrame(rows)


def _check_image(file: Path) -> None:
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{file}: a figure ends in {' or '.join(IMAGE_SUFFIXES)}")
    _check_writable(file)


def _save(figure, file: Path) -> None:
    from tinygemm.report.base import style

    _write(file, lambda aside: style.save(figure, aside))


def _report_refusals(cases) -> None:
    """Say which cases were not timed; exit code 1 if one of them is wrong or failed rather than unsupported."""
    refused = cases[cases["status"] != "ok"]
    for row in refused.itertuples():
        click.echo(f"{row.case_id}: {row.status}: {row.message}", err=True)
    if not refused["status"].isin(["unsupported"]).all():
        sys.exit(1)


if __name__ == "__main__":
    main()

"""`tinygemm profile`, `counters` and `static-cost`: what a profiler and the machine code say about the kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from tinygemm.cli.tools import FOLDER, GROUP_SIZE, OUTPUT_FILE, frame, names_in, problems_of, require_gpu, shape_options
from tinygemm.files import check_writable, write_csv, write_text


@click.command()
@click.option("--backend", default="fp16-cublas", help="What to call.")
@click.option("--m", type=click.IntRange(min=1), default=1, help="Tokens.")
@click.option("--k", type=click.IntRange(min=1), default=4096, help="Input features.")
@click.option("--n", type=click.IntRange(min=1), default=14336, help="Output features.")
@click.option("--group-size", type=GROUP_SIZE, default="128", help="-1: the whole K.")
@click.option("--asymmetric", is_flag=True, help="Quantise with a zero per group.")
@click.option("--variant", default="", help="Of a backend with several: the config_source of a recorded case.")
@click.option("--calls", type=click.IntRange(min=1), default=3, help="Calls inside the profiler's range.")
def profile(backend, m, k, n, group_size, asymmetric, variant, calls):
    """Call one backend a few times between cudaProfilerStart and Stop: the target of ncu."""
    from tinygemm.harness import ncu, registry
    from tinygemm.problem import GemmProblem

    if backend not in registry.BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(registry.BACKENDS)}")
    problem = GemmProblem(m, n, k, int(group_size))
    key = require_gpu()
    ncu.run_profiled(ncu.Target("", backend, problem, not asymmetric, variant), key, calls)
    click.echo(f"{backend} {problem}: {calls} calls")


@click.command()
@shape_options
@click.option("--backend", "--backends", default="fp16-cublas,int4", help="Names, comma-separated.")
@click.option("--out-dir", type=FOLDER, required=True, help="Folder for counters.csv and ncu's own CSVs.")
@click.option("--metrics", default="", help="ncu metrics, comma-separated; those of the report without it.")
@click.option("--kernel-name", default=None, help="Only kernels of this function name, as in ncu --kernel-name.")
@click.option("--dry-run", is_flag=True, help="Only print the ncu commands.")
def counters(shape_list, group_size, asymmetric, backend, out_dir, metrics, kernel_name, dry_run):
    """Build and run the ncu commands for backends and shapes, and collect the counters."""
    import shlex

    from tinygemm import runs
    from tinygemm.harness import ncu, registry
    from tinygemm.metrics import METRICS

    names = names_in(backend)
    if unknown := sorted(set(names) - set(registry.BACKENDS)):
        raise ValueError(f"unknown backend {', '.join(unknown)}; known: {', '.join(registry.BACKENDS)}")
    targets = [
        ncu.Target(runs.case_id(name, problem, "graph", "cold"), name, problem, not asymmetric)
        for problem in problems_of(shape_list, group_size)
        for name in names
    ]
    settings = {"kernel_name": kernel_name, "metrics": tuple(names_in(metrics)) or METRICS}
    if dry_run:
        for target in targets:
            command = ncu.ncu_command(target, Path(ncu.log_name(target)), **settings)
            click.echo(shlex.join([*(f"{name}={value}" for name, value in ncu.C_LOCALE.items()), *command]))
        return
    require_gpu()
    rows, raw = ncu.collect(targets, say=click.echo, **settings)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in raw.items():
        write_text(text, out_dir / name)
    write_csv(frame([dataclasses.asdict(row) for row in rows]), out_dir / "counters.csv")


@click.command("static-cost")
@click.option("--gpu", required=True, help="Key of the GPU to compile for, such as h200 or a10g; it need not be here.")
@click.option(
    "--csv", type=OUTPUT_FILE, help="Table to write; data/static/<gpu>.csv, which the report reads, without it."
)
def static_cost(gpu, csv):
    """Count the instructions per weight of the kernels that get profiled, in their machine code; needs no GPU."""
    from tinygemm.hardware import gpu_spec
    from tinygemm.harness.static_table import static_rows
    from tinygemm.report.bottleneck.tables import static_file

    key = gpu_spec(gpu).key
    csv = csv or static_file(key)
    check_writable(csv)
    write_csv(frame(static_rows(key)), csv)

"""`tinygemm predict`: latencies of a GPU from recorded runs and the latency model; needs no GPU and no torch."""

from __future__ import annotations

import click

from tinygemm.cli.tools import FOLDER, GROUP_SIZE, OUTPUT_FILE, STUDY_SHAPE_LIST, gpu_and_run, names_in
from tinygemm.files import check_writable, write_csv
from tinygemm.problem import parse_shape_list

SHOWN = ("fp16-cublas", "fp16-triton", "int4", "int4-static", "int4-load-only", "aten-int4mm", "dequant-fp16")


@click.command()
@click.option("--gpu", required=True, help="Which GPU: a10g, l4, a100, h100, rtx-4090, ...")
@click.option("--shape-list", default=STUDY_SHAPE_LIST, help="Problems as M,K,N;M,K,N;...")
@click.option(
    "--csv", type=OUTPUT_FILE, required=True, help="Where to write one row per problem, backend and launch mode."
)
@click.option("--group-size", type=GROUP_SIZE, default="128", help="-1: the whole K.")
@click.option(
    "--backend",
    "--backends",
    default=",".join(SHOWN),
    help="Names, comma-separated.",
)
@click.option("--launch", type=click.Choice(["graph", "eager", "both"]), default="both", help="Which calls.")
@click.option(
    "--run",
    type=FOLDER,
    default=None,
    help="The run to predict from, instead of the newest.",
)
@click.option("--data-root", type=FOLDER, default=None, help="Where runs are kept, instead of data/.")
def predict(gpu, shape_list, csv, group_size, backend, launch, run, data_root):
    """Predict latencies on a GPU: measured where it was recorded, else from a model fitted to a recorded run.

    The run is the newest of that GPU, or where it was never recorded, the newest of all.
    """
    from tinygemm import runs
    from tinygemm.report.predict import model as costmodel

    check_writable(csv)
    problems = parse_shape_list(shape_list, int(group_size))
    costmodel.check_problems(problems)
    wanted = names_in(backend)
    if unknown := [name for name in wanted if name not in costmodel.BACKENDS]:
        raise ValueError(f"unknown backend {', '.join(unknown)}; known: {', '.join(costmodel.BACKENDS)}")
    spec, source = gpu_and_run(gpu, data_root or runs.DATA_ROOT, run)
    model = costmodel.fit(source)
    spec = spec or model.spec
    launches = costmodel.LAUNCHES if launch == "both" else (launch,)
    kept = [name for name in wanted if name in model.backends]
    table = costmodel.predict(model, problems, spec, kept, launches)
    click.echo(table.to_string(index=False, float_format="{:.2f}".format))
    _say_where_it_comes_from(model, spec, table, sorted(set(wanted) - set(kept)))
    write_csv(table.round(dict.fromkeys(("latency_us", "low_us", "high_us"), 4)), csv)


def _say_where_it_comes_from(model, spec, table, missing: list[str]) -> None:
    measured = int((table["kind"] == "measured").sum())
    kind = f"{measured} rows measured, {len(table) - measured} predicted"
    if spec.key == model.spec.key:
        click.echo(f"{spec.name}: {kind}, from run {model.run_id}")
    else:
        click.echo(f"{spec.name} was not measured: {kind}, projected from run {model.run_id} of an {model.spec.name}")
    if missing:
        click.echo(f"not in that run at enough shapes: {', '.join(missing)}", err=True)

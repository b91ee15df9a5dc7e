"""`tinygemm advise`: whether INT4 pays off for a model on a GPU, from recorded runs; needs no GPU and no torch."""

from __future__ import annotations

import click

from tinygemm.cli.tools import FOLDER, OUTPUT_FILE
from tinygemm.files import check_writable, write_csv
from tinygemm.model_config import model_named
from tinygemm.models import MODEL_GROUP_SIZES, MODELS

SHOWN = {
    "layer": "layer", "K": "K", "N": "N", "group_size": "group", "calls": "calls", "fp16_us": "fp16_us",
    "int4_us": "int4_us", "speedup": "speedup", "speedup_low": "low", "speedup_high": "high", "limiter": "limiter",
    "quantise": "quantise", "kind": "kind",
}  # fmt: skip
FORMATS = dict.fromkeys(("fp16_us", "int4_us"), "{:,.1f}".format)
FORMATS |= dict.fromkeys(("speedup", "low", "high"), "{:.2f}".format) | {"group": "{:.0f}".format}


@click.command()
@click.option("--model", required=True, help=f"{', '.join(MODELS)}, or a path to a config.json.")
@click.option("--gpu", required=True, help="Which GPU: a10g, l4, a100, h100, rtx-4090, ...")
@click.option("--m", type=click.IntRange(1, 16), default=1, help="Tokens in flight.")
@click.option("--tp", type=click.IntRange(min=1), default=1, help="GPUs that share the model.")
@click.option(
    "--group-size",
    type=click.Choice([str(size) for size in MODEL_GROUP_SIZES]),
    default="128",
    help="The largest wanted; a layer whose K it does not divide gets a smaller one.",
)
@click.option(
    "--launch", type=click.Choice(["graph", "eager"]), default="graph", help="How the model launches its kernels."
)
@click.option("--csv", type=OUTPUT_FILE, default=None, help="Where to write one row per projection.")
@click.option("--data-root", type=FOLDER, default=None, help="Where runs are kept, instead of data/.")
def advise(model, gpu, m, tp, group_size, launch, csv, data_root):
    """Say for every projection of a model what FP16 and INT4 take on a GPU, and whether to quantise it.

    Measured where the GPU was recorded, else predicted from the newest run of any GPU.
    """
    from tinygemm import hardware, runs
    from tinygemm.report.base import tables
    from tinygemm.report.models import advice
    from tinygemm.report.predict import model as costmodel

    if csv:
        check_writable(csv)
    chosen, root = model_named(model), data_root or runs.DATA_ROOT
    key = hardware.full_key(gpu)
    recorded = bool(runs.recorded_runs(key, root))
    spec = None if recorded else hardware.gpu_spec(gpu)
    fitted = costmodel.fit(runs.latest_run(key if recorded else None, root))
    # a recorded GPU need not be one whose figures are known here
    found = advice.advise(fitted, chosen, spec or fitted.spec, m, tp, int(group_size), launch)
    rows = found.rows.rename(columns=SHOWN)[list(SHOWN.values())]
    click.echo("\n".join([*advice.heading(found), f"whose kernels are {tables.kernels(fitted.run)}", ""]))
    click.echo(rows.to_string(index=False, na_rep="–", formatters=FORMATS))
    click.echo("\n".join(["", *advice.sentences(found)]))
    if csv:
        write_csv(found.rows, csv)

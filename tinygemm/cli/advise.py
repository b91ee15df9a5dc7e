"""`tinygemm advise`: whether INT4 pays off for a model on a GPU, from recorded runs; needs no GPU and no torch."""

from __future__ import annotations

import json

import click

from tinygemm.cli.tools import FOLDER, OUTPUT_FILE, gpu_and_run
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
@click.option("--model", required=True, help=f"{', '.join(MODELS)}, or a config.json or its folder.")
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
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead.")
@click.option("--data-root", type=FOLDER, default=None, help="Where runs are kept, instead of data/.")
def advise(model, gpu, m, tp, group_size, launch, csv, as_json, data_root):
    """Say whether INT4 pays off for a model on a GPU: a whole token, every projection, memory, and other ways to go.

    Measured where the GPU was recorded, else predicted from the newest run of any GPU.
    """
    from tinygemm import runs
    from tinygemm.report.base import tables
    from tinygemm.report.models import token, words
    from tinygemm.report.predict import model as costmodel

    if csv:
        check_writable(csv)
    chosen = model_named(model)
    spec, run = gpu_and_run(gpu, data_root or runs.DATA_ROOT)
    fitted = costmodel.fit(run, backends=(*token.COMPARED, *token.RIVALS))
    found = token.advice(chosen, spec, m, tp, fitted, int(group_size), launch)
    if as_json:
        click.echo(json.dumps(words.as_json(found), indent=1, ensure_ascii=False))
    else:
        rows = found.products.rows.rename(columns=SHOWN)[list(SHOWN.values())]
        told = words.facts(found)
        width = max(map(len, told))
        click.echo(
            "\n".join([words.answer(found), "", rows.to_string(index=False, na_rep="–", formatters=FORMATS), ""])
        )
        click.echo("\n".join(f"{name:{width}}  {fact}" for name, fact in told.items()))
        click.echo("\n".join(["", *words.caveats(found, tables.kernels(run))]))
    if csv:
        write_csv(found.products.rows, csv)

"""`tinygemm convert`: a checkpoint of another INT4 format in ours; needs torch, safetensors, and no GPU."""

from __future__ import annotations

import click

from tinygemm.cli.tools import FOLDER


@click.command()
@click.argument("source", type=FOLDER)
@click.argument("target", type=FOLDER)
def convert(source, target):
    """Write the checkpoint in SOURCE as one of our own in TARGET, a folder that does not exist yet.

    SOURCE holds a GPTQ, AWQ (GEMM) or compressed-tensors (pack-quantized) checkpoint of 4 bits as safetensors. Codes,
    scales and zero points stay as they are, bit for bit. tinygemm.load_checkpoint reads either folder.
    """
    from tinygemm.checkpoints.convert import convert as written

    layers = written(source, target)
    click.echo(f"wrote {target}: {len(layers)} packed layers")

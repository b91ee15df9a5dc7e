"""`tinygemm plot ...`: figures from the CSVs that other commands write; needs no GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from tinygemm.cli.tools import FOLDER, INPUT_FILE, OUTPUT_FILE, frame
from tinygemm.files import check_writable, write

IMAGE_SUFFIXES = (".png", ".svg")


@click.group()
def plot():
    """Draw figures from CSVs; needs no GPU."""


@plot.command()
@click.option("--csv", type=INPUT_FILE, required=True, help="What `tinygemm bench` wrote.")
@click.option("--out-dir", type=FOLDER, required=True, help="Folder for the figures.")
@click.option(
    "--format", type=click.Choice([suffix[1:] for suffix in IMAGE_SUFFIXES]), default="png", help="Kind of image."
)
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
@click.option("--csv", type=INPUT_FILE, required=True, help="What `tinygemm breakdown` wrote.")
@click.option("--out", type=OUTPUT_FILE, required=True, help="Image, .png or .svg.")
def plot_breakdown(csv, out):
    """Plot C: what dequantisation costs on its own and inside the fused kernel."""
    _check_image(out)
    from tinygemm.report import bench_csv
    from tinygemm.report.dequantisation import figures as dequantisation_figures

    table = bench_csv.read_breakdown(csv)
    _save(dequantisation_figures.dequant_breakdown(table, M=int(table.loc[table["M"] > 0, "M"].min())), out)


@plot.command("peak-compute")
@click.option("--fp16-csv", type=INPUT_FILE, required=True, help="ncu's CSV of the FP16 kernel.")
@click.option("--int4-csv", type=INPUT_FILE, required=True, help="ncu's CSV of the INT4 kernel.")
@click.option("--out", type=OUTPUT_FILE, required=True, help="Image, .png or .svg.")
def peak_compute(fp16_csv, int4_csv, out):
    """Plot B: percent of peak of compute and memory, FP16 and INT4."""
    _check_image(out)
    import pandas as pd

    from tinygemm.harness import ncu
    from tinygemm.report.bottleneck import counters as combine
    from tinygemm.report.bottleneck import figures as bottleneck_figures

    parts = []
    for backend, file in (("fp16-cublas", fp16_csv), ("int4", int4_csv)):
        rows = frame([dataclasses.asdict(row) for row in ncu.read_file(file, backend)])
        parts.append(combine.summarize_counters(rows).assign(backend=backend))
    _save(bottleneck_figures.percent_of_peak(pd.concat(parts, ignore_index=True)), out)


def _check_image(file: Path) -> None:
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{file}: a figure ends in {' or '.join(IMAGE_SUFFIXES)}")
    check_writable(file)


def _save(figure, file: Path) -> None:
    from tinygemm.report.base import style

    write(file, lambda aside: style.save(figure, aside))

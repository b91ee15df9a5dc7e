"""Shared by several commands: kinds of arguments, options of shapes, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from tinygemm.problem import GROUP_SIZES, STUDY_SHAPES, GemmProblem, parse_shape_list

INPUT_FILE = click.Path(dir_okay=False, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

GROUP_SIZE = click.Choice([str(size) for size in GROUP_SIZES])
STUDY_SHAPE_LIST = ";".join(f"1,{K},{N}" for K, N in STUDY_SHAPES)


def options(*several: Callable) -> Callable:
    """Several options as one decorator, in their order."""

    def decorate(function):
        for one in reversed(several):
            function = one(function)
        return function

    return decorate


shape_options = options(
    click.option("--shape-list", default=STUDY_SHAPE_LIST, help="Problems as M,K,N;M,K,N;..."),
    click.option("--group-size", type=GROUP_SIZE, default="128", help="-1: the whole K."),
    click.option("--asymmetric", is_flag=True, help="Quantise with a zero per group."),
)


def problems_of(shape_list: str, group_size: str) -> tuple[GemmProblem, ...]:
    return tuple(parse_shape_list(shape_list, int(group_size)))


def names_in(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def require_gpu() -> str:
    """The key of this machine's GPU; raises RuntimeError that says what is missing."""
    from tinygemm import hardware

    if reason := hardware.cuda_unavailable_reason():
        raise RuntimeError(f"this command measures on a CUDA GPU, and {reason}")
    return hardware.live_gpu_key()


def gpu_and_run(gpu: str, root: Path, folder: Path | None = None):
    """The figures of a GPU, and the run to answer from: the newest of that GPU, or of any where it was never recorded.

    folder:  a run to answer from instead
    returns: (GpuSpec, runs.Run); None for the figures where only the run has them
    raises:  ValueError on a GPU that is neither known nor recorded, or that the INT4 kernels do not run on
    """
    from tinygemm import hardware, runs

    key = hardware.full_key(gpu)
    spec = hardware.find_gpu(gpu)
    if spec and spec.obstacle:
        raise ValueError(spec.obstacle)
    recorded = bool(runs.recorded_runs(key, root))
    if spec is None and not recorded and folder is None:
        hardware.gpu_spec(gpu)
    run = runs.load_run(folder) if folder else runs.latest_run(key if recorded else None, root)
    return (None if run.gpu["key"] == key and spec is None else hardware.gpu_spec(gpu)), run


def frame(rows: list[dict]):
    import pandas as pd

    return pd.DataFrame(rows)

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


def frame(rows: list[dict]):
    import pandas as pd

    return pd.DataFrame(rows)

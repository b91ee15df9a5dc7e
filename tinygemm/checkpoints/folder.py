"""A folder that appears when all of it is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the name `target` at the end; it is removed where the block fails.

    raises: ValueError where the target exists, or its parent does not
    """
    target = Path(target)
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists; name a folder that does not")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: the folder {target.absolute().parent} does not exist")
    aside = target.absolute().with_name(f".{os.getpid()}-{target.name}")
    try:
        aside.mkdir()
        yield aside
        aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(content: dict, file: Path) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file that those may read who may read the folder's other new files; OSError naming it."""
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, {"format": "pt"})
    except SafetensorError as error:  # a full disk, say
        raise OSError(f"{file}: {error}") from error
    file.chmod(mode)  # a new safetensors file is its owner's alone

"""What every command-line module needs: options under two spellings, and files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)


def option(name: str, *others: str, **settings):
    """An option under the original study's name (--shape_list) and the usual spelling (--shape-list)."""
    spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}", *others])
    return click.option(*spellings, name, **settings)


def options(*several: Callable) -> Callable:
    """Several options as one decorator, in their order."""

    def decorate(function):
        for one in reversed(several):
            function = one(function)
        return function

    return decorate


def check_writable(file: Path) -> None:
    """Refuse before measuring what could not be written afterwards."""
    folder = file.parent
    if not folder.is_dir():
        raise ValueError(f"{file}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{file}: the folder {folder} cannot be written to")


def write_csv(table, file: Path) -> None:
    write_text(table.to_csv(index=False), file)


def write_text(text: str, file: Path) -> None:
    write(file, lambda aside: aside.write_text(text))


def write(file: Path, write_to: Callable[[Path], object]) -> None:
    """Write aside and rename, so that a file is whole or not there."""
    aside = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        write_to(aside)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    click.echo(f"wrote {file}")

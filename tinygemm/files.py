"""Files that are whole or not there, and what went wrong in one line."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

NAME_MAX = 255  # bytes of a file name, on every usual file system


def show_everything() -> None:
    """Print what the terminal's encoding lacks as an escape, such as \\u2013, instead of failing at it.

    Where that encoding is ASCII, as under LC_ALL=C, click prints UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def in_words(error: Exception) -> str:
    """The line that says what is wrong: of an OSError, the file and the reason."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def is_stream(file: Path) -> bool:
    """Tell whether `file` is a pipe, a device or an open descriptor such as /dev/stdout, which no file may replace."""
    return _descriptor(file) is not None or (file.exists() and not file.is_file())


def check_writable(file: Path) -> None:
    """Refuse before measuring what could not be written afterwards."""
    if is_stream(file):
        if not os.access(file, os.W_OK):
            raise ValueError(f"{file} cannot be written to")
        return
    target = file.resolve()
    if not target.parent.is_dir():
        raise ValueError(f"{file}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"{file}: the folder {target.parent} cannot be written to")
    if target.exists() and not os.access(target, os.W_OK):
        raise ValueError(f"{file} is write-protected")


def write_csv(table, file: Path) -> None:
    write_text(table.to_csv(index=False), file)


def write_text(text: str, file: Path) -> None:
    write(file, lambda aside: aside.write_text(text, encoding="utf-8"))


def write(file: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file that is then whole or not there; a pipe or a device gets the content and stays what it is.

    file:     a symlink stays, and what it points to is written; a file that exists keeps its mode and owner
    write_to: writes the content to the path that it is given
    raises:   OSError naming `file`
    """
    try:
        if is_stream(file):
            _write_through(file, write_to)
        else:
            _replace(file.resolve(), write_to)
            click.echo(f"wrote {file}")
    except OSError as error:
        raise OSError(f"{file}: {error.strerror or error}") from None


def _replace(file: Path, write_to: Callable[[Path], object]) -> None:
    aside = file.with_name(f".{os.getpid()}-{file.name}"[:NAME_MAX])
    try:
        write_to(aside)
        if file.exists():
            if os.geteuid() == 0:  # anybody else may only make files of their own
                os.chown(aside, file.stat().st_uid, file.stat().st_gid)
            shutil.copymode(file, aside)
        try:
            aside.replace(file)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            file.write_bytes(aside.read_bytes())  # a file that is mounted by itself, as into a container
    finally:
        aside.unlink(missing_ok=True)


def _write_through(file: Path, write_to: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / file.name
        write_to(aside)
        content = aside.read_bytes()
    sys.stdout.flush()  # what was printed comes first, where both are one
    descriptor = _descriptor(file)
    with open(file if descriptor is None else descriptor, "wb", closefd=descriptor is None) as stream:
        stream.write(content)


def _descriptor(file: Path) -> int | None:
    """The number of an open descriptor; opened by its name, a file behind it would be cut to nothing."""
    named = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(file))
    return int(named[1]) if named else {"/dev/stdout": 1, "/dev/stderr": 2}.get(str(file))

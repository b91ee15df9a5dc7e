"""Text files that other programs wrote, in whichever Unicode encoding they chose."""

from __future__ import annotations

import codecs
from pathlib import Path

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_unicode(file: Path, errors: str = "strict") -> str:
    r"""The text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one; lines end in "\n".

    Spreadsheets write the mark, and PowerShell redirects the output of a program as UTF-16.

    errors: what bytes that are no text become, as in bytes.decode
    raises: ValueError that says in which encoding to save the file; OSError
    """
    data = file.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 or UTF-16 ({error}); save it as UTF-8") from None
    if "\0" in text[:100]:
        raise ValueError("binary, or UTF-16 without a byte order mark; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def integers(text: str, name: str) -> tuple[int, ...]:
    """The positive integers of a text, separated by commas; raises ValueError that names the parameter."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name} must be positive integers separated by commas, got {text!r}")
    return numbers

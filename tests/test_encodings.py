"""Text is UTF-8 wherever it is read or written, and says so: the locale's encoding is never what a file is in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path for folder in ("tinygemm", "tests", "book/_ext") for path in (ROOT / folder).rglob("*.py"))


def unnamed(source: str) -> list[int]:
    """Lines of calls that read or write text in whatever encoding the locale has."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sorted(call.lineno for call in calls if _is_text(call) and not _names_encoding(call))


def _is_text(call: ast.Call) -> bool:
    of_object = isinstance(call.func, ast.Attribute)
    name = call.func.attr if of_object else getattr(call.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "read_text":
        return not call.args  # the first argument is the encoding
    if name == "write_text":
        return len(call.args) == 1
    if name in ("open", "fdopen"):
        positional = call.args[0 if of_object and name == "open" else 1 :]
        return _is_text_mode(keywords.get("mode", positional[0] if positional else ast.Constant("r")))
    if name.endswith("TemporaryFile"):
        return _is_text_mode(keywords.get("mode", call.args[0] if call.args else ast.Constant("w+b")))
    return any(isinstance(keywords.get(key), ast.Constant) for key in ("text", "universal_newlines"))


def _is_text_mode(mode: ast.expr) -> bool:
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value


def _names_encoding(call: ast.Call) -> bool:
    return any(keyword.arg == "encoding" for keyword in call.keywords)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_read_and_write_of_text_names_its_encoding(path):
    assert unnamed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "call",
    [
        "open(file)",
        'open(file, "w")',
        'open(file, mode="a", newline="")',
        "file.open()",
        'file.open("a")',
        "file.read_text()",
        "folder.joinpath(name).write_text(text)",
        'os.fdopen(number, "w")',
        'NamedTemporaryFile("w")',
        "subprocess.run(command, text=True)",
        "Popen(command, universal_newlines=True)",
    ],
)
def test_the_check_sees_a_call_that_leaves_it_to_the_locale(call):
    assert unnamed(call) == [1]


@pytest.mark.parametrize(
    "call",
    [
        'open(file, encoding="utf-8")',
        'open(file, "rb")',
        'file.open("wb")',
        "Progress.open(file, terms)",
        'file.read_text("utf-8")',
        'file.write_text(text, encoding="utf-8")',
        "NamedTemporaryFile()",
        'subprocess.run(command, encoding="utf-8")',
        "subprocess.run(command, capture_output=True)",
    ],
)
def test_the_check_passes_bytes_and_a_named_encoding(call):
    assert unnamed(call) == []

"""Parameter files: what `make report PARAMS=` and `tinygemm record -f` read, YAML lines of `name: value`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")


def read_parameters(file: Path) -> dict:
    """The parameters of a YAML file by name; none where the file is empty.

    A name stands once. A whole number is written in decimal digits and without a leading zero: YAML 1.1 takes 025 for
    21, and not everybody means that.

    raises: ValueError naming the file and the line
    """
    text = _text(file)
    try:
        loader = yaml.SafeLoader(text)
        mapping = loader.get_single_node()
        if mapping is None:
            return {}
        if not isinstance(mapping, yaml.MappingNode):
            raise _refusal(file, mapping, "expected `name: value` lines")
        _check(file, mapping)
        return {key.value: _constructed(file, loader, key.value, value) for key, value in mapping.value}
    except RecursionError:
        raise ValueError(f"{file}: lists in lists, too many to read: expected `name: value` lines") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{file}:{error.problem_mark.line + 1}: not YAML: {_words(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ValueError(f"{file}:{line}: not YAML: the character {text[error.position]!r}") from None


def _text(file: Path) -> str:
    """The text of a file, UTF-8 with or without a mark at its start."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}:{line}: not UTF-8 text: byte 0x{content[error.start]:02x}") from None


def _check(file: Path, mapping: yaml.MappingNode) -> None:
    """Refuse what YAML would pass without a word and nobody means."""
    lines: dict[str, int] = {}
    for key, value in mapping.value:
        if key.tag != "tag:yaml.org,2002:str":
            raise _refusal(file, key, "expected the name of a parameter before the colon")
        line = key.start_mark.line + 1
        if lines.setdefault(key.value, line) != line:
            raise _refusal(file, key, f"{key.value} was already given in line {lines[key.value]}; keep one of them")
        for part in value.value if isinstance(value, yaml.SequenceNode) else (value,):
            if not isinstance(part, yaml.ScalarNode):
                raise _refusal(file, part, f"{key.value}: expected a value or a list of values")
            _check_scalar(file, key.value, part)


def _constructed(file: Path, loader: yaml.SafeLoader, name: str, value: yaml.Node):
    try:
        return loader.construct_object(value, deep=True)
    except (KeyError, ValueError):  # a tag such as !!bool in front of what is none
        raise _refusal(file, value, f"{name} is not what the tag {value.tag.rpartition(':')[2]} says") from None


def _check_scalar(file: Path, name: str, value: yaml.Node) -> None:
    if value.tag == "tag:yaml.org,2002:int" and not DECIMAL.fullmatch(value.value):
        raise _refusal(
            file,
            value,
            f"{name} is {value.value}, which YAML reads as another number than it seems: "
            "write decimal digits without a leading zero, or text in quotes",
        )
    if value.tag == "tag:yaml.org,2002:timestamp":
        raise _refusal(file, value, f"{name} is {value.value}, which YAML reads as a date: put it in quotes")


def _refusal(file: Path, node: yaml.Node, message: str) -> ValueError:
    return ValueError(f"{file}:{node.start_mark.line + 1}: {message}")


def _words(error: yaml.MarkedYAMLError) -> str:
    """The parser's message, with the line in which the unfinished part began."""
    if not error.context:
        return error.problem
    since = f" that begins in line {error.context_mark.line + 1}" if error.context_mark else ""
    return f"{error.context}{since}, {error.problem}"

"""Parameter files: what YAML would pass without a word is refused, and every refusal names its line."""

from __future__ import annotations

import re

import pytest

from tinygemm.parameters import read_parameters


@pytest.fixture
def file(tmp_path):
    return tmp_path / "p.yaml"


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", {}),
        (b"# nothing\n", {}),
        (b"\xef\xbb\xbfrep: 25\r\ngpu: a10g\r\n", {"rep": 25, "gpu": "a10g"}),
        (b'{"rep": 25, "m_list": "1,2"}', {"rep": 25, "m_list": "1,2"}),
        ("data_root: Läufe # é\n".encode(), {"data_root": "Läufe"}),
        (b"rep: 0\nwarmup: -3\ngpu: 3090\ncounters: off\n", {"rep": 0, "warmup": -3, "gpu": 3090, "counters": False}),
        (b'rep: "025"\n', {"rep": "025"}),
    ],
)
def test_what_was_typed_is_what_is_read(file, content, values):
    file.write_bytes(content)
    assert read_parameters(file) == values


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"gpu: a10g\n\trep: 3\n", 2, "not YAML"),
        (b"source recorded\nrep: 25\n", 2, "not YAML"),
        (b'gpu: a10g\nsource: "live\nrep: 3\n', 4, "line 2"),
        (b"gpu: a10g\n---\nrep: 3\n", 2, "another document"),
        (b"# list\n- rep\n", 2, "`name: value`"),
        (b"recorded\n", 1, "`name: value`"),
        ("gpu: a10g\nsource: é\n".encode("latin-1"), 2, "UTF-8"),
        ("gpu: a10g\n".encode("utf-16"), 1, "UTF-8"),
        (b"gpu: a10g\nrep: 2\x003\n", 2, r"\x00"),
        (b"rep: !!python/object/apply:os.getpid []\n", 1, "python/object"),
        (b"gpu: a10g\nrep: 3\n\ngpu: h100\n", 4, "gpu was already given in line 1"),
        (b"rep: 3\nrep: 3\n", 2, "line 1"),
        (b"gpu: a10g\nrep: 025\n", 2, "rep is 025"),
        (b"rep: 0x19\n", 1, "rep is 0x19"),
        (b"rep: 1:30\n", 1, "rep is 1:30"),
        (b"m_list: [1,\n  010]\n", 2, "m_list is 010"),
        (b"rep: 2026-13-45\n", 1, "date"),
        (b"25: rep\n", 1, "name"),
        (b"gpu: a10g\nrep: !!bool maybe\n", 2, "rep is not what the tag bool says"),
        (b"rep: !!float abc\n", 1, "rep is not what the tag float says"),
        (b"rep: 3\ngpu: {a: 1, a: 2}\n", 2, "gpu: expected a value or a list of values"),
        (b"m_list: [[1, 025]]\n", 1, "m_list: expected a value or a list of values"),
    ],
)
def test_a_fault_is_refused_with_its_line(file, content, line, words):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{file}:{line}: ')}.*{re.escape(words)}"):
        read_parameters(file)


def test_lists_in_lists_without_end_are_refused(file):
    file.write_text("a: " + "[" * 5000, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}"):
        read_parameters(file)


def test_a_file_that_cannot_be_read_is_named(file, tmp_path):
    for path in (file, tmp_path):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
            read_parameters(path)

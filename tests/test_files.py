"""What commands write and read: pipes, devices, symlinks and modes stay what they are, in every locale."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
import synthetic

from tinygemm import cli, files

TEXT = "a,b\n1,µs\n"


def content(file: Path) -> str:
    return file.read_text(encoding="utf-8")


# --- one way to write -----------------------------------------------------------------------------------------------


def test_a_new_file_is_whole_and_alone_in_its_folder(tmp_path):
    files.write_text(TEXT, tmp_path / "t.csv")
    assert content(tmp_path / "t.csv") == TEXT
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_an_existing_file_keeps_its_mode(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o600)
    files.write_text(TEXT, file)
    assert (content(file), stat.S_IMODE(file.stat().st_mode)) == (TEXT, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_is_mounted_by_itself_gets_its_content_in_place(tmp_path, monkeypatch):
    file = tmp_path / "t.csv"
    file.write_text("old", encoding="utf-8")

    def busy(self, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    files.write_text("new", file)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert content(file) == "new"


def test_a_name_may_be_as_long_as_a_file_system_allows(tmp_path):
    file = tmp_path / ("n" * 251 + ".csv")
    files.write_text("new", file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_of_somebody_else_stays_theirs(tmp_path):
    file = tmp_path / "t.csv"
    file.touch()
    os.chown(file, 12345, 12345)
    files.write_text(TEXT, file)
    assert (content(file), file.stat().st_uid, file.stat().st_gid) == (TEXT, 12345, 12345)


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_symlink_stays_and_its_target_is_written(tmp_path, there):
    target, link = tmp_path / "data" / "t.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    if there:
        target.write_text("old", encoding="utf-8")
    link.symlink_to(Path("data") / "t.csv")
    files.write_text(TEXT, link)
    assert link.is_symlink()
    assert content(target) == TEXT
    assert [file.name for file in target.parent.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("linked", [False, True], ids=["pipe", "link to a pipe"])
def test_a_named_pipe_is_written_through(tmp_path, linked):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    file = tmp_path / "link" if linked else pipe
    if linked:
        file.symlink_to(pipe)
    reader = threading.Thread(target=lambda: read.append(content(pipe)), daemon=True)
    reader.start()
    files.check_writable(file)
    files.write_text(TEXT, file)
    reader.join(timeout=60)
    assert read == [TEXT]
    assert pipe.is_fifo()


def device(folder: Path, minor: int) -> Path:
    """A device of memory like /dev/null, in a folder of its own."""
    file = folder / f"device{minor}"
    try:
        os.mknod(file, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        file.open("wb").close()
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    return file


def test_a_device_is_written_through(tmp_path):
    null = device(tmp_path, 3)
    files.check_writable(null)
    files.write_text(TEXT, null)
    assert null.is_char_device()
    assert list(tmp_path.iterdir()) == [null]


def test_a_full_device_is_named(tmp_path):
    full = device(tmp_path, 7)
    with pytest.raises(OSError, match=f"{full}: No space left"):
        files.write_text(TEXT * 10_000, full)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_open_descriptor_is_written_where_it_stands(tmp_path, name):
    """As `>(gzip > x)` gives one, and as /dev/stdout is one: what was written before stays."""
    file = tmp_path / "out"
    with file.open("wb") as stream:
        stream.write(b"before\n")
        stream.flush()
        files.write_text(TEXT, Path(name.format(stream.fileno())))
        stream.write(b"after\n")
    assert content(file) == f"before\n{TEXT}after\n"


def test_what_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere" / "t.csv")
    for file in (tmp_path / "link.csv", tmp_path / "nowhere" / "t.csv"):
        with pytest.raises(ValueError, match=f"{file}: the folder {tmp_path / 'nowhere'} does not exist"):
            files.check_writable(file)
    with pytest.raises(ValueError, match="/dev/fd/999 cannot be written to"):
        files.check_writable(Path("/dev/fd/999"))


# --- commands in every locale ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Runs in a folder whose name is not ASCII."""
    root = tmp_path_factory.mktemp("x y é") / "Läufe"
    synthetic.write_run(root, m_list=(1, 8), n_samples=5)
    return root


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}
LATIN_1 = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    ("locale", "command"),
    [
        (ASCII, ["predict", "--csv", "é.csv"]),
        (LATIN_1, ["advise", "--model", "llama-3-8b", "--csv", "é.csv"]),  # prints a dash that latin-1 lacks
    ],
    ids=["ascii", "latin-1"],
)
def test_a_command_works_in_a_locale_that_lacks_its_characters(data_root, tmp_path, locale, command):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    program = [sys.executable, "-m", "tinygemm.cli", *command, "--gpu", "h200", "--data_root", str(data_root)]
    done = subprocess.run(program, cwd=tmp_path, env=inherited | locale, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "4096" in content(tmp_path / "é.csv")


def everything_there_is(command=cli.commands, name=()):
    yield name
    for each in getattr(command, "commands", {}).values():
        yield from everything_there_is(each, (*name, each.name))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", [*everything_there_is()], ids=" ".join)
def test_every_help_can_be_printed(monkeypatch, encoding, name):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    with pytest.raises(SystemExit) as stopped:
        cli.main([*name, "--help"])
    sys.stdout.flush()
    assert stopped.value.code == 0
    assert b"Usage: tinygemm" in printed.getvalue()


def test_what_the_terminal_lacks_is_printed_as_an_escape(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="latin-1"))
    files.show_everything()
    click.echo("3.5× – 2 µs")
    sys.stdout.flush()
    assert printed.getvalue() == b"3.5\xd7 \\u2013 2 \xb5s\n"

"""Planting: one fault at a time into a copy of the checkout, and whether the tests that must see it do."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

WORKERS = 2
LIMIT_S = 300  # of one run of the tests: a fault may make a test wait for ever
PASSED, FAILED = 0, 1  # what pytest exits with; any other code is of a run that decides nothing
NOT_COPIED = shutil.ignore_patterns(".*", "_build", "executed", "__pycache__", "*.egg-info")


@dataclass(frozen=True)
class Fault:
    """A fault that the tests must see.

    name:  says in a few words what goes wrong
    file:  path from the checkout's root
    old:   text of the file that is replaced; occurs there exactly once
    new:   the text in its place
    tests: node ids of pytest, the narrowest that must fail: `tests/test_x.py::test_name`
    mark:  of tests that run only where pytest is asked for it: `aot`
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    mark: str = ""


class PlantingError(Exception):
    """A fault that cannot be planted, or whose tests do not decide about it."""


def run_all(faults: Sequence[Fault], root: Path, say=print) -> bool:
    """Plant every fault in copies of the checkout at `root`; tell each outcome; returns whether all were caught."""
    with ExitStack() as stack:
        copies = queue.SimpleQueue()
        for _ in range(WORKERS):
            copies.put(copy_of(root, Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        if not_green := list(_unplanted(faults, copies)):
            say("\n".join(not_green))
            return False
        counts = dict.fromkeys(("caught", "missed", "stale"), 0)
        for fault, outcome, detail in _in_parallel(_outcome, faults, copies):
            counts[outcome] += 1
            say(f"{outcome:7}{fault.name} ({fault.file}){detail}")
        say(f"{len(faults)} planted: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
        return counts["caught"] == len(faults)


def copy_of(root: Path, folder: Path) -> Path:
    """A copy of a checkout in which files may be changed; the recorded data are only linked."""

    def left_out(where: str, names: list[str]) -> set[str]:
        """The recorded data lie at the top; what tests read from `tests/data` is copied."""
        return NOT_COPIED(where, names) | ({"data"} if Path(where) == Path(root) else set())

    copy = Path(shutil.copytree(root, folder / "checkout", ignore=left_out))
    if (root / "data").is_dir():
        (copy / "data").symlink_to((root / "data").resolve())
    return copy


def outcome(fault: Fault, copy: Path) -> str:
    """Plant one fault in a copy, run its tests there, restore: "caught" or "missed".

    raises: PlantingError where the old text does not occur exactly once, or where pytest ends without a verdict
    """
    file = copy / fault.file
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if (times := text.count(fault.old)) != 1:
        raise PlantingError(f"the old text occurs {times} times in {fault.file}, it must occur once")
    _write(file, text.replace(fault.old, fault.new))
    try:
        code, output = _pytest(copy, fault.tests, fault.mark)
    finally:
        _write(file, text)
    if code not in (PASSED, FAILED):
        raise PlantingError(f"pytest ended with code {code}:\n{output}")
    return "caught" if code == FAILED else "missed"


def _write(file: Path, text: str) -> None:
    """Write a module and forget its byte code, which Python tells from that of another text by time and size only."""
    file.write_text(text, encoding="utf-8")
    for old in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        old.unlink()


def _outcome(copy: Path, fault: Fault) -> tuple[str, str]:
    try:
        return outcome(fault, copy), ""
    except PlantingError as error:
        return "stale", f": {error}"


def _unplanted(faults: Sequence[Fault], copies: queue.SimpleQueue) -> Iterator[str]:
    """The sentences that say which tests fail with no fault planted: such tests would see everything."""
    files: dict[tuple, list[str]] = {}
    for mark, test in dict.fromkeys((fault.mark, test) for fault in faults for test in fault.tests):
        files.setdefault((mark, test.partition("::")[0]), []).append(test)
    selections = [(tests, mark) for (mark, _), tests in files.items()]
    for (tests, _), code, output in _in_parallel(lambda copy, selection: _pytest(copy, *selection), selections, copies):
        if code != PASSED:
            yield f"with no fault planted, pytest ended with code {code} on {' '.join(tests)}:\n{output}"


def _in_parallel(work, items: Iterable, copies: queue.SimpleQueue) -> Iterator[tuple]:
    """(item, *work(copy, item)) of every item, as they come; each copy serves one item at a time."""

    def in_a_copy(item):
        copy = copies.get()
        try:
            return item, *work(copy, item)
        finally:
            copies.put(copy)

    pool = ThreadPoolExecutor(WORKERS)
    try:
        for done in as_completed([pool.submit(in_a_copy, item) for item in items]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts does not wait for all that is left


def _pytest(copy: Path, tests: Sequence[str], mark: str) -> tuple[int | str, str]:
    """Exit code and output of pytest in a copy."""
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
    command += ["-m", mark] if mark else []
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, encoding="utf-8", timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"none, after {LIMIT_S} s", ""
    return done.returncode, done.stdout[-3000:] + done.stderr[-1000:]

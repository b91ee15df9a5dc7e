"""Processes of a build: one build at a time in a checkout, and workers that never outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class LockedError(Exception):
    """Another process holds the lock; the message names its id."""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold `file` as a lock; the system releases it when this process ends, however that comes about.

    raises: LockedError at once where another process holds it
    """
    with file.open("a+", encoding="utf-8") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"pid {lock.read().strip() or 'unknown'}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextlib.contextmanager
def workers(most: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of at most `most` processes; on an error or Ctrl-C they are killed with all that they started."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(most, context, _become_worker, (os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException:
            _kill_workers()
            raise


def submit(pool: ProcessPoolExecutor, function, *arguments):
    """Submit to a pool of `workers`; the worker that this may start ignores Ctrl-C before it can do anything else."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return pool.submit(function, *arguments)
    finally:
        signal.signal(signal.SIGINT, handler)


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when `parent`, the process that started it, ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _become_worker(parent: int) -> None:
    # nbclient handles SIGINT in its own way: a session of its own keeps the terminal's away, and the parent kills it
    os.setsid()
    die_with_parent(parent)


def _kill_workers() -> None:
    import psutil  # comes with ipykernel

    for worker in multiprocessing.active_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(worker.pid)
            for each in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()

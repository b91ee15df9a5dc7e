"""What every test shares: the interpreter or the GPU, the browser, and the built book."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COMPILED = ("aot", "gpu")
REQUIRE_BROWSER = "TINYGEMM_REQUIRE_BROWSER"


def pytest_configure(config):
    """Kernels run in Triton's interpreter, unless this process was asked for what the interpreter rules out."""
    if config.getoption("markexpr") in COMPILED:
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_ignore_collect(collection_path, config):
    """Where only compiled kernels are asked for, files without a test of that mark are not imported: seconds each."""
    mark = config.getoption("markexpr")
    if mark in COMPILED and collection_path.name.startswith("test_"):
        return True if f"mark.{mark}" not in collection_path.read_text(encoding="utf-8") else None
    return None


def pytest_collection_modifyitems(config, items):
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    other_process = [
        item for item in items if interpreted and {"aot", "gpu"} & {mark.name for mark in item.iter_markers()}
    ]
    if other_process:
        config.hook.pytest_deselected(items=other_process)
        items[:] = [item for item in items if item not in other_process]
    book_first(items)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        from tinygemm.hardware import cuda_unavailable_reason

        if reason := cuda_unavailable_reason():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason=f"needs a CUDA GPU: {reason}"))
    if browser_path() is None:
        missing = pytest.mark.skip(reason=f"no browser: none of {', '.join(BROWSERS)} is installed")
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(missing)


def book_first(items) -> None:
    """The book's file comes first: it is built by one worker of pytest-xdist while another runs the other files."""
    items.sort(key=lambda item: item.path.name != "test_book.py")  # stable: the order of the files stays


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the browser tests are required, one that is left out is a failure."""
    report = yield
    if report.skipped and item.get_closest_marker("browser") and os.environ.get(REQUIRE_BROWSER) == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was left out, and {REQUIRE_BROWSER}=1 asks for it: {report.longrepr[-1]}"
    return report


def pytest_terminal_summary(terminalreporter):
    if left_out := [report.nodeid for report in terminalreporter.getreports("skipped") if "browser" in report.keywords]:
        terminalreporter.section("browser tests left out: no Chromium was found", sep="-")
        for nodeid in left_out:
            terminalreporter.line(nodeid)


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of one file."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def recorded_or_synthetic(tmp_path_factory) -> dict:
    """Parameters of the run that the book tests read: the newest recorded run, else a synthetic one."""
    import synthetic

    from tinygemm.runs import recorded_runs

    if recorded_runs():
        return {"source": "recorded"}
    root = tmp_path_factory.mktemp("data")
    synthetic.write_run(root)
    return {"source": "recorded", "data_root": str(root)}


@pytest.fixture(scope="session")
def book(tmp_path_factory, recorded_or_synthetic) -> Path:
    """The book of this checkout, built once: the folder of its pages."""
    from tinygemm.report.build import build

    root = tmp_path_factory.mktemp("checkout")
    for name in ("book", "notebooks"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("executed", "__pycache__", ".ipynb_checkpoints")
        )
    shutil.copy2(ROOT / "_config.yml", root)
    # a checkout has its data beside its notebooks
    shutil.copytree(recorded_or_synthetic.get("data_root", ROOT / "data"), root / "data")
    return build(root, {"source": "recorded", "data_root": "../data"}).parent

"""Run the notebooks through papermill and build the book from what they show; stop at the first thing that is wrong."""

from __future__ import annotations

import ast
import concurrent.futures
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path

import click

from tinygemm import runs
from tinygemm.files import in_words, show_everything
from tinygemm.hardware import live_gpu_key
from tinygemm.parameters import read_parameters
from tinygemm.report import processes
from tinygemm.runs import latest_run

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
FIRST = "00_answer"  # opens the run, or measures it; the other chapters are then given its folder
OF_CHAPTERS = ("source", "gpu", "run_dir", "allow_dirty")  # parameters of every notebook; the first has more
WORKERS = 2


class BuildError(Exception):
    """The report cannot be built; the message names the notebook and cell, or the warning of the book."""


def build(root: Path = ROOT, parameters: dict | None = None) -> Path:
    """Execute every notebook of `root` that has changed, or whose data or code has, then build its book.

    root:       folder of notebooks/, book/ and _config.yml
    parameters: those of the first notebook that differ from their defaults; without any, the newest recorded run
    returns:    the book's first page
    raises:     BuildError, at once where another build of this checkout is under way; what was built before is then
                still there, whole
    """
    root, parameters = Path(root), dict(parameters or {"source": "recorded"})
    notebooks = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    if FIRST not in [notebook.stem for notebook in notebooks]:
        raise BuildError(f"{root / 'notebooks'} has no {FIRST}.ipynb, which opens the run")
    check_parameters(root / "notebooks" / f"{FIRST}.ipynb", parameters)
    built, executed = root / "_build", root / "book" / "executed"
    try:
        for folder in (built, executed / ".aside"):
            folder.mkdir(parents=True, exist_ok=True)
        with processes.locked(built / "lock"):
            execute_all(notebooks, executed, parameters)
            return build_book(root)
    except processes.LockedError as error:
        raise BuildError(f"another build is under way in {root} ({error}); wait for it or end it") from None
    except OSError as error:
        raise BuildError(f"{in_words(error)}; a build must be able to write into {built} and {executed}") from None


def execute_all(notebooks: list[Path], executed: Path, parameters: dict) -> None:
    """Execute the first notebook, which opens the run or measures it, then the others with that run, some at a time.

    An executed copy is left where notebook, parameters, data and code are those it was made from. Where a GPU is
    measured, everything is executed.
    """
    # the kernel of this environment, whatever kernels the user has elsewhere
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.pop("JUPYTER_PATH", None)
    first, *rest = sorted(notebooks, key=lambda notebook: notebook.stem != FIRST)
    live, read = measures(parameters), folders_read(first.parent, parameters)
    inputs = digest_of(read, libraries())
    with processes.workers(WORKERS) as pool:
        key = key_of(first, parameters, inputs)
        if live or kept_key(executed / first.name) != key:
            seconds = processes.submit(pool, execute, first, executed, parameters, key, True).result()
            _say(1, len(notebooks), first, f"{seconds:.1f} s")
        else:
            _say(1, len(notebooks), first, "unchanged")
        if not (opened := run_of(executed / first.name)):
            raise BuildError(f"{first.name} does not glue 'run_dir', the folder of the run")
        # pages show it: relative to the notebooks, so that it names no machine's folders
        run_dir = os.path.relpath((first.parent / opened).resolve(), first.parent.resolve())
        given = {name: value for name, value in parameters.items() if name in OF_CHAPTERS}
        given |= {"source": "recorded", "run_dir": run_dir}
        inputs = digest_of(read, libraries()) if live else inputs
        keys = {notebook: key_of(notebook, given, inputs) for notebook in rest}
        changed = [notebook for notebook in rest if live or kept_key(executed / notebook.name) != keys[notebook]]
        done = len(notebooks) - len(changed)
        running = {
            processes.submit(pool, execute, notebook, executed, given, keys[notebook]): notebook for notebook in changed
        }
        for number, future in enumerate(concurrent.futures.as_completed(running), start=done + 1):
            _say(number, len(notebooks), running[future], f"{future.result():.1f} s")


def measures(parameters: dict) -> bool:
    """Tell whether the first notebook may measure this machine's GPU."""
    source = parameters.get("source", "auto")
    return source == "live" or (source == "auto" and not parameters.get("run_dir") and live_gpu_key() is not None)


def folders_read(notebooks: Path, parameters: dict) -> list[Path]:
    """All that a chapter shows beside its own text: the recorded data and this package."""
    named = [Path(notebooks, parameters[name]) for name in ("data_root", "run_dir") if parameters.get(name)]
    return list(dict.fromkeys(folder.resolve() for folder in (runs.DATA_ROOT, *named, PACKAGE)))


def libraries() -> str:
    """Python and every installed package with its version."""
    return repr((sys.version, sorted(f"{each.name} {each.version}" for each in metadata.distributions())))


def digest_of(folders: Iterable[Path], words: str = "") -> str:
    """The digest of some words and of every file in folders, by name and content; byte code does not count."""
    digest = hashlib.sha256(words.encode())
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            digest.update(f"{file.relative_to(folder)} {runs.sha256(file)}\n".encode())
    return digest.hexdigest()


def key_of(notebook: Path, parameters: dict, inputs: str) -> str:
    """The digest of all that an executed notebook is made from."""
    made_from = [runs.sha256(notebook), sorted(parameters.items()), inputs]
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


def kept_key(executed: Path) -> str:
    """The digest of the sources of an executed notebook; "" where there is none, or where another program made it."""
    try:
        return json.loads(executed.read_text(encoding="utf-8"))["metadata"]["tinygemm"]["made_from"]
    except (FileNotFoundError, KeyError, ValueError):
        return ""


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse what papermill would only mention: a parameter the notebook does not have, or of another type."""
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    if unknown := sorted(parameters.keys() - known.keys()):
        raise BuildError(f"{notebook.name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    for name, value in parameters.items():
        default = ast.literal_eval(known[name]["default"])
        if type(value) is not type(default):
            wanted, got = type(default).__name__, type(value).__name__
            raise BuildError(
                f"{notebook.name}: parameter {name!r} must be {wanted}, as {default!r} is; got {got} {value!r}"
            )


def execute(notebook: Path, folder: Path, parameters: dict, key: str = "", show_output: bool = False) -> float:
    """Execute one notebook into `folder`, where it appears only when every cell has run.

    key:     what it is made from, which the executed copy says in its metadata
    returns: seconds it took
    raises:  BuildError naming notebook, cell and error; the half-run copy stays in `folder`/.aside
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    show_everything()
    aside, start = folder / ".aside" / notebook.name, time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(aside),
            parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=False,
            stdout_file=sys.stdout if show_output else None,
            stderr_file=sys.stderr if show_output else None,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        line = error.source.strip().splitlines()[0]
        raise BuildError(
            f"notebooks/{notebook.name}, cell [{error.exec_count}] `{line}`:\n{error.ename}: {error.evalue}"
        ) from None
    except DeadKernelError as error:
        raise BuildError(f"notebooks/{notebook.name}: {error}; was it killed for want of memory?") from None
    except NoSuchKernel as error:
        raise BuildError(f"notebooks/{notebook.name}: {error}; ipykernel is not installed here") from None
    content = json.loads(aside.read_text(encoding="utf-8"))
    content["metadata"]["tinygemm"] = {"made_from": key}
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(folder / notebook.name)
    return time.perf_counter() - start


def build_book(root: Path) -> Path:
    """Build the HTML beside the old one and put it in its place when it is whole; every warning is an error.

    The old one stays where nothing in book/, executed notebooks included, and no library has changed.

    raises: BuildError, also where executed notebooks show more than one run
    """
    check_one_run(root)
    fresh, html, kept = (root / "_build" / name for name in ("fresh", "html", "made_from"))
    config = root / "_config.yml"
    key = digest_of([root / "book"], libraries() + (runs.sha256(config) if config.is_file() else ""))
    if (html / "index.html").is_file() and kept.is_file() and kept.read_text(encoding="utf-8") == key:
        click.echo("nothing changed: the pages stay")
        return html / "index.html"
    click.echo("building the pages")
    kept.unlink(missing_ok=True)
    shutil.rmtree(fresh, ignore_errors=True)
    jupyter_book = (
        f"from tinygemm.report.processes import die_with_parent; die_with_parent({os.getpid()}); "
        "from jupyter_book.cli.main import main; main()"
    )
    options = ["-W", "-n", "--keep-going", "-q", "--path-output", str(fresh), "--config", str(root / "_config.yml")]
    command = [sys.executable, "-c", jupyter_book, "build", str(root / "book"), *options]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    if result.returncode:
        raise BuildError(f"the book has warnings or errors:\n{result.stdout}")
    shutil.rmtree(html, ignore_errors=True)
    (fresh / "_build" / "html").rename(html)
    shutil.rmtree(fresh)
    kept.write_text(key, encoding="utf-8")
    return html / "index.html"


def check_one_run(root: Path) -> None:
    """Refuse executed notebooks that show different runs: another build, or a papermill by hand, came between."""
    shown = {}
    for notebook in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        executed = root / "book" / "executed" / notebook.name
        if executed.is_file() and (run := run_of(executed)):
            folder = (notebook.parent / run).resolve()
            shown.setdefault(f"{folder.parent.name}/{folder.name}", notebook.stem)
    if len(shown) > 1:
        which = ", ".join(f"{run} in {chapter}" for run, chapter in shown.items())
        raise BuildError(
            f"{root / 'book' / 'executed'} shows more than one run ({which}); execute every notebook again"
        )


def run_of(executed: Path) -> str:
    """The folder of the run that an executed notebook opened, relative to the notebooks; "" where it does not say."""
    content = json.loads(executed.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == "run_dir":
                return ast.literal_eval("".join(next(iter(output["data"].values()))))
    return content["metadata"]["papermill"]["parameters"].get("run_dir", "")


def _say(done: int, total: int, notebook: Path, outcome: str) -> None:
    click.echo(f"[{done}/{total}] {notebook.name} {outcome}")


def in_utf8_mode() -> None:
    """Start this program anew in Python's UTF-8 mode where the locale has another encoding.

    Notebooks and pages are UTF-8, and so are the kernels and Sphinx, which inherit the mode, and names of folders.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


@click.command()
@click.option("-f", "--params", type=click.Path(path_type=Path), help="YAML of notebook parameters.")
@click.option("--headline", is_flag=True, help="Only write the README's figure and findings again.")
def main(params: Path | None, headline: bool) -> None:
    """Build the report from the newest recorded run, or from what PARAMS says."""
    show_everything()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing stays behind
    try:
        if headline:
            from tinygemm.report import readme

            readme.write(ROOT, latest_run())
            return
        parameters = read_parameters(params) if params else None
        click.echo(f"open the report: {build(ROOT, parameters).as_uri()}")
    except ModuleNotFoundError as error:
        raise click.ClickException(f"the package {error.name} is not installed (pip install -e '.[report]')") from None
    except BrokenProcessPool:
        raise click.ClickException("a process that executes notebooks was killed; for want of memory?") from None
    except (BuildError, ValueError, OSError) as error:
        raise click.ClickException(in_words(error)) from None


if __name__ == "__main__":
    in_utf8_mode()
    main()

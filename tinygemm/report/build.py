"""Run the notebooks through papermill and build the book from what they show; stop at the first thing that is wrong."""

from __future__ import annotations

import ast
import concurrent.futures
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import yaml

from tinygemm.runs import RunError, latest_run

ROOT = Path(__file__).resolve().parents[2]
FIRST = "00_answer"  # opens the run, or measures it; the other chapters are then given its folder
WORKERS = 2


class BuildError(Exception):
    """The report cannot be built; the message names the notebook and cell, or the warning of the book."""


def build(root: Path = ROOT, parameters: dict | None = None) -> Path:
    """Execute every notebook of `root`, then build its book.

    root:       folder of notebooks/, book/ and _config.yml
    parameters: notebook parameters that differ from their defaults; without any, the newest recorded run
    returns:    the book's first page
    raises:     BuildError; what was built before is then still there, whole
    """
    root, parameters = Path(root), dict(parameters or {"source": "recorded"})
    notebooks = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    # the kernel of this environment, whatever kernels the user has elsewhere
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.pop("JUPYTER_PATH", None)
    executed = root / "book" / "executed"
    (executed / ".aside").mkdir(parents=True, exist_ok=True)

    first = next((notebook for notebook in notebooks if notebook.stem == FIRST), None)
    if first is None:
        raise BuildError(f"{root / 'notebooks'} has no {FIRST}.ipynb, which opens the run")
    seconds = execute(first, executed, parameters, show_output=True)
    _say(1, len(notebooks), first, seconds)
    # pages show it: relative to the notebooks, so that it names no machine's folders
    opened = first.parent / glued(executed / first.name, "run_dir")
    run_dir = os.path.relpath(opened.resolve(), first.parent.resolve())
    parameters |= {"source": "recorded", "run_dir": run_dir}
    rest = [notebook for notebook in notebooks if notebook != first]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        running = {pool.submit(execute, notebook, executed, parameters): notebook for notebook in rest}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(running), start=2):
                _say(done, len(notebooks), running[future], future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    click.echo("building the pages")
    return build_book(root)


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


def execute(notebook: Path, folder: Path, parameters: dict, show_output: bool = False) -> float:
    """Execute one notebook into `folder`, where it appears only when every cell has run.

    returns: seconds it took
    raises:  BuildError naming notebook, cell and error; the half-run copy stays in `folder`/.aside
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    aside, start = folder / ".aside" / notebook.name, time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(aside),
            parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=show_output,
            stdout_file=sys.stdout if show_output else None,
            stderr_file=sys.stderr if show_output else None,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        line = error.source.strip().splitlines()[0]
        raise BuildError(
            f"notebooks/{notebook.name}, cell [{error.exec_count}] `{line}`:\n{error.ename}: {error.evalue}"
        ) from None
    aside.replace(folder / notebook.name)
    return time.perf_counter() - start


def glued(notebook: Path, key: str) -> str:
    """The text that an executed notebook glued under `key`."""
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == key:
                return ast.literal_eval("".join(next(iter(output["data"].values()))))
    raise BuildError(f"{notebook.name} does not glue {key!r}")


def build_book(root: Path) -> Path:
    """Build the HTML beside the old one and put it in its place when it is whole; every warning is an error."""
    fresh, html = root / "_build" / "fresh", root / "_build" / "html"
    shutil.rmtree(fresh, ignore_errors=True)
    jupyter_book = "from jupyter_book.cli.main import main; main()"
    options = ["-W", "-n", "--keep-going", "-q", "--path-output", str(fresh), "--config", str(root / "_config.yml")]
    command = [sys.executable, "-c", jupyter_book, "build", str(root / "book"), *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise BuildError(f"the book has warnings or errors:\n{result.stdout}")
    shutil.rmtree(html, ignore_errors=True)
    (fresh / "_build" / "html").rename(html)
    shutil.rmtree(fresh)
    return html / "index.html"


def _say(done: int, total: int, notebook: Path, seconds: float) -> None:
    click.echo(f"[{done}/{total}] {notebook.name} {seconds:.1f} s")


@click.command()
@click.option(
    "-f", "--params", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML of notebook parameters."
)
@click.option("--headline", is_flag=True, help="Only write the README's figure and findings again.")
def main(params: Path | None, headline: bool) -> None:
    """Build the report from the newest recorded run, or from what PARAMS says."""
    try:
        if headline:
            from tinygemm.report import readme

            readme.write(ROOT, latest_run())
            return
        parameters = yaml.safe_load(params.read_text()) if params else None
        click.echo(f"open the report: {build(parameters=parameters).as_uri()}")
    except (BuildError, RunError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()

"""The first screen of README.md: its figure and its answer, written from a recorded run and never by hand."""

from __future__ import annotations

from pathlib import Path

from tinygemm.report.answer import figures as answer_figures
from tinygemm.report.answer import words as answer
from tinygemm.report.base import style
from tinygemm.report.peers import choice

FIGURE = "book/_static/headline.svg"
BEGIN, END = "<!-- findings: written by `make headline` -->", "<!-- end of findings -->"


def write(root: Path, run) -> None:
    """Draw the figure and put the answer of `run` between the marks of README.md; the same run, the same bytes."""
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    found, alt, kernels = answer.of_run(run), "", choice.of_gpus(run, tokens=(1,))
    if len(found.token):
        figure = answer_figures.one_token(found.token)
        style.save(figure, root / FIGURE)
        alt = figure.get_label()
    readme.write_text(f"{before}{BEGIN}\n{first_screen(found, alt, kernels)}{END}{after}", encoding="utf-8")


def first_screen(found: answer.Answer, alt: str, kernels: list[str]) -> str:
    """The figure and the answer in a few lines of Markdown, as the first page of the report has it.

    alt:     what the figure shows, in words; empty where the run allows no figure
    kernels: choice.of_gpus(run)
    """
    lines = [
        answer.case_in_short(found.case) if found.case else "",
        *kernels,
        answer.caveats_in_short(found),
        answer.findings_in_short(found),
        found.conditions,
    ]
    told = "\n".join(f"* {line}" for line in lines if line)
    return "\n\n".join(filter(None, [f"![{alt}]({FIGURE})" if alt else "", answer.sentence(found), told])) + "\n"

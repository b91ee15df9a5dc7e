"""The first screen of README.md: its figure and its answer, written from a recorded run and never by hand."""

from __future__ import annotations

from pathlib import Path

from tinygemm.report.answer import figures as answer_figures
from tinygemm.report.answer import words as answer
from tinygemm.report.base import style

FIGURE = "book/_static/headline.svg"
BEGIN, END = "<!-- findings: written by `make headline` -->", "<!-- end of findings -->"


def write(root: Path, run) -> None:
    """Draw the figure and put the answer of `run` between the marks of README.md; the same run, the same bytes."""
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    found, alt = answer.of_run(run), ""
    if len(found.token):
        figure = answer_figures.one_token(found.token)
        style.save(figure, root / FIGURE)
        alt = figure.get_label()
    readme.write_text(f"{before}{BEGIN}\n{first_screen(found, alt)}{END}{after}", encoding="utf-8")


def first_screen(found: answer.Answer, alt: str) -> str:
    """The answer in a few lines of Markdown, as the first page of the report has it.

    alt: what the figure shows, in words; empty where the run allows no figure
    """
    lines = [
        f"{answer.sentence(found)} {answer.terms()}",
        f"![{alt}]({FIGURE})" if alt else "",
        answer.case_in_short(found.case) if found.case else "",
        answer.caveats_in_short(found),
        answer.findings_in_short(found),
        found.conditions,
    ]
    return "\n\n".join(filter(None, lines)) + "\n"

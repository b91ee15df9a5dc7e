"""The page of the chapter that compares GPUs."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import page, style
from tinygemm.report.base.tables import BASELINE, at_shapes
from tinygemm.report.base.words import interval_texts, shape_names
from tinygemm.report.compare import figures, words
from tinygemm.report.compare import tables as compared
from tinygemm.runs import Run

MODES = {"graph": "CUDA graph", "primed": "after a dependent launch", "eager": "from Python", "do_bench": "do_bench"}


def takeaway(run: Run, others: list[Run]) -> Markdown:
    """The gain of INT4 on every GPU in one box, and whose kernel is older or newer than the one of this report."""
    rows = compared.speedups([run, *others]) if others else pd.DataFrame()
    return page.takeaway(words.takeaway(run, others, rows)) if len(rows) else nothing(run)


def figure(run: Run, others: list[Run]):
    """The speedup on every GPU, or the sentence that there is nothing to draw."""
    if not others:
        return nothing(run)
    rows = compared.speedups([run, *others])
    return figures.several_gpus(rows) if len(rows) else page.lacks("a projection that the other runs have, too")


def nothing(run: Run) -> Markdown:
    return Markdown(f"*The recorded runs are of one GPU, the {run.gpu['name']}: there is nothing to compare.*")


def sections(run: Run, others: list[Run]) -> Markdown:
    """The comparison with every other run: what both timed, the claims they decide differently, where they come from.

    others: compared.newest_others(run)
    """
    if not others:
        return nothing(run)
    return Markdown("\n\n".join(block.data for other in others for block in section(run, other)))


def section(a: Run, b: Run) -> list[Markdown]:
    """The comparison of two runs, block by block."""
    names, label = compared.names(a, b), f"{b.gpu['key']}"
    spread = compared.widest_spread(a, b)
    cases = compared.shared_cases(a, b, spread)
    found, rows = compared.verdicts(a, b), compared.primary(cases)
    sentences = [*words.summary(a, b, cases), *([words.intervals(spread)] if len(cases) else [])]
    blocks = [Markdown(f"**{names[0]} and {names[1]}.** {' '.join(sentences)}")]
    few = rows[at_shapes(rows, STUDY_SHAPES) & rows["backend"].isin((BASELINE, "int4"))]
    if len(few):
        blocks.append(times(few, names, label))
    if len(rows):
        blocks.append(page.dropdown("Every projection", times(rows, names, f"{label}-all")))
        blocks.append(page.dropdown("Every backend and way of launching", backends(cases, label)))
    blocks.append(Markdown(words.verdicts(found)))
    blocks += changed(found, names)
    return [*blocks, page.dropdown(f"How {names[0]} and {names[1]} were measured", provenance(a, b, names, label))]


def times(rows: pd.DataFrame, names: tuple[str, str], label: str) -> Markdown:
    """The same cases side by side. rows: compared.primary(cases)"""
    rows = rows.assign(
        shape=shape_names(rows),
        kernel=[style.name(backend) for backend in rows["backend"]],
        interval=interval_texts(rows, ends=("ratio_low", "ratio_high")),
    )
    columns = {
        "shape": ("K×N", ""), "kernel": ("Kernel", ""), "a_us": (f"{names[0]}, µs", ".2f"),
        "b_us": (f"{names[1]}, µs", ".2f"), "ratio": ("Times as fast", ".2f"), "interval": ("95 % interval", ""),
        "a_speedup": (f"{names[0]}, over FP16", ".2f"), "b_speedup": (f"{names[1]}, over FP16", ".2f"),
    }  # fmt: skip
    caption = f"One token in flight, CUDA graph, cold L2: {names[0]} beside {names[1]}"
    return page.table(rows, columns, name=f"tab-compare-{label}", caption=caption)


def backends(cases: pd.DataFrame, label: str) -> Markdown:
    """The ratio of times by backend and way of launching."""
    rows = compared.by_backend(cases)
    rows = rows.assign(
        kernel=[style.name(backend) for backend in rows["backend"]],
        how=[f"{MODES[row.launch]}, {row.l2_state} L2" for row in rows.itertuples()],
    )
    columns = {
        "kernel": ("Kernel", ""), "how": ("Timed", ""), "cases": ("Cases", "d"), "mean": ("Mean ratio", ".2f"),
        "least": ("Least", ".2f"), "most": ("Most", ".2f"),
    }  # fmt: skip
    caption = "Ratio of the times of two runs: geometric mean, least and most over the cases that both have"
    return page.table(rows, columns, name=f"tab-compare-backends-{label}", caption=caption)


def changed(found: pd.DataFrame, names: tuple[str, str]) -> list[Markdown]:
    """A card for each claim that the two runs decide differently, with both answers."""
    cards = []
    for row in found[found["outcome"] == compared.CHANGED].itertuples():
        sides = zip(names, (row.a_state, row.b_state), (row.a_sentence, row.b_sentence), strict=True)
        answers = [f"{name}: **{page.BADGE[state]}**. {sentence}" for name, state, sentence in sides]
        body = "\n\n".join(answers)
        cards.append(Markdown(f":::{{admonition}} {row.claim}\n:class: compared\n\n{body}\n:::"))
    return cards


def provenance(a: Run, b: Run, names: tuple[str, str], label: str) -> Markdown:
    """Under which conditions both runs were measured."""
    columns = {"condition": ("Condition", ""), "a": (names[0], ""), "b": (names[1], "")}
    caption = f"How {names[0]} and {names[1]} were measured"
    return page.table(compared.provenance(a, b), columns, name=f"tab-compare-conditions-{label}", caption=caption)

"""The card "Your case": an answer that needs no script, and the form and data that a script makes an explorer of."""

from __future__ import annotations

import html
import json

from IPython.display import HTML

from tinygemm.hardware import GPUS
from tinygemm.models import MODELS
from tinygemm.report.explorer import export
from tinygemm.report.models import token, words
from tinygemm.runs import Run

MODEL, STILL = export.CASE
FIELDS = {"model": "Model", "gpu": "GPU", "m": "Tokens in flight", "tp": "GPUs that share it", "launch": "Launched"}
LAUNCHED = {"graph": "as a CUDA graph", "eager": "from Python"}


def card(run: Run) -> HTML:
    """The card, with all that it needs but the script of the site.

    run: answers for its own GPU and for GPUs that were never recorded; others by their own newest run
    """
    fitted = export.models_of_runs(run)
    start = {"model": MODEL, "gpu": STILL[0], "m": 1, "tp": 1, "launch": "graph"}
    data = json.dumps(export.coefficients(fitted) | {"start": start}, separators=(",", ":")).replace("<", "\\u003c")
    still = "".join(f"<p>{html.escape(said)}</p>" for said in answers(fitted))
    return HTML(
        '<section class="explorer" aria-label="Your case">'
        f'<div class="explorer-still">{still}</div>{form()}'
        '<div class="explorer-answer" hidden><p class="explorer-sentence" aria-live="polite"></p>'
        '<div class="explorer-more"></div></div>'
        f'<script type="application/json" class="explorer-data">{data}</script></section>'
    )


def answers(fitted) -> list[str]:
    """The answers of the card where no script runs: the model of the card on each of its GPUs, one token, one GPU."""
    model = MODELS[MODEL]
    sides = [fitted.get(key) or next(iter(fitted.values())) for key in STILL]
    return [words.answer(token.advice(model, GPUS[key], 1, 1, side)) for key, side in zip(STILL, sides, strict=True)]


def form() -> str:
    """The questions; the script fills what can be chosen."""
    options = "".join(f'<option value="{key}">{text}</option>' for key, text in LAUNCHED.items())
    selects = "".join(
        f'<div class="explorer-field"><label for="case-{name}">{label}</label>'
        f'<select id="case-{name}" name="{name}">{options if name == "launch" else ""}</select></div>'
        for name, label in FIELDS.items()
    )
    pasted = (
        '<div class="explorer-field explorer-config" hidden><label for="case-config">config.json</label>'
        '<textarea id="case-config" name="config" rows="6" cols="40"></textarea></div>'
    )
    return f"<form hidden>{selects}{pasted}</form>"

"""The explorer of the site answers as `tinygemm advise` does, number by number, in a real browser without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pydata_sphinx_theme
import pytest
import synthetic
from conftest import ROOT

from tinygemm.hardware import GPUS
from tinygemm.model_config import from_config
from tinygemm.models import MODELS, possible_degrees
from tinygemm.problem import GemmProblem
from tinygemm.report.explorer import export, page
from tinygemm.report.models import advice, token, words
from tinygemm.runs import load_run

CASES = 50
BACKENDS = ("fp16-cublas", "int4", "aten-int4mm")
MODES = (("graph", "cold"), ("eager", "cold"))
CONFIG = {
    "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A synthetic run of an H200 beside one of an A10G; every other GPU is projected."""
    folder = tmp_path_factory.mktemp("data")
    asked = {"m_list": (1, 2, 8), "backends": BACKENDS, "modes": MODES, "n_samples": 8, "counters": False}
    synthetic.write_run(folder, gpu="a10g", truth=synthetic.Truth(copy_gb_s=500.0), **asked)
    return load_run(synthetic.write_run(folder, minute="2026-11-24T1412Z", **asked))


@pytest.fixture(scope="module")
def fitted(run):
    return export.models_of_runs(run)


@pytest.fixture(scope="module")
def card(run):
    return page.card(run).data


@pytest.fixture
def open_card(browser, card):
    """(end of the address, script runs, scheme) -> a page of the theme with the card; a complaint fails the test."""
    contexts, complaints = [], []
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static" / "styles"

    def opened(hash_: str = "", script: bool = True, scheme: str = "light"):
        context = browser.new_context(java_script_enabled=script, viewport={"width": 360, "height": 800})
        contexts.append(context)
        sheets = [theme / "pydata-sphinx-theme.css", *(ROOT / "book" / "_static").glob("*.css")]
        styles = "\n".join(path.read_text(encoding="utf-8") for path in sheets)
        head = f'<title>t</title><meta charset="utf-8"><style>{styles}</style><script src="explorer.js"></script>'
        cell = f'<div class="cell_output"><div class="output text_html">{card}</div></div>'
        body = f'<body><main class="bd-content"><h1>t</h1>{cell}</main></body>'
        whole = f'<!DOCTYPE html><html lang="en" data-theme="{scheme}"><head>{head}</head>{body}</html>'
        bodies = {
            "http://site/page.html": ("text/html", whole),
            "http://site/explorer.js": (
                "text/javascript",
                (ROOT / "book" / "_static" / "explorer.js").read_text(encoding="utf-8"),
            ),
            "http://site/favicon.ico": ("image/x-icon", ""),
        }

        def answer(route):
            kind, body = bodies.get(route.request.url.split("#")[0], ("", None))
            if body is None:
                complaints.append(route.request.url)
                route.abort()
            else:
                route.fulfill(body=body, content_type=f"{kind}; charset=utf-8")

        context.route("**/*", answer)
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.goto(f"http://site/page.html{hash_}")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def questions() -> list[dict]:
    """Random questions, the GPUs that were measured a third of the time."""
    draw, able = random.Random(17), [key for key, spec in GPUS.items() if not spec.obstacle]
    found = []
    for _ in range(CASES):
        model = MODELS[draw.choice((*MODELS, "llama-3-8b", "llama-3-8b"))]
        gpu = draw.choice((draw.choice(able), draw.choice(able), "h200", "a10g"))
        tokens = draw.choice((1, 2, 8, draw.randint(1, 16)))
        tp, launch = draw.choice(possible_degrees(model)), draw.choice(("graph", "eager"))
        found.append({"model": model.key, "gpu": gpu, "m": tokens, "tp": tp, "launch": launch})
    return found


def expected(fitted, question: dict, model=None) -> dict:
    side = fitted.get(question["gpu"]) or next(iter(fitted.values()))
    model = model or MODELS[question["model"]]
    found = token.advice(model, GPUS[question["gpu"]], question["m"], question["tp"], side, launch=question["launch"])
    return words.as_json(found)


def compare(browser_says, python_says, where: str) -> None:
    """Every value of the browser is that of Python: numbers to nine digits, everything else alike."""
    if isinstance(browser_says, dict):
        for key, value in browser_says.items():
            compare(value, python_says[key], f"{where}.{key}")
    elif isinstance(browser_says, list):
        assert len(browser_says) == len(python_says), where
        for place, (one, other) in enumerate(zip(browser_says, python_says, strict=True)):
            compare(one, other, f"{where}[{place}]")
    elif isinstance(browser_says, int | float) and not isinstance(browser_says, bool):
        assert browser_says == pytest.approx(python_says, rel=1e-8), where
    else:
        assert browser_says == python_says, where


ALIKE = ("rows", "products", "step", "memory", "kv", "rival", "run")


@pytest.mark.browser
def test_the_browser_computes_what_python_does_in_fifty_random_cases(open_card, fitted):
    tab = open_card()
    script = "q => TinyGemm.advice(JSON.parse(document.querySelector('.explorer-data').textContent), q)"
    measured = 0
    for question in questions():
        python, browser = expected(fitted, question), tab.evaluate(script, question)
        for part in ALIKE:
            compare(browser[part], python[part], f"{question} {part}")
        assert browser["rest"]["us"] == pytest.approx(python["rest"]["us"])
        assert browser["rest"]["factor"] == pytest.approx(python["rest"]["factor"])
        measured += any(row["kind"] == "measured" for row in python["rows"])
    assert 2 <= measured <= CASES - 10


@pytest.mark.browser
def test_a_pasted_config_is_read_as_the_command_reads_it(open_card, fitted, tmp_path):
    tab, file = open_card(), tmp_path / "config.json"
    script = """([text, q]) => {
        const data = JSON.parse(document.querySelector('.explorer-data').textContent);
        return TinyGemm.advice(data, {...q, model: TinyGemm.fromConfig(data, text)});
    }"""
    quantised = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}
    for more in ({}, quantised, {"tie_word_embeddings": None, "model_type": "gemma2", "head_dim": 256}):
        file.write_text(json.dumps(CONFIG | more), encoding="utf-8")
        question = {"gpu": "l4", "m": 4, "tp": 2, "launch": "graph"}
        browser = tab.evaluate(script, [file.read_text(encoding="utf-8"), question])
        python = expected(fitted, question, from_config(file))
        for part in ALIKE:
            compare(browser[part], python[part], part)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"), ("[]", "JSON object"), ('{"model_type": "bert"}', "bert"),
        (json.dumps(CONFIG | {"num_experts": 8}), "experts"),
        (json.dumps(CONFIG | {"hidden_size": -1}), "hidden_size"),
        (json.dumps(CONFIG | {"num_key_value_heads": 3}), "num_key_value_heads"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_read_is_answered_in_one_sentence(open_card, text, complaint):
    tab = open_card()
    tab.get_by_label("Model").select_option("config")
    tab.get_by_label("config.json").fill(text)
    said = tab.locator(".explorer-sentence").inner_text()
    assert said.startswith("No answer: ")
    assert complaint in said
    assert tab.locator(".explorer-more").inner_text() == ""


@pytest.mark.browser
def test_without_a_script_two_answers_stand_there_and_no_form(open_card, fitted):
    tab = open_card(script=False)
    for said in page.answers(fitted):
        assert tab.get_by_text(said).is_visible()
    assert tab.locator("form").is_hidden()
    assert any("A10G" in said for said in page.answers(fitted))
    assert any("H200" in said for said in page.answers(fitted))


@pytest.mark.browser
def test_a_question_is_kept_in_the_address_and_asked_again_from_it(open_card, fitted):
    tab = open_card()
    first = tab.locator(".explorer-sentence").inner_text()
    tab.get_by_label("GPU", exact=True).select_option("rtx-4090")
    tab.get_by_label("Tokens in flight").select_option("8")
    told = tab.locator(".explorer-sentence").inner_text()
    assert told != first
    address = tab.evaluate("location.hash")
    again = open_card(address)
    assert again.locator(".explorer-sentence").inner_text() == told
    question = {"model": page.MODEL, "gpu": "rtx-4090", "m": 8, "tp": 1, "launch": "graph"}
    for number in ("fp16_us", "int4_us"):
        assert f"{expected(fitted, question)['step'][number] / 1e3:.2f} ms" in told


@pytest.mark.browser
def test_the_keyboard_reaches_every_question_and_the_answer_is_spoken(open_card):
    tab = open_card()
    reached = []
    for _ in range(6):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.name ?? document.activeElement.getAttribute('aria-label')"))
    assert reached[:5] == list(page.FIELDS)
    assert reached[5] == "Per projection"
    tab.get_by_label("Tokens in flight").focus()
    before = tab.locator("[aria-live=polite]").inner_text()
    tab.keyboard.press("ArrowDown")
    assert tab.locator("[aria-live=polite]").inner_text() != before


@pytest.mark.browser
def test_the_map_shows_the_speedup_of_every_size_and_where_the_projections_lie(open_card, fitted):
    tab, question = open_card(), {"model": "llama-3-8b", "gpu": "h200", "m": 8, "tp": 2, "launch": "graph"}
    tab.get_by_label("GPU", exact=True).select_option("h200")
    tab.get_by_label("Tokens in flight").select_option("8")
    tab.get_by_label("GPUs that share it").select_option("2")
    drawing = tab.locator(".explorer-map svg")
    assert drawing.locator("rect").count() == 64
    rows = [row for row in expected(fitted, question)["rows"] if row["speedup"] is not None]
    assert drawing.locator("circle").count() == len(rows) == 4
    label = drawing.get_attribute("aria-label")
    for row in rows:
        assert f"{row['layer']} at {row['K']}×{row['N']}, {row['speedup']:.1f}×" in label
    points = tab.evaluate(
        "q => TinyGemm.map(JSON.parse(document.querySelector('.explorer-data').textContent), q, [1024, 4096])", question
    )
    problems = [GemmProblem(8, point["N"], point["K"]) for point in points]
    python = advice.compared(fitted["h200"], problems, GPUS["h200"])["speedup"]
    assert [point["speedup"] for point in points] == pytest.approx(python.tolist(), rel=1e-8)


@pytest.mark.browser
def test_axe_finds_no_barrier_in_the_card_and_the_phone_page_does_not_scroll_sideways(open_card):
    from axe_playwright_python.sync_playwright import Axe

    tab = open_card()
    assert Axe().run(tab, options={"preload": False}).response["violations"] == []
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


CONTRAST = """(selector) => [...document.querySelectorAll(selector)].map(element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3)
    .map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  let ground = element;  // the nearest one that is painted: a tint of a row is none
  while (ground && (numbers(getComputedStyle(ground).backgroundColor)[3] ?? 1) < 0.5) ground = ground.parentElement;
  const pair = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
})"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("part", ["td", "th", "figcaption", "caption", "dd", ".explorer-sentence"])
def test_every_text_stands_out_from_the_ground_that_the_theme_paints(open_card, scheme, part):
    # axe leaves text over a gradient undecided, and the tables have one at their edges
    ratios = open_card(scheme=scheme).evaluate(CONTRAST, f".explorer {part}")
    assert ratios
    assert min(ratios) >= 4.5


def test_more_than_the_data_of_two_runs_is_not_carried(card, fitted):
    data = json.loads(card.split('class="explorer-data">')[1].split("</script>")[0])
    assert set(data["runs"]) == set(fitted)
    assert data["default_run"] == "h200"
    assert len(card) < 400_000
    for run in data["runs"].values():
        for low, high in (backend["spread"]["graph"] for backend in run["backends"].values()):
            assert low <= 1 <= high

"""The finished site beyond its pages, shown on a small page: addresses, descriptions, fonts, one file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, browser_path

from tinygemm.report import publish
from tinygemm.report.base import style

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import optional_pages
import report_pages
import table_data
import whole_site

PAGE = """<html><head><meta charset="utf-8" /><meta name="viewport" content="a" /><title>One &amp; two</title>
<script src="_static/vendor/fontawesome/6/js/all.min.js?digest=1"></script></head><body><main><article><h1>One</h1>
<p>{}</p></article></main><footer class="bd-footer-content"></footer></body></html>"""
SAID = "INT4 is faster. It is faster by far, as this sentence says."


def about(base: str = "", repository: str = "") -> whole_site.About:
    run = "2026-11-23T1412Z-5e6f0c1"
    return whole_site.About("A title", "The authors", "1.2", base, run, run[:10], repository)


def completed(page: str = "executed/one.html", said: str = SAID, **known) -> str:
    return whole_site.completed(PAGE.format(said), page, about(**known))


def attribute(text: str, tag: str) -> str:
    (found,) = re.findall(rf'{tag}" (?:content|href)="([^"]*)"', text)
    return found


def test_links_are_relative_until_the_address_of_the_site_is_known():
    assert attribute(completed(), "canonical") == "one.html"
    assert attribute(completed(), "og:image") == "../_static/preview.png"
    public = completed(base="https://example.org/book/")
    assert attribute(public, "canonical") == "https://example.org/book/executed/one.html"
    assert attribute(public, "og:image") == "https://example.org/book/_static/preview.png"


def test_a_page_keeps_one_viewport_and_loses_the_script_of_the_icons():
    text = completed()
    assert text.count('name="viewport"') == 1
    assert "fontawesome" not in text
    assert text.index("charset") < 200, "a browser looks for it in the first kilobyte"


def test_a_description_is_the_first_sentences_and_never_too_long():
    assert attribute(completed(), 'name="description') == SAID
    long = "A short one. " * 60
    cut = attribute(completed(said=long), 'name="description')
    assert 40 < len(cut) <= whole_site.LONGEST
    assert cut.endswith(".")
    assert long.startswith(cut)
    endless = attribute(completed(said="word " * 200), 'name="description')
    assert len(endless) <= whole_site.LONGEST
    assert endless.endswith("…")


def test_the_foot_names_version_day_run_and_source_where_it_is_known():
    text = completed(repository="https://example.org/x/y")
    for word in (
        "1.2",
        "2026-11-23",
        about().run,
        'href="https://example.org/x/y"',
        "Cite as: The authors (2026). A title",
    ):
        assert word in text
    assert "Source</a>" not in completed()


def test_an_address_with_a_user_in_it_is_not_shown(monkeypatch):
    url = "https://somebody:word@example.org/x/y.git\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=url))
    assert whole_site.remote() == "https://example.org/x/y"


def test_page_of_wrong_addresses_leads_back_from_any_depth():
    assert 'href="/index.html"' in whole_site.not_found(about())
    assert 'href="/book/index.html"' in whole_site.not_found(about("https://example.org/book/"))


def test_preview_has_the_size_that_shared_links_show(tmp_path):
    import matplotlib.image

    whole_site.draw_preview(tmp_path / "p.png", about(), SAID, tmp_path / "none.ipynb")
    height, width, _ = matplotlib.image.imread(tmp_path / "p.png").shape
    assert (width, height) == (1200, 630)


def test_a_table_is_written_as_it_is_read():
    from docutils.core import publish_doctree

    line = "+---+-------+\n"
    source = f"{line}| a | b, µs |\n{line}| x | 1.5   |\n{line}|   | 2     |\n{line}"
    assert table_data.text_of(publish_doctree(source)) == 'a,"b, µs"\nx,1.5\n,2\n'


def test_a_page_with_nothing_to_show_leaves_the_contents(tmp_path):
    """Planted: the chapter that compares GPUs was executed beside no other GPU, then beside one."""
    from types import SimpleNamespace

    from sphinx_external_toc.parsing import parse_toc_yaml

    (page,), (name,) = optional_pages.SHOWN.keys(), optional_pages.SHOWN.values()
    toc, notebook = tmp_path / "_toc.yml", tmp_path / f"{page}.ipynb"
    lines = ("format: jb-book", "root: one", "parts:", "- chapters:", f"  - file: {page}", "  - file: two")
    toc.write_text("\n".join(lines), encoding="utf-8")
    notebook.parent.mkdir()
    for others, contents in (("0.0", ["two"]), ("1.0", [page, "two"])):
        output = {"metadata": {"scrapbook": {"name": name}}, "data": {"text/plain": [others]}}
        notebook.write_text(json.dumps({"cells": [{"outputs": [output]}]}), encoding="utf-8")
        config = Config(external_site_map=parse_toc_yaml(toc), exclude_patterns=[])
        optional_pages.hide(SimpleNamespace(srcdir=str(tmp_path)), config)
        (part,) = config.external_site_map.root.subtrees
        assert [str(item) for item in part.items] == contents
        assert (page in config.external_site_map) == (page in contents)
        assert (f"{page}.ipynb" in config["exclude_patterns"]) == (page not in contents)


class Config(dict):
    """Values by key and by attribute, as Sphinx has them."""

    __getattr__ = dict.__getitem__


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path):
    """A figure as a notebook shows it: text as text."""

    @style.figure
    def draw():
        fig, ax = style.canvas("Bold words", "small words")
        ax.set_xlabel("time per call (µs)")
        return fig, "A figure."

    file = tmp_path / "figure.svg"
    draw().savefig(file)
    return file.read_text(encoding="utf-8")


def test_words_of_a_figure_are_text_and_bring_their_letters(drawn):
    assert "time per call (µs)" in drawn
    with_font = whole_site.with_its_font(drawn)
    assert len(re.findall("@font-face", with_font)) == 2, "plain and bold"
    assert len(with_font) < len(drawn) + 60_000
    assert whole_site.with_its_font(with_font) == with_font


@pytest.mark.browser
def test_a_browser_draws_the_words_as_wide_as_they_were_laid_out(drawn, tmp_path):
    """Planted: the width that matplotlib gives the words in the same font and size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from playwright.sync_api import sync_playwright

    words = "time per call (µs)"
    file = tmp_path / "with_font.svg"
    # under a name that no computer has: only what the figure brings can draw it
    file.write_text(whole_site.with_its_font(drawn).replace("DejaVu Sans", "Of This Figure"), encoding="utf-8")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        tab = chromium.new_page()
        tab.goto(file.as_uri())
        tab.evaluate("document.fonts.ready")
        width = tab.evaluate(
            "words => [...document.querySelectorAll('text')].find(t => t.textContent === words).getBBox().width", words
        )
        chromium.close()
    expected = TextPath((0, 0), words, size=11, prop=FontProperties(family="DejaVu Sans")).get_extents().width
    assert width == pytest.approx(expected, rel=0.05)


# --- one file ---------------------------------------------------------------------------------------------------------


def test_the_archive_holds_every_file_with_a_checksum_and_does_not_vary(tmp_path):
    site = tmp_path / "html"
    (site / "_static").mkdir(parents=True)
    (site / "index.html").write_text("first", encoding="utf-8")
    (site / "_static" / "x.css").write_text("x", encoding="utf-8")
    packed = publish.archive(site, tmp_path)
    first = packed.read_bytes()
    with zipfile.ZipFile(packed) as inside:
        assert inside.namelist() == ["_static/x.css", "index.html"]
        assert inside.read("index.html") == b"first"
    subprocess.run(["sha256sum", "--check", f"{packed.name}.sha256"], cwd=tmp_path, check=True, capture_output=True)
    (site / "index.html").touch()
    assert publish.archive(site, tmp_path).read_bytes() == first


def test_nothing_is_packed_before_the_report_is_built(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.html"):
        publish.archive(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("One {glue:text}`a-x:.1f`×. Two {glue:text}`b-y:.0f`. Three.", "One {glue:text}`a-x:.1f`×. Three."),
        ("# Title\n\n*All of {glue:text}`b-y:.0f`.*", f"# Title\n\n{report_pages.LACKING}"),
        (":::{admonition} Takeaway\n\nOnly {glue:text}`c-z`.\n:::",
         f":::{{admonition}} Takeaway\n\n{report_pages.LACKING}\n:::"),
        ("Code `a. b`, 4096×1024. {doc}`x`.", "Code `a. b`, 4096×1024. {doc}`x`."),
    ],
)  # fmt: skip
def test_a_sentence_on_a_number_that_the_run_lacks_is_left_out(text, left):
    outputs = [
        {"metadata": {"scrapbook": {"name": name}}, "data": {"text/plain": value}}
        for name, value in (("a-x", "1.5"), ("b-y", "nan"))
    ]
    known = report_pages.glued({"cells": [{"cell_type": "code", "outputs": outputs}]})
    assert known == {"a-x"}
    assert report_pages.only_known(text, known) == left


TABLE = """<html lang="en"><head><title>t</title></head><body><main class="bd-content"><h1>t</h1><table class="table">
<thead><tr><th><p>K×N</p></th><th><p>gain</p></th></tr></thead><tbody>{}</tbody></table></main></body></html>"""
CELLS = [
    ("4096×512", "3.90× (3.8 to 4.0)"), ("4096×1024", "–"), ("512×4096", "10.0×"), ("14336×512", "1,024"),
    ("4096×4096", "-0.5"), ("8192×512", "2.8e-04"), ("1024×512", "0.7"), ("2048×512", "0.65"),
]  # fmt: skip


@pytest.fixture
def sorted_by(browser):
    """(rows, keys pressed) -> the texts of both columns and the order that is told, after a page with them loaded."""

    def shown(rows, *keys):
        tab = browser.new_page()
        body = "".join(f"<tr><td>{shape}</td><td>{gain}</td></tr>" for shape, gain in rows)
        script = (ROOT / "book" / "_static" / "sort.js").read_text(encoding="utf-8")
        page = TABLE.format(body).replace("</head>", f"<script>{script}</script></head>")
        tab.route("http://site/", lambda route: route.fulfill(body=page, content_type="text/html; charset=utf-8"))
        tab.goto("http://site/")
        for key in keys:
            tab.keyboard.press(key)
        cells = [tab.locator(f"td:nth-child({column})").all_inner_texts() for column in (1, 2)]
        told = [th.get_attribute("aria-sort") for th in tab.locator("th").all()]
        tab.close()
        return *cells, told

    return shown


@pytest.mark.browser
def test_a_long_table_sorts_by_keyboard_numbers_as_numbers_and_shapes_as_shapes(sorted_by):
    shapes, _, told = sorted_by(CELLS, "Tab", "Enter")
    assert shapes == ["512×4096", "1024×512", "2048×512", "4096×512", "4096×1024", "4096×4096", "8192×512", "14336×512"]
    assert told == ["ascending", None]
    _, gains, told = sorted_by(CELLS, "Tab", "Tab", "Space")
    assert gains == ["-0.5", "2.8e-04", "0.65", "0.7", "3.90× (3.8 to 4.0)", "10.0×", "1,024", "–"]
    assert told == [None, "ascending"]
    _, gains, told = sorted_by(CELLS, "Tab", "Tab", "Space", "Space")
    assert gains == ["1,024", "10.0×", "3.90× (3.8 to 4.0)", "0.7", "0.65", "2.8e-04", "-0.5", "–"]
    assert told == [None, "descending"]


@pytest.mark.browser
def test_a_short_table_is_left_as_it_is(sorted_by):
    shapes, _, told = sorted_by(CELLS[:4], "Tab", "Enter")
    assert shapes == [shape for shape, _ in CELLS[:4]]
    assert told == [None, None]


def test_the_page_that_is_printed_holds_every_page_once_and_its_links_lead_within_it(tmp_path):
    nav = '<nav class="bd-links"><a class="internal" href="#">a</a><a class="internal" href="01_b.html">b</a>'
    nav += '<a class="internal" href="../glossary.html">c</a></nav><script src="x.js"></script>'
    pages = {
        "executed/00_answer.html": '<h1 id="t">A</h1><a href="01_b.html#t">b</a><a href="../glossary.html">c</a>',
        "executed/01_b.html": '<h1 id="t">B</h1><img src="../_images/f.svg"/><a href="#t">up</a>',
        "glossary.html": '<h1 id="t">C</h1><img src="_images/f.svg"/><a href="https://example.org/">out</a>',
    }
    for name, article in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<html><body>{nav}<article>{article}</article></body></html>", encoding="utf-8")
    text = publish.one_page(tmp_path)
    assert [*re.findall(r"<h1[^>]*>(\w)</h1>", text)] == ["A", "B", "C"]
    ids, links = re.findall(r'\bid="([^"]*)"', text), re.findall(r'href="([^"]*)"', text)
    assert len(ids) == len(set(ids)) == 6
    assert {link.removeprefix("#") for link in links} - {"https://example.org/"} <= set(ids)
    assert set(re.findall(r'src="([^"]*)"', text)) == {"../_images/f.svg"}


def test_without_a_browser_nothing_is_printed_and_a_browser_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "executed").mkdir()
    (tmp_path / "executed" / "00_answer.html").write_text("<body><article></article></body>", encoding="utf-8")
    monkeypatch.setattr(publish.shutil, "which", lambda name: None)
    assert publish.pdf(tmp_path, tmp_path) is None
    monkeypatch.setattr(publish.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(OSError, match="/bin/false did not print"):
        publish.pdf(tmp_path, tmp_path)
    assert [path.name for path in (tmp_path / "executed").iterdir()] == ["00_answer.html"]

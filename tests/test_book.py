"""The built book: what its pages say, and how they behave in a real browser that has no network."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import html
import http.server
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

from tinygemm.report import build
from tinygemm.report.answer import words as answer
from tinygemm.report.base import tables
from tinygemm.runs import latest_run

pytestmark = pytest.mark.book
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*(f"executed/{chapter}.html" for chapter in CHAPTERS), "api.html", "glossary.html", "references.html"]
UNREAD = ["index.html", "404.html", "search.html"]  # pages without a text of their own
MOST_OF_PAGE, MOST_OF_SITE = 1_000_000, 25_000_000  # bytes; of a page all that it loads, compressed as a server does
PHONE, DESK = {"width": 375, "height": 800}, {"width": 1280, "height": 900}


class Text(HTMLParser):
    """The words of a page's article."""

    def __init__(self):
        super().__init__()
        self.words, self.depth = [], 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag in ("script", "style")

    def handle_endtag(self, tag):
        self.depth -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.depth:
            self.words.append(data)


def text_of(page: Path) -> str:
    parser = Text()
    parser.feed(page.read_text(encoding="utf-8"))
    return re.sub(r"\s+", " ", "".join(parser.words))


def article_of(page: Path) -> str:
    return re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)[0]


@pytest.fixture(scope="module")
def run(recorded_or_synthetic):
    root = recorded_or_synthetic.get("data_root")
    return latest_run(root=Path(root)) if root else latest_run()


# --- what the pages say ------------------------------------------------------------------------------


def test_book_has_every_chapter_and_its_front_page_leads_to_the_answer(book):
    for page in PAGES:
        assert (book / page).is_file()
    assert "executed/00_answer.html" in (book / "index.html").read_text(encoding="utf-8")


def test_front_page_answers_in_its_first_sentence_and_shows_all_that_the_answer_has(book, run):
    page = text_of(book / "executed" / "00_answer.html")
    found = answer.of_run(run)
    shown = re.sub(r"\*\*|`", "", answer.sentence(found))  # as text, without the marks of Markdown
    assert shown in page
    assert page.index(shown) < page.index(answer.case_title(found.case)) < page.index("Fig. 1")
    for line in answer.case_lines(found.case):
        assert re.sub(r"\*\*|`", "", line).replace("'", "’") in page
    for row in found.findings.itertuples():
        assert row.finding in page
    for row in found.ways.itertuples():
        assert f"{row.low:.1f}× to {row.high:.1f}×" in page
    assert answer.COMMAND in page


def test_title_of_the_front_page_has_the_name_of_the_book_once(book):
    (title,) = re.findall(
        r"<title>(.*?)</title>", (book / "executed" / "00_answer.html").read_text(encoding="utf-8"), re.DOTALL
    )
    assert title.count("INT4") == 1


def test_every_chapter_says_which_run_and_which_gpu_it_shows(book, run):
    for chapter in ("00_answer", "10_repeat"):
        page = text_of(book / "executed" / f"{chapter}.html")
        assert run.run_id in page
        assert run.gpu["name"] in page


def test_numbers_of_the_prose_are_those_of_the_run(book, run):
    page = text_of(book / "executed" / "01_token.html")
    table = tables.report_table(run)
    assert f"{tables.copy_bandwidth_gb_s(table) / 1e3:.2f} TB/s" in page
    assert f"{tables.empty_node_us(table):.2f} µs" in page


def test_no_page_shows_a_path_of_this_machine(book):
    for page in book.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert str(ROOT) not in text, page.name
        assert str(book.parents[1]) not in text, page.name


def test_no_page_prints_a_bare_object(book):
    for chapter in CHAPTERS:
        page = text_of(book / "executed" / f"{chapter}.html")
        assert not (found := re.search(r"IPython\.core|<[\w. ]+ object( at 0x\w+)?>", page)), f"{chapter}: {found[0]}"


def test_a_figure_links_to_its_file(book):
    for chapter in CHAPTERS:
        article = article_of(book / "executed" / f"{chapter}.html")
        linked = re.findall(r'<figure[^>]*>\s*<a [^>]*href="([^"]+)"><img[^>]*src="([^"]+)"', article)
        assert len(linked) == article.count("<figure")
        for file, shown in linked:
            assert file == shown
            assert (book / "executed" / file).is_file()


def test_figures_are_numbered_in_reading_order_and_referenced_tables_exist(book):
    numbers = [
        int(number)
        for chapter in CHAPTERS
        for number in re.findall(
            r'caption-number">Fig\. (\d+)', (book / "executed" / f"{chapter}.html").read_text(encoding="utf-8")
        )
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 8


def test_code_of_a_page_is_one_fold_at_its_foot_and_not_in_the_search(book):
    for chapter in CHAPTERS:
        page = (book / "executed" / f"{chapter}.html").read_text(encoding="utf-8")
        assert page.count('<details class="how-made">') == 1
        fold = page.index('<details class="how-made">')
        assert page.index("open_run") > fold > page.rindex("<h2>")
        assert not re.search(r"tag_(parameters|injected-parameters|hide-input)", page)
    assert "inlinebackend" not in (book / "searchindex.js").read_text(encoding="utf-8").lower()


def test_every_figure_says_in_words_what_it_shows(book):
    said = [
        re.search(r'alt="([^"]*)"', image)[1]
        for chapter in CHAPTERS
        for image in re.findall(r"<img[^>]*>", article_of(book / "executed" / f"{chapter}.html"))
    ]
    assert len(said) >= 25
    for alt in said:
        assert len(alt) >= 40, alt
        assert " " in alt.strip()
        assert not re.search(r"\.(svg|png)\b|_images/", alt), alt
        assert not re.search(r"\bnan\b", alt), alt
    assert len(set(said)) == len(said)


def test_box_that_a_table_scrolls_in_has_a_name_and_takes_the_focus(book):
    for chapter in CHAPTERS:
        for box in re.findall(
            r'<div class="pst-scrollable-table-container"[^>]*>',
            (book / "executed" / f"{chapter}.html").read_text(encoding="utf-8"),
        ):
            assert re.search(r'tabindex="0" role="region" aria-label="[^"]{5,}"', box)


def test_inks_of_code_and_prose_name_no_other_source_than_the_site(book):
    loaded = re.compile(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?:)?//')
    for page in book.rglob("*.html"):
        assert not (found := loaded.search(page.read_text(encoding="utf-8"))), f"{page.name}: {found.group()}"


def test_a_term_explains_itself_where_the_pointer_rests_on_it(book):
    page = article_of(book / "executed" / "01_token.html")
    (title,) = set(re.findall(r'<a [^>]*href="\.\./glossary\.html#term-empty-node"[^>]*title="([^"]*)"', page))
    assert "does nothing" in title


def test_a_long_table_can_be_taken_away_as_a_csv(book):
    page = article_of(book / "executed" / "C_cases.html")
    (link,) = set(re.findall(r'href="([^"]*tab-points-1\.csv)"', page))
    rows = (book / "executed" / link).read_text(encoding="utf-8").splitlines()
    assert len(rows) > 40
    assert rows[0].startswith("K×N,")
    assert page.count("<table") == len(re.findall(r'<table[^>]*id="tab-', page))


# --- how much a reader is asked to read ---------------------------------------------------------------

WORDS = {
    "00_answer": 560, "01_token": 900, "02_models": 1000, "03_gains": 1500, "04_kernel": 2300,
    "05_dequantisation": 1400, "06_limits": 800, "07_regimes": 800, "08_peers": 1000, "09_trust": 850,
    "10_repeat": 400, "11_use": 400,
}  # fmt: skip
TOOLS = ("12_compare", "13_case")  # pages that answer for other runs and models, with few words of their own
FIGURES, APPENDIX_WORDS, OPEN_ROWS = 22, 8000, 10


def prose_of(article: str) -> str:
    """The words of an article: cards included; not code, tables, captions, nor what is folded away at the foot."""
    for part in ("script", "style", "svg", "table", "pre", "figcaption"):
        article = re.sub(rf"<{part}\b.*?</{part}>", " ", article, flags=re.DOTALL)
    article = re.sub(r'<(div|p) class="table-c\w+".*?</\1>', " ", article, flags=re.DOTALL)
    article = re.sub(r'<details class="how-made".*?</details>', " ", article, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", article)


def test_main_story_stays_within_its_budget_of_words_and_figures(book):
    articles = {chapter: article_of(book / "executed" / f"{chapter}.html") for chapter in WORDS}
    words = {chapter: len(prose_of(article).split()) for chapter, article in articles.items()}
    assert not {chapter: count for chapter, count in words.items() if count > WORDS[chapter]}
    assert sum(words.values()) <= 12_000
    assert sum(article.count("<figure") for article in articles.values()) <= FIGURES
    assert {*WORDS, *TOOLS} == {chapter for chapter in CHAPTERS if chapter[0].isdigit()}


def test_each_chapter_begins_with_its_answer_and_a_takeaway_and_ends_with_its_doubts(book):
    for chapter in [chapter for chapter in WORDS if chapter[:2] in {f"{number:02d}" for number in range(1, 10)}]:
        article = article_of(book / "executed" / f"{chapter}.html")
        assert re.search(r"</h1>\s*<p><em>", article), chapter
        (takeaway,) = re.findall(r'<div class="[^"]*\btakeaway\b[^"]*">(.*?)</div>', article, re.DOTALL)
        assert len(prose_of(takeaway).split()) - 1 <= 40, chapter
        assert article.index("takeaway") < article.index("<figure") < article.index("<h2>"), chapter
        ends = ("how-we-know", "what-would-change-our-mind")
        last = [re.search(rf'<section id="{end}">(.*?)</section>', article, re.DOTALL)[1] for end in ends]
        assert all(len(prose_of(section).split()) <= 80 for section in last), chapter
        assert article.index(last[0]) < article.index(last[1])
        assert "<section" not in article[article.index(last[1]) :], chapter


def test_appendices_stay_within_their_budget_of_words(book):
    rest = [chapter for chapter in CHAPTERS if chapter not in WORDS]
    assert sum(len(prose_of(article_of(book / "executed" / f"{c}.html")).split()) for c in rest) <= APPENDIX_WORDS


def test_no_open_table_of_a_chapter_has_more_than_ten_rows_and_no_chapter_more_than_two_cards(book):
    for chapter in CHAPTERS:
        article = re.sub(
            r"<details.*?</details>", "", article_of(book / "executed" / f"{chapter}.html"), flags=re.DOTALL
        )
        for table in re.findall(r"<table.*?</table>", article, re.DOTALL):
            assert len(re.findall(r"<tr\b", table)) - 1 <= OPEN_ROWS, chapter
        if chapter in WORDS:
            assert len(re.findall(r'class="[^"]*\bfinding\b[^"]*admonition|admonition[^"]*\bfinding\b', article)) <= 2


# --- how they behave ------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(book):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextlib.contextmanager
def opening(browser, site):
    """(page, viewport, colour scheme) -> the page, loaded, and every complaint it had; nothing but the site answers."""
    contexts = []

    def opened(page: str, viewport=DESK, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        complaints: list[str] = []
        context.route(
            lambda url: not url.startswith((site, "data:", "blob:")),
            lambda route: (complaints.append(f"asks for {route.request.url}"), route.abort()),
        )
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("response", lambda reply: complaints.append(f"{reply.status} {reply.url}") if not reply.ok else None)
        tab.goto(f"{site}/{page}")
        tab.wait_for_load_state("networkidle")
        return tab, complaints

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(browser, site):
    with opening(browser, site) as opened:
        yield opened


@pytest.fixture(scope="module", params=[*PAGES, *UNREAD])
def loaded(browser, site, request):
    """A page, and it as a desk and as a phone show it: loaded once for all tests that leave it as it is."""
    with opening(browser, site) as opened:
        page = request.param
        yield page, {"desk": opened(page, DESK, "light"), "phone": opened(page, PHONE, "dark")}


@pytest.mark.browser
@pytest.mark.parametrize("loaded", PAGES, indirect=True)
@pytest.mark.parametrize("device", ["desk", "phone"])
def test_page_loads_from_the_site_alone_without_a_complaint_and_fits(loaded, device):
    _, shown = loaded
    tab, complaints = shown[device]
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for image in tab.query_selector_all("article figure img"):
        assert image.is_visible()
        assert image.evaluate("i => i.naturalWidth > 0 && i.getBoundingClientRect().width <= innerWidth")


@pytest.mark.browser
@pytest.mark.parametrize("loaded", PAGES, indirect=True)
def test_what_a_page_loads_is_at_most_a_megabyte(loaded, book):
    page, shown = loaded
    tab, _ = shown["desk"]
    names = tab.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    files = {page} | {unquote(urlsplit(address).path).lstrip("/") for address in names if address.startswith("http")}
    sizes = {file: len(gzip.compress((book / file).read_bytes(), 6)) for file in files if (book / file).is_file()}
    assert len(sizes) > 5
    assert sum(sizes.values()) <= MOST_OF_PAGE, sizes


def barriers(tab) -> list[str]:
    """The barriers that axe finds on a page."""
    from axe_playwright_python.sync_playwright import Axe

    # a colour that is still on its way to the scheme is no colour of the page
    tab.evaluate("Promise.allSettled(document.getAnimations().map(each => each.finished)).then(() => null)")
    # what passes is reported with one example, not with each of thousands of cells
    found = Axe().run(tab, options={"preload": False, "resultTypes": ["violations"]}).response["violations"]
    return [f"{each['id']}: {node['html'][:120]}" for each in found for node in each["nodes"]]


@pytest.mark.browser
@pytest.mark.parametrize(("device", "width"), [("desk", 1400), ("phone", 360)])
def test_axe_finds_no_barrier_in_light_on_a_desk_or_in_dark_on_a_phone(loaded, device, width):
    tab, _ = loaded[1][device]
    tab.set_viewport_size({"width": width, "height": 800})
    assert barriers(tab) == []


@pytest.mark.browser
@pytest.mark.parametrize("page", ["executed/00_answer.html", "executed/13_case.html"])
@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (360, "light")])
def test_axe_finds_no_barrier_in_dark_on_a_desk_or_in_light_on_a_phone(open_page, page, width, scheme):
    tab, _ = open_page(page, {"width": width, "height": 800}, scheme)
    assert barriers(tab) == []


@pytest.mark.browser
def test_formulas_are_drawn_by_the_browser_itself(open_page, book):
    with_formulas = [page for page in PAGES if 'class="math' in (book / page).read_text(encoding="utf-8")]
    assert with_formulas
    tab, complaints = open_page(with_formulas[0])
    sizes = tab.eval_on_selector_all("article .math math", "all => all.map(m => m.getBoundingClientRect().height)")
    assert len(sizes) == tab.locator("article .math").count()
    assert min(sizes) > 5
    assert complaints == []


@pytest.mark.browser
def test_figures_stay_white_and_undimmed_in_a_dark_page(open_page):
    tab, _ = open_page("executed/03_gains.html", scheme="dark")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    styles = tab.eval_on_selector_all(
        "article figure img", "all => all.map(i => [getComputedStyle(i).backgroundColor, getComputedStyle(i).filter])"
    )
    assert styles
    assert all(style == ["rgb(255, 255, 255)", "none"] for style in styles)


@pytest.mark.browser
def test_a_click_unfolds_the_parameters_of_the_run(open_page):
    tab, _ = open_page("executed/00_answer.html")
    fold = tab.locator("details.how-made")
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").click()
    assert fold.locator("pre").is_visible()
    assert "source" in fold.inner_text()


@pytest.mark.browser
def test_wide_table_scrolls_inside_a_phone_page_instead_of_being_cut(open_page):
    tab, _ = open_page("executed/01_token.html", PHONE)
    box = tab.locator(".pst-scrollable-table-container").first
    assert box.evaluate("b => b.scrollWidth <= b.clientWidth || getComputedStyle(b).overflowX === 'auto'")


@pytest.mark.browser
def test_search_finds_a_word_of_the_report(open_page):
    tab, complaints = open_page("search.html?q=dequantisation")
    tab.wait_for_selector("#search-results li a")
    assert complaints == []


# --- the site as a whole ------------------------------------------------------------------------------

FRONT = "executed/00_answer.html"


def head_of(page: Path) -> dict[str, str]:
    """Title, canonical address and meta tags of a page, by name or property."""
    text = page.read_text(encoding="utf-8")
    head = text[: text.index("</head>")]
    tags = {}
    for tag in re.findall(r"<(?:meta|link)\b[^>]*>", head):
        of = dict(re.findall(r'([\w:-]+)="([^"]*)"', tag))
        key, value = of.get("name") or of.get("property") or of.get("rel"), of.get("content") or of.get("href")
        if key and value:
            assert key not in tags or key not in ("viewport", "description", "canonical"), f"{page.name}: two {key}"
            tags[key] = html.unescape(value)
    return tags | {"title": html.unescape(re.search("<title>(.*?)</title>", head, re.DOTALL)[1].strip())}


@pytest.mark.parametrize("page", PAGES)
def test_no_role_of_the_markup_is_left_as_text(book, page):
    """What a cell shows as Markdown needs `markdown_format: myst`, or its roles are printed."""
    assert re.findall(r"\{[a-z:]+\}<code.{80}", (book / page).read_text(encoding="utf-8")) == []


def test_each_page_says_what_it_is_about_and_a_shared_link_shows_it(book, run):
    heads = {page: head_of(book / page) for page in PAGES}
    for page, head in heads.items():
        assert 20 <= len(head["description"]) <= 300, page
        assert head["og:description"] == head["description"]
        assert (book / page).parent / head["canonical"] == book / page
        picture = (book / page).parent / head["og:image"]
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert len({head["title"] for head in heads.values()}) == len(PAGES)
    assert len({heads[f"executed/{chapter}.html"]["description"] for chapter in CHAPTERS}) == len(CHAPTERS)


def test_each_page_says_when_it_was_measured_and_how_to_cite_it(book, run):
    for page in PAGES:
        text = text_of(book / page)
        assert run.run_id in text
        assert run.run_id[:10] in text
        assert "Cite as" in text
    assert (book / "_static" / "CITATION.cff").is_file()


def test_first_address_and_wrong_address_have_pages_of_their_own(book):
    entrance = head_of(book / "index.html")
    assert entrance["canonical"] == FRONT
    assert entrance["description"] == head_of(book / FRONT)["description"]
    assert "index.html" in (book / "404.html").read_text(encoding="utf-8")


def test_each_captioned_table_is_a_csv_file_with_what_the_page_shows(book):
    seen = 0
    for chapter in CHAPTERS:
        page = (book / "executed" / f"{chapter}.html").read_text(encoding="utf-8")
        links = re.findall(r'<p class="table-data"><a href="([^"]+)" download aria-label="([^"]{10,})"', page)
        assert len(links) == page.count('<div class="table-caption">')
        for file, _ in links:
            rows = list(csv.reader((book / "executed" / file).open(encoding="utf-8", newline="")))
            assert len(rows) >= 2
            assert len({len(row) for row in rows}) == 1
        seen += len(links)
    assert seen >= 10


class Links(HTMLParser):
    """Addresses that a page points to, and the ids that it has."""

    def __init__(self):
        super().__init__()
        self.to, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.to += [given[name] for name in ("href", "src") if given.get(name)]


def test_every_internal_link_and_anchor_leads_somewhere(book):
    parsed = {}
    for page in book.rglob("*.html"):
        if "_static" not in page.parts:
            parsed[page.resolve()] = links = Links()
            links.feed(page.read_text(encoding="utf-8"))
    for page, links in parsed.items():
        for address in links.to:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            base = book if parts.path.startswith("/") else page.parent  # only the page of wrong addresses
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
            assert target.exists(), f"{page.name}: {address}"
            if parts.fragment and target in parsed:
                assert unquote(parts.fragment) in parsed[target].ids | {"top"}, f"{page.name}: {address}"


def test_site_is_small_and_holds_nothing_that_no_page_loads(book):
    files = [path for path in book.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_OF_SITE
    assert not [path for path in files if path.suffix == ".map" or "mathjax" in str(path.relative_to(book)).lower()]
    assert not [path for path in files if path.suffix == ".html" and path.stat().st_size > MOST_OF_PAGE]


def test_words_of_a_figure_are_words_in_the_letters_that_it_was_drawn_with(book):
    figures = list((book / "_images").glob("*.svg"))
    with_words = [path for path in figures if "<text" in path.read_text(encoding="utf-8")]
    assert len(with_words) == len(figures)
    for path in with_words:
        assert "@font-face" in path.read_text(encoding="utf-8")


@pytest.mark.browser
def test_print_shows_what_is_folded_on_screen_and_cuts_no_table(open_page, book):
    folded = next(page for page in PAGES if "sd-dropdown" in (book / page).read_text(encoding="utf-8"))
    tab, _ = open_page(folded)
    tab.emulate_media(media="print")
    fold = tab.locator("details.sd-dropdown").first
    assert fold.locator("table").first.is_visible()
    assert tab.locator("details.how-made").first.is_hidden()
    overflow = "all => all.map(box => getComputedStyle(box).overflowX)"
    assert set(tab.eval_on_selector_all(".pst-scrollable-table-container", overflow)) == {"visible"}
    assert set(tab.eval_on_selector_all("details.sd-dropdown", overflow)) == {"visible"}, "what clips cannot be divided"


# --- how building fails ------------------------------------------------------------------------------


def test_warning_of_the_book_is_an_error_and_the_old_book_stays(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").write_text("format: jb-book\nroot: page\n", encoding="utf-8")
    (tmp_path / "book" / "page.md").write_text("# Page\n\n{doc}`nowhere`\n", encoding="utf-8")
    (tmp_path / "_config.yml").write_text("title: t\n", encoding="utf-8")
    old = tmp_path / "_build" / "html" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("the old book", encoding="utf-8")
    with pytest.raises(build.BuildError, match="nowhere"):
        build.build_book(tmp_path)
    assert old.read_text(encoding="utf-8") == "the old book"

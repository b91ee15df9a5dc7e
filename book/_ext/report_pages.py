"""What Jupyter Book lacks for this report: alt texts that follow the data, the code of a page at its foot and out of
the search, tables that the keyboard can scroll and that come as CSV, terms that explain themselves under the pointer,
figures that open by themselves, and MathJax served by the site."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from importlib import metadata
from pathlib import Path

from docutils import nodes

FOLDED = {"tag_hide-input", "tag_injected-parameters", "tag_parameters"}  # classes of cells whose code goes to the foot
SCROLLED = re.compile(r'<div class="pst-scrollable-table-container">(<table.*?>)(\s*<caption>.*?</caption>)?', re.S)


FIGURE = re.compile(r'(<figure\b[^>]*>\s*)(<img\b[^>]*?\bsrc="([^"]+)"[^>]*>)')


TABLE = re.compile(r'<table[^>]*\bid="(tab-[^"]+)"[^>]*>.*?</table>', re.S)
TERM = re.compile(r'<a class="reference internal" href="([^"]*glossary\.html#term-([^"]+))"')
ROW, CELL = re.compile(r"<tr[^>]*>(.*?)</tr>", re.S), re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.S)
LONG = 10  # rows above which a table comes as a file, too


class HowMade(nodes.General, nodes.Element):
    """The code of a page, folded; an attribute and not text, because the search index holds every text."""


def setup(app):
    app.add_node(HowMade, html=(visit_how_made, None))
    app.connect("source-read", prepare_notebook)
    app.connect("doctree-resolved", move_code_to_the_foot)
    app.connect("html-page-context", let_tables_scroll)
    app.connect("html-page-context", offer_long_tables)
    app.connect("html-page-context", explain_terms)
    app.connect("html-page-context", let_figures_open)
    app.connect("html-page-context", name_first_page_once)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def prepare_notebook(app, docname: str, source: list[str]) -> None:
    """Drop the defaults of parameters that papermill overrode, and give each image the alt text of its output."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    tagged = {tag: cell for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
    if "injected-parameters" in tagged:
        tagged["parameters"]["metadata"]["tags"].append("remove-cell")
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            for of_kind in output.get("metadata", {}).values():
                if isinstance(of_kind, dict) and "alt" in of_kind:  # MyST-NB takes from an output only the size
                    options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
                    options["alt"] = of_kind["alt"]
    source[0] = json.dumps(notebook)


def move_code_to_the_foot(app, doctree, docname: str) -> None:
    """Put the code that opens the run, which the reader need not see first, into one fold at the end of the page."""
    cells = [cell for cell in doctree.findall(nodes.container) if FOLDED & set(cell["classes"])]
    blocks = [block for cell in cells for block in cell.findall(nodes.literal_block)]
    if not blocks:
        return
    code = "\n".join(block.astext() for block in blocks)
    for cell in cells:
        cell.parent.remove(cell)
    doctree[0].append(HowMade(code=code, language=blocks[0]["language"]))


def visit_how_made(translator, node) -> None:
    code = translator.highlighter.highlight_block(node["code"], node["language"], location=node)
    summary = "<summary>How this page was made</summary>"
    translator.body.append(f'<details class="how-made">{summary}{code}</details>\n')
    raise nodes.SkipNode


def let_tables_scroll(app, page: str, template: str, context: dict, doctree) -> None:
    """Let the keyboard reach the box that a wide table scrolls in, and keep the caption out of the box."""
    if "body" in context:
        context["body"] = SCROLLED.sub(_scroller, context["body"])


def _scroller(found: re.Match) -> str:
    table, caption = found[1], (found[2] or "").strip()
    outside = caption.replace("<caption>", '<div class="table-caption">').replace("</caption>", "</div>")
    spoken = re.sub(r"<a class=\"headerlink.*?</a>|<[^>]*>", "", caption, flags=re.DOTALL)
    label = html.escape(html.unescape(spoken).strip() or "Table", quote=True)
    return (
        f'{outside}<div class="pst-scrollable-table-container" tabindex="0" role="region" aria-label="{label}">{table}'
    )


def offer_long_tables(app, page: str, template: str, context: dict, doctree) -> None:
    """Write each long table as a CSV into the site, and link it behind the table."""
    if "body" not in context:
        return

    def offered(found: re.Match) -> str:
        rows = [
            [html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in CELL.findall(row)]
            for row in ROW.findall(found[0])
        ]
        if len(rows) <= LONG + 1:
            return found[0]
        file = Path(app.outdir, "_static", "tables", f"{found[1]}.csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
        up = "../" * page.count("/")
        link = f'<p class="table-csv"><a href="{up}_static/tables/{file.name}" download>{found[1]}.csv</a></p>'
        return f"{found[0]}{link}"

    context["body"] = TABLE.sub(offered, context["body"])


def explain_terms(app, page: str, template: str, context: dict, doctree) -> None:
    """Give each link to a term the definition of the glossary as its title."""
    if "body" not in context:
        return
    glossary = Path(app.srcdir, "glossary.md")
    text = glossary.read_text(encoding="utf-8") if glossary.is_file() else ""
    known = {term.replace(" ", "-"): told for term, told in re.findall(r"^(\S.*)\n  (\S.*)$", text, re.M)}

    def explained(found: re.Match) -> str:
        told = known.get(found[2], "")
        return f'{found[0]} title="{html.escape(told, quote=True)}"' if told else found[0]

    context["body"] = TERM.sub(explained, context["body"])


def let_figures_open(app, page: str, template: str, context: dict, doctree) -> None:
    """Link each figure to its file: a phone shows the page as wide as it is, and the file as large as one likes."""
    if "body" in context:
        context["body"] = FIGURE.sub(r'\1<a class="figure-file" href="\3">\2</a>', context["body"])


def name_first_page_once(app, page: str, template: str, context: dict, doctree) -> None:
    """Keep the browser from showing the name of the book twice: the first page bears it, too."""
    if page == app.config.root_doc:
        context["title"] = "The answer"


def copy_mathjax(app, exception) -> None:
    """Copy the one MathJax file that pages load; in book/_static every page would load it, formulas or not."""
    if exception or app.builder.format != "html":
        return
    script = metadata.distribution("sphinx-mathjax-offline").locate_file(
        "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
    )
    target = Path(app.outdir, "_static", app.config.mathjax_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(script, target)

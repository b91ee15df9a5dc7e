"""Parts that Jupyter Book lacks here.

Alt texts follow the data. The code of a page is at its foot and out of the search. The keyboard can scroll tables,
terms explain themselves under the pointer, and figures open by themselves.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from docutils import nodes

FOLDED = {"tag_hide-input", "tag_injected-parameters", "tag_parameters"}  # classes of cells whose code goes to the foot
SCROLLED = re.compile(r'<div class="pst-scrollable-table-container">(<table.*?>)(\s*<caption>.*?</caption>)?', re.S)
FIGURE = re.compile(r'(<figure\b[^>]*>\s*)(<img\b[^>]*?\bsrc="([^"]+)"[^>]*>)')
GLUED = re.compile(r"\{glue:text\}`([^`:]+)")
SENTENCES = re.compile(r"(?<=[.!?]) +")
LACKING = "*This run did not time what this sentence is about.*"
TERM = re.compile(r'<a class="reference internal" href="([^"]*glossary\.html#term-([^"]+))"')


class HowMade(nodes.General, nodes.Element):
    """The code of a page, folded; an attribute and not text, because the search index holds every text."""


def setup(app):
    app.add_node(HowMade, html=(visit_how_made, None))
    app.connect("source-read", prepare_notebook)
    app.connect("doctree-resolved", move_code_to_the_foot)
    app.connect("html-page-context", let_tables_scroll)
    app.connect("html-page-context", explain_terms)
    app.connect("html-page-context", let_figures_open)
    app.connect("html-page-context", name_first_page_once)
    app.connect("html-page-context", name_columns)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def prepare_notebook(app, docname: str, source: list[str]) -> None:
    """Drop the defaults of parameters that papermill overrode and sentences on numbers that the run does not have, and
    give each image the alt text of its output."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    tagged = {tag: cell for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
    if "injected-parameters" in tagged:
        tagged["parameters"]["metadata"]["tags"].append("remove-cell")
    known = glued(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = only_known("".join(cell["source"]), known)
        for output in cell.get("outputs", []):
            for of_kind in output.get("metadata", {}).values():
                if isinstance(of_kind, dict) and "alt" in of_kind:  # MyST-NB takes from an output only the size
                    options = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
                    options["alt"] = of_kind["alt"]
    source[0] = json.dumps(notebook)


def glued(notebook: dict) -> set[str]:
    """The names under which an executed notebook glued something; without those of numbers that are not there."""
    found = {}
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if name := output.get("metadata", {}).get("scrapbook", {}).get("name"):
            found[name] = "".join(next(iter(output["data"].values())))
    return {name for name, value in found.items() if value != "nan"}


def only_known(text: str, known: set[str]) -> str:
    """A text without the sentences that quote a number which the run does not have; a line of nothing else says so."""

    def kept(line: str) -> str:
        names = [set(GLUED.findall(sentence)) for sentence in SENTENCES.split(line)]
        if all(each <= known for each in names):
            return line
        rest = [sentence for sentence, each in zip(SENTENCES.split(line), names, strict=True) if each <= known]
        return " ".join(rest) or LACKING

    return "\n".join(map(kept, text.split("\n")))


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


def name_columns(app, page: str, template: str, context: dict, doctree) -> None:
    """Say of each heading of a table that it is of a column, for who hears the table cell by cell."""
    if "body" in context:
        context["body"] = context["body"].replace('<th class="head', '<th scope="col" class="head')


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

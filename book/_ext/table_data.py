"""The data of a page: each captioned table as a CSV file, and a link to it under the table."""

from __future__ import annotations

import csv
import html
import io
from pathlib import Path

from docutils import nodes

FOLDER = "_static/data"


class DataLink(nodes.General, nodes.Element):
    """A link to the data of a table; an element of its own, so that no search finds the word CSV on every page."""


def setup(app) -> dict:
    app.add_node(DataLink, html=(visit_link, None))
    app.connect("doctree-resolved", write_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_tables(app, doctree, docname: str) -> None:
    """Write the tables of a page, and put a link under each."""
    if app.builder.format != "html":
        return
    for table in list(doctree.findall(nodes.table)):
        caption, name = table.next_node(nodes.title), (table["ids"] or [""])[0]
        if caption is None or not name:
            continue
        file = f"{FOLDER}/{docname.rsplit('/', 1)[-1]}/{name}.csv"
        target = Path(app.outdir, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text_of(table), encoding="utf-8")
        up = "../" * docname.count("/")
        place = table.parent.index(table) + 1
        table.parent.insert(place, DataLink(address=up + file, label=caption.astext()))


def text_of(table: nodes.table) -> str:
    """The cells of a table as CSV, headings first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for row in table.findall(nodes.row):
        writer.writerow(" ".join(entry.astext().split()) for entry in row.findall(nodes.entry))
    return stream.getvalue()


def visit_link(translator, node) -> None:
    label = html.escape(node["label"], quote=True)
    translator.body.append(
        f'<p class="table-data"><a href="{node["address"]}" download aria-label="CSV: {label}">CSV</a></p>\n'
    )
    raise nodes.SkipNode

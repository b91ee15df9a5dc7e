"""Formulas as MathML, which browsers draw themselves: a page with formulas then loads no script for them."""

from __future__ import annotations

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def inline(translator, node) -> None:
    translator.body.append(f'<span class="math">{mathml(node)}</span>')
    raise nodes.SkipNode


def block(translator, node) -> None:
    # a wide one scrolls, and then the keyboard must reach it
    reached = {"tabindex": "0", "role": "group", "aria-label": "Formula"}
    translator.body.append(translator.starttag(node, "div", CLASS="math", **reached))
    if node.get("number"):
        translator.body.append(f'<span class="eqno">({node["number"]})</span>')
    translator.body.append(f"{mathml(node, as_block=True)}</div>\n")
    raise nodes.SkipNode


def mathml(node, as_block: bool = False) -> str:
    """The formula of a node; a formula that cannot be converted is a warning of the build, and shown as it stands."""
    text = node.astext()
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:
        logger.warning("formula %r cannot be drawn as MathML: %s", text, error, location=node)
        return f"<code>{html.escape(text)}</code>"

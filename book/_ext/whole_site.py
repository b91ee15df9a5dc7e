"""Parts of the finished site beyond its pages: the preview of a shared link, the foot of a page, a page for wrong
addresses, and no file that no page needs."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from bs4 import BeautifulSoup

ADDRESS = "TINYGEMM_SITE_URL"  # environment variable: where the site will be, from `make publish SITE=...`
CHECKOUT = Path(find_spec("tinygemm").origin).parents[1]  # of the package, wherever the book lies
FIRST = "executed/00_answer"
PREVIEW = "_static/preview.png"
PREVIEW_INCHES, PREVIEW_DPI = (12, 6.3), 100  # 1200 x 630 pixels, the size that shared links show
LONGEST = 300  # characters of a description
ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*vendor/fontawesome/[^"]*\.js[^"]*"></script>')
ICON_FONT = re.compile(r'\s*<link rel="preload"[^>]*fa-(brands|regular)-400[^>]*>')
CHARSET = '<meta charset="utf-8" />'
VIEWPORT = re.compile(r'\s*<meta name="viewport"[^>]*>')
# roles that the theme forgets, or that no browser knows any more
SIDEBAR = 'class="bd-sidebar-primary bd-sidebar'
ROLES = {
    f"<div {SIDEBAR}": f'<div role="complementary" aria-label="Sidebar" {SIDEBAR}',
    ' role="doc-biblioentry"': "",
    '<div role="list" class="citation-list">': '<div class="citation-list">',
}
NEVER_LOADED = ("*.map", "*.ttf", "vendor/fontawesome/*/js/*", "vendor/fontawesome/*/LICENSE*")


@dataclass(frozen=True)
class About:
    """Facts that the site states about itself.

    base:       address of the site, with a slash at its end; "" where it is not known, and links stay relative
    run, date:  id of the run that the pages show, and the day it was measured; "" where no page shows a run
    repository: address of the source; "" where it is not known
    """

    title: str
    author: str
    version: str
    base: str
    run: str
    date: str
    repository: str


def setup(app) -> dict:
    app.connect("build-finished", finish, priority=900)  # when every file is there
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def finish(app, exception) -> None:
    """Complete the pages that were written."""
    if exception or app.builder.format != "html":
        return
    site, source = Path(app.outdir), Path(app.srcdir)
    about = read_about(app.config.html_title or app.config.project, os.environ.get(ADDRESS, ""), source)
    complete(site, about, source / f"{FIRST}.ipynb")


def complete(site: Path, about: About, front: Path) -> None:
    """Complete the site in a folder.

    front: the executed notebook of the front page, whose figure the preview shows; it need not exist
    """
    pages = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if CHARSET in text:  # a page of the theme, whole
            page.write_text(completed(text, page.relative_to(site).as_posix(), about), encoding="utf-8")
    first = site / f"{FIRST}.html"
    if first.is_file():
        found = description(first.read_text(encoding="utf-8"))
        (site / "index.html").write_text(entrance(about, found), encoding="utf-8")
        draw_preview(site / PREVIEW, about, found, front)
    (site / "404.html").write_text(not_found(about), encoding="utf-8")
    if (CHECKOUT / "CITATION.cff").is_file():
        shutil.copy2(CHECKOUT / "CITATION.cff", site / "_static" / "CITATION.cff")
    for pattern in NEVER_LOADED:
        for file in (site / "_static").rglob(pattern):
            file.unlink()
    for figure in (site / "_images").glob("*.svg"):
        figure.write_text(with_its_font(figure.read_text(encoding="utf-8")), encoding="utf-8")


# --- what it is about -----------------------------------------------------------------------------------------------


def read_about(title: str, base: str, source: Path) -> About:
    """From the checkout and the executed notebooks.

    source: folder of the book
    """
    file = CHECKOUT / "CITATION.cff"
    citation = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    author = " and ".join(each.get("name", "") for each in citation.get("authors", []))
    run = run_shown(source / f"{FIRST}.ipynb")
    repository = citation.get("repository-code") or remote()
    if base and not base.endswith("/"):
        base += "/"
    return About(title, author, str(citation.get("version", "")), base, run, run[:10], repository)


def run_shown(notebook: Path) -> str:
    """The id of the run that the front page opened; "" where it does not say."""
    from tinygemm.report.build import run_of

    return Path(run_of(notebook)).name if notebook.is_file() else ""


def remote() -> str:
    """The web address of the checkout's origin, without a user in it; "" where there is none."""
    command = ["git", "-C", str(CHECKOUT), "remote", "get-url", "origin"]
    try:
        url = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    parts = urlsplit(url)
    return f"https://{parts.hostname}{parts.path.removesuffix('.git')}" if parts.scheme == "https" else ""


# --- a page -----------------------------------------------------------------------------------------------------------


def completed(text: str, page: str, about: About) -> str:
    """A page with its description, preview, canonical address and foot, and without scripts that it does not need."""
    text = ICON_SCRIPT.sub("", text)
    text = ICON_FONT.sub(lambda found: found[0] if f"fa-{found[1]} " in text else "", text)
    text = VIEWPORT.sub("", text)
    for wrong, right in ROLES.items():
        text = text.replace(wrong, right)
    title = html.unescape(re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1].strip())
    up = "../" * page.count("/")
    address, picture = (about.base + page, about.base) if about.base else (page.rsplit("/", 1)[-1], up)
    said = description(text) if "<article" in text else title
    head = head_lines(title, said, address, picture + PREVIEW)
    text = text.replace(CHARSET, "\n    ".join([CHARSET, *head]), 1)
    return text.replace('<footer class="bd-footer-content">', f'<footer class="bd-footer-content">{foot(about, up)}', 1)


def head_lines(title: str, said: str, address: str, picture: str) -> list[str]:
    """Lines of a page that search engines and shared links show."""
    shown = {"title": title, "description": said, "type": "article", "url": address, "image": picture}
    shown["image:alt"] = said
    return [
        '<meta name="viewport" content="width=device-width, initial-scale=1" />',
        f'<link rel="canonical" href="{html.escape(address)}" />',
        f'<meta name="description" content="{html.escape(said)}" />',
        *(f'<meta property="og:{name}" content="{html.escape(value)}" />' for name, value in shown.items()),
        '<meta name="twitter:card" content="summary_large_image" />',
    ]


def description(text: str) -> str:
    """The first sentences of a page's article, up to LONGEST characters; its heading where it has no paragraph."""
    article = BeautifulSoup(text[text.index("<article") : text.index("</article>")], "html.parser")
    paragraphs = (" ".join(each.get_text().split()) for each in article.find_all("p"))
    said = next((each for each in paragraphs if len(each) > 20), "")
    if not said and article.h1:
        said = article.h1.get_text().rstrip("#")
    if len(said) <= LONGEST:
        return said
    sentences = re.match(rf".{{40,{LONGEST}}}[.?!](?= )", said)
    return sentences[0] if sentences else said[: LONGEST - 1].rsplit(" ", 1)[0] + "…"


def foot(about: About, up: str) -> str:
    """When, which version, from where, and how to cite."""
    facts = [f"Version {about.version}"] if about.version else []
    facts += [f'measured <time datetime="{about.date}">{about.date}</time>, run {about.run}'] if about.run else []
    links = [f'<a href="{html.escape(about.repository)}">Source</a>'] if about.repository else []
    links += [f'<a href="{up}_static/CITATION.cff" download>Citation file</a>']
    cited = f"{about.author} ({about.date[:4]}). {about.title}" if about.date else f"{about.author}. {about.title}"
    cited += f" Version {about.version}." if about.version else ""
    cited += f" Run {about.run}." if about.run else ""
    line = " · ".join([*facts, *links])
    return f'<div class="about-site"><p>{line}</p><p>Cite as: {html.escape(cited)}</p></div>'


# --- pages of their own -----------------------------------------------------------------------------------------------

PLAIN = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <link rel="icon" href="data:," />
    {head}
    <title>{title}</title>
    <style>
      :root {{ color-scheme: light dark; --ink: #202124; --paper: #fff; --link: #0b57d0; }}
      @media (prefers-color-scheme: dark) {{ :root {{ --ink: #e8eaed; --paper: #14181e; --link: #8ab4f8; }} }}
      html {{ background: var(--paper); color: var(--ink); }}
      a {{ color: var(--link); }}
      body {{ font: 1.1rem/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 34rem; padding: 0 1rem; }}
    </style>
  </head>
  <body>
    <main>
      <h1>{title}</h1>
      {body}
    </main>
  </body>
</html>
"""


def entrance(about: About, said: str) -> str:
    """The first address of the site: a page of its own for search engines, which leads a reader to the answer."""
    first = f"{FIRST}.html"
    head = head_lines(about.title, said, about.base + first, about.base + PREVIEW)
    head += [f'<meta http-equiv="refresh" content="0; url={first}" />']
    body = f'<p>{html.escape(said)}</p>\n      <p><a href="{first}">Read the answer</a></p>'
    return PLAIN.format(head="\n    ".join(head), title=html.escape(about.title), body=body)


def not_found(about: About) -> str:
    """The page of an address that does not exist; it may be shown at any depth, so it needs no other file."""
    root = urlsplit(about.base).path or "/"
    body = f'<p>There is no page at this address. <a href="{root}index.html">Begin at the answer</a>, or '
    body += f'<a href="{root}search.html">search the report</a>.</p>'
    head = ['<meta name="viewport" content="width=device-width, initial-scale=1" />']
    head += ['<meta name="robots" content="noindex" />']
    return PLAIN.format(head="\n    ".join(head), title="Page not found", body=body)


def draw_preview(file: Path, about: About, said: str, front: Path) -> None:
    """The picture of a shared link: the title, the answer, and the figure of the front page where it has one as PNG."""
    import textwrap

    import matplotlib.image
    from matplotlib.figure import Figure

    picture, drawn = Figure(figsize=PREVIEW_INCHES, dpi=PREVIEW_DPI, facecolor="white"), png_of(front)
    picture.text(0.05, 0.9, about.title, size=27, weight="bold", va="top")
    columns, size = (38, 19) if drawn else (68, 23)
    picture.text(0.05, 0.74, textwrap.fill(said, columns), size=size, va="top", linespacing=1.4)
    if drawn:
        axes = picture.add_axes((0.52, 0.05, 0.46, 0.72))
        axes.imshow(matplotlib.image.imread(io.BytesIO(drawn)))
        axes.axis("off")
    if about.run:
        picture.text(0.05, 0.06, f"run {about.run}", size=14, color="#6B7075")
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(file, metadata={"Software": None})


def png_of(notebook: Path) -> bytes:
    """The first PNG among the outputs of an executed notebook; nothing where there is none."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"] if notebook.is_file() else []
    for cell in cells:
        for output in cell.get("outputs", []):
            if drawn := output.get("data", {}).get("image/png"):
                return base64.b64decode("".join(drawn))
    return b""


# --- figures ----------------------------------------------------------------------------------------------------------


def with_its_font(svg: str) -> str:
    """An SVG whose text is text, with the letters it needs of the font it was drawn for: it looks alike everywhere."""
    texts = re.findall(r"<text\b[^>]*>(.*?)</text>", svg, re.DOTALL)
    if not texts or "@font-face" in svg:
        return svg
    letters = html.unescape(re.sub(r"<[^>]*>", "", "".join(texts)))
    weights = ["normal"] + (["bold"] if re.search(r"font: (bold|700)|font-weight: ?(bold|700)", svg) else [])
    faces = "".join(
        f"@font-face{{font-family:'DejaVu Sans';font-weight:{weight};"
        f"src:url(data:font/woff;base64,{subset(weight, frozenset(letters))})}}"
        for weight in weights
    )
    return svg.replace("<defs>", f"<defs>\n  <style>{faces}</style>", 1)


def subset(weight: str, letters: frozenset[str]) -> str:
    """DejaVu Sans with some letters only, as base64 of a WOFF."""
    from fontTools import subset as fonts
    from matplotlib import font_manager

    # it tells of every table, and a warning of the book would drown in that
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight))
    options = fonts.Options(flavor="woff", hinting=False, layout_features=["kern"], desubroutinize=True)
    font = fonts.load_font(path, options)
    subsetter = fonts.Subsetter(options)
    subsetter.populate(text="".join(sorted(letters)))
    subsetter.subset(font)
    stream = io.BytesIO()
    fonts.save_font(font, stream, options)
    return base64.b64encode(stream.getvalue()).decode()

"""The built site as one file: a ZIP with the same bytes for the same pages and its checksum, and a PDF to read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup

from tinygemm import runs
from tinygemm.report.build import FIRST, ROOT

NAME = "tinygemm-report.zip"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PRINT = ("--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=10000")
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first time that a ZIP can hold: an archive does not say when it was packed


def archive(site: Path, folder: Path) -> Path:
    """Pack a built site.

    site:    folder of its pages
    folder:  where the archive and NAME.sha256 are written, as `sha256sum --check` reads it
    returns: the archive
    raises:  FileNotFoundError naming the page that a built site has and this folder lacks
    """
    if not (site / "index.html").is_file():
        raise FileNotFoundError(f"{site / 'index.html'} is missing: build the report first, with `make report`")
    target = folder / NAME
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in sorted(path for path in site.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(site).as_posix(), EARLIEST)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, file.read_bytes())
    target.with_name(f"{NAME}.sha256").write_text(f"{runs.sha256(target)}  {NAME}\n", encoding="utf-8")
    return target


def one_page(site: Path) -> str:
    """All pages of a built site as one page that lies beside the first: in the order of its contents, without scripts.

    Every id gets the name of its page before it, and links between pages lead to places on this page.
    """
    front = site / "executed" / f"{FIRST}.html"
    whole = BeautifulSoup(front.read_text(encoding="utf-8"), "html.parser")
    listed = [urlsplit(link["href"]).path for link in whole.select("nav.bd-links a.internal")]
    pages = list(dict.fromkeys((front.parent / link).resolve() if link else front.resolve() for link in listed))
    main = whole.new_tag("main", attrs={"class": "bd-content"})
    for file in [front.resolve(), *(page for page in pages if page != front.resolve())]:
        article = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").select_one("article")
        article["style"], article["id"] = "break-before: page", file.stem
        for node in article.select("[id]"):
            node["id"] = f"{file.stem}--{node['id']}"
        for node in article.select("[src], [href]"):
            name = "src" if node.has_attr("src") else "href"
            parts = urlsplit(node[name])
            target = (file.parent / parts.path).resolve() if parts.path else file
            if target in pages:
                node[name] = f"#{target.stem}--{parts.fragment}" if parts.fragment else f"#{target.stem}"
            elif not parts.scheme:
                node[name] = os.path.relpath(target, front.parent)
        main.append(article)
    whole.body.clear()
    whole.body.append(main)
    for script in whole.select("script"):
        script.decompose()
    return str(whole)


def pdf(site: Path, folder: Path) -> Path | None:
    """Print a built site into one PDF beside its archive; None where no browser is installed to print it.

    raises: OSError where the browser does not print
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return None
    target, page = (folder / NAME).with_suffix(".pdf"), site / "executed" / "whole.html"
    page.write_text(one_page(site), encoding="utf-8")
    try:
        command = [browser, *PRINT, f"--print-to-pdf={target}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except subprocess.SubprocessError as error:
        raise OSError(f"{browser} did not print the report: {error}") from None
    finally:
        page.unlink()
    return target


def main() -> None:
    """Pack the site of this checkout, and print it where a browser is installed."""
    try:
        print(f"packed {archive(ROOT / '_build' / 'html', ROOT / '_build')}")
        if printed := pdf(ROOT / "_build" / "html", ROOT / "_build"):
            print(f"printed {printed}")
    except OSError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()

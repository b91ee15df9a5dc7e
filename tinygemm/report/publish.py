"""The built site as one file: a ZIP with the same bytes for the same pages, and its checksum beside it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from tinygemm import runs
from tinygemm.report.build import ROOT

NAME = "tinygemm-report.zip"
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


def main() -> None:
    """Pack the site of this checkout."""
    try:
        print(f"packed {archive(ROOT / '_build' / 'html', ROOT / '_build')}")
    except OSError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()

"""The page of the API is written from the docstrings of the source, without importing it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import api_page  # noqa: E402


def test_every_public_name_is_on_the_page_with_its_signature_and_docstring():
    import tinygemm
    from tinygemm.kernel import configs, quant

    page = api_page.page()
    for name in (*tinygemm.__all__, "pack", "LaunchConfig"):
        home = next(place for place in (tinygemm, quant, configs) if hasattr(place, name))
        first = getattr(home, name).__doc__.strip().splitlines()[0]
        assert f"## `{name}`\n" in page
        assert first in page, name
    assert "def gemm(x: torch.Tensor" in page


def test_the_page_needs_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['triton'] = None; import api_page; assert api_page.page()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "book" / "_ext")


def test_a_public_name_without_a_docstring_or_a_definition_is_refused_by_name(tmp_path):
    for file in {file for _, file, _ in api_page.NAMES}:
        text = (api_page.PACKAGE / file).read_text(encoding="utf-8")
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text.replace("def gemm(", "def product(", 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"gemm\.py: gemm of the API page is not defined"):
        api_page.page(tmp_path)
    (tmp_path / "kernel" / "gemm.py").write_text("def gemm(x, w):\n    return x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"gemm\.py:1: gemm is public and has no docstring"):
        api_page.page(tmp_path)

"""The digest of the kernels follows what they compute, and equal machine code carries evidence from one to the next."""

import shutil

import pytest

from tinygemm import digest
from tinygemm.digest import DigestError, definitions, kernel_digest, same_kernels
from tinygemm.harness.machine_code import sections

OLD, MIDDLE, NEW = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def change(tmp_path):
    """Digests (with the H200's table, of the code alone) after a text of a copy of the kernels is replaced."""
    copies = iter(range(100))

    def changed(name, old, new):
        folder = tmp_path / f"kernel{next(copies)}"
        shutil.copytree(digest.KERNEL, folder)
        file = folder / name
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{name} has no {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")
        return kernel_digest("h200", folder), kernel_digest(None, folder)

    return changed


def today():
    return kernel_digest("h200"), kernel_digest()


@pytest.mark.parametrize(("name", "old", "new"), [
    ("triton/splitk.py", "import triton\n", "import triton  # the compiler\nimport os\n"),
    ("triton/pipelined.py", "lane", "thread"),
    ("launches.py", "SHARED_BYTES = 48 * 1024", "SHARED_BYTES = (48\n    * 1024)"),
    ("configs.py", '"""The cut of a kernel into programs.', '"""The programs of a kernel.'),
    ("NOTES.md", "the", "that"),
])  # fmt: skip
def test_words_and_names_of_locals_do_not_change_it(change, name, old, new):
    assert change(name, old, new) == today()


@pytest.mark.parametrize(("name", "old", "new"), [
    ("triton/dequant.py", "0x000f000f", "0x00f000f0"),
    ("triton/tiles.py", "stride_xm", "stride_xk"),
    ("triton/simple.py", "mask=", "other="),
    ("launches.py", "48 * 1024", "47 * 1024"),
    ("configs.py", "max_registers: int = 0", "max_registers: int = 1"),
    ("configs.py", "DEQUANTISE_FROM_M = 64", "DEQUANTISE_FROM_M = 65"),
])  # fmt: skip
def test_a_constant_an_operation_a_default_or_a_parameter_changes_it(change, name, old, new):
    with_table, code = change(name, old, new)
    assert with_table != today()[0]
    assert code != today()[1]


def test_a_table_counts_for_the_gpu_that_it_serves_alone(change):
    retuned = change("configs/h200.json", '"block_n": 16', '"block_n": 32')
    assert retuned[0] != today()[0]
    assert retuned[1] == today()[1], "the sanitizers saw the same code"
    assert change("configs/a10g.json", '"block_n": 16', '"block_n": 32') == today()
    assert kernel_digest("l4") not in today(), "a GPU without a table depends on all of them"


def test_a_definition_moved_to_another_file_is_the_same():
    one, other = "import a\nX = 1\n\ndef f(x):\n    'Text.'\n    y = x + X\n    return y\n", "Y = 2\n"
    moved = ["Y = 2\ndef f(x):\n    z = x + X\n    return z\n", "X = 1\n"]
    assert sorted(definitions([one, other])) == sorted(definitions(moved))


@pytest.mark.parametrize("other", [
    "def f(x, y):\n    a = x\n    b = y\n    return b - a\n",  # the operands swapped
    "def f(x, z):\n    a = x\n    b = z\n    return a - b\n",  # a parameter is a name for callers
    "def f(x, y):\n    a = x\n    b = a\n    return a - b\n",
    "def f(x, y=0):\n    a = x\n    b = y\n    return a - b\n",
])  # fmt: skip
def test_what_a_function_computes_is_told_apart(other):
    one = "def f(x, y):\n    a = x\n    b = y\n    return a - b\n"
    assert list(definitions([one])) != list(definitions([other]))


def test_closures_and_comprehensions_keep_their_meaning():
    one = "def f(n):\n    k = 1\n    def g(i):\n        return i + k\n    return [g(j) for j in range(n)]\n"
    renamed = "def f(n):\n    q = 1\n    def h(i):\n        return i + q\n    return [h(m) for m in range(n)]\n"
    outer = one.replace("i + k", "i + i")
    assert list(definitions([one])) == list(definitions([renamed])) != list(definitions([outer]))


@pytest.fixture
def table(tmp_path):
    def written(*rows, header="old,new,proof"):
        file = tmp_path / f"equivalent{len(list(tmp_path.iterdir()))}.csv"
        file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return file

    return written


def test_evidence_is_carried_over_a_chain_of_renames(table, tmp_path):
    file = table(f"{OLD},{MIDDLE},equal source", f"{MIDDLE},{NEW},equal machine code")
    assert same_kernels(OLD, NEW, file)
    assert same_kernels(NEW, OLD, file)
    assert not same_kernels(OLD, "d" * 64, file)
    assert not same_kernels(None, None, file)
    assert same_kernels(OLD, OLD, tmp_path / "missing.csv")
    assert not same_kernels(OLD, NEW, tmp_path / "missing.csv")


@pytest.mark.parametrize(("row", "words"), [
    (f"{OLD},{NEW},", "line 2: the proof is missing"),
    (f"{OLD},{NEW}", "line 2: the proof is missing"),
    (f"{OLD[:12]},{NEW},equal source", "line 2: old and new must be sha256"),
])  # fmt: skip
def test_a_row_without_proof_is_refused(table, row, words):
    file = table(row)
    with pytest.raises(DigestError, match=words) as error:
        same_kernels(OLD, NEW, file)
    assert str(file) in str(error.value)


def test_other_columns_are_refused(table):
    with pytest.raises(DigestError, match="line 1: the columns must be old, new, proof"):
        same_kernels(OLD, NEW, table(header="before,after,proof"))


def test_the_committed_table_can_be_read():
    if digest.EQUIVALENT.is_file():
        assert digest.equivalents()


def test_sections_of_machine_code_are_read(tmp_path):
    import subprocess

    source, file = tmp_path / "a.c", tmp_path / "a.o"
    source.write_text("int f(int x) { return x * 3 + 1; } int big[4096];\n", encoding="utf-8")
    subprocess.run(["gcc", "-c", "-O1", source, "-o", file], check=True)
    found = dict(sections(file.read_bytes()))
    assert len(found[".text"]) > 3
    assert found[".bss"] == b""
    assert b".text" in found[".shstrtab"]

"""The machine code of launch configs, compared between checkouts. Compiling and interpreting cannot share a process."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from tinygemm import digest
from tinygemm.digest import kernel_digest
from tinygemm.hardware import gpu_spec
from tinygemm.harness import equivalence, machine_code
from tinygemm.harness.equivalence import NotEquivalentError
from tinygemm.kernel.configs import STATIC, table
from tinygemm.runs import load_run, recorded_runs

pytestmark = pytest.mark.aot


@pytest.fixture
def checkout(tmp_path):
    """A repository of one commit that holds this package, its kernels changed by replacing a text."""

    def made(name="", old="", new=""):
        shutil.copytree(digest.KERNEL.parent, tmp_path / "tinygemm", ignore=shutil.ignore_patterns("__pycache__"))
        if name:
            file = tmp_path / "tinygemm" / "kernel" / name
            text = file.read_text(encoding="utf-8")
            assert old in text
            file.write_text(text.replace(old, new), encoding="utf-8")
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "a commit")):
            subprocess.run(("git", *command), cwd=tmp_path, check=True)
        return tmp_path

    return made


@pytest.fixture
def listed(monkeypatch):
    """The checkouts that are compiled; a stand-in for their machine code follows the source of the kernels."""
    compiled = []

    def listing(gpu, folder):
        source = folder / "tinygemm" / "kernel" / "triton" / "dequant.py"
        compiled.append(folder)
        return {"row": str(hash(re.sub(r"#.*", "", source.read_text(encoding="utf-8"))))}

    monkeypatch.setattr(equivalence, "_listing", listing)
    return compiled


def test_equal_source_is_a_proof_without_compiling(checkout, listed):
    evidence = equivalence.prove(
        "HEAD", "a" * 64, "h200", checkout("triton/dequant.py", "import triton", "import  triton")
    )
    assert evidence.old == "a" * 64
    assert evidence.new == kernel_digest("h200")
    assert evidence.proof
    assert not listed


def test_another_operation_is_refused(checkout, listed):
    with pytest.raises(NotEquivalentError, match="compile to other machine code"):
        equivalence.prove("HEAD", "a" * 64, "h200", checkout("triton/dequant.py", "0x000f000f", "0x00f000f0"))
    assert len(listed) == 2


def test_another_table_is_refused(checkout):
    with pytest.raises(NotEquivalentError, match=r"h200\.json has other rows"):
        equivalence.prove("HEAD", "a" * 64, "h200", checkout("configs/h200.json", '"block_n": 16', '"block_n": 32'))


def test_a_case_that_would_run_in_another_config_is_named():
    run = load_run(recorded_runs("h100-80gb-hbm3")[-1])
    assert equivalence.same_choices(run) > 100
    int4 = run.cases["backend"] == "int4"
    changed = run.cases.assign(split_k=run.cases["split_k"].where(~int4, run.cases["split_k"] + 1))
    with pytest.raises(NotEquivalentError, match=r"int4/M1-\S+ was measured in"):
        equivalence.same_choices(replace(run, cases=changed))


def test_a_commit_that_is_not_here_is_named(tmp_path):
    subprocess.run(("git", "init", "-q"), cwd=tmp_path, check=True)
    with pytest.raises(ValueError, match="commit 1234567 cannot be read"):
        equivalence.prove("1234567", "a" * 64, "h200", tmp_path)


def test_what_is_no_commit_never_reaches_git(tmp_path):
    with pytest.raises(ValueError, match="is not the name of a commit"):
        equivalence.prove(f"--output={tmp_path / 'made'}", "a" * 64, "h200", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_row_is_written_once(tmp_path):
    file = tmp_path / "equivalent.csv"
    evidence = equivalence.Evidence("a" * 64, "b" * 64, "commit abc: equal, source")
    assert equivalence.record(evidence, file)
    assert not equivalence.record(evidence, file)
    assert digest.equivalents(file) == (("a" * 64, "b" * 64),)


def test_machine_code_is_the_same_each_time_and_another_for_another_config():
    rows = table("a10g")[0]
    first = next(row for row in rows if row["config"].form == "splitk" and row["M"] == 1)
    static = first | {"config": STATIC}
    codes = [machine_code.machine_code(row, gpu_spec("a10g")) for row in (first, first, static)]
    assert codes[0] == codes[1] != codes[2]

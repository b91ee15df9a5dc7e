"""The environment: one lock, what it must cover, and who must agree with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = ROOT / "requirements.lock.txt"
EXTRAS = ("report", "kernel", "models", "notebook", "test")
NVIDIA = re.compile("^(nvidia-|cuda-)")  # torch itself pins these exactly, and only its CUDA build asks for them


def locked() -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def needed(name: str, extras: tuple[str, ...], seen: dict[str, str]) -> dict[str, str]:
    """Every distribution that `name[extras]` asks for on this machine -> who asks; the absent ask nothing."""
    for text in (metadata.requires(name) if installed(name) else None) or []:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        dependency = canonicalize_name(requirement.name)
        if dependency not in seen and not NVIDIA.match(dependency):
            seen[dependency] = name
            needed(dependency, tuple(requirement.extras), seen)
    return seen


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def test_every_line_of_the_lock_is_one_exact_public_version():
    for name, requirements in locked().items():
        for requirement in requirements:
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{name} is not pinned exactly"
            assert "+" not in specifier.version, (
                f"{name}: a local version ({specifier.version}) exists on one index only"
            )
            assert requirement.url is None


@pytest.mark.parametrize("extra", EXTRAS)
def test_lock_covers_everything_an_extra_installs_in_the_version_installed(extra):
    """The notebook extra is not part of `make test`: of it only what other extras bring along is installed there."""
    pins = locked()
    for name, asked_by in needed("tinygemm", (extra,), {}).items():
        assert name in pins, f"{name} (needed by {asked_by}) is not in the lock"
        applying = [pin for pin in pins[name] if pin.marker is None or pin.marker.evaluate()]
        assert len(applying) == 1, f"{name}: {len(applying)} lines of the lock apply to this Python"
        if version := installed(name):
            assert applying[0].specifier.contains(version), f"{name} {version} is installed"


def test_report_needs_no_torch():
    assert not {"torch", "triton"} & needed("tinygemm", ("report",), {}).keys()


def test_conda_environment_takes_its_versions_from_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    *conda, pip = environment["dependencies"]
    assert "pip" in conda
    (python,) = [item.removeprefix("python=") for item in conda if item.startswith("python=")]
    assert python in {"3.11", "3.12"}, "the lock was resolved for these"
    assert project["requires-python"] == ">=3.11"
    constraint, editable = pip["pip"]
    assert constraint == f"--constraint {LOCK.name}"
    assert editable == f"--editable .[{','.join(EXTRAS)}]"
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"peers"}


def test_no_file_names_a_registry_or_a_machine():
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    machine = re.compile(r"--(extra-)?index-url|--find-links|(^|[\s\"'(=])/(home|root|work|opt|Users)/\w")
    kinds = {".py", ".md", ".yml", ".yaml", ".txt", ".toml", ".ipynb", ".json", ".cff", ""}
    for file in (ROOT / name for name in tracked if not name.startswith("tests/")):
        if file.suffix in kinds and file.is_file():
            for number, line in enumerate(file.read_text(errors="replace", encoding="utf-8").splitlines(), start=1):
                assert not machine.search(line), f"{file.name}:{number}: {line.strip()[:80]}"


@pytest.mark.parametrize(
    "goal", ["report", "test", "times", "test-gpu", "bench", "counters", "check", "headline", "clean"]
)
def test_every_make_target_is_listed_by_make_and_can_be_planned(goal):
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert f"make {goal} " in shown
    subprocess.run(["make", "--dry-run", goal], cwd=ROOT, capture_output=True, check=True)


def test_make_refuses_a_python_that_is_too_old_in_one_sentence(tmp_path):
    old = tmp_path / "python3"  # called with -c CODE: runs it as Python 3.9.2 would see it
    as_old = "import sys; code = sys.argv[1]; sys.version_info = (3, 9, 2); sys.version = '3.9.2 (main)'; exec(code)"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{as_old}" "$2"\n', encoding="utf-8")
    old.chmod(0o755)
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("pyproject.toml", "requirements.lock.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    result = subprocess.run(["make", "report", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed; this is 3.9.2" in result.stderr
    assert not (tmp_path / ".venv" / ".created").exists()


@pytest.mark.parametrize("gpu", [False, True])
def test_pytorch_is_installed_only_to_measure(tmp_path, gpu):
    for name in ("Makefile", "pyproject.toml", "requirements.lock.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + ("echo 'GPU 0: NVIDIA A10G'\n" if gpu else "exit 9\n"), encoding="utf-8")
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for arguments, measures in (([], False), (["PARAMS=notebooks/params/a10g.yaml"], gpu)):
        make = ["make", "--dry-run", "report", *arguments]
        planned = subprocess.run(
            make, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=True
        ).stdout
        assert ("[report,kernel]" in planned) == measures
        assert ("[report]" in planned) != measures
        assert all(argument.removeprefix("PARAMS=") in planned for argument in arguments)


def test_an_interrupted_installation_is_done_again(tmp_path):
    """The stamp of an installation exists only once pip has finished."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / ".venv" / ".created").touch()
    stamp = tmp_path / ".venv" / ".has-report"
    make = ["make", ".venv/.has-report"]

    python.write_text("#!/bin/sh\nexit 130\n", encoding="utf-8")
    python.chmod(0o755)
    assert subprocess.run(make, cwd=tmp_path, capture_output=True).returncode != 0
    assert not stamp.exists()

    python.write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/calls'\n", encoding="utf-8")
    for _ in range(2):
        subprocess.run(make, cwd=tmp_path, capture_output=True, check=True)
    (call,) = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert "--constraint requirements.lock.txt" in call
    assert "[report]" in call
    assert "torch" not in call


def test_ci_runs_the_command_of_the_readme_and_requires_the_browser():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").rstrip().splitlines()[-1] == "TINYGEMM_REQUIRE_BROWSER=1 make test"
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("required", [False, True])
def test_browser_tests_that_are_left_out_are_named_and_fail_where_they_are_required(tmp_path, required):
    (tmp_path / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  browser: x\n  aot: x\n  gpu: x\n", encoding="utf-8")
    (tmp_path / "test_page.py").write_text(
        "import pytest\n\n@pytest.mark.browser\ndef test_page(): pass\n\ndef test_other(): pass\n", encoding="utf-8"
    )
    environment = {"PATH": str(tmp_path), "TINYGEMM_REQUIRE_BROWSER": str(int(required))}
    command = [sys.executable, "-m", "pytest", "-q", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert "test_page.py::test_page" in result.stdout
    if required:
        assert result.returncode == 1
        assert "1 passed, 1 error" in result.stdout
        assert "no browser: none of chromium, chromium-browser, google-chrome is installed" in result.stdout
    else:
        assert result.returncode == 0
        assert "browser tests left out: no Chromium was found" in result.stdout
        assert "1 passed, 1 skipped" in result.stdout

"""Run NVIDIA's compute-sanitizer over the small GPU tests and say in one line per tool what it found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from tinygemm.digest import kernel_digest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "memcheck": "accesses outside of allocated memory",
    "racecheck": "hazards between threads in shared memory",
    "initcheck": "reads of memory that nobody wrote",
    "synccheck": "wrong use of barriers",
}
ONE_ALLOCATION_PER_TENSOR = {"memcheck", "initcheck"}  # inside torch's large blocks they would see no edges
FOUND = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (?:\d+ hazards? displayed \()?(\d+) errors?")


def main() -> int:
    """Run every tool; returns 0 where each ran all tests and found nothing."""
    print(f"{datetime.now(UTC):%Y-%m-%d}, {versions()}", flush=True)
    clean = {tool: watched(tool) for tool in TOOLS}
    return 0 if all(clean.values()) else 1


def watched(tool: str) -> bool:
    """Run the small tests under one tool and print its verdict; the whole report where something was found."""
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool in ONE_ALLOCATION_PER_TENSOR else {})
    try:
        done = subprocess.run(
            [*command, "tests/test_small_gpu.py"], cwd=ROOT, env=environment, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except FileNotFoundError:
        print("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit", flush=True)
        return False
    clean, words = verdict(done.stdout, done.returncode)
    print(f"{tool} ({TOOLS[tool]}): {words}", flush=True)
    if not clean:
        print(done.stdout, flush=True)
    return clean


def verdict(output: str, exit_code: int) -> tuple[bool, str]:
    """Tell whether a run was clean, and say so; one that ran no test, or gave no summary, was not."""
    errors = [int(number) for number in FOUND.findall(output)]
    passed = re.search(r"(\d+) passed", output)
    if not errors:
        return False, f"gave no summary, exit code {exit_code}"
    if sum(errors):
        return False, f"{sum(errors)} errors"
    if exit_code or not passed:
        return False, f"no errors, but the tests did not pass, exit code {exit_code}"
    return True, f"no errors in {passed[1]} tests"


def versions() -> str:
    """The GPU, its driver, and the versions of what takes part."""
    import torch
    import triton

    def said(*command):
        try:
            return subprocess.run(command, capture_output=True, encoding="utf-8").stdout
        except FileNotFoundError:
            return ""

    sanitizer = re.search(r"Version (\S+)", said("compute-sanitizer", "--version"))
    driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{gpu}, driver {driver[0] if driver else 'unknown'}, compute-sanitizer "
        f"{sanitizer[1] if sanitizer else 'unknown'}, torch {torch.__version__}, triton {triton.__version__}, "
        f"kernels {kernel_digest()[:12]}"
    )


if __name__ == "__main__":
    sys.exit(main())

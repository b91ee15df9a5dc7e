"""What a measurement rests on beside the GPU: the versions of what ran, and the kernels themselves."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path


def kernel_digest(suffixes: tuple[str, ...] = ("py", "json")) -> str:
    """sha256 of the kernels, their launchers and launch configs as they lie here: what a run's times are times of.

    suffixes: of the files that count; only "py": the code without launch configs
    """
    folder = Path(__file__).resolve().parent / "kernel"
    files = sorted(path for suffix in suffixes for path in folder.rglob(f"*.{suffix}"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def software_versions() -> dict:
    """Versions that decide what was measured; null where a package or tool is absent."""
    import platform
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "numpy", "pandas", "gemlite", "bitsandbytes", "marlin"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    try:
        import torch

        versions["cuda"] = torch.version.cuda
    except ImportError:
        versions["cuda"] = None
    try:
        command = ["ncu", "--version"]
        output = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
        versions["ncu"] = output.stdout.strip().splitlines()[-1].removeprefix("Version ")
    except (FileNotFoundError, subprocess.CalledProcessError):
        versions["ncu"] = None
    return versions

"""The versions of the software that a measurement rests on."""

from __future__ import annotations

import subprocess


def software_versions() -> dict:
    """Versions that decide what was measured; null where a package or tool is absent."""
    import platform
    from importlib import metadata

    versions: dict[str, str | None] = {"python": platform.python_version()}
    packages = ("torch", "triton", "numpy", "pandas", "gemlite", "bitsandbytes", "marlin", "humming-kernels")
    for package in packages:
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

"""The machine code of every launch config in a GPU's table, as digests: what `tinygemm equivalent` compares.

It runs as a file of its own against any checkout on PYTHONPATH: `python -P machine_code.py GPU`.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

# the names of source files and line numbers would be part of the machine code
ENVIRONMENT = {"TRITON_DISABLE_LINE_INFO": "1"}


def listing(gpu: str) -> dict[str, str]:
    """The digest of the machine code of every row in the table that serves a GPU: {the row in words: sha256}."""
    from tinygemm.hardware import gpu_spec
    from tinygemm.kernel.configs import table

    rows = [(str((row["M"], row["K"], row["N"], row["format"], row["config"])), row) for row in table(gpu)[0]]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        digests = pool.map(machine_code, (row for _, row in rows), [gpu_spec(gpu)] * len(rows), chunksize=8)
        return dict(sorted(zip((words for words, _ in rows), digests, strict=True)))


def machine_code(row: dict, spec) -> str:
    """The sha256 of what one row of a table compiles to on a GPU: code and constants of the kernel that it launches."""
    import torch

    from tinygemm.harness import static_cost
    from tinygemm.problem import GemmProblem

    problem = GemmProblem(row["M"], row["N"], row["K"], row["format"].group_size)
    dtype = torch.float16 if row["format"].half else torch.bfloat16
    compile_launch = static_cost.compile_launch

    def stop_here(launch, arch):
        raise CompiledError(compile_launch(launch, arch).asm["cubin"])

    # every checkout that has the static cost of a config compiles it so; what it counts afterwards is not needed
    static_cost.compile_launch = stop_here
    try:
        static_cost.config_cost(row["config"], problem, spec, row["format"].symmetric, dtype)
    except CompiledError as compiled:
        (cubin,) = compiled.args
    finally:
        static_cost.compile_launch = compile_launch
    digest = hashlib.sha256()
    for name, content in sections(cubin):
        if name.startswith((".text", ".nv.constant", ".nv.global")):
            digest.update(content)
    return digest.hexdigest()


class CompiledError(Exception):
    """The machine code of a launch, as a cubin file."""


def sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section of a 64-bit little-endian ELF file, as the ELF-64 format lays them out."""
    table, entry_size, count, names_index = (
        struct.unpack_from("<Q", elf, 0x28)[0],
        *struct.unpack_from("<HHH", elf, 0x3A),
    )
    headers = [struct.unpack_from("<IIQQQQ", elf, table + index * entry_size) for index in range(count)]
    names = headers[names_index][4]
    for name, kind, _, _, offset, size in headers:
        end = elf.index(b"\0", names + name)
        yield elf[names + name : end].decode(), b"" if kind == NO_BITS else elf[offset : offset + size]


NO_BITS = 8  # a section that takes no space in the file

if __name__ == "__main__":
    json.dump(listing(sys.argv[1]), sys.stdout)

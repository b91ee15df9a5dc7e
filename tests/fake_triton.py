"""Triton's driver without a GPU: kernels that only record how they are launched, in the way of each Triton version."""

from __future__ import annotations

import copy
from types import SimpleNamespace

from tinygemm.kernel import fastpath, launch

STREAM = 77


class CudaLauncher:
    """Stands in for triton.backends.nvidia.driver.CudaLauncher: `launch` is what its C function would be given."""

    launch_cooperative_grid = False
    launch_pdl = True
    global_scratch_size = 0
    profile_scratch_size = 0
    arg_annotations = ("annotations",)
    kernel_signature = b"signature"

    def __init__(self, log):
        self.log = log

    def launch(self, *arguments):
        self.log.append(arguments)


CudaLauncher.__module__ = "triton.backends.nvidia.driver"


class Kernel:
    """A Triton kernel: `kernel[grid](...)` is the ordinary way, whose calls are kept in `ordinary`.

    fail:      raised by the next launch that goes the ordinary way
    specialise: every launch compiles a binary of its own
    """

    def __init__(self):
        self.ordinary, self.short = [], []
        self.run = CudaLauncher(self.short)
        self.binary = SimpleNamespace(run=self.run, function=4711, packed_metadata=(4, 1, 0))
        self.fail: BaseException | None = None
        self.specialise = False

    def __getitem__(self, grid):
        def launched(*arguments, **keywords):
            if self.fail:
                error, self.fail = self.fail, None
                raise error
            self.ordinary.append((grid, arguments, keywords))
            return copy.copy(self.binary) if self.specialise else self.binary

        return launched


def install(monkeypatch, version=(3, 6)) -> None:
    """From here on the CPU counts as the current GPU, and launches go the way of this version of Triton."""
    monkeypatch.setattr(fastpath, "_version", version)
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(fastpath, "current_device", lambda: None)  # the index of torch.device("cpu")
    monkeypatch.setattr(fastpath, "current_stream", lambda index: STREAM)

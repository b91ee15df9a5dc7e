"""What GPUs can do on paper, each peak with its source, and what the GPU in this machine is."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuSpec:
    """One GPU model by its published figures.

    dram_gb_s:        peak DRAM bandwidth, 1e9 bytes/s
    fp16_tflop_s:     dense FP16 tensor-core peak with FP32 accumulation, 1e12 FLOP/s
    l2_bytes:         L2 cache
    smem_per_sm:      shared memory of one SM, bytes
    max_warps_per_sm: resident warps of one SM
    source:           where the figures stand
    """

    key: str
    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    dram_gb_s: float
    fp16_tflop_s: float
    l2_bytes: int
    smem_per_sm: int
    max_warps_per_sm: int
    source: str

    @property
    def arch(self) -> int:
        """Compute capability as the compiler writes it: 86 for 8.6."""
        return self.compute_capability[0] * 10 + self.compute_capability[1]


MIB, KIB = 2**20, 2**10
GPUS = {
    spec.key: spec
    for spec in (
        GpuSpec(
            "h200", "NVIDIA H200", (9, 0), 132, 4800, 989.5, 60 * MIB, 228 * KIB, 64,
            "NVIDIA H200 datasheet, SXM: 4.8 TB/s, 1,979 TFLOP/s FP16 with sparsity, of which dense is half; "
            "SM count and L2: as the CUDA runtime reports them; per SM: NVIDIA Hopper Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "a10g", "NVIDIA A10G", (8, 6), 80, 600, 70, 6 * MIB, 100 * KIB, 48,
            "NVIDIA A10G datasheet as published by AWS (NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf): 80 SMs, "
            "600 GB/s, 70 TFLOP/s FP16 dense, 140 with sparsity (the plain A10 is another chip with 125 dense); "
            "L2: NVIDIA Ampere GA102 whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
    )
}  # fmt: skip


def gpu_key(device_name: str) -> str:
    """The folder name of a GPU in `data/`: `NVIDIA A10G` -> `a10g`, `NVIDIA GeForce RTX 3090` -> `rtx-3090`."""
    words = re.sub(r"[^a-z0-9]+", " ", device_name.lower()).split()
    kept = [word for word in words if word not in ("nvidia", "geforce", "tesla", "gpu", "graphics", "device")]
    if not kept:
        raise ValueError(f"GPU name {device_name!r} has no model in it")
    return "-".join(kept)


def gpu_spec(key: str) -> GpuSpec:
    """The published figures of a GPU; raises ValueError listing the known names."""
    try:
        return GPUS[key]
    except KeyError:
        raise ValueError(f"unknown GPU {key!r}; known: {', '.join(sorted(GPUS))}") from None


def cuda_unavailable_reason() -> str | None:
    """None where a CUDA GPU can be used, otherwise one sentence that says what is missing."""
    try:
        import torch
    except ImportError:
        return "torch is not installed (pip install -e '.[kernel]')"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU in this machine"
    return None


def live_gpu_key() -> str | None:
    """The key of the GPU in this machine, or None without one."""
    if cuda_unavailable_reason():
        return None
    import torch

    return gpu_key(torch.cuda.get_device_name())


def snapshot() -> dict:
    """What this machine's GPU is and how it is set, for the provenance of a run; no host names, no UUIDs."""
    if reason := cuda_unavailable_reason():
        raise RuntimeError(f"no GPU to describe: {reason}")
    import pynvml
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    pynvml.nvmlInit()
    try:
        handle = nvml_handle()
        return {
            "key": gpu_key(properties.name),
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "sm_count": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "power_limit_w": reading_or_none(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            "ecc": reading_or_none(lambda: bool(pynvml.nvmlDeviceGetEccMode(handle)[0])),
            "mig": reading_or_none(lambda: bool(pynvml.nvmlDeviceGetMigMode(handle)[0])),
            "max_sm_clock_mhz": reading_or_none(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "max_mem_clock_mhz": reading_or_none(
                lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
            ),
            "clocks_locked": False,  # this project never locks clocks; the readings per case show what they did
            "driver": reading_or_none(pynvml.nvmlSystemGetDriverVersion),
        }
    finally:
        pynvml.nvmlShutdown()


def nvml_handle():
    """The NVML handle of torch's current device; NVML must be initialised. Found by PCI address, since
    CUDA_VISIBLE_DEVICES renumbers devices for torch but not for NVML."""
    import pynvml
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    address = f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"
    return pynvml.nvmlDeviceGetHandleByPciBusId(address.encode())


def reading_or_none(read):
    """A reading that this GPU or driver does not offer is recorded as null."""
    import pynvml

    try:
        return read()
    except pynvml.NVMLError:
        return None

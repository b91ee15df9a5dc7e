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
    boost_clock_mhz:  SM clock of the published FP32 peak
    inline_ecc:       ECC bits lie in the DRAM itself and are on as delivered, which takes bandwidth from the data
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
    boost_clock_mhz: int
    inline_ecc: bool
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
            "h200", "NVIDIA H200", (9, 0), 132, 4800, 989.5, 60 * MIB, 228 * KIB, 64, 1980, False,
            "NVIDIA H200 datasheet, SXM: 4.8 TB/s, 1,979 TFLOP/s FP16 with sparsity, of which dense is half, 67 "
            "TFLOP/s FP32; SM count, L2 and clock: as the CUDA runtime says; per SM: NVIDIA Hopper Tuning Guide",
        ),
        GpuSpec(
            "h100-80gb-hbm3", "NVIDIA H100 80GB HBM3", (9, 0), 132, 3350, 989.4, 50 * MIB, 228 * KIB, 64, 1980, False,
            "NVIDIA H100 Tensor Core GPU Architecture whitepaper and H100 datasheet, SXM5: 132 SMs, 3.35 TB/s, 50 MB "
            "L2, 989.4 TFLOP/s FP16 dense, 66.9 TFLOP/s FP32, which is 1,980 MHz; per SM: NVIDIA Hopper Tuning Guide",
        ),
        GpuSpec(
            "a100-sxm4-80gb", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 2039, 312, 40 * MIB, 164 * KIB, 64, 1410, False,
            "NVIDIA A100 datasheet, 80GB SXM: 2,039 GB/s, 312 TFLOP/s FP16 dense; 108 SMs, 40 MB L2, 1,410 MHz: NVIDIA "
            "A100 Tensor Core GPU Architecture whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "a100-pcie-40gb", "NVIDIA A100-PCIE-40GB", (8, 0), 108, 1555, 312, 40 * MIB, 164 * KIB, 64, 1410, False,
            "NVIDIA A100 datasheet, 40GB PCIe: 1,555 GB/s, 312 TFLOP/s FP16 dense; 108 SMs, 40 MB L2, 1,410 MHz: "
            "NVIDIA A100 Tensor Core GPU Architecture whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "a10g", "NVIDIA A10G", (8, 6), 80, 600, 70, 6 * MIB, 100 * KIB, 48, 1710, True,
            "NVIDIA A10G datasheet as published by AWS (NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf): 80 SMs, "
            "600 GB/s, 70 TFLOP/s FP16 dense, 140 with sparsity (the plain A10 is another chip with 125 dense), "
            "35 TFLOP/s FP32, which is 1,710 MHz; L2: NVIDIA Ampere GA102 whitepaper; per SM: NVIDIA Ampere Tuning "
            "Guide, Occupancy",
        ),
        GpuSpec(
            "a10", "NVIDIA A10", (8, 6), 72, 600, 125, 6 * MIB, 100 * KIB, 48, 1695, True,
            "NVIDIA A10 datasheet: 600 GB/s, 125 TFLOP/s FP16 dense, 31.2 TFLOP/s FP32, which is 72 SMs at 1,695 MHz; "
            "L2: NVIDIA Ampere GA102 whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "rtx-3090", "NVIDIA GeForce RTX 3090", (8, 6), 82, 936, 71, 6 * MIB, 100 * KIB, 48, 1695, False,
            "NVIDIA Ampere GA102 whitepaper, appendix A: 82 SMs, 936 GB/s, 71 TFLOP/s FP16 dense with FP32 "
            "accumulation, 6 MB L2, 1,695 MHz; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "rtx-4090", "NVIDIA GeForce RTX 4090", (8, 9), 128, 1008, 165.2, 72 * MIB, 100 * KIB, 48, 2520, False,
            "NVIDIA Ada GPU Architecture whitepaper, appendix A: 128 SMs, 1,008 GB/s, 165.2 TFLOP/s FP16 dense with "
            "FP32 accumulation, 72 MB L2, 2,520 MHz; per SM: NVIDIA Ada Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "l4", "NVIDIA L4", (8, 9), 58, 300, 121, 48 * MIB, 100 * KIB, 48, 2040, True,
            "NVIDIA L4 datasheet: 300 GB/s, 242 TFLOP/s FP16 with sparsity, of which dense is half, 30.3 TFLOP/s FP32, "
            "which is 58 SMs (7,424 CUDA cores) at 2,040 MHz; 48 MB L2: NVIDIA Ada GPU Architecture whitepaper, AD104; "
            "per SM: NVIDIA Ada Tuning Guide, Occupancy",
        ),
    )
}  # fmt: skip
# what people say; a recorded run and a table of configs carry the full key
ALIASES = {
    "a100": "a100-sxm4-80gb",
    "h100": "h100-80gb-hbm3",
    "h100-sxm": "h100-80gb-hbm3",
    "3090": "rtx-3090",
    "4090": "rtx-4090",
}


def gpu_key(device_name: str) -> str:
    """The folder name of a GPU in `data/`: `NVIDIA A10G` -> `a10g`, `NVIDIA GeForce RTX 3090` -> `rtx-3090`."""
    words = re.sub(r"[^a-z0-9]+", " ", device_name.lower()).split()
    kept = [word for word in words if word not in ("nvidia", "geforce", "tesla", "gpu", "graphics", "device")]
    if not kept:
        raise ValueError(f"GPU name {device_name!r} has no model in it")
    return "-".join(kept)


def gpu_spec(key: str) -> GpuSpec:
    """The published figures of a GPU by its key, an alias such as `h100`, or its full name.

    raises: ValueError listing the known names
    """
    word = key.strip().lower()
    for candidate in (word, ALIASES.get(word), gpu_key(word) if word else None):
        if candidate in GPUS:
            return GPUS[candidate]
    raise ValueError(f"unknown GPU {key!r}; known: {', '.join(sorted({*GPUS, *ALIASES}))}")


def full_key(said: str) -> str:
    """The key that an alias or a full name stands for; what is not known stays as it is, such as `auto`."""
    try:
        return gpu_spec(str(said)).key
    except ValueError:
        return str(said)


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

"""The peaks of GPUs on paper, each with its source, and the GPU in this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuSpec:
    """One GPU model by its published figures.

    memory_gb:        DRAM as it is sold, 1e9 bytes
    dram_gb_s:        peak DRAM bandwidth, 1e9 bytes/s
    fp16_tflop_s:     dense FP16 tensor-core peak with FP32 accumulation, 1e12 FLOP/s
    l2_bytes:         L2 cache
    smem_per_sm:      shared memory of one SM, bytes
    max_warps_per_sm: resident warps of one SM
    boost_clock_mhz:  SM clock of the published FP32 peak
    inline_ecc:       ECC bits lie in the DRAM itself and are on as delivered, which takes bandwidth from the data
    source:           where the figures stand
    also:             words that people add to the name and that are not in the key
    needs:            words without which no name means it; none: the word of the key that no other model has
    """

    key: str
    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    memory_gb: float
    dram_gb_s: float
    fp16_tflop_s: float
    l2_bytes: int
    smem_per_sm: int
    max_warps_per_sm: int
    boost_clock_mhz: int
    inline_ecc: bool
    source: str
    also: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The word of the key that no other model has: a100, 4090."""
        return next(word for word in self.key.split("-") if re.search(r"\d", word))

    @property
    def obstacle(self) -> str | None:
        """A sentence on why the INT4 kernels do not run on this GPU; None: they do."""
        if self.compute_capability >= OLDEST:
            return None
        here, least = (".".join(map(str, version)) for version in (self.compute_capability, OLDEST))
        return f"{self.name} has no cp.async: its compute capability is {here}, and the INT4 kernels need {least}"

    @property
    def words(self) -> frozenset[str]:
        """Words that its names are made of."""
        return frozenset((*self.key.split("-"), f"{self.memory_gb:g}gb", *self.also))

    @property
    def arch(self) -> int:
        """Compute capability as the compiler writes it: 86 for 8.6."""
        return self.compute_capability[0] * 10 + self.compute_capability[1]


MIB, KIB = 2**20, 2**10
GPUS = {
    spec.key: spec
    for spec in (
        GpuSpec(
            "h200", "NVIDIA H200", (9, 0), 132, 141, 4800, 989.5, 60 * MIB, 228 * KIB, 64, 1980, False,
            "NVIDIA H200 datasheet, SXM: 141 GB, 4.8 TB/s, 1,979 TFLOP/s FP16 with sparsity, of which dense is half, "
            "67 TFLOP/s FP32; SM count, L2 and clock: as the CUDA runtime says; per SM: NVIDIA Hopper Tuning Guide",
            ("sxm", "sxm5", "hbm3e"),
        ),
        GpuSpec(
            "h100-80gb-hbm3", "NVIDIA H100 80GB HBM3", (9, 0), 132, 80, 3350, 989.4, 50 * MIB, 228 * KIB, 64, 1980,
            False,
            "NVIDIA H100 Tensor Core GPU Architecture whitepaper and H100 datasheet, SXM5: 132 SMs, 3.35 TB/s, 50 MB "
            "L2, 989.4 TFLOP/s FP16 dense, 66.9 TFLOP/s FP32, which is 1,980 MHz; per SM: NVIDIA Hopper Tuning Guide",
            ("sxm", "sxm5"),
        ),
        GpuSpec(
            "a100-sxm4-80gb", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 80, 2039, 312, 40 * MIB, 164 * KIB, 64, 1410, False,
            "NVIDIA A100 datasheet, 80GB SXM: 2,039 GB/s, 312 TFLOP/s FP16 dense; 108 SMs, 40 MB L2, 1,410 MHz: NVIDIA "
            "A100 Tensor Core GPU Architecture whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
            ("sxm", "hbm2e"),
        ),
        GpuSpec(
            "a100-pcie-40gb", "NVIDIA A100-PCIE-40GB", (8, 0), 108, 40, 1555, 312, 40 * MIB, 164 * KIB, 64, 1410, False,
            "NVIDIA A100 datasheet, 40GB PCIe: 1,555 GB/s, 312 TFLOP/s FP16 dense; 108 SMs, 40 MB L2, 1,410 MHz: "
            "NVIDIA A100 Tensor Core GPU Architecture whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "a10g", "NVIDIA A10G", (8, 6), 80, 24, 600, 70, 6 * MIB, 100 * KIB, 48, 1710, True,
            "NVIDIA A10G datasheet as published by AWS (NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf): 80 SMs, "
            "24 GB, 600 GB/s, 70 TFLOP/s FP16 dense, 140 with sparsity (the plain A10 is another chip with 125 dense), "
            "35 TFLOP/s FP32, which is 1,710 MHz; L2: NVIDIA Ampere GA102 whitepaper; per SM: NVIDIA Ampere Tuning "
            "Guide, Occupancy",
        ),
        GpuSpec(
            "a10", "NVIDIA A10", (8, 6), 72, 24, 600, 125, 6 * MIB, 100 * KIB, 48, 1695, True,
            "NVIDIA A10 datasheet: 24 GB, 600 GB/s, 125 TFLOP/s FP16 dense, 31.2 TFLOP/s FP32, which is 72 SMs at "
            "1,695 MHz; L2: NVIDIA Ampere GA102 whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
            ("pcie",),
        ),
        GpuSpec(
            "rtx-3090", "NVIDIA GeForce RTX 3090", (8, 6), 82, 24, 936, 71, 6 * MIB, 100 * KIB, 48, 1695, False,
            "NVIDIA Ampere GA102 whitepaper, appendix A: 82 SMs, 24 GB, 936 GB/s, 71 TFLOP/s FP16 dense with FP32 "
            "accumulation, 6 MB L2, 1,695 MHz; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "rtx-4090", "NVIDIA GeForce RTX 4090", (8, 9), 128, 24, 1008, 165.2, 72 * MIB, 100 * KIB, 48, 2520, False,
            "NVIDIA Ada GPU Architecture whitepaper, appendix A: 128 SMs, 24 GB, 1,008 GB/s, 165.2 TFLOP/s FP16 dense "
            "with FP32 accumulation, 72 MB L2, 2,520 MHz; per SM: NVIDIA Ada Tuning Guide, Occupancy",
        ),
        GpuSpec(
            "l4", "NVIDIA L4", (8, 9), 58, 24, 300, 121, 48 * MIB, 100 * KIB, 48, 2040, True,
            "NVIDIA L4 datasheet: 24 GB, 300 GB/s, 242 TFLOP/s FP16 with sparsity, of which dense is half, 30.3 "
            "TFLOP/s FP32, which is 58 SMs (7,424 CUDA cores) at 2,040 MHz; 48 MB L2: NVIDIA Ada GPU Architecture "
            "whitepaper, AD104; per SM: NVIDIA Ada Tuning Guide, Occupancy",
            ("pcie",),
        ),
        GpuSpec(
            "a100-sxm4-40gb", "NVIDIA A100-SXM4-40GB", (8, 0), 108, 40, 1555, 312, 40 * MIB, 164 * KIB, 64, 1410, False,
            "NVIDIA A100 Tensor Core GPU Architecture whitepaper, 40GB SXM4: 1,555 GB/s, 312 TFLOP/s FP16 dense, 108 "
            "SMs, 40 MB L2, 1,410 MHz; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
            ("sxm",),
        ),
        GpuSpec(
            "a100-80gb-pcie", "NVIDIA A100 80GB PCIe", (8, 0), 108, 80, 1935, 312, 40 * MIB, 164 * KIB, 64, 1410, False,
            "NVIDIA A100 datasheet, 80GB PCIe: 1,935 GB/s, 312 TFLOP/s FP16 dense; 108 SMs, 40 MB L2, 1,410 MHz: "
            "NVIDIA A100 Tensor Core GPU Architecture whitepaper; per SM: NVIDIA Ampere Tuning Guide, Occupancy",
            ("hbm2e",),
        ),
        GpuSpec(
            "h100-pcie", "NVIDIA H100 PCIe", (9, 0), 114, 80, 2000, 756.5, 50 * MIB, 228 * KIB, 64, 1755, False,
            "NVIDIA H100 PCIe product brief PB-11133: more than 2,000 GB/s; H100 datasheet, PCIe: 1,513 TFLOP/s FP16 "
            "with sparsity, of which dense is half, 51 TFLOP/s FP32; 114 SMs, 50 MB L2, 1,755 MHz: NVIDIA H100 Tensor "
            "Core GPU Architecture whitepaper; per SM: NVIDIA Hopper Tuning Guide",
            ("hbm2e",),
        ),
        GpuSpec(
            "h100-nvl", "NVIDIA H100 NVL", (9, 0), 132, 94, 3938, 835.5, 50 * MIB, 228 * KIB, 64, 1785, False,
            "NVIDIA H100 NVL product brief PB-11773: 94 GB, 3,938 GB/s, 1,785 MHz; H100 datasheet, NVL: 1,671 TFLOP/s "
            "FP16 with sparsity, of which dense is half, 60 TFLOP/s FP32, which is 132 SMs; L2: as of the H100 SXM5; "
            "per SM: NVIDIA Hopper Tuning Guide",
            ("hbm3",),
        ),
        GpuSpec(
            "h200-nvl", "NVIDIA H200 NVL", (9, 0), 132, 141, 4800, 835.5, 60 * MIB, 228 * KIB, 64, 1785, False,
            "NVIDIA H200 datasheet, NVL: 141 GB, 4.8 TB/s, 1,671 TFLOP/s FP16 with sparsity, of which dense is half, "
            "60 TFLOP/s FP32, which is 132 SMs at 1,785 MHz; L2: as of the H200 SXM; per SM: NVIDIA Hopper Tuning "
            "Guide",
            ("hbm3e",),
        ),
        GpuSpec(
            "gh200-480gb", "NVIDIA GH200 480GB", (9, 0), 132, 96, 4000, 989.5, 60 * MIB, 228 * KIB, 64, 1980, False,
            "NVIDIA GH200 Grace Hopper Superchip datasheet, HBM3: 96 GB and 4 TB/s (480 GB are of the CPU), 1,979 "
            "TFLOP/s FP16 with sparsity, of which dense is half, 67 TFLOP/s FP32, which is 132 SMs at 1,980 MHz; L2: "
            "as of the H200; per SM: NVIDIA Hopper Tuning Guide",
            ("grace", "hopper", "superchip", "hbm3"),
        ),
        GpuSpec(
            "h20", "NVIDIA H20", (9, 0), 78, 96, 4000, 148, 60 * MIB, 228 * KIB, 64, 1980, False,
            "NVIDIA H20 datasheet: 96 GB HBM3, 4.0 TB/s, 148 TFLOP/s FP16 dense, 44 TFLOP/s FP32, 60 MB L2; 78 SMs and "
            "1,980 MHz: as its users list them, which is 39.5 TFLOP/s FP32; per SM: NVIDIA Hopper Tuning Guide",
            ("hbm3",),
        ),
        GpuSpec(
            "l40s", "NVIDIA L40S", (8, 9), 142, 48, 864, 362.1, 96 * MIB, 100 * KIB, 48, 2520, True,
            "NVIDIA L40S datasheet: 48 GB GDDR6 with ECC, 864 GB/s, 362.05 TFLOP/s FP16 dense, 91.6 TFLOP/s FP32, "
            "which is 142 SMs at 2,520 MHz; 96 MB L2: NVIDIA Ada GPU Architecture whitepaper, AD102; per SM: NVIDIA "
            "Ada Tuning Guide, Occupancy",
            ("pcie",),
        ),
        GpuSpec(
            "t4", "Tesla T4", (7, 5), 40, 16, 320, 65, 4 * MIB, 64 * KIB, 32, 1590, True,
            "NVIDIA T4 datasheet: 16 GB GDDR6 with ECC, 320 GB/s, 65 TFLOP/s FP16, 8.1 TFLOP/s FP32; 40 SMs, 4 MB L2, "
            "1,590 MHz: NVIDIA Turing GPU Architecture whitepaper, appendix; per SM: NVIDIA Turing Tuning Guide",
            ("pcie",),
        ),
        GpuSpec(
            "rtx-5090", "NVIDIA GeForce RTX 5090", (12, 0), 170, 32, 1792, 209.5, 96 * MIB, 100 * KIB, 48, 2407, False,
            "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A: 170 SMs, 32 GB, 1,792 GB/s, 209.5 TFLOP/s "
            "FP16 dense with FP32 accumulation, 96 MB L2, 2,407 MHz; per SM: CUDA C++ Programming Guide, 12.0",
            ("gddr7",),
        ),
        GpuSpec(
            "rtx-pro-6000-blackwell-workstation-edition", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0),
            188, 96, 1792, 503.8, 128 * MIB, 100 * KIB, 48, 2617, False,
            "NVIDIA RTX Blackwell PRO GPU Architecture whitepaper: 188 SMs, 96 GB, 1,792 GB/s, 503.8 TFLOP/s FP16 "
            "dense, 128 MB L2, 126 TFLOP/s FP32, which is 2,617 MHz; its ECC is taken to cost no bandwidth; per SM: "
            "CUDA C++ Programming Guide, 12.0",
            ("gddr7",), ("pro", "6000"),
        ),
        GpuSpec(
            "b200", "NVIDIA B200", (10, 0), 148, 180, 8000, 2250, 126 * MIB, 228 * KIB, 64, 1965, False,
            "NVIDIA HGX B200 datasheet, one of eight GPUs: 180 GB, 8 TB/s, 4.5 PFLOP/s FP16 with sparsity, of which "
            "dense is half, 75 TFLOP/s FP32, which is 148 SMs at 1,965 MHz; L2: as the CUDA runtime says; per SM: CUDA "
            "C++ Programming Guide, 10.0",
            ("hbm3e", "sxm", "sxm6", "hgx", "192gb"),
        ),
    )
}  # fmt: skip
# the ones that are meant by a name that fits several, the first of them that it fits
MEANT = ("a100-sxm4-80gb", "a100-sxm4-40gb", "h100-80gb-hbm3", "h200")
OLDEST = (8, 0)  # the first compute capability with cp.async, by which the kernels load their weights
NO_MODEL = ("nvidia", "geforce", "tesla", "gpu", "graphics", "device")  # words of a name that tell no GPU from another
FILLERS = frozenset((*NO_MODEL, "tensor", "core", "card"))


def gpu_key(device_name: str, capability: tuple[int, int] | None = None) -> str:
    """The folder name of a GPU in `data/`: `NVIDIA A10G` -> `a10g`, `NVIDIA GeForce RTX 3090` -> `rtx-3090`.

    Every name has a key, known here or not, and a slice of a GPU another one than the GPU: `h100-...-mig-1g-10gb`.

    capability: tells apart GPUs whose name has no model in it, as before a release: `nvidia-graphics-device-sm120`
    """
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    if kept := [word for word in words if word not in NO_MODEL and not re.fullmatch(r"sm\d+", word)]:
        return "-".join(kept)
    return "-".join([*(words or ["gpu"]), *([f"sm{capability[0]}{capability[1]}"] if capability else [])])


def find_gpu(said: str) -> GpuSpec | None:
    """The GPU that a key, its full name or what people type stands for, such as `A100 80GB` or `rtx4090`.

    None where it fits none, or several of which none is MEANT, and where a word is left over: an `RTX 3090 Ti` is
    another GPU.
    """
    words, fits = _fits(said)
    meant = {spec.key: spec for spec in fits if frozenset(spec.needs or (spec.model,)) <= words}
    keys = meant if len(meant) == 1 else filter(meant.__contains__, MEANT)
    return meant.get(next(iter(keys), ""))


def gpu_spec(said: str) -> GpuSpec:
    """The published figures of a GPU, named as `find_gpu` understands it.

    raises: ValueError listing the known keys, the closest first
    """
    if (spec := find_gpu(said)) is None:
        fits, compact = _fits(said)[1], _compact(said)

        def distance(spec: GpuSpec) -> tuple:
            alike = difflib.SequenceMatcher(None, compact, _compact(spec.key)).ratio()
            return spec not in fits, spec.model not in compact, -alike

        known = ", ".join(spec.key for spec in sorted(GPUS.values(), key=distance))
        raise ValueError(f"{'ambiguous' if len(fits) > 1 else 'unknown'} GPU {said!r}; known: {known}")
    return spec


def full_key(said: str) -> str:
    """The key that a name stands for; of a GPU that is not known here, the key that it would have. `auto` stays."""
    spec = find_gpu(str(said))
    return spec.key if spec else gpu_key(str(said))


def _fits(said: str) -> tuple[frozenset[str], list[GpuSpec]]:
    """The words that somebody named a GPU by, and the known GPUs whose names have all of them."""
    vocabulary = sorted(FILLERS.union(*(spec.words for spec in GPUS.values())), key=len, reverse=True)
    words = frozenset(_split(_compact(said), vocabulary) or ()) - FILLERS
    return words, [spec for spec in GPUS.values() if words and words <= spec.words]


def _split(compact: str, vocabulary: list[str]) -> list[str] | None:
    """A name without blanks as words of a vocabulary, since people leave out blanks; None where something is left."""
    if not compact:
        return []
    for word in vocabulary:
        if compact.startswith(word) and (rest := _split(compact[len(word) :], vocabulary)) is not None:
            return [word, *rest]
    return None


def _compact(said: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", said.lower())


def compute_capability(key: str) -> tuple[int, int] | None:
    """The compute capability of a known GPU, of a slice of one, or of an unknown GPU in this machine; else None."""
    if (whole := key.partition("-mig-")[0]) in GPUS:
        return GPUS[whole].compute_capability
    if cuda_unavailable_reason():
        return None
    import torch

    here = {device_key(index): torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return here.get(key)


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
    return device_key()


def device_key(device=None) -> str:
    """The key of a CUDA device of torch; None: the current one."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if device is None else device)
    return gpu_key(properties.name, (properties.major, properties.minor))


def snapshot() -> dict:
    """The GPU of this machine and its settings, for the provenance of a run; no host names, no UUIDs."""
    if reason := cuda_unavailable_reason():
        raise RuntimeError(f"no GPU to describe: {reason}")
    import pynvml
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    pynvml.nvmlInit()
    try:
        handle = nvml_handle()
        return {
            "key": device_key(),
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

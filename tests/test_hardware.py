"""GPUs by name: names that torch reports and people type lead to the right figures, and to no other's."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from tinygemm import hardware
from tinygemm.hardware import GPUS, MEANT, GpuSpec, compute_capability, find_gpu, full_key, gpu_key, gpu_spec

# FP32 multiply-adds per SM and clock, tuning guides
FP32_LANES = {(7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (12, 0): 128}
FP32_TFLOP_S = {
    "h200": 67, "h100-80gb-hbm3": 66.9, "a100-sxm4-80gb": 19.5, "a100-pcie-40gb": 19.5, "a10g": 35, "a10": 31.2,
    "rtx-3090": 35.6, "rtx-4090": 82.6, "l4": 30.3, "a100-sxm4-40gb": 19.5, "a100-80gb-pcie": 19.5, "h100-pcie": 51,
    "h100-nvl": 60, "h200-nvl": 60, "gh200-480gb": 67, "l40s": 91.6, "t4": 8.1, "rtx-5090": 104.8,
    "rtx-pro-6000-blackwell-workstation-edition": 126, "b200": 75,
}  # fmt: skip
PEAKS = {  # GB/s of DRAM, dense FP16 TFLOP/s, MiB of L2: typed once more from the sources that the specs cite
    "h200": (4800, 989.5, 60), "h100-80gb-hbm3": (3350, 989.4, 50), "a100-sxm4-80gb": (2039, 312, 40),
    "a100-pcie-40gb": (1555, 312, 40), "a10g": (600, 70, 6), "a10": (600, 125, 6), "rtx-3090": (936, 71, 6),
    "rtx-4090": (1008, 165.2, 72), "l4": (300, 121, 48), "a100-sxm4-40gb": (1555, 312, 40),
    "a100-80gb-pcie": (1935, 312, 40), "h100-pcie": (2000, 756.5, 50), "h100-nvl": (3938, 835.5, 50),
    "h200-nvl": (4800, 835.5, 60), "gh200-480gb": (4000, 989.5, 60), "h20": (4000, 148, 60), "l40s": (864, 362.1, 96),
    "t4": (320, 65, 4), "rtx-5090": (1792, 209.5, 96),
    "rtx-pro-6000-blackwell-workstation-edition": (1792, 503.8, 128), "b200": (8000, 2250, 126),
}  # fmt: skip


def test_every_peak_is_that_of_its_source():
    assert {key: (spec.dram_gb_s, spec.fp16_tflop_s, spec.l2_bytes / 2**20) for key, spec in GPUS.items()} == PEAKS


@pytest.mark.parametrize("spec", GPUS.values(), ids=GPUS)
def test_the_name_that_torch_reports_leads_to_the_figures(spec):
    assert gpu_key(spec.name) == spec.key
    assert gpu_spec(spec.key) == gpu_spec(spec.name) == spec


@pytest.mark.parametrize(("said", "key"), [("a100", "a100-sxm4-80gb"), ("H100", "h100-80gb-hbm3"), (" L4 ", "l4")])
def test_the_usual_one_is_meant_by_the_name_of_several(said, key):
    assert gpu_spec(said).key == key
    assert set(MEANT) <= set(GPUS)


def test_a_name_is_spelled_out_where_it_is_known_and_left_alone_where_not():
    assert full_key("h100") == full_key("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert [full_key(said) for said in ("auto", "a10g", "h1000")] == ["auto", "a10g", "h1000"]


TYPED = {
    "h200": ("H200", "h200 sxm", "H200 141GB", "NVIDIA H200 Tensor Core GPU", "H200 SXM5 141 GB HBM3e"),
    "h100-80gb-hbm3": ("h100", "h100 sxm", "H100 SXM5", "H100 80GB", "h100_sxm5_80gb", "H100 SXM 80 GB HBM3"),
    "a100-sxm4-80gb": ("a100", "A100 80GB", "A100-SXM", "a100 sxm4", "A100 SXM4 80 GB", "Tesla A100 80gb"),
    "a100-sxm4-40gb": ("A100 40GB", "A100 SXM 40GB", "a100-sxm4 40gb"),
    "a100-pcie-40gb": ("A100_PCIe_40GB", "a100pcie40gb", "A100 40GB PCIe"),
    "a100-80gb-pcie": ("A100 PCIe 80GB", "NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
    "h100-pcie": ("H100 PCIe", "h100 pcie 80gb", "H100-PCIe"),
    "h100-nvl": ("H100 NVL", "H100 NVL 94GB", "h100nvl"),
    "h200-nvl": ("H200 NVL", "NVIDIA H200 NVL", "h200-nvl 141gb"),
    "gh200-480gb": ("GH200", "gh200 96gb", "Grace Hopper GH200", "GH200 Grace Hopper Superchip"),
    "h20": ("H20", "NVIDIA H20", "h20 96gb"),
    "l40s": ("L40S", "l40s 48GB", "NVIDIA L40S"),
    "t4": ("T4", "Tesla T4", "NVIDIA T4 16GB"),
    "rtx-5090": ("RTX 5090", "5090", "GeForce RTX 5090 32GB"),
    "rtx-pro-6000-blackwell-workstation-edition": ("RTX PRO 6000", "RTX PRO 6000 Blackwell", "rtx-pro-6000 96gb"),
    "b200": ("B200", "NVIDIA B200", "B200 180GB", "B200 192GB", "HGX B200"),
    "a10g": ("A10G", "NVIDIA A10G", "a10g 24gb", "A10G-24GB", "NVIDIA A10G Tensor Core GPU"),
    "a10": ("A10", "a10", "nvidia a10", "A10 24GB", "A10-PCIe"),
    "rtx-3090": ("RTX3090", "rtx 3090", "3090", "GeForce RTX 3090", "geforce_rtx_3090", "RTX-3090 24GB"),
    "rtx-4090": ("RTX4090", "rtx 4090", "4090", "GeForce RTX 4090", "nvidia rtx4090", "RTX_4090 graphics card"),
    "l4": ("L4", "l4", "L4 24GB", "NVIDIA L4", "nvidia-l4", "Tesla L4 GPU"),
}
SPELLINGS = (str.lower, str.upper, str.title, lambda name: name.replace(" ", "-"), lambda name: name.replace(" ", "_"),
             lambda name: name.replace(" ", ""), lambda name: f"  {name} ")  # fmt: skip
# other GPUs than any that is known here, most of them one word away from one that is
OTHERS = (
    "H100 SXM2", "H100 PCIe NVL", "H200 PCIe", "NVIDIA GH200 144G HBM3e", "GB200", "B100", "B300",
    "NVIDIA H100 64GB HBM2", "a100 pcie", "A100 96GB", "A100X",
    "A10M", "A10G-8Q", "A16", "A30", "A40", "L40", "L20", "L40G", "H20 141GB", "H2",
    "RTX 3090 Ti", "NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5090 Laptop GPU", "NVIDIA GeForce RTX 5090 D", "RTX 4080", "RTX 5080", "RTX 6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA RTX PRO 5000 Blackwell", "RTX PRO", "Quadro RTX 6000", "T400", "T4G", "Tesla V100-SXM2-16GB",
    "NVIDIA Graphics Device", "h1000", "a100 h100", "sxm", "40GB", "hbm3", "NVIDIA", "GPU", "", " ",
    "NVIDIA RTX 6000 Ada Generation", "Radeon 7900",
)  # fmt: skip
SLICES = ("MIG 1g.10gb", "MIG 1g.10gb+me", "MIG 2g.20gb", "MIG 3g.40gb", "MIG 7g.80gb", "MIG 1g.5gb")


@pytest.mark.parametrize("key", TYPED)
def test_what_people_type_leads_to_the_gpu_in_every_spelling(key):
    names = [*TYPED[key], key, GPUS[key].name]
    for said in [*names, *(spell(name) for name in names for spell in SPELLINGS)]:
        assert gpu_spec(said).key == full_key(said) == key, said


def test_every_known_gpu_has_names_that_people_type():
    assert set(TYPED) == set(GPUS)


@pytest.mark.parametrize("said", OTHERS)
def test_a_gpu_is_never_taken_for_one_that_is_known(said):
    """Refused in one sentence that lists the known keys, and it has a key of its own, which is a folder's name."""
    assert find_gpu(said) is None
    with pytest.raises(ValueError, match="GPU") as refused:
        gpu_spec(said)
    text = str(refused.value)
    assert repr(said) in text
    assert "\n" not in text
    assert set(text.partition("known: ")[2].split(", ")) == set(GPUS)
    assert gpu_key(said) not in GPUS
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", gpu_key(said))


@pytest.mark.parametrize(
    ("said", "close"),
    [
        ("H100 SXM2", ["h100-80gb-hbm3", "h100-pcie", "h100-nvl"]),
        ("GB200", ["b200"]),
        ("L40", ["l4", "l40s"]),
        ("a100 pcie", ["a100-pcie-40gb", "a100-80gb-pcie"]),
        ("rtx 4080", ["rtx-4090"]),
        ("rtx", ["rtx-3090", "rtx-4090", "rtx-5090", "rtx-pro-6000-blackwell-workstation-edition"]),
        ("3090 Ti", ["rtx-3090"]),
        ("24 GB", ["a10", "a10g", "l4", "rtx-3090", "rtx-4090"]),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", ["h100-80gb-hbm3"]),
    ],
)
def test_the_closest_known_gpus_are_named_first(said, close):
    with pytest.raises(ValueError, match="known: ") as refused:
        gpu_spec(said)
    assert set(str(refused.value).partition("known: ")[2].split(", ")[: len(close)]) == set(close)


def test_a_name_that_fits_several_gpus_is_called_ambiguous():
    for said in ("rtx", "24GB", "SXM", "PCIe", "a100 pcie"):
        with pytest.raises(ValueError, match="ambiguous"):
            gpu_spec(said)
    with pytest.raises(ValueError, match="unknown"):
        gpu_spec("H100 SXM2")


# --- names that torch reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("part", SLICES)
def test_a_slice_of_a_gpu_has_a_key_of_its_own_and_no_peaks(spec, part):
    key = gpu_key(f"{spec.name} {part}")
    assert key.startswith(spec.key + "-mig-")
    assert key not in GPUS
    assert find_gpu(key) is None
    assert find_gpu(f"{spec.name} {part}") is None
    assert full_key(key) == key
    assert compute_capability(key) == spec.compute_capability


def test_two_gpus_never_share_a_key():
    names = [spec.name for spec in GPUS.values()]
    names += [name for name in OTHERS if name.startswith(("NVIDIA ", "Tesla "))]
    names += [f"{spec.name} {part}" for spec in GPUS.values() for part in SLICES]
    keys = [gpu_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert [gpu_key(key) for key in keys] == keys, "a key is the name of its GPU, too"


@pytest.mark.parametrize("name", ["NVIDIA Graphics Device", "Graphics Device", "NVIDIA", "", "GPU", "図形装置"])
def test_a_name_without_a_model_is_told_apart_by_its_capability(name):
    keys = [gpu_key(name), gpu_key(name, (9, 0)), gpu_key(name, (12, 0))]
    assert len(set(keys)) == 3
    for key in keys:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
        assert gpu_key(key) == full_key(key) == key
    assert gpu_key("NVIDIA A10G", (8, 6)) == "a10g"
    assert gpu_key("NVIDIA GeForce RTX 5090", (12, 0)) == "rtx-5090", "a model is enough"


@pytest.fixture
def machine(monkeypatch):
    """Puts GPUs into this machine, each as (name, capability); the first is the current one."""
    torch = pytest.importorskip("torch")

    def put(*gpus):
        found = [SimpleNamespace(name=name, major=major, minor=minor) for name, (major, minor) in gpus]
        index = lambda device: device if isinstance(device, int) else device.index  # noqa: E731
        monkeypatch.setattr(hardware, "cuda_unavailable_reason", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found[index(device)])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[index(device)][1])

    return put


def test_the_capability_of_an_unknown_gpu_is_the_one_that_the_device_has(machine):
    machine(("NVIDIA A10G", (8, 6)), ("NVIDIA Graphics Device", (12, 0)), ("NVIDIA GeForce RTX 5080", (12, 1)))
    assert hardware.live_gpu_key() == "a10g"
    unnamed = hardware.device_key(1)
    assert unnamed == gpu_key("NVIDIA Graphics Device", (12, 0))
    assert compute_capability(unnamed) == (12, 0)
    assert compute_capability("rtx-5080") == (12, 1)
    assert compute_capability("quadro-x") is None


@pytest.mark.parametrize(
    ("name", "capability", "nearest"),
    [
        ("NVIDIA Graphics Device", (9, 0), (9, 0)),
        ("NVIDIA Graphics Device", (8, 7), (8, 6)),
        ("NVIDIA GeForce RTX 5090", (12, 0), (9, 0)),
        ("Tesla T4", (7, 5), (8, 6)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", (9, 0), (9, 0)),
        ("NVIDIA A10G MIG 1g.6gb", (8, 6), (8, 6)),
    ],
)
def test_gemm_on_an_unknown_gpu_or_a_slice_takes_the_nearest_table_as_a_rule(machine, name, capability, nearest):
    torch = pytest.importorskip("torch")
    from tinygemm.kernel import configs, gemm
    from tinygemm.problem import GemmProblem

    machine((name, capability))
    configs.table.cache_clear(), configs.crossovers.cache_clear()
    key = gemm._gpu_key.__wrapped__(torch.device("cuda", 0))
    assert key == hardware.live_gpu_key()
    problem = GemmProblem(1, 4096, 4096)
    config, source = configs.select(problem, key)
    assert source == "rule", "no table was measured on this GPU"
    served = {configs.select(problem, of)[0] for of in configs.tables() if GPUS[of].compute_capability == nearest}
    assert config in served
    configs.table.cache_clear(), configs.crossovers.cache_clear()


def test_an_unknown_gpu_and_a_slice_are_recorded_under_keys_of_their_own(tmp_path, machine, monkeypatch):
    from tinygemm import runs

    monkeypatch.setattr(runs, "git_state", lambda: ("3fa9c1e" + "0" * 33, False))
    folders = set()
    for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA Graphics Device"):
        machine((name, (9, 0)))
        writer = runs.RunWriter.create({"key": hardware.live_gpu_key(), "name": name}, {}, "", tmp_path)
        assert writer.path.parent.name == hardware.live_gpu_key()
        assert runs.RunWriter.unfinished(hardware.live_gpu_key(), {}, tmp_path) == writer.path
        folders.add(writer.path.parent)
    assert len(folders) == 3


# --- the figures ----------------------------------------------------------------------------------------------------

# as the sources that hardware.py cites have them, typed a second time:
# capability, SMs, GB, GB/s, dense FP16 TFLOP/s, L2 MiB, shared memory KiB and warps per SM, MHz, ECC inline
PUBLISHED = {
    "h200": ((9, 0), 132, 141, 4800, 989.5, 60, 228, 64, 1980, False),
    "h100-80gb-hbm3": ((9, 0), 132, 80, 3350, 989.4, 50, 228, 64, 1980, False),
    "a100-sxm4-80gb": ((8, 0), 108, 80, 2039, 312, 40, 164, 64, 1410, False),
    "a100-pcie-40gb": ((8, 0), 108, 40, 1555, 312, 40, 164, 64, 1410, False),
    "a10g": ((8, 6), 80, 24, 600, 70, 6, 100, 48, 1710, True),
    "a10": ((8, 6), 72, 24, 600, 125, 6, 100, 48, 1695, True),
    "rtx-3090": ((8, 6), 82, 24, 936, 71, 6, 100, 48, 1695, False),
    "rtx-4090": ((8, 9), 128, 24, 1008, 165.2, 72, 100, 48, 2520, False),
    "l4": ((8, 9), 58, 24, 300, 121, 48, 100, 48, 2040, True),
    "a100-sxm4-40gb": ((8, 0), 108, 40, 1555, 312, 40, 164, 64, 1410, False),
    "a100-80gb-pcie": ((8, 0), 108, 80, 1935, 312, 40, 164, 64, 1410, False),
    "h100-pcie": ((9, 0), 114, 80, 2000, 756.5, 50, 228, 64, 1755, False),
    "h100-nvl": ((9, 0), 132, 94, 3938, 835.5, 50, 228, 64, 1785, False),
    "h200-nvl": ((9, 0), 132, 141, 4800, 835.5, 60, 228, 64, 1785, False),
    "gh200-480gb": ((9, 0), 132, 96, 4000, 989.5, 60, 228, 64, 1980, False),
    "h20": ((9, 0), 78, 96, 4000, 148, 60, 228, 64, 1980, False),
    "l40s": ((8, 9), 142, 48, 864, 362.1, 96, 100, 48, 2520, True),
    "t4": ((7, 5), 40, 16, 320, 65, 4, 64, 32, 1590, True),
    "rtx-5090": ((12, 0), 170, 32, 1792, 209.5, 96, 100, 48, 2407, False),
    "rtx-pro-6000-blackwell-workstation-edition": ((12, 0), 188, 96, 1792, 503.8, 128, 100, 48, 2617, False),
    "b200": ((10, 0), 148, 180, 8000, 2250, 126, 228, 64, 1965, False),
}


def test_the_figures_are_those_of_the_sources():
    def figures(spec: GpuSpec) -> tuple:
        units = {"l2_bytes": 2**20, "smem_per_sm": 2**10}
        values = {name: value for name, value in dataclasses.asdict(spec).items() if not isinstance(value, str)}
        del values["also"], values["needs"]
        return tuple(value / units[name] if name in units else value for name, value in values.items())

    assert {key: figures(spec) for key, spec in GPUS.items()} == PUBLISHED


# of the H20, 44 TFLOP/s are published, which 78 SMs at the 1,980 MHz that its users list do not give
@pytest.mark.parametrize("spec", [GPUS[key] for key in GPUS if key != "h20"], ids=lambda spec: spec.key)
def test_sm_count_and_clock_give_the_published_fp32_peak(spec):
    peak = spec.sm_count * FP32_LANES[spec.compute_capability] * 2 * spec.boost_clock_mhz / 1e6
    assert peak == pytest.approx(FP32_TFLOP_S[spec.key], rel=0.01)


def test_every_gpu_can_be_costed():
    static_cost = pytest.importorskip("tinygemm.harness.static_cost")
    wanted = {spec.compute_capability for spec in GPUS.values() if not spec.obstacle}
    assert wanted <= set(static_cost.MAX_CTAS_PER_SM)


def test_a_gpu_without_asynchronous_copies_is_known_and_says_why_it_cannot():
    assert "cp.async" in GPUS["t4"].obstacle
    assert "7.5" in GPUS["t4"].obstacle
    assert [key for key, spec in GPUS.items() if spec.obstacle] == ["t4"]

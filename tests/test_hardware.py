"""What is known of GPUs: names that torch reports lead to their figures, and the figures agree with each other."""

import pytest

from tinygemm.hardware import ALIASES, GPUS, full_key, gpu_key, gpu_spec

FP32_LANES = {(8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128}  # FP32 multiply-adds per SM and clock, tuning guides
FP32_TFLOP_S = {
    "h200": 67, "h100-80gb-hbm3": 66.9, "a100-sxm4-80gb": 19.5, "a100-pcie-40gb": 19.5, "a10g": 35, "a10": 31.2,
    "rtx-3090": 35.6, "rtx-4090": 82.6, "l4": 30.3,
}  # fmt: skip
PEAKS = {  # GB/s of DRAM, dense FP16 TFLOP/s, MiB of L2: typed once more from the sources that the specs cite
    "h200": (4800, 989.5, 60), "h100-80gb-hbm3": (3350, 989.4, 50), "a100-sxm4-80gb": (2039, 312, 40),
    "a100-pcie-40gb": (1555, 312, 40), "a10g": (600, 70, 6), "a10": (600, 125, 6), "rtx-3090": (936, 71, 6),
    "rtx-4090": (1008, 165.2, 72), "l4": (300, 121, 48),
}  # fmt: skip


def test_every_peak_is_that_of_its_source():
    assert {key: (spec.dram_gb_s, spec.fp16_tflop_s, spec.l2_bytes / 2**20) for key, spec in GPUS.items()} == PEAKS


@pytest.mark.parametrize("spec", GPUS.values(), ids=GPUS)
def test_the_name_that_torch_reports_leads_to_the_figures(spec):
    assert gpu_key(spec.name) == spec.key
    assert gpu_spec(spec.key) == gpu_spec(spec.name) == spec


@pytest.mark.parametrize(("said", "key"), [*ALIASES.items(), ("H100", "h100-80gb-hbm3"), (" L4 ", "l4")])
def test_an_alias_leads_to_the_full_key(said, key):
    assert gpu_spec(said).key == key


def test_a_name_is_spelled_out_where_it_is_known_and_left_alone_where_not():
    assert full_key("h100") == full_key("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert [full_key(said) for said in ("auto", "a10g", "h1000")] == ["auto", "a10g", "h1000"]


@pytest.mark.parametrize("said", ["", "h1000", "NVIDIA"])
def test_an_unknown_gpu_is_refused_with_the_known_ones(said):
    with pytest.raises(ValueError, match=r"a10g.*h200|no model in it"):
        gpu_spec(said)


@pytest.mark.parametrize("spec", GPUS.values(), ids=GPUS)
def test_sm_count_and_clock_give_the_published_fp32_peak(spec):
    peak = spec.sm_count * FP32_LANES[spec.compute_capability] * 2 * spec.boost_clock_mhz / 1e6
    assert peak == pytest.approx(FP32_TFLOP_S[spec.key], rel=0.01)


def test_every_gpu_can_be_costed():
    static_cost = pytest.importorskip("tinygemm.harness.static_cost")
    assert {spec.compute_capability for spec in GPUS.values()} <= set(static_cost.MAX_CTAS_PER_SM)

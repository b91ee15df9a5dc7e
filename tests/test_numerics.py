"""The check of numerics without a GPU: what is drawn, that the bound lets right products pass, and no wrong ones."""

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numerics
import numpy as np
import pytest
import torch
from ptx import emulated

from tinygemm.kernel import launches
from tinygemm.kernel.configs import DEQUANTISE, STATIC, LaunchConfig
from tinygemm.report.kernel import page as kernel_page

RECORDED = numerics.ROOT / "data" / "checks" / "numerics.json"
SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=512, split_k=2, num_warps=4, num_stages=1)


@pytest.fixture(autouse=True)
def one_alone(monkeypatch):
    """A product made up on a CPU needs no launch config that the tables know."""
    monkeypatch.setattr(numerics, "live_gpu_key", lambda: None)


def drawn(**wanted):
    """The first tiny problems that have these properties; rows of x among them."""
    problems = (numerics.draw(seed, numerics.TINY) for seed in range(100_000))
    fits = (p for p in problems if p.M and all(getattr(p, name) == value for name, value in wanted.items()))
    return next(fits)


def exact(problem, operands):
    return operands.x.reshape(-1, problem.K).double() @ operands.weight.t()


def rounded(problem, operands):
    """A product without a fault: the exact one in the type of x."""
    x = operands.x
    return exact(problem, operands).to(x.dtype).view(*x.shape[:-1], problem.N)


def faults(problem, spoil=lambda y: y):
    """The findings where the product is the exact one, spoilt."""
    operands = numerics.make(problem, "cpu")

    def product(asked, x, w):
        part = numerics.Operands(x, w, operands.weight)
        return spoil(rounded(asked, part))

    return numerics.check(problem, operands, product)["faults"]


def test_a_seed_is_one_problem_with_the_same_operands_every_time():
    problem = numerics.draw(5, numerics.TINY)
    assert numerics.draw(5, numerics.TINY) == problem
    one, other = (numerics.make(problem, "cpu") for _ in range(2))
    assert torch.equal(one.x.nan_to_num(7), other.x.nan_to_num(7))
    assert torch.equal(one.weight, other.weight)
    assert all(torch.equal(*pair) for pair in zip(one.w.tensors(), other.w.tensors(), strict=True))


def test_everything_is_drawn_that_the_kernels_promise():
    problems = [numerics.draw(seed) for seed in range(4000)]
    assert {0, 1, 8, 16, 300} <= {p.M for p in problems} <= set(range(301))
    assert {p.K % 32 for p in problems} == {0}
    assert max(p.K for p in problems) > 12_000
    assert max(p.N for p in problems) > 12_000
    assert any(p.N % 16 for p in problems)
    assert max(p.N * p.K for p in problems) <= numerics.REAL.weights
    assert all(p.group_size == -1 or p.K % p.group_size == 0 for p in problems)
    assert 1e-6 <= min(p.magnitude for p in problems) < 1e-5
    assert 2000 < max(p.magnitude for p in problems) <= 5000
    for name, values in {
        "group_size": {32, 64, 128, -1}, "symmetric": {True, False}, "dtype": {"float16", "bfloat16"},
        "x": {"normal", "uneven", "one-hot", "zeros", "nan", "inf"}, "how": {"selected", "fused", "static", "table"},
        "layout": {"dense", "strided", "offset", "parts"}, "scales": {"normal", "signed", "subnormal"},
    }.items():  # fmt: skip
        counts = Counter(getattr(p, name) for p in problems)
        assert set(counts) == values
        assert min(counts.values()) > 100
    configs = [numerics.config_of(p) for p in problems if p.M]
    assert {config.form for config in configs} == {"static", "splitk", "ring", "dequantise"}
    for form in ("splitk", "ring"):
        assert sum(config.form == form and config.split_k > 1 for config in configs) > 100


def test_x_lies_as_it_should_with_nan_around_it():
    for layout in ("dense", "strided", "offset", "parts"):
        problem = drawn(layout=layout, x="normal", M=6)
        x = numerics.make(problem, "cpu").x
        assert x.reshape(-1, problem.K).isfinite().all()
        assert x.numel() == problem.M * problem.K
        everything = x.new_empty(0).set_(x.untyped_storage())
        assert everything.isnan().any() == (layout != "dense")
        assert (x.data_ptr() % 4 == 2) == (layout == "offset")


def test_subnormal_scales_are_subnormal_and_signed_ones_are_signed():
    for kind in ("normal", "signed", "subnormal"):
        scales = numerics.make(drawn(scales=kind, group_size=32, N=47), "cpu").w.scales
        assert (scales.abs() < 2.0**-14).all() == (kind == "subnormal")
        assert (scales < 0).any() == (kind != "normal")
        assert (scales != 0).all()


@pytest.mark.parametrize("seed", range(150))
def test_the_exact_product_rounded_once_violates_nothing(seed):
    problem = numerics.draw(seed, numerics.TINY)
    assert faults(problem) == []


@pytest.mark.parametrize("wanted", [
    {"x": "nan", "how": "static"}, {"x": "inf", "dtype": "bfloat16", "how": "selected", "symmetric": False},
    {"x": "normal", "layout": "offset", "scales": "subnormal"}, {"x": "one-hot", "layout": "strided", "group_size": 32},
    {"x": "uneven", "layout": "parts", "how": "static", "dtype": "bfloat16"},
], ids=str)  # fmt: skip
def test_the_kernels_violate_nothing_in_the_emulator(wanted):
    with emulated():
        record = numerics.checked(drawn(**wanted).seed, numerics.TINY, "cpu")
    assert record["faults"] == []
    assert record["route"] in ("static", "splitk", "ring")


def off_by(spacings):
    return lambda y: (y.double() * (1 + spacings * torch.finfo(y.dtype).eps)).to(y.dtype)


SPOILT = {
    "one output is another's": ({"x": "normal", "N": 40}, lambda y: y.roll(1, -1)),
    "two roundings too many": ({"x": "normal", "how": "fused"}, off_by(2)),
    "the sign": ({"x": "normal"}, torch.neg),
    "a NaN that is lost": ({"x": "nan"}, lambda y: y.nan_to_num(0.0)),
    "an infinity that is lost": ({"x": "inf"}, lambda y: y.nan_to_num(torch.nan, 6e4, -6e4)),
    "an infinity of the other sign": ({"x": "inf"}, torch.neg),
    "NaN in a row that has none": ({"x": "normal"}, lambda y: y.index_fill(0, torch.tensor(0), torch.nan)),
    "infinite where nothing overflows": ({"x": "zeros"}, lambda y: y + math.inf),
    "zeros that are not": ({"x": "zeros"}, lambda y: y + 1e-6),
    "another type": ({"x": "normal"}, lambda y: y.float()),
    "another shape": ({"x": "normal", "N": 40}, lambda y: y[..., 1:]),
    "nothing written": ({"x": "normal"}, lambda y: y.fill_(torch.nan)),
}  # fmt: skip


@pytest.mark.parametrize("fault", SPOILT)
def test_a_wrong_product_is_a_violation(fault):
    wanted, spoil = SPOILT[fault]
    problem = drawn(dtype="float16", **wanted)
    assert faults(problem) == []
    assert faults(problem, spoil)


@pytest.mark.parametrize("k", [0, 17, -1])
def test_leaving_out_one_input_is_a_violation(k):
    problem = drawn(x="normal", dtype="float16", how="fused", layout="dense", scales="normal")
    operands = numerics.make(problem, "cpu")

    def product(asked, x, w):
        x = x.clone()
        x[:, k] = 0
        return rounded(asked, numerics.Operands(x, w, operands.weight))

    assert numerics.check(problem, operands, product)["faults"]


def test_a_repeat_that_differs_in_a_bit_is_a_violation():
    calls = []

    def one_spacing_off_every_third_time(y):
        calls.append(y)
        if len(calls) % 3 == 0:
            y.view(torch.int16)[0, 0] ^= 1
        return y

    problem = drawn(x="normal", dtype="float16", how="static", layout="dense", scales="normal")
    assert faults(problem, one_spacing_off_every_third_time) == ["a repeat gives other bits"]


@pytest.mark.parametrize(("form", "is_fault"), [("static", True), ("dequantise", False)])
def test_beside_other_work_our_kernels_must_repeat_and_the_library_need_not(form, is_fault, monkeypatch):
    monkeypatch.setattr(numerics, "config_of", lambda problem: STATIC if form == "static" else DEQUANTISE)
    problem = drawn(x="normal", dtype="float16", layout="dense", scales="normal", how="static")
    operands, beside = numerics.make(problem, "cpu"), []

    def product(asked, x, w):
        y = rounded(asked, operands)
        if beside:
            y.view(torch.int16)[0, 0] ^= 1
        return y

    record = numerics.check(problem, operands, product, load=lambda: beside.append(True))
    assert record["differ_loaded"] == 4
    assert bool(record["faults"]) == is_fault


def test_no_rows_give_no_rows():
    problem = next(p for p in map(numerics.draw, range(1000), [numerics.TINY] * 1000) if p.M == 0)
    assert faults(problem) == []
    assert faults(problem, lambda y: y.new_zeros(1, problem.N))


def test_the_first_row_alone_and_among_eight_is_compared_and_counted():
    problem = drawn(x="normal", dtype="float16", layout="dense", how="selected", M=9)
    operands = numerics.make(problem, "cpu")
    for one_spacing in (0, 1):

        def product(asked, x, w, off=one_spacing):
            y = rounded(asked, numerics.Operands(x, w, operands.weight))
            if asked.M == 1:
                y.view(torch.int16)[0, 0] ^= off
            return y

        record = numerics.check(problem, operands, product)
        assert record["first_row_equal"] == (not one_spacing)
        assert record["faults"] == []


# --- the bound --------------------------------------------------------------------------------------------------------


def judge(y, exact, magnitude, config=SPLITK, dtype="float16"):
    y, exact, magnitude = (torch.tensor([[value]], dtype=torch.float64) for value in (y, exact, magnitude))
    bound = numerics.bound_of(config, 1024, dtype)
    return numerics.judge(y.to(numerics.DTYPES[dtype]), exact, magnitude, bound, config.form == "dequantise")


@pytest.mark.parametrize(("y", "exact", "right"), [
    (math.inf, 65521, True), (math.inf, 65300, False), (-math.inf, 65521, False), (65504, 65519, True),
    (math.inf, 7e4, True), (65504, 7e4, False), (math.nan, 7e4, False), (-math.inf, -1e30, True),
])  # fmt: skip
def test_a_result_is_infinite_exactly_where_its_type_cannot_hold_it(y, exact, right):
    assert (judge(y, exact, abs(exact)).wrong == 0) == right


def test_only_the_library_may_overflow_on_the_way():
    assert judge(math.nan, 1.0, 1e6).wrong == 1
    assert judge(math.nan, 1.0, 1e6, DEQUANTISE) == numerics.Verdict(0.0, 0, 1)
    assert judge(math.nan, 1.0, 1e4, DEQUANTISE).wrong == 1
    assert judge(math.nan, 1.0, 1e6, DEQUANTISE, "bfloat16").wrong == 1, "it holds that"


def test_subnormal_outputs_are_rounded_to_their_own_spacing():
    spacing = 2.0**-24
    assert judge(0.0, 0.49 * spacing, spacing).wrong == 0
    assert judge(0.0, 0.6 * spacing, spacing).wrong == 1
    assert judge(3 * spacing, 2.51 * spacing, 4 * spacing).wrong == 0
    assert judge(spacing, 2.51 * spacing, 4 * spacing).wrong == 1
    assert judge(spacing, 2.51 * spacing, 4 * spacing, DEQUANTISE).wrong == 0, "shares are rounded, too"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("config", [SPLITK, STATIC], ids=lambda config: config.form)
def test_a_tensor_core_that_cuts_every_addend_stays_within_the_bound(config, signed):
    """Sums of 16 products and what there is so far, each cut to 24 bits of the largest, in the order of each form."""
    rng = np.random.default_rng(1)
    K = 4096
    products = rng.uniform(0.5, 1, K) * (rng.choice([-1, 1], K) if signed else 1)
    if config.form == "static":
        total = cut_sums(products)
    else:
        blocks = np.float32([cut_sums(block) for block in products.reshape(-1, 128)])
        total = np.float32(0)
        for block in blocks.reshape(config.split_k * config.num_warps, -1).T:
            total += block.sum(dtype=np.float32)
    error, magnitude = abs(float(total) - products.sum()), np.abs(products).sum()
    a = numerics.bound_of(config, K, "float16").a - (2.0**-11 if config.form == "static" else 0)  # the weight's
    assert 0 < error < a * magnitude
    if not signed:
        assert error > a * magnitude / 200, "the bound is far from what happens"


def cut_sums(products):
    total = 0.0
    for part in products.reshape(-1, 16):
        addends = np.append(part, total)
        unit = 2.0 ** (np.frexp(np.abs(addends).max())[1] - 24)
        total = (np.trunc(addends / unit) * unit).sum()
    return np.float32(total)


# --- the whole check --------------------------------------------------------------------------------------------------


RECORDS = [
    {"seed": 0, "faults": [], "route": "ring", "outputs": 10, "ratio": 0.5, "overflowed": 0, "split": True, "differ": 0,
     "differ_loaded": 0, "first_row_equal": True},
    {"seed": 1, "faults": [], "route": "ring", "outputs": 30, "ratio": 0.75, "overflowed": 0, "split": False,
     "differ": 0, "differ_loaded": 0, "first_row_equal": False},
    {"seed": 2, "faults": [], "route": "dequantise", "outputs": 5, "ratio": 0.25, "overflowed": 2, "split": False,
     "differ": 0, "differ_loaded": 3},
]  # fmt: skip
WRONG = {"seed": 9, "faults": ["1 outputs outside the bound"], "route": "static", "problem": {"M": 1}}


def test_the_summary_counts_by_route():
    summary = numerics.summarise([*RECORDS, WRONG])
    assert (summary["problems"], summary["violations"]) == (4, 1)
    assert summary["first_row_alone_and_among_eight"] == {"compared": 2, "equal": 1}
    ring, dequantise = summary["routes"]["ring"], summary["routes"]["dequantise"]
    assert (ring["problems"], ring["outputs"], ring["with_split_k"]) == (2, 40, 1)
    assert (ring["worst_ratio"], ring["worst_seed"]) == (0.75, 1)
    assert (dequantise["overflowed"], dequantise["repeats_beside_work_that_differ"]) == (2, 3)
    assert summary["violating"] == [{"seed": 9, "faults": WRONG["faults"], "problem": {"M": 1}}]


@pytest.mark.parametrize("wrong", [False, True])
def test_the_exit_code_and_the_file_say_whether_anything_was_violated(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(numerics, "ProcessPoolExecutor", lambda count, context: ThreadPoolExecutor(count))
    asked = []

    def work(first, step, seconds):
        asked.append((first, step, seconds))
        if first == 11 and wrong:
            raise RuntimeError("planted")
        return RECORDS

    monkeypatch.setattr(numerics, "work", work)
    file = tmp_path / "numerics.json"
    exit_code = numerics.main(["--seconds", "3", "--processes", "2", "--seed", "10", "--out", str(file)])
    summary = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(asked) == [(10, 2, 3.0), (11, 2, 3.0)]
    assert exit_code == summary["violations"] == wrong
    assert summary["problems"] == (4 if wrong else 6)
    assert summary["kernels"]
    assert summary["software"]["triton"]
    if wrong:
        assert "planted" in summary["violating"][0]["faults"][0]
    assert json.loads(capsys.readouterr().out) == summary


def test_a_seed_is_repeated_by_its_number(capsys):
    problem = drawn(how="static", x="normal")
    assert numerics.main(["--problem", str(problem.seed)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["problem"]["N"] == problem.N
    assert record["route"] == "static"


def test_what_raises_is_a_violation_with_its_problem(monkeypatch):
    def fails(problem, device):
        raise ValueError("planted\nsecond line")

    monkeypatch.setattr(numerics, "make", fails)
    record = numerics.checked(3, numerics.TINY, "cpu")
    assert record["faults"] == ["ValueError: planted"]
    assert record["problem"]["seed"] == 3


def test_without_a_gpu_or_the_interpreter_it_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(numerics, "cuda_unavailable_reason", lambda: "planted reason")
    with pytest.raises(SystemExit) as exit_:
        numerics.main(["--seconds", "1"])
    assert exit_.value.code != 0
    assert "needs a CUDA GPU (planted reason)" in capsys.readouterr().err


# --- the page ---------------------------------------------------------------------------------------------------------


def page(tmp_path, records, **changed):
    summary = numerics.conditions() | {"seconds": 120.0} | numerics.summarise(records) | changed
    file = tmp_path / "numerics.json"
    file.write_text(json.dumps(summary), encoding="utf-8")
    return kernel_page.numerics(file).data


def test_the_page_shows_what_was_found(tmp_path):
    text = page(tmp_path, RECORDS, gpu="NVIDIA Planted", date="2026-12-24")
    assert "2026-12-24, NVIDIA Planted" in text
    assert "In 120 s it drew 3 problems, of which none" in text
    assert "* ring: 2 problems, 40 outputs, the worst error 0.750 of its bound" in text
    assert "* dequantise: 1 problems, 5 outputs, the worst error 0.250 of its bound" in text
    assert "in 1 of 2 problems" in text
    assert "is the same today" in text


def test_the_page_names_violations_and_kernels_that_have_changed(tmp_path):
    text = page(tmp_path, [*RECORDS, WRONG], kernels="0123456789ab")
    assert "4 problems, of which 1 broke" in text
    assert "static" not in text, "a product that was refused has no error"
    assert "has changed since" in text


def test_without_a_recorded_run_the_page_says_so(tmp_path):
    assert "No run" in kernel_page.numerics(tmp_path / "numerics.json").data


@pytest.mark.skipif(not RECORDED.is_file(), reason="no run is recorded")
def test_the_recorded_run_violates_nothing_on_any_route():
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert found["violations"] == 0
    assert set(found["routes"]) >= {"static", "splitk", "ring", "dequantise", "no rows"}
    assert all(route["worst_ratio"] <= 1 for route in found["routes"].values())
    assert not found["dirty"]

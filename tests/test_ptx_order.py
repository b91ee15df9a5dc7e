"""The reader of compiled PTX: on a few lines whose faults are planted, and on one kernel of each form as compiled."""

import pytest
import torch
from ptx_order import PtxError, Thread, counter_faults, inspected, narrow_faults, noting_faults, order_faults, parse

from tinygemm.hardware import gpu_spec
from tinygemm.harness.static_cost import launch_cost, record_launches
from tinygemm.kernel import gemm
from tinygemm.kernel.configs import STATIC, LaunchConfig
from tinygemm.kernel.quant import random_packed
from tinygemm.problem import GemmProblem

PARAMETERS = ("x_ptr", "qweight_ptr", "out_ptr", "partial_ptr", "counter_ptr", "N")
VALUES = {"N": 2**20, "%ctaid.x": 2**15 - 1, "%tid.x": 127}
KERNEL = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_5
)
{
	.reg .b64 	%rd<9>;
	.loc	1 2 3                           // a comment; with a semicolon
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.param.b64 	%rd3, [kernel_param_2];
	ld.param.b64 	%rd4, [kernel_param_3];
	ld.param.b64 	%rd5, [kernel_param_4];
	ld.param.b32 	%r1, [kernel_param_5];
	mov.u32 	%r2, %ctaid.x;
	mul.wide.s32 	%rd6, %r2, %r1;
	add.s64 	%rd7, %rd2, %rd6;
	prefetch.global.L2 [%rd5]; mov.b32 %r9, 0;
$L__loop:
	@%p1 ld.global.v2.b32 { %r3, %r4 }, [ %rd7 + 0 ];
	add.s64 	%rd7, %rd7, 512;
	griddepcontrol.wait; // dummy %r92
	griddepcontrol.launch_dependents;
	{ .reg .pred wanted; setp.ne.s32 wanted, %r4, 0; @wanted cp.async.ca.shared.global [%r5], [%rd1+512], 16, %r6; }
	@%p2 bra 	$L__loop;
	@%p1 st.global.b32 [ %rd4 + 0 ], { %r3 };
	bar.sync 	0;
	@%p3 atom.global.gpu.acq_rel.add.u32 %r7, [ %rd5 + 0 ], 1;
	bar.sync 	0;
	@%p4 ld.global.cg.b32 { %r8 }, [ %rd4 + 0 ];
	@%p4 st.global.b32 [ %rd3 + 0 ], { %r8 };
	@%p3 st.global.b32 [ %rd5 + 0 ], { 0 };
	ret;
}
	.file	1 "elsewhere.py"
"""
WAIT, TRIGGER = "	griddepcontrol.wait; // dummy %r92\n", "	griddepcontrol.launch_dependents;\n"
ATOMIC = "	@%p3 atom.global.gpu.acq_rel.add.u32 %r7, [ %rd5 + 0 ], 1;\n"
BARRIER = "	bar.sync 	0;\n"
COPY = next(line + "\n" for line in KERNEL.splitlines() if "cp.async" in line)
LOAD = next(line + "\n" for line in KERNEL.splitlines() if "ld.global.v2" in line)


def test_accesses_are_found_in_order_with_the_tensor_that_they_touch():
    kernel = parse(KERNEL, PARAMETERS)
    assert [(access.kind, access.pointer) for access in kernel.accesses(VALUES)] == [
        ("prefetch", "counter_ptr"), ("load", "qweight_ptr"), ("load", "x_ptr"), ("store", "partial_ptr"),
        ("atomic", "counter_ptr"), ("load", "partial_ptr"), ("store", "out_ptr"), ("store", "counter_ptr"),
    ]  # fmt: skip
    assert order_faults(kernel, VALUES, dependent=True) == []
    assert counter_faults(kernel, VALUES, split=True) == []
    assert narrow_faults(kernel, VALUES) == []


ORDER = {
    "no wait": (WAIT, "", "0 waits"),
    "no trigger": (TRIGGER, "", "0 triggers"),
    "the trigger first": (WAIT + TRIGGER, TRIGGER + WAIT, "starts before the wait"),
    "x before the wait": (WAIT + TRIGGER + COPY, COPY + WAIT + TRIGGER, "load of x_ptr before the wait"),
    "weights after the wait": (LOAD, "", "no weight is requested before"),
    "a sum before the wait": (
        LOAD,
        LOAD + "	st.global.b32 [%rd4], { %r3 };\n",
        "store of partial_ptr before the wait",
    ),
}


@pytest.mark.parametrize("fault", ORDER)
def test_a_wrong_order_is_seen(fault):
    old, new, found = ORDER[fault]
    kernel = parse(replaced(old, new), PARAMETERS)
    assert any(found in text for text in order_faults(kernel, VALUES, dependent=True))


def replaced(old, new):
    assert old in KERNEL
    return KERNEL.replace(old, new, 1)


def test_without_dependent_launch_nothing_of_it_may_stand_there():
    assert order_faults(parse(KERNEL, PARAMETERS), VALUES, dependent=False)
    plain = KERNEL.replace(WAIT, "").replace(TRIGGER, "")
    assert order_faults(parse(plain, PARAMETERS), VALUES, dependent=False) == []


def test_a_kernel_whose_results_nobody_awaits_may_let_the_next_one_start_at_once():
    kernel = parse(replaced(WAIT + TRIGGER, TRIGGER + WAIT), PARAMETERS)
    assert order_faults(kernel, VALUES, dependent=True, waits_first=False) == []


COUNTER = {
    "no barrier before": (BARRIER + ATOMIC, ATOMIC, "no barrier between the sums and the counter"),
    "no barrier after": (ATOMIC + BARRIER, ATOMIC, "no barrier between the counter and the sums"),
    "relaxed": ("acq_rel", "relaxed", "the counter is atom.global.gpu.relaxed"),
    "one CTA": ("gpu.acq_rel", "cta.acq_rel", "the counter is atom.global.cta"),
    "through L1": ("ld.global.cg.b32", "ld.global.b32", "through L1"),
    "never zeroed": ("	@%p3 st.global.b32 [ %rd5 + 0 ], { 0 };\n", "", "0 counters zeroed"),
    "counted twice": (ATOMIC, ATOMIC + ATOMIC, "2 counts"),
    "counted first": (
        ATOMIC + BARRIER, ATOMIC + BARRIER + "	st.global.b32 [%rd4], { %r3 };\n" + BARRIER, "out of order",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", COUNTER)
def test_a_counter_that_does_not_hold_is_seen(fault):
    old, new, found = COUNTER[fault]
    assert any(found in text for text in counter_faults(parse(replaced(old, new), PARAMETERS), VALUES, split=True))


def test_without_a_split_there_are_no_sums_to_share():
    assert counter_faults(parse(KERNEL, PARAMETERS), VALUES, split=False)


WIDE = "	mul.wide.s32 	%rd6, %r2, %r1;\n"


@pytest.mark.parametrize("narrow", [
    "mul.lo.s32 %r10, %r2, %r1; cvt.s64.s32 %rd6, %r10;", "mad.lo.s32 %r10, %r2, %r1, 5; cvt.s64.s32 %rd6, %r10;",
    "shl.b32 %r10, %r2, 20; mul.wide.s32 %rd6, %r10, 2;", "add.s32 %r10, 2147483647, %r2; cvt.s64.s32 %rd6, %r10;",
])  # fmt: skip
def test_an_offset_of_32_bits_that_overflows_is_seen(narrow):
    kernel = parse(replaced(WIDE, narrow), PARAMETERS)
    ((access, text),) = kernel.narrow(VALUES)
    assert access.pointer == "qweight_ptr"
    assert narrow.startswith(text.split()[0])
    assert kernel.narrow(VALUES | {"N": 2**10, "%ctaid.x": 0}) == []


def test_an_overflow_that_ends_in_no_address_is_none():
    kernel = parse(replaced(WIDE, WIDE + "	mul.lo.s32 %r10, %r2, %r1; mov.b32 %r11, %r10;\n"), PARAMETERS)
    assert kernel.narrow(VALUES) == []


@pytest.mark.parametrize(("instruction", "value"), [
    ("shr.s32 %r2, -5, 1;", -3), ("shr.u32 %r2, -1, 28;", 15), ("and.b32 %r2, 13, 6;", 4), ("or.b32 %r2, 9, 6;", 15),
    ("bfe.u32 %r2, 127, 5, 2;", 3), ("bfe.s32 %r2, 6, 1, 2;", -1), ("min.s32 %r2, -3, 2;", -3), ("neg.s32 %r2, 7;", -7),
    ("rem.s32 %r2, -7, 3;", -1), ("div.s32 %r2, -7, 2;", -3), ("mul.hi.s32 %r2, 1073741824, 8;", 2),
    ("mul.wide.u32 %r2, -1, 2;", 2**33 - 2), ("mad.wide.s32 %r2, -1, 2, 5;", 3), ("cvt.u64.u32 %r2, -1;", 2**32 - 1),
    ("cvt.s64.s32 %r2, -1;", -1), ("setp.lt.s32 %p1, -1, 0; selp.b32 %r2, 3, 4, %p1;", 3),
    ("setp.lt.u32 %p1, -1, 0; selp.b32 %r2, 3, 4, %p1;", 4), ("sub.s32 %r2, 3, %ctaid.x;", -4),
    ("xor.b32 %r2, 5, 1;", 4),
])  # fmt: skip
def test_integers_are_those_of_ptx(instruction, value):
    kernel = parse(".entry k()\n{\n" + instruction + "\n}\n")
    assert Thread(kernel, {"%ctaid.x": 7}).value("%r2") == value


@pytest.mark.parametrize("instruction", ["ex2.approx.f32 %r2, %r3;", "@%p1 mov.b32 %r2, 5;", ""])
def test_what_is_not_known_in_an_address_is_named(instruction):
    kernel = parse(".entry k()\n{\n\tmov.b32 %r3, 1;\n" + instruction + "\n}\n")
    with pytest.raises(PtxError, match="%r2"):
        Thread(kernel, {}).value("%r2")


# --- as compiled ------------------------------------------------------------------------------------------------------

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=1024, split_k=4, num_warps=4, num_stages=1)
RING = LaunchConfig("ring", block_m=4, block_n=32, block_k=512, split_k=4, num_warps=4, num_stages=3)
FP16 = LaunchConfig("fp16", block_m=8, block_n=32, block_k=512, split_k=2, num_warps=4, num_stages=1)


@pytest.mark.aot
@pytest.mark.parametrize("config", [SPLITK, RING, STATIC, FP16], ids=lambda config: config.form)
def test_one_kernel_of_each_form_is_in_order(config):
    """All configs of the tables are read in test_kernels_aot.py; this takes seconds."""
    _, faults = inspected(config, GemmProblem(1, 4096, 4096), gpu_spec("h200"), False, torch.float16)
    assert faults == []


@pytest.mark.aot
def test_the_dequantisation_is_in_order():
    faults, w = [], random_packed(4096, 4096, symmetric=False).to("meta")
    (launch,) = record_launches(lambda: gemm.dequantize_fp16(w))
    with noting_faults(faults):
        launch_cost(launch, gpu_spec("h200"))
    assert faults == []

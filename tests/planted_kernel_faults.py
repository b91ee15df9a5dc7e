"""Faults of the kernels that the compiled PTX shows, each with the test that must see it; see planted_faults.py."""

from __future__ import annotations

from planter import Fault

TILES, SPLITK, PIPELINED, SIMPLE, REFERENCE = (
    f"tinygemm/kernel/triton/{name}.py" for name in ("tiles", "splitk", "pipelined", "simple", "reference")
)
WAIT = "            tl.extra.cuda.gdc_wait()\n"
TRIGGER = "            tl.extra.cuda.gdc_launch_dependents()  # not before"
LOAD_X = """        for step in tl.static_range(BLOCKS_IN_FLIGHT):
            kb = chunk + step * WARPS_K
            # [M_TILES * 4 * WARPS_K * 8, 32]
            xs += (load_step(x_ptrs + kb * 128, kb, last, m, M, x_k, K, False, FULL_TILES, ""),)
"""
RING_WAIT = "        tl.extra.cuda.gdc_wait()\n"
RING_TRIGGER = "        tl.extra.cuda.gdc_launch_dependents()\n"
RING_X = "        prefetch_x(ring + stage * STAGE + X_AT, x_ptr, kb, last, M, stride_xm, BLOCK_M, WARPS_K, WARP)\n"
IN_ORDER = "tests/test_ptx_order.py::test_one_kernel_of_each_form_is_in_order"
DEQUANTISED = "tests/test_ptx_order.py::test_the_dequantisation_is_in_order"


def compiled(name: str, file: str, old: str, new: str, form: str) -> Fault:
    """A fault that the PTX of one form shows."""
    test = DEQUANTISED if form == "dequantise" else f"{IN_ORDER}[{form}]"
    return Fault(name, file, old, new, (test,), "aot")


def narrow(what: str, file: str, old: str, form: str) -> Fault:
    """A 64-bit offset made one of 32 bits."""
    return compiled(f"{what} in 32 bits", file, old, old.replace(".to(tl.int64)", ""), form)


FAULTS = [
    compiled("splitk does not wait", SPLITK, WAIT + TRIGGER, TRIGGER, "splitk"),
    compiled(
        "splitk lets the next one start first",
        SPLITK,
        WAIT + TRIGGER,
        TRIGGER + "\n" + WAIT + "            #",
        "splitk",
    ),
    compiled(
        "splitk requests x before the wait",
        SPLITK,
        f"        if PDL:\n{WAIT}{TRIGGER}: three kernels at a time only crowd each other\n{LOAD_X}",
        f"{LOAD_X}        if PDL:\n{WAIT}{TRIGGER}\n",
        "splitk",
    ),
    compiled(
        "the ring does not wait",
        PIPELINED,
        RING_WAIT + RING_TRIGGER + "    for stage",
        RING_TRIGGER + "    for stage",
        "ring",
    ),
    compiled(
        "the ring lets the next one start first",
        PIPELINED,
        RING_WAIT + RING_TRIGGER + "    for stage",
        RING_TRIGGER + RING_WAIT + "    for stage",
        "ring",
    ),
    compiled(
        "the ring requests x before the wait",
        PIPELINED,
        f"    if PDL:\n{RING_WAIT}{RING_TRIGGER}    for stage",
        f"    for stage in tl.static_range(STAGES):\n        kb = last\n{RING_X}"
        f"    if PDL:\n{RING_WAIT}{RING_TRIGGER}    for stage",
        "ring",
    ),
    compiled(
        "the FP16 form does not wait",
        REFERENCE,
        f"{WAIT}            tl.extra.cuda.gdc_launch_dependents()\n        for",
        "            tl.extra.cuda.gdc_launch_dependents()\n        for",
        "fp16",
    ),
    compiled(
        "no barrier before the counter",
        TILES,
        "        tl.debug_barrier()  # every thread",
        "        # every thread",
        "splitk",
    ),
    compiled("a relaxed counter", TILES, 'sem="acq_rel")', 'sem="relaxed")', "ring"),
    compiled("a counter that releases only", TILES, 'sem="acq_rel")', 'sem="release")', "splitk"),
    compiled("a counter for one CTA", TILES, 'sem="acq_rel")', 'sem="acq_rel", scope="cta")', "splitk"),
    compiled("sums of others through L1", TILES, ', cache_modifier=".cg")', ")", "ring"),
    narrow("outputs", TILES, "offs_out = offs_m[None, :].to(tl.int64) * N", "splitk"),
    narrow("partial sums", TILES, "partial_ptr + pid_k.to(tl.int64) * M", "ring"),
    narrow("words of splitk", TILES, "tile_row = qweight_ptr + pid_n.to(tl.int64) *", "splitk"),
    narrow("x of splitk", TILES, "x_ptr + m.to(tl.int64) * stride_xm", "splitk"),
    narrow("scales of the ring", PIPELINED, "row.to(tl.int64) * N + pid_n", "ring"),
    narrow("words of the ring", PIPELINED, "tile = qweight_ptr + (pid_n.to(tl.int64) *", "ring"),
    narrow("x of the ring", PIPELINED, "tl.minimum(m, M - 1).to(tl.int64) *", "ring"),
    narrow("words of static", SIMPLE, "q_rows = (offs_n // 16).to(tl.int64) *", "static"),
    narrow("x of static", SIMPLE, "x_ptr + offs_m[:, None].to(tl.int64) *", "static"),
    narrow("outputs of static", SIMPLE, "out_ptr + offs_m[:, None].to(tl.int64) *", "static"),
    narrow("words to dequantise", SIMPLE, "n_words = (offs_n // 16).to(tl.int64) *", "dequantise"),
    narrow("the dequantised weight", SIMPLE, "weight_ptr + offs_n[:, None].to(tl.int64) * K", "dequantise"),
    narrow("the weight of the FP16 form", REFERENCE, "weight_ptr + pid_n.to(tl.int64) * BLOCK_N", "fp16"),
    Fault(
        "the ring takes later x of rows that lie side by side",
        PIPELINED,
        "prefetch_x(ring + slot + X_AT, x_ptr, kb, last, M, stride_xm,",
        "prefetch_x(ring + slot + X_AT, x_ptr, kb, last, M, K,",
        ("tests/test_kernels.py::test_rows_of_x_lie_apart_all_along_a_walk_of_many_blocks[ring]",),
    ),
]

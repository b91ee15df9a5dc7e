"""Faults that only a GPU shows, each with the tests that must see it: plant each into a copy and run them there.

    python3 tests/planted_gpu_faults.py [words of a name]

What no GPU can be relied on to show, the compiled PTX does: a relaxed counter, one for a CTA, a share that is counted
before every warp has written it. See planted_kernel_faults.py.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import planter
from planter import Fault

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 6  # each run compiles its kernels on a core of its own; on the GPU they take turns
LAUNCH, WORKSPACE = "tinygemm/kernel/launch.py", "tinygemm/kernel/workspace.py"
SMEM, TILES, SPLITK, PIPELINED, SIMPLE = (
    f"tinygemm/kernel/triton/{name}.py" for name in ("smem", "tiles", "splitk", "pipelined", "simple")
)


def on_gpu(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, file, old, new, tuple(f"tests/{test}" for test in tests), "gpu")


def narrow(form: str, file: str, old: str) -> Fault:
    """An offset of x that is computed in 32 bits."""
    test = f"test_streams_gpu.py::test_rows_of_x_more_than_two_to_the_31_elements_apart[{form}-in-all]"
    return on_gpu(f"x of {form} in 32 bits", file, old, old.replace(".to(tl.int64)", ""), test)


CHAIN = "test_streams_gpu.py::test_overlapping_calls_of_a_chain_see_the_results_of_the_one_before"
SPLIT = "test_kernels_gpu.py::test_split_k_gives_the_same_bits_every_time"
STALE = "test_kernels_gpu.py::test_sums_left_by_the_call_before_are_never_added"
SPLITK_WAIT = "            tl.extra.cuda.gdc_wait()\n            tl.extra.cuda.gdc_launch_dependents()  # not before"
RING_WAIT = "        tl.extra.cuda.gdc_wait()\n        tl.extra.cuda.gdc_launch_dependents()\n    for stage"
FAULTS = [
    on_gpu(
        "splitk does not wait", SPLITK, SPLITK_WAIT, SPLITK_WAIT.split("\n")[1], f"{CHAIN}[splitk]"
    ),
    on_gpu(
        "the ring does not wait", PIPELINED, RING_WAIT, RING_WAIT.split("\n", 1)[1], f"{CHAIN}[ring]"
    ),
    on_gpu(
        "warps are added before all have written", SMEM, "    tl.debug_barrier()\n    read = address",
        "    read = address", f"{SPLIT}[splitk0-1]", f"{SPLIT}[ring-1]", f"{STALE}[splitk]", f"{STALE}[ring]"
    ),
    on_gpu(
        "sums lie where another warp still reads its ring", PIPELINED, "    cp_async_wait(0)\n    tl.debug_barrier()\n",
        "    cp_async_wait(0)\n", f"{SPLIT}[ring-1]", f"{SPLIT}[ring-2]", f"{SPLIT}[ring-3]", f"{STALE}[ring]"
    ),
    on_gpu(
        "a share is counted before it is written", TILES,
        """        tl.store(partial_ptr + pid_k.to(tl.int64) * M * N + offs_out, acc, mask=mask)
        tl.debug_barrier()  # every thread's share is written before one of them announces it
        arrived = tl.atomic_add(counter_ptr + pid_n, 1, sem="acq_rel")
""",
        """        arrived = tl.atomic_add(counter_ptr + pid_n, 1, sem="acq_rel")
        tl.store(partial_ptr + pid_k.to(tl.int64) * M * N + offs_out, acc, mask=mask)
        tl.debug_barrier()
""", f"{STALE}[splitk]", f"{STALE}[ring]"
    ),
    on_gpu(
        "a counter that is left as it is", TILES, "tl.store(counter_ptr + pid_n, 0)",
        "tl.store(counter_ptr + pid_n, SPLIT_K)", f"{SPLIT}[splitk0-2]"
    ),
    on_gpu(
        "the last but one to arrive adds up", TILES, "if arrived == SPLIT_K - 1:", "if arrived == SPLIT_K - 2:",
        f"{STALE}[splitk]"
    ),
    on_gpu(
        "a ring read before its copies have arrived", PIPELINED, "cp_async_wait(STAGES - 1)", "cp_async_wait(STAGES)",
        "test_kernels_gpu.py::test_a_ring_of_any_length"
    ),
    narrow("splitk", TILES, "x_ptr + m.to(tl.int64) * stride_xm"),
    narrow("ring", PIPELINED, "tl.minimum(m, M - 1).to(tl.int64) *"),
    narrow("static", SIMPLE, "x_ptr + offs_m[:, None].to(tl.int64) *"),
    on_gpu(
        "outputs of static in 32 bits", SIMPLE, "out_ptr + offs_m[:, None].to(tl.int64) *",
        "out_ptr + offs_m[:, None] *",
        "test_streams_gpu.py::test_an_output_of_more_than_two_to_the_31_elements[config2]"
    ),
    on_gpu(
        "one workspace for all streams", WORKSPACE,
        "key = (device.index, fastpath.current_stream(device.index))", "key = (device.index, 0)",
        "test_kernels_gpu.py::test_calls_on_two_streams_do_not_disturb_each_other",
        "test_streams_gpu.py::test_streams_whose_workspaces_grow_do_not_disturb_each_other"
    ),
    on_gpu(
        "captured calls that share their counters", WORKSPACE,
        "held, pool[0] = pool[0][:count], pool[0][count:]", "held = pool[0][:count]",
        "test_kernels_gpu.py::test_two_graphs_replayed_at_once_do_not_share_counters"
    ),
    on_gpu(
        "a known call that takes the default stream", LAUNCH,
        "out.data_ptr(), fastpath.current_stream(index)", "out.data_ptr(), 0",
        "test_kernels_gpu.py::test_a_cuda_graph_replays_the_call_on_new_activations"
    ),
]  # fmt: skip


def main(words: list[str]) -> int:
    """Plant the faults whose name contains one of the words, or all; 0 where every one was caught."""
    planter.WORKERS = WORKERS
    chosen = [each for each in FAULTS if not words or any(word in each.name for word in words)]
    if not chosen:
        print(f"no fault is called {' or '.join(words)}", file=sys.stderr)
        return 2
    return 0 if planter.run_all(chosen, ROOT, functools.partial(print, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

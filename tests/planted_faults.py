"""Faults that were planted once and that no test saw, and others of their kinds: `make faults` plants each again.

A fault that the tests miss wants a test of its kind; one whose old text is gone wants to be written anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from planter import Fault, run_all

ROOT = Path(__file__).resolve().parent.parent
GEMM, LAUNCH, FORMS, CONFIGS, QUANT, LINEAR, KERNELS = (
    f"tinygemm/kernel/{name}.py" for name in ("gemm", "launch", "forms", "configs", "quant", "linear", "triton_kernels")
)
TIMING, CONTEST, WEIGHTS, PLAN = (f"tinygemm/harness/{name}.py" for name in ("timing", "contest", "weights", "plan"))


def fault(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    """A Fault whose tests are given as `test_x.py::test_name`."""
    return Fault(name, file, old, new, tuple(f"tests/{test}" for test in tests))


KERNEL = [
    fault(
        "the key of a plan without how x lies",
        GEMM,
        "x.is_contiguous() or x.stride(), ",
        "",
        "test_launch.py::test_a_key_is_all_that_decides_about_the_launch",
    ),
    fault(
        "the key of a plan without the launch config",
        GEMM,
        "config, dependent_launch,\n    )",
        "dependent_launch,\n    )",
        "test_launch.py::test_a_key_is_all_that_decides_about_the_launch",
    ),
    fault(
        "a row stride that is that of the outermost axis",
        GEMM,
        "return axes[-1][1]",
        "return axes[0][1]",
        "test_gemm.py::test_rows_lie_at_one_distance_or_are_copied",
    ),
    fault(
        "short launches that ignore where their rows start",
        LAUNCH,
        "address + offset",
        "address",
        "test_launch.py::test_tokens_beyond_one_tile_are_several_launches_on_their_own_rows",
    ),
    fault(
        "a plan for tensors that are not aligned",
        LAUNCH,
        "if bits % ALIGNED:",
        "if False:",
        "test_launch.py::test_an_unaligned_tensor_goes_the_ordinary_way_every_time",
    ),
    fault(
        "a launch that no profiler is told of",
        LAUNCH,
        "if plan is None or _hooked():",
        "if plan is None:",
        "test_launch.py::test_where_a_profiler_listens_triton_tells_it",
    ),
    fault(
        "counters of a captured call that another one gets too",
        LAUNCH,
        "taken, pool[0] = pool[0][:counters], pool[0][counters:]",
        "taken = pool[0][:counters]",
        "test_launch.py::test_a_captured_call_finds_zeroed_counters_also_after_graphs_were_forgotten",
    ),
    fault(
        "dependent launch where a program has nothing to walk",
        FORMS,
        "return split_k <= triton.cdiv(KB, step)",
        "return True",
        "test_launch.py::test_a_program_with_nothing_to_walk_never_starts_before_the_kernel_before_it",
    ),
    fault(
        "a ring for x that starts anywhere",
        FORMS,
        'return config.form != "ring" or ',
        "return True or ",
        "test_kernels.py::test_x_may_start_anywhere",
    ),
]
HARNESS = [
    fault(
        "a warm rotation as large as a cold one",
        TIMING,
        "WARM_L2_MULTIPLE * l2_bytes",
        "5 * l2_bytes",
        "test_timing.py::test_a_warm_rotation_is_one_and_a_half_caches",
    ),
    fault(
        "eager samples that start at the first copy",
        TIMING,
        "itertools.islice(endless, min_calls)",
        "itertools.islice(itertools.cycle(calls), min_calls)",
        "test_timing.py::test_eager_calls_go_on_over_the_copies_from_sample_to_sample",
    ),
    fault(
        "the same backend first in every round",
        TIMING,
        "start = round_ % len(names)",
        "start = 0",
        "test_timing.py::test_every_contender_takes_its_turn_at_the_start_of_a_round",
    ),
    fault(
        "samples of a graph that are not of one call",
        TIMING,
        "duration_us / replays[name].n_calls",
        "duration_us",
        "test_timing.py::test_a_sample_is_the_time_of_one_call",
    ),
]
FAULTS = [*KERNEL, *HARNESS]


def main(wanted: list[str]) -> int:
    """Plant the faults whose name contains one of the words, or all; 0 where every one was caught."""
    chosen = [each for each in FAULTS if not wanted or any(word in each.name for word in wanted)]
    if not chosen:
        print(f"no fault is called {' or '.join(wanted)}", file=sys.stderr)
        return 2
    return 0 if run_all(chosen, ROOT) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Faults that were planted once and that no test saw, and others of their kinds: `make faults` plants each again.

A fault that is missed wants a test of its kind; a stale one, whose old text is gone, wants to be written anew.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from planted_kernel_faults import FAULTS as COMPILED
from planter import Fault, run_all

ROOT = Path(__file__).resolve().parent.parent


def fault(name: str, file: str, old: str, new: str, *tests: str, mark: str = "") -> Fault:
    """A Fault whose file is given from the package on, and its tests from their folder on."""
    return Fault(name, os.path.normpath(f"tinygemm/{file}"), old, new, tuple(f"tests/{test}" for test in tests), mark)


KERNEL = [
    fault(
        "every share of K walks all of it", "kernel/triton/tiles.py", "first = pid_k * steps // SPLIT_K * STEP",
        "first = pid_k * 0", "test_kernels.py::test_splitting_k_into_any_number_of_shares[splitk0-2]"
    ),
    fault(
        "an arrival counter that is left as it is", "kernel/triton/tiles.py", "tl.store(counter_ptr + pid_n, 0)",
        "tl.store(counter_ptr + pid_n, SPLIT_K)",
        "test_kernels.py::test_the_arrival_counters_are_zero_again_after_a_call[splitk0]"
    ),
    fault(
        "the first share to arrive adds them up", "kernel/triton/tiles.py", "if arrived == SPLIT_K - 1:",
        "if arrived == 0:", "test_kernels.py::test_each_output_tile_is_written_once_by_the_last_share[splitk0]"
    ),
    fault(
        "a warp whose share is not added", "kernel/triton/smem.py", "for share in tl.static_range(WARPS_K):",
        "for share in tl.static_range(1, WARPS_K):", "test_kernels.py::test_any_number_of_outputs[splitk-33]"
    ),
    fault(
        "the two groups of 64 exchanged", "kernel/triton/tiles.py", "v1, v3 = v0, v2", "v1, v3 = v2, v0",
        "test_kernels.py::test_every_form_serves_every_group_size_and_zero_mode[splitk-64_0-symmetric]"
    ),
    fault(
        "half the zero point in the high codes", "kernel/triton/dequant.py", "zero * 16) * 0x10001",
        "zero * 8) * 0x10001",
        "test_kernels.py::test_every_form_serves_every_group_size_and_zero_mode[splitk-128_0-zeros]"
    ),
    fault(
        "a bfloat16 pair shifted by another one's bits", "kernel/triton/dequant.py", "shr.u32 w2, $8, 8;",
        "shr.u32 w2, $8, 4;", "test_kernels.py::test_bfloat16_activations[splitk-128-symmetric]"
    ),
    fault(
        "splitk takes rows of x to lie side by side", "kernel/triton/tiles.py", "m.to(tl.int64) * stride_xm + k",
        "m.to(tl.int64) * 256 + k", "test_kernels.py::test_rows_of_x_may_lie_apart[splitk]"
    ),
    fault(
        "the ring takes rows of x to lie side by side", "kernel/triton/pipelined.py",
        "M - 1).to(tl.int64) * stride_xm ", "M - 1).to(tl.int64) * 1280 ",
        "test_kernels.py::test_rows_of_x_lie_apart_all_along_a_walk_of_many_blocks"
    ),
    fault(
        "a ring that never goes back to its first stage", "kernel/triton/pipelined.py", "slot == (STAGES - 1) * STAGE",
        "slot == STAGES * STAGE", "test_kernels.py::test_a_ring_of_any_length[2]"
    ),
    fault(
        "a binary for every number of tokens", "kernel/triton/splitk.py",
        '@triton.jit(do_not_specialize=["M", "KB"])  # one', "@triton.jit  # one",
        "test_kernels_aot.py::test_any_number_of_tokens_is_served_by_few_binaries", mark="aot"
    ),
    fault(
        "a ring for x that starts anywhere", "kernel/launches.py", 'return config.form != "ring" or ',
        "return True or ", "test_kernels.py::test_x_may_start_anywhere[ring]"
    ),
]  # fmt: skip
GEMM = [
    fault(
        "the key of a plan without how x lies", "kernel/gemm.py", "x.is_contiguous() or x.stride(), ", "",
        "test_launch.py::test_a_key_is_all_that_decides_about_the_launch"
    ),
    fault(
        "the key of a plan without the dtype of x", "kernel/gemm.py", "x.dtype, x.device, ", "x.device, ",
        "test_launch.py::test_another_dtype_of_x_is_another_call"
    ),
    fault(
        "the key of a plan without the device of x", "kernel/gemm.py", "x.dtype, x.device, ", "x.dtype, ",
        "test_launch.py::test_a_plan_of_one_device_serves_no_other"
    ),
    fault(
        "the key of a plan without the device of the weight", "kernel/gemm.py",
        "x.device, w.qweight.device,", "x.device,",
        "test_launch.py::test_a_plan_of_one_device_serves_no_other"
    ),
    fault(
        "the key of a plan without the group size", "kernel/gemm.py", "w.group_size, w.zeros is None, config",
        "w.zeros is None, config", "test_launch.py::test_a_key_is_all_that_decides_about_the_launch"
    ),
    fault(
        "the key of a plan without the launch config", "kernel/gemm.py", "config, dependent_launch,\n",
        "dependent_launch,\n", "test_launch.py::test_a_key_is_all_that_decides_about_the_launch"
    ),
    fault(
        "the key of the dequantising kernel without zeros", "kernel/gemm.py", "w.group_size, w.zeros is None)\n",
        "w.group_size)\n",
        "test_launch.py::test_a_key_of_the_dequantising_kernel_is_all_that_decides_about_its_launch"
    ),
    fault(
        "the key of the dequantising kernel without the group size", "kernel/gemm.py",
        "w.group_size, w.zeros is None)\n", "w.zeros is None)\n",
        "test_launch.py::test_a_key_of_the_dequantising_kernel_is_all_that_decides_about_its_launch"
    ),
    fault(
        "the key of the dequantising kernel without the dtype", "kernel/gemm.py", '("dequantise", dtype, ',
        '("dequantise", ', "test_launch.py::test_dequantised_weights_take_the_short_way_too"
    ),
    fault(
        "asymmetric weights take the config of symmetric ones", "kernel/gemm.py", "form, w.zeros is None, x.dtype",
        "form, True, x.dtype", "test_launch.py::test_every_format_is_launched_in_the_config_of_its_own_row"
    ),
    fault(
        "bfloat16 takes the config of float16", "kernel/gemm.py", "x.dtype == torch.float16)", "True)",
        "test_launch.py::test_every_format_is_launched_in_the_config_of_its_own_row"
    ),
    fault(
        "small groups take the config of groups of 128", "kernel/gemm.py",
        "w.N, w.K, w.group_size)\n    return _selected", "w.N, w.K)\n    return _selected",
        "test_launch.py::test_every_format_is_launched_in_the_config_of_its_own_row"
    ),
    fault(
        "rows as far apart as those of the outermost axis", "kernel/gemm.py", "return axes[-1][1]",
        "return axes[0][1]", "test_gemm.py::test_rows_lie_at_one_distance_or_are_copied"
    ),
]  # fmt: skip
LAUNCH = [
    fault(
        "rows at unequal distances not copied at the start", "kernel/launch.py",
        "inputs[0].contiguous() if work.copy else inputs[0]", "inputs[0]",
        "test_launch.py::test_rows_at_unequal_distances_reach_the_kernel_both_times_a_call_is_made"
    ),
    fault(
        "rows at unequal distances not copied at replay", "kernel/launch.py", "    if copy:\n", "    if False:\n",
        "test_launch.py::test_rows_at_unequal_distances_reach_the_kernel_both_times_a_call_is_made"
    ),
    fault(
        "several launches with the workspace of the smallest", "kernel/launch.py", "needs = max((launch.workspace",
        "needs = min((launch.workspace",
        "test_launch.py::test_a_call_cut_into_pieces_has_room_for_the_largest_of_them"
    ),
    fault(
        "a captured call with the partial sums of an eager one", "kernel/workspace.py",
        "return _new_workspace(partials, _captured_counters(key, counters, device))",
        "held, taken = next(iter(_stream_workspaces.values())).tensors[0], _captured_counters(key, counters, device); "
        "return Workspace((held, taken), (held.data_ptr(), taken.data_ptr()))",
        "test_launch.py::test_no_call_that_may_overlap_another_shares_its_workspace"
    ),
    fault(
        "counters of a captured call that another one gets too", "kernel/workspace.py",
        "held, pool[0] = pool[0][:count], pool[0][count:]", "held = pool[0][:count]",
        "test_launch.py::test_no_call_that_may_overlap_another_shares_its_workspace"
    ),
    fault(
        "streams that share a workspace", "kernel/workspace.py",
        "key = (device.index, fastpath.current_stream(device.index))", "key = (device.index, 0)",
        "test_launch.py::test_no_call_that_may_overlap_another_shares_its_workspace"
    ),
    fault(
        "short launches that ignore where their rows start", "kernel/launch.py", "address + offset", "address",
        "test_launch.py::test_tokens_beyond_one_tile_are_several_launches_on_their_own_rows"
    ),
    fault(
        "the short way for tensors that are not aligned", "kernel/launch.py", "if bits % ALIGNED:", "if False:",
        "test_launch.py::test_an_unaligned_tensor_goes_the_ordinary_way_every_time"
    ),
    fault(
        "a launch that no profiler is told of", "kernel/launch.py", "if plan is None or fastpath.hooked():",
        "if plan is None:", "test_launch.py::test_where_a_profiler_listens_triton_tells_it"
    ),
    fault(
        "dependent launch where a program has nothing to walk", "kernel/launches.py",
        "return split_k <= triton.cdiv(KB, step)", "return True",
        "test_launch.py::test_a_program_with_nothing_to_walk_never_starts_before_the_kernel_before_it"
    ),
]  # fmt: skip
CONFIGS = [
    fault(
        "a row of a table of another N", "kernel/configs/h100-80gb-hbm3.json",
        '{"M": 1, "K": 4096, "N": 14336, "latency_us": 10.851', '{"M": 1, "K": 4096, "N": 7168, "latency_us": 10.851',
        "test_configs.py::test_every_row_of_a_table_is_of_a_problem_that_the_search_was_asked_for"
    ),
    fault(
        "a typo in a row of a table", "kernel/configs/h100-80gb-hbm3.json",
        '{"M": 1, "K": 4096, "N": 14336, "latency_us": 10.851',
        '{"M": 1, "K": 4906, "N": 14336, "latency_us": 10.851',
        "test_configs.py::test_every_row_of_a_table_is_of_a_problem_that_the_search_was_asked_for"
    ),
    fault(
        "a row of another format serves everybody", "kernel/configs.py", ' and row["format"] in (wanted, PLAIN)]',
        "]", "test_configs.py::test_a_row_of_the_format_itself_comes_first_and_serves_nobody_else"
    ),
    fault(
        "a limit of registers kept for other formats", "kernel/configs.py",
        "config = replace(config, max_registers=0)", "pass",
        "test_configs.py::test_a_limit_of_registers_holds_for_the_format_it_was_tuned_for"
    ),
    fault(
        "the ring for more tokens than it has room for", "kernel/configs.py", "problem.M <= config.block_m and ", "",
        "test_configs.py::test_the_ring_is_never_chosen_for_what_it_cannot_compute"
    ),
    fault(
        "a config of one tile for tokens of another", "kernel/configs.py", "OTHER_TILE = 100.0", "OTHER_TILE = 0.0",
        "test_configs.py::test_a_near_shape_counts_more_than_the_same_number_of_tokens"
    ),
]  # fmt: skip
QUANT = [
    fault(
        "a zero point that never reaches its last code", "kernel/scales.py",
        "if symmetric else (-low / scales).round().clamp(0, 15)",
        "if symmetric else (-low / scales).round().clamp(0, 14)",
        "test_quant.py::test_the_zero_point_of_a_one_sided_group_is_an_end_of_the_codes"
    ),
    fault(
        "codes at other bits of a word", "kernel/quant.py", "return 4 * (p + 4 * h)", "return 4 * (2 * p + h)",
        "test_quant.py::test_each_code_lies_where_the_format_says"
    ),
    fault(
        "padding that is not zero", "kernel/quant.py", "torch.full(_padded(N, K), SYMMETRIC_ZERO",
        "torch.full(_padded(N, K), 0", "test_quant.py::test_padding_stands_for_zero"
    ),
    fault(
        "a layer without its bias", "kernel/linear.py", "return y if bias is None else y.add_(bias)", "return y",
        "test_linear.py::test_a_layer_computes_its_quantised_weight_and_bias"
    ),
    fault(
        "scales that are cast with the model", "kernel/linear.py", "if tensor is scales else", "if False else",
        "test_linear.py::test_casting_the_model_changes_no_bit_of_the_weight"
    ),
    fault(
        "layers replaced that were to be skipped by name", "kernel/linear.py",
        "part in names or ", "",
        "test_linear.py::test_names_and_paths_to_skip_stay_as_they_are"
    ),
    fault(
        "a tied weight is quantised", "kernel/linear.py", 'in tied]', 'in ()]',
        "test_join.py::test_a_weight_that_an_embedding_shares_stays_and_is_named"
    ),
    fault(
        "classes of a model stay changed after a failure", "kernel/linear.py", "module.__class__ = kind", "pass",
        "test_join.py::test_a_failure_leaves_the_model_as_it_was"
    ),
    fault(
        "a joined projection of another input", "kernel/join.py", "if x is not self.x:", "if False:",
        "test_join.py::test_a_projection_of_another_input_is_an_error_and_no_wrong_result"
    ),
    fault(
        "joined projections without their biases", "kernel/join.py",
        "None if parts[0].bias is None else torch.cat([part.bias for part in parts])", "None",
        "test_join.py::test_a_joined_model_computes_the_same_bits[dtype0-Llama]"
    ),
    fault(
        "joined projections cut as one", "kernel/parallel.py",
        "parts = (w.N,) if parts is None else tuple(parts)", "parts = (w.N,)",
        "test_parallel.py::test_rows_are_cut_part_by_part"
    ),
    fault(
        "a share of K with the first groups", "kernel/cut.py",
        "slice(first // w.group_size, last // w.group_size)", "slice(0, (last - first) // w.group_size)",
        "test_parallel.py::test_columns_are_cut_with_their_groups"
    ),
    fault(
        "ranks that do not add up", "kernel/parallel.py", "dist.all_reduce(y, group=self.mesh.get_group())", "pass",
        "test_parallel.py::test_two_processes_compute_the_logits_of_one"
    ),
]  # fmt: skip
HARNESS = [
    fault(
        "timed calls bound to the first copy of the weight", "harness/measure.py",
        "state.variant.bind(state.x, weight) for weight", "state.variant.bind(state.x, copies[0]) for weight",
        "test_sweep.py::test_the_calls_of_a_graph_read_all_copies_equally_often",
        "test_sweep.py::test_eager_calls_read_all_copies_in_turn"
    ),
    fault(
        "variants raced on one copy", "harness/choose.py", "variant.bind(trial.x, weight) for weight",
        "variant.bind(trial.x, copies[0]) for weight",
        "test_sweep.py::test_the_calls_of_a_graph_read_all_copies_equally_often"
    ),
    fault(
        "the slowest variant chosen", "harness/choose.py", "return min(together, key=together.__getitem__)",
        "return max(together, key=together.__getitem__)",
        "test_backends.py::test_the_fastest_variant_is_chosen_and_named"
    ),
    fault(
        "the last copy not verified", "harness/choose.py", "if len(copies) > 1:", "if False:",
        "test_backends.py::test_a_wrong_last_copy_is_caught"
    ),
    fault(
        "copies that are one", "harness/weights.py", "buffer[i, : tensor.numel()]", "buffer[0, : tensor.numel()]",
        "test_backends.py::test_copies_are_equal_separate_and_aligned"
    ),
    fault(
        "an output of NaN that passes", "harness/verify.py",
        "if not (max_err < tolerance.max_err and rms_err < tolerance.rms_err):",
        "if max_err >= tolerance.max_err or rms_err >= tolerance.rms_err:",
        "test_backends.py::test_nan_fails_every_bound"
    ),
    fault(
        "outputs that are not poisoned", "harness/verify.py", "fill_uninitialized_memory = True",
        "fill_uninitialized_memory = False",
        "test_backends.py::test_memory_is_poisoned_during_the_check_and_only_then"
    ),
    fault(
        "milliseconds of do_bench as microseconds", "harness/timing.py", "[duration * 1000 for duration in",
        "[duration for duration in",
        "test_timing.py::test_a_known_duration_is_the_same_number_of_microseconds_in_every_launch_mode"
    ),
    fault(
        "milliseconds of events as microseconds", "harness/timing.py", "start.elapsed_time(end) * 1000 for",
        "start.elapsed_time(end) for",
        "test_timing.py::test_a_known_duration_is_the_same_number_of_microseconds_in_every_launch_mode"
    ),
    fault(
        "a warm rotation as large as a cold one", "harness/timing.py", "WARM_L2_MULTIPLE * l2_bytes", "5 * l2_bytes",
        "test_timing.py::test_a_warm_rotation_is_one_and_a_half_caches"
    ),
    fault(
        "eager samples that start at the first copy", "harness/timing.py", "itertools.islice(endless, min_calls)",
        "itertools.islice(itertools.cycle(calls), min_calls)",
        "test_timing.py::test_eager_calls_go_on_over_the_copies_from_sample_to_sample"
    ),
    fault(
        "the same backend first in every round", "harness/timing.py", "start = round_ % len(names)", "start = 0",
        "test_timing.py::test_every_contender_takes_its_turn_at_the_start_of_a_round"
    ),
    fault(
        "samples of a graph that are not of one call", "harness/timing.py", "duration_us / replays[name].n_calls",
        "duration_us", "test_timing.py::test_a_sample_is_the_time_of_one_call"
    ),
    fault(
        "rounds that start from one state alone", "harness/timing.py", "reference.empty_kernel(dependent_launch=True)",
        "reference.empty_kernel(dependent_launch=False)",
        "test_timing.py::test_every_stream_that_kernels_were_launched_in_is_settled_before_a_round"
    ),
    fault(
        "the fewest samples that any suite wants", "harness/plan.py", 'max(entry["rep"], part.rep)',
        'min(entry["rep"], part.rep)',
        "test_plan.py::test_a_group_takes_the_most_samples_that_any_of_its_suites_wants"
    ),
    fault(
        "a group half on disk that counts as done", "harness/sweep.py", "if not done.issuperset(group.case_ids)",
        "if done.isdisjoint(group.case_ids)",
        "test_sweep.py::test_a_group_that_is_only_partly_on_disk_is_measured_again_as_a_whole"
    ),
]  # fmt: skip
RUNS = [
    fault(
        "a changed file that is read", "runs.py", '!= entry["sha256"]:', '== "":',
        "test_runs.py::test_a_changed_file_is_refused_by_name"
    ),
    fault(
        "a run of uncommitted code that is read", "runs.py", 'if provenance["dirty"] and not allow_dirty:',
        "if False:", "test_runs.py::test_a_dirty_run_is_refused_unless_allowed"
    ),
    fault(
        "the oldest run for the newest", "runs.py", "load_run(runs[-1]", "load_run(runs[0]",
        "test_runs.py::test_the_newest_run_of_the_gpu_that_was_asked_for_is_found"
    ),
    fault(
        "a run gone on with on other terms", "runs.py", "            if header[key] != value:\n",
        "            if False:\n", "test_runs.py::test_a_run_is_resumed_only_on_equal_terms"
    ),
    fault(
        "cases written before their samples", "runs.py",
        'self._append_rows("samples.csv", samples, Sample)\n        self._append_rows("cases.csv", cases, Case)',
        'self._append_rows("cases.csv", cases, Case)\n        self._append_rows("samples.csv", samples, Sample)',
        "test_runs.py::test_samples_are_on_disk_before_the_cases_that_claim_them"
    ),
    fault(
        "a wrong kernel that ends a command well", "cli/measure.py",
        'if not refused["status"].isin(["unsupported"]).all():', "if False:",
        "test_cli.py::test_a_wrong_kernel_makes_bench_fail_after_it_has_written_what_is_right"
    ),
    fault(
        "a run recorded of uncommitted code", "cli/measure.py", "    if not allow_dirty:\n", "    if False:\n",
        "test_cli.py::test_record_refuses_uncommitted_code_before_it_measures_anything"
    ),
    fault(
        "parameters of one GPU measured on another", "cli/measure.py", 'if gpu not in ("auto", here):', "if False:",
        "test_cli.py::test_a_parameter_file_that_cannot_be_is_refused"
    ),
]  # fmt: skip
REPORT = [
    fault(
        "A by the median alone", "report/speedup/claims.py", 'for_all(rows["speedup_vs_fp16_low"] > 1,',
        'for_all(rows["speedup_vs_fp16"] > 1,', "test_bounds.py::test_a_claim_turns_at_its_bound[A]"
    ),
    fault(
        "a loss by the median alone", "report/speedup/claims.py", 'for_all(rows["speedup_vs_fp16_high"] < 1,',
        'for_all(rows["speedup_vs_fp16"] < 1,', "test_bounds.py::test_a_claim_turns_at_its_bound[C, loses]"
    ),
    fault(
        "a cause by the median alone", "report/speedup/claims.py", 'if row["speedup_without_dequant_low"] > 1:',
        'if row["speedup_without_dequant"] > 1:', "test_bounds.py::test_a_claim_turns_at_its_bound[C, cause]"
    ),
    fault(
        "D where its interval covers 1", "report/speedup/claims.py", 'for_all(rows["low"] > 1,',
        'for_all(rows["value"] > 1,', "test_bounds.py::test_a_claim_turns_at_its_bound[D]"
    ),
    fault(
        "D refuted where its interval covers 1", "report/speedup/claims.py", '> 1, rows["high"] < 1)',
        '> 1, rows["value"] < 1)', "test_bounds.py::test_a_claim_turns_at_its_bound[D]"
    ),
    fault(
        "the larger factor by the median alone", "report/decomposition/claims.py",
        'rows["share_low"] > MOST, rows["share_high"] < MOST', 'rows["share"] > MOST, rows["share_high"] < MOST',
        "test_bounds.py::test_a_claim_turns_at_its_bound[kernel on narrow]"
    ),
    fault(
        "a share of a gain that may be none", "report/decomposition/claims.py", 'gained = rows["gain_low"] > 1',
        'gained = rows["gain"] > 1', "test_bounds.py::test_a_claim_turns_at_its_bound[no gain to divide]"
    ),
    fault(
        "a point of the map won by the median alone", "report/regimes/claims.py", 'state = for_all(at["low"] > 1,',
        'state = for_all(at["value"] > 1,', "test_bounds.py::test_a_claim_turns_at_its_bound[map]"
    ),
    fault(
        "a choice that is good by the median alone", "report/regimes/claims.py", 'for_all(rows["high"] < LEEWAY',
        'for_all(rows["value"] < LEEWAY', "test_bounds.py::test_a_claim_turns_at_its_bound[switch]"
    ),
    fault(
        "a gain hidden by the median alone", "report/launch/claims.py", 'hidden, kept = rows["eager_high"] < 1',
        'hidden, kept = rows["eager"] < 1', "test_bounds.py::test_a_claim_turns_at_its_bound[launch hides]"
    ),
    fault(
        "a bound that the median alone keeps", "report/base/bounds.py",
        'confirmed, refuted = sign * (rows["near"] - bound) >= 0',
        'confirmed, refuted = sign * (rows["value"] - bound) >= 0',
        "test_bounds.py::test_a_claim_turns_at_its_bound[at least]",
        "test_bounds.py::test_a_claim_turns_at_its_bound[at most]"
    ),
    fault(
        "a lower bar for the least case against peers", "report/peers/claims.py",
        "MEAN_OVER_PEERS, LEAST_OVER_PEERS = 1.6, 1.25", "MEAN_OVER_PEERS, LEAST_OVER_PEERS = 1.6, 1.2",
        "test_bounds.py::test_a_claim_turns_at_its_bound[peers, least]"
    ),
    fault(
        "the mean over peers without its interval", "report/peers/claims.py", 'mean["low"] >= MEAN_OVER_PEERS',
        'mean["value"] >= MEAN_OVER_PEERS', "test_bounds.py::test_a_claim_turns_at_its_bound[peers, mean]"
    ),
    fault(
        "more than the bytes of the scales allowed", "report/peers/claims.py", 'rows[end] / rows["bytes_ratio"]',
        "rows[end]", "test_bounds.py::test_a_claim_turns_at_its_bound[groups]"
    ),
    fault(
        "the first step first by the median alone", "report/fast_kernel/claims.py",
        'first["factor_low"] > others["factor_high"]', 'first["factor"] > others["factor_high"]',
        "test_bounds.py::test_a_claim_turns_at_its_bound[first step]"
    ),
    fault(
        "published values above by the median alone", "report/published/claims.py",
        'compared["ours_low"] >= compared["high"]', 'compared["ours"] >= compared["high"]',
        "test_bounds.py::test_a_claim_turns_at_its_bound[published]"
    ),
    fault(
        "a projection that wins by the median alone", "report/models/tables.py", 'np.select([result["speedup_low"] > 1',
        'np.select([result["speedup"] > 1', "test_bounds.py::test_a_claim_turns_at_its_bound[models]"
    ),
    fault(
        "a way of timing that matters by the median alone", "report/evidence/claims.py",
        'off = (mine["low"] > 1 + MATTERS)', 'off = (mine["value"] > 1 + MATTERS)',
        "test_bounds.py::test_a_way_of_timing_matters_beyond_five_percent_on_either_side"
    ),
    fault(
        "advice to quantise although the interval covers 1", "report/models/advice.py",
        'clear = [table["speedup_low"] > 1',
        'clear = [table["speedup"] > 1', "test_advice.py::test_the_answer_is_that_of_the_whole_interval"
    ),
    fault(
        "advice against it although the interval covers 1", "report/models/advice.py",
        '> 1, table["speedup_high"] < 1, quantised]', '> 1, table["speedup"] < 1, quantised]',
        "test_advice.py::test_the_answer_is_that_of_the_whole_interval"
    ),
]  # fmt: skip
PAGES = [
    fault(
        "columns of the breakdown exchanged", "report/base/tables.py", "return result.assign(dequant_share=",
        'swap = {"no_dequant_us": "load_only_us", "load_only_us": "no_dequant_us"}; '
        "return result.rename(columns=swap).assign(dequant_share=",
        "test_tables.py::test_every_column_of_the_breakdown_is_the_backend_that_it_names"
    ),
    fault(
        "an interval of 90 %", "report/base/intervals.py", "((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)",
        "((1 - CONFIDENCE), CONFIDENCE)",
        "test_tables.py::test_the_ends_of_an_interval_cut_off_two_and_a_half_percent_each"
    ),
    fault(
        "rounds drawn for each side alone", "report/base/intervals.py", "paired=bool(paired)", "paired=False",
        "test_tables.py::test_what_a_whole_round_shares_cancels_in_a_speedup"
    ),
    fault(
        "a floor without the empty node", "report/base/tables.py", " + empty_node_us(table)).where(product)",
        ").where(product)", "test_tables.py::test_the_floor_is_the_bytes_at_copy_speed_plus_an_empty_node"
    ),
    fault(
        "milliseconds of a counter as microseconds", "report/bottleneck/counters.py", '"msecond": 1e3, "ms": 1e3',
        '"msecond": 1e3, "ms": 1', "test_tables.py::test_one_duration_is_the_same_in_every_unit"
    ),
    fault(
        "times of the simple and the tuned kernel exchanged", "report/speedup/page.py",
        '"static_us": latency("int4-static"', '"static_us": latency("int4"',
        "test_rendered.py::test_the_table_of_projections_has_every_kernel_under_its_own_heading"
    ),
    fault(
        "speedups of the simple and the tuned kernel exchanged", "report/speedup/page.py",
        '"int4_speedup": speedup("int4",', '"int4_speedup": speedup("int4-static",',
        "test_rendered.py::test_the_table_of_projections_has_every_kernel_under_its_own_heading"
    ),
    fault(
        "headings of two columns exchanged", "../notebooks/04_speedup.ipynb", '\\"static_us\\": (\\"simple, µs\\"',
        '\\"static_us\\": (\\"tuned, µs\\"',
        "test_rendered.py::test_the_table_of_projections_has_every_kernel_under_its_own_heading"
    ),
    fault(
        "a heading over another ablation", "../notebooks/06_dequantisation.ipynb",
        '\\"int4-no-dequant\\": (\\"and multiplies', '\\"int4-load-only\\": (\\"and multiplies',
        "test_rendered.py::test_the_table_of_what_is_left_out_has_every_kernel_under_its_own_heading"
    ),
    fault(
        "colours of two badges exchanged", "report/base/page.py", '{HOLDS: "bdg-success", FAILS: "bdg-danger"',
        '{HOLDS: "bdg-danger", FAILS: "bdg-success"', "test_rendered.py::test_a_state_has_the_badge_of_its_colour"
    ),
    fault(
        "another bandwidth of the A10G", "hardware.py", "(8, 6), 80, 24, 600, 70,", "(8, 6), 80, 24, 696, 70,",
        "test_hardware.py"
    ),
    fault(
        "another peak of the A10G", "hardware.py", "(8, 6), 80, 24, 600, 70,", "(8, 6), 80, 24, 600, 125,",
        "test_hardware.py"
    ),
]  # fmt: skip
FAULTS = [*KERNEL, *COMPILED, *GEMM, *LAUNCH, *CONFIGS, *QUANT, *HARNESS, *RUNS, *REPORT, *PAGES]


def main(words: list[str]) -> int:
    """Plant the faults whose name or file contains one of the words, or all; 0 where every one was caught."""
    chosen = [each for each in FAULTS if not words or any(word in f"{each.name} {each.file}" for word in words)]
    if not chosen:
        print(f"no fault is called {' or '.join(words)}", file=sys.stderr)
        return 2
    return 0 if run_all(chosen, ROOT, functools.partial(print, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The suite of decode steps: what is measured, refused, left for later and written, on a GPU that only counts."""

from __future__ import annotations

import dataclasses
import itertools
import types

import click.testing
import pandas as pd
import pytest
import torch
from fake_gpu import FakeClock

from tinygemm import runs
from tinygemm.cli import step as command
from tinygemm.harness import registry
from tinygemm.harness.choose import SweepStoppedError
from tinygemm.harness.variant import Ceiling
from tinygemm.kernel import launches
from tinygemm.models import Model
from tinygemm.report.token import steps as recorded
from tinygemm.rows import columns_of
from tinygemm.runs import RunWriter
from tinygemm.step import build, cases, lean, measure, profile, suite
from tinygemm.step.architecture import ARCHITECTURES, Architecture
from tinygemm.step.cases import StepCase
from tinygemm.step.products import BACKENDS, Dense
from tinygemm.step_rows import Step, StepKernel, StepSample

TINY = Model("tiny", hidden=128, intermediate=256, layers=2, heads=2, kv_heads=1, head_dim=64, vocab=320, source="")
GPU = {"key": "h200", "name": "NVIDIA H200", "power_limit_w": 700.0}
US = 50.0
LARGE = 10**12


class Clock(FakeClock):
    """Every replay takes US microseconds."""

    def capture(self, calls):
        replay = super().capture(calls)

        def run():
            replay()
            self.spend(US)

        return run

    def can_prime(self):
        return False


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)  # products of CPU tensors by the reference path
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture(TINY, 1e4))
    monkeypatch.setattr(measure, "WARMUP", 0)
    monkeypatch.setattr(measure, "gc", types.SimpleNamespace(collect=int))  # slow, and no GPU's memory waits for it
    monkeypatch.setattr(runs, "git_state", lambda: ("3fa9c1e" + "0" * 33, False))
    monkeypatch.setattr(runs, "software_versions", lambda: {"python": "3.12.3"})
    copy = Ceiling("copy", "1GiB", lambda: lambda: None, lambda call: None, 2 * 2**30, 10)
    monkeypatch.setitem(registry.CEILINGS, "copy", copy)


def bench(**settings) -> measure.Bench:
    defaults = {"clock": Clock(), "device": "cpu", "memory_bytes": LARGE, "profiler": lambda replay: [], "rep": 2}
    return measure.Bench(**(defaults | settings))


def case(backend: str = "int4", **settings) -> StepCase:
    return StepCase(
        "tiny", backend, **({"batch": 2, "context": 8, "attention": "equations", "compiled": False} | settings)
    )


# --- one case ---------------------------------------------------------------------------------------------------------


def test_a_case_is_checked_and_timed_beside_the_library():
    clock = Clock()
    rows = suite.run(bench(clock=clock), [case("fp16-cublas"), case("int4")])
    copy, library, ours = rows.steps
    assert [row.case_id for row in rows.steps] == ["copy", case("fp16-cublas").case_id, case("int4").case_id]
    assert (ours.status, ours.n_samples) == ("ok", 2)
    assert 0 < ours.rel_err < 0.01
    assert ours.argmax_agreement == 1
    assert (library.lm_head, ours.compiled, ours.compiler_overlap) == ("float16", "no", "no")
    of_ours = [sample for sample in rows.samples if sample.case_id == ours.case_id]
    assert [(sample.step_us, sample.fp16_us) for sample in of_ours] == [(US, US)] * 2
    assert all(sample.fp16_us is None for sample in rows.samples if sample.case_id == library.case_id)
    captures = [entry for entry in clock.log if entry[0] == "capture"]
    assert len(captures) == 3, "the copy, and each of the two once"
    assert copy.weight_bytes == 2 * 2**30


def test_the_bytes_of_a_step_are_those_of_its_tensors():
    of = case("int4")
    shared = measure.Weights(of.arch, "cpu")
    stored = sum(shared.packed(i, name).nbytes for i in range(TINY.layers) for name in of.arch.projections())
    assert cases.weight_bytes(of.arch, "int4") == stored
    assert cases.weight_bytes(of.arch, "fp16-cublas") == 2 * 2 * (256 * 128 + 128 * 128 + 512 * 128 + 128 * 256)
    assert cases.lm_head_bytes(of) == shared.dense_lm_head(torch.float16).nbytes
    cache = measure.random_cache(of.arch, of.batch, of.context, torch.float16, "cpu")
    assert cases.kv_bytes(of) == sum(tensor.nbytes for pair in cache for tensor in pair)


def test_wrong_logits_are_recorded_and_not_timed(monkeypatch):
    class Wrong(Dense):
        def forward(self, x):
            return 1.5 * super().forward(x)

    monkeypatch.setitem(BACKENDS, "fp16-triton", dataclasses.replace(BACKENDS["fp16-triton"], module=Wrong))
    (row,) = [row for row in suite.run(bench(), [case("fp16-triton")]).steps if row.backend == "fp16-triton"]
    assert (row.status, row.n_samples) == ("mismatch", 0)
    assert row.rel_err > 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_row_of_a_run_that_is_sealed(monkeypatch, tmp_path, value):
    class Overflows(Dense):
        def forward(self, x):
            return super().forward(x) * value

    monkeypatch.setitem(BACKENDS, "fp16-triton", dataclasses.replace(BACKENDS["fp16-triton"], module=Overflows))
    wanted = [case("fp16-triton"), case("int4")]
    writer = RunWriter.create(GPU, {}, "tinygemm step", tmp_path)
    suite.run(bench(), wanted, writer=writer)
    wrong = runs.load_run(writer.finish()).steps.set_index("case_id").loc[wanted[0].case_id]
    assert wrong["status"] == "mismatch"
    assert pd.isna(wrong["rel_err"])
    assert "not finite" in wrong["message"]


def test_a_step_that_does_not_compile_is_timed_eager_and_says_why(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(lean.LeanModel, "compile", lambda self, **settings: setattr(self, "run_layer", fail))
    row = suite.run(bench(), [case("fp16-cublas", compiled=True)]).steps[1]
    assert (row.status, row.compiled, row.n_samples) == ("ok", "no", 2)
    assert "no compiler here" in row.message


def test_one_failing_case_does_not_stop_the_next(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("broken peer\nand a long story")

    monkeypatch.setitem(BACKENDS, "fp16-triton", dataclasses.replace(BACKENDS["fp16-triton"], build=fail, form="x"))
    _, failed, timed = suite.run(bench(), [case("fp16-triton"), case("int4")]).steps
    assert (failed.status, failed.message) == ("error", "RuntimeError: broken peer")
    assert timed.status == "ok"


def test_a_broken_gpu_ends_the_suite_after_its_row(monkeypatch):
    clock = Clock()

    def fail(*arguments):
        clock.broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(BACKENDS, "fp16-triton", dataclasses.replace(BACKENDS["fp16-triton"], build=fail, form="x"))
    seen = []
    with pytest.raises(SweepStoppedError, match="illegal memory access"):
        suite.run(bench(clock=clock), [case("fp16-triton"), case("int4")], seen=lambda step, samples: seen.append(step))
    assert [row.backend for row in seen] == ["copy", "fp16-triton"]


def test_what_does_not_fit_is_said_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(measure, "Weights", lambda *arguments: pytest.fail("allocated"))
    row = suite.run(bench(memory_bytes=10**9), [case("int4", context=4096)]).steps[1]
    assert row.status == "out_of_memory"
    assert "context 4096" in row.message
    assert "1 GB" in row.message


def test_a_case_that_leaves_no_room_for_the_library_is_timed_alone():
    tight = cases.needed_bytes(case("int4"))
    rows = suite.run(bench(memory_bytes=tight), [case("int4")])
    assert rows.steps[1].status == "ok"
    assert {sample.fp16_us for sample in rows.samples} == {None}


def test_only_int4_fits_where_a_70b_model_is_asked_for():
    h200 = 150 * 10**9
    assert cases.needed_bytes(StepCase("llama-3-70b", "int4", 8, 512)) < h200
    assert cases.needed_bytes(StepCase("llama-3-70b", "fp16-cublas", 1, 512)) > h200
    assert cases.needed_bytes(StepCase("qwen2.5-32b", "fp16-cublas", 8, 512)) < h200
    assert cases.needed_bytes(StepCase("llama-3-8b", "aten-int4mm", 16, 8192)) < h200


# --- the matrix, the budget and what is on disk -----------------------------------------------------------------------


def test_the_matrix_begins_with_what_matters_most_and_names_each_case_once():
    found = [each.case_id for each in cases.matrix()]
    assert len(set(found)) == len(found)
    assert found[0] == "llama-3-8b/b1/c512/lean/fp16-cublas"
    assert {each.split("/")[1] for each in found[:12]} == {"b1", "b8"}
    wanted = itertools.product((1, 2, 4, 8, 16), (512, 8192), ("fp16-cublas", "fp16-triton", "int4", "int4-serial"))
    assert {f"llama-3-8b/b{b}/c{c}/lean/{name}" for b, c, name in wanted} <= set(found)


def test_no_case_is_started_that_would_end_after_the_budget():
    seconds = itertools.count(0, 10)  # each look at the clock takes ten seconds
    wanted = [case("fp16-cublas"), case("int4"), case("int4-serial"), case("int4-lm-head")]
    rows = suite.run(bench(now=lambda: next(seconds)), wanted, budget_s=100)
    assert 0 < len(rows.not_started) < 4
    assert rows.not_started == wanted[len(rows.steps) - 1 :]


def test_a_killed_run_is_resumed_where_it_was(tmp_path, monkeypatch):
    wanted = [case("fp16-cublas"), case("int4"), case("int4-serial")]
    monkeypatch.setattr(suite.hardware, "snapshot", lambda: GPU)

    def kill(step, samples):
        if step.backend == "int4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite.run(bench(), wanted, 0, suite.open_run(wanted, tmp_path, None, "tinygemm step"), kill)
    (partial,) = tmp_path.glob("h200/*.partial")
    with (partial / "step_samples.csv").open("a", encoding="utf-8") as stream:
        stream.write("tiny/b2/c8/lean/int4-serial/equations/eager,0,4")
    writer = suite.open_run(wanted, tmp_path, None, "tinygemm step")
    assert writer.path == partial
    suite.run(bench(), wanted, 0, writer)
    run = runs.load_run(writer.finish())
    assert run.steps["case_id"].tolist() == ["copy", *(each.case_id for each in wanted)]
    assert run.step_samples.groupby("case_id").size().tolist() == [2] * 4
    assert run.cases.empty
    other = RunWriter.create(GPU, {}, "", tmp_path / "other").path
    with pytest.raises(runs.RunError, match="parameters"):
        suite.open_run(wanted, tmp_path, other, "")


def test_rows_come_back_as_they_were_written(tmp_path):
    step = Step(
        case_id="a", model="tiny", backend="int4", host="lean", batch=1, context=8, tp=1, lm_head="float16",
        attention="fused", compiled="yes", compiler_overlap="no", status="ok", n_samples=1, rel_err=0.5,
    )  # fmt: skip
    sample, kernel = StepSample("a", 0, 12.5, None), StepKernel("a", "k", "rest", 2.0, 1.5)
    writer = RunWriter.create(GPU, {}, "tinygemm step", tmp_path)
    writer.append_step(step, [sample])
    writer.append_step_kernels([kernel])
    run = runs.load_run(writer.finish())
    for frame, row in ((run.steps, step), (run.step_samples, sample), (run.step_kernels, kernel)):
        (found,) = frame.to_dict("records")
        assert {name: None if pd.isna(value) else value for name, value in found.items()} == dataclasses.asdict(row)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_an_empty_cell_of_a_run_that_can_be_sealed(tmp_path, value):
    writer = RunWriter.create(GPU, {}, "tinygemm step", tmp_path)
    row = measure._row(bench(), case(), "mismatch", "overflow", rel_err=value, argmax_agreement=0.5)
    writer.append_step(row, [])
    assert writer.done_steps() == {row.case_id}
    (found,) = runs.load_run(writer.finish()).steps.to_dict("records")
    assert pd.isna(found["rel_err"])
    assert found["argmax_agreement"] == 0.5


def test_the_newest_run_with_steps_is_found_among_full_runs_and_those_of_steps_alone(tmp_path, monkeypatch):
    def write(root, minute: str, steps: bool):
        writer = RunWriter.create(GPU, {}, "tinygemm step", root)
        writer.header["run_id"] = f"2026-12-01T{minute}Z-3fa9c1e"
        if steps:
            writer.append_step(measure._row(bench(), case(), "ok", ""), [])
        return writer.finish()

    with pytest.raises(runs.RunError, match="data/steps"):
        recorded.latest(root=tmp_path)
    full = write(tmp_path, "0100", steps=True)
    write(tmp_path, "0300", steps=False)
    assert recorded.latest("h200", tmp_path).path == full
    alone = write(tmp_path / "steps", "0200", steps=True)
    assert recorded.latest(root=tmp_path).path == alone
    assert alone not in runs.recorded_runs(root=tmp_path)
    with pytest.raises(runs.RunError, match="a10g"):
        recorded.latest("a10g", tmp_path)


# --- the profile and the table ----------------------------------------------------------------------------------------


def test_kernels_that_overlap_count_once():
    found = profile.kernels_of(
        "a",
        [
            profile.Launch("kernel_gemm_packed_int4_splitk", 0, 10),
            profile.Launch("kernel_decode_attention", 4, 13),
            profile.Launch("triton_red_fused_add", 13, 14),
            profile.Launch("kernel_gemm_packed_int4_splitk", 12, 20),
        ],
        replays=2,
    )
    assert [(row.kind, row.calls, row.added_us) for row in found] == [
        ("product", 1.0, 8.0), ("attention", 0.5, 1.5), ("rest", 0.5, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_splitK_TNT", "product"),
        ("void at::native::tinygemm_m16n8k16_chunk_kernel<...>", "product"),
        ("kernel_gemm_fp16_splitk", "product"),
        ("cudnn_generated_fort_native_sdpa_sm90", "attention"),
        ("triton_poi_fused_mul_silu_split_2", "rest"),
    ],
)
def test_a_kernel_is_known_by_its_name(kernel, kind):
    assert profile.kind_of(kernel) == kind


def test_the_table_derives_what_a_user_asks():
    def step(case_id, **settings):
        shared = {"model": "tiny", "host": "lean", "batch": 4, "context": 8, "tp": 1, "lm_head": "float16"}
        shared |= {"attention": "fused", "compiled": "yes", "compiler_overlap": "yes", "status": "ok"}
        return Step(case_id=case_id, **(shared | settings))

    steps = [
        step("copy", backend="copy", weight_bytes=4_000_000),
        step("a", backend="int4", weight_bytes=6_000_000, kv_bytes=1_000_000, lm_head_bytes=1_000_000),
        step("b", backend="marlin", status="error"),
    ]
    samples = [StepSample("copy", 0, 1000.0), *(StepSample("a", i, 4000.0, 8000.0 + 400 * i) for i in range(3))]
    kernels = [StepKernel("a", "x", "product", 4.0, 3.0), StepKernel("a", "y", "rest", 2.0, 1.0)]
    frames = [
        pd.DataFrame([dataclasses.astuple(row) for row in rows], columns=columns_of(type(rows[0])))
        for rows in (steps, samples, kernels)
    ]
    (row,) = recorded.table(*frames).to_dict("records")
    assert (row["ms"], row["tokens_per_s"], row["speedup"]) == (4.0, 1000.0, pytest.approx(2.1))
    assert (row["gb_per_s"], row["of_copy"]) == (2.0, 0.5)
    assert (row["product"], row["rest"], row["kernels"]) == (0.75, 0.25, 6.0)
    assert row["low"] < row["speedup"] < row["high"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "llama-9"], "llama-3-8b"),
        (["--model", "llama-3-8b", "--backend", "int5"], "int5"),
        (["--model", "llama-3-8b", "--batch", "0"], "--batch"),
        (["--model", "llama-3-8b", "--context", "many"], "--context"),
        (["--model", "llama-3-8b", "--csv", "nowhere/steps.csv"], "nowhere"),
        (["--model", "llama-3-8b"], "CUDA GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(arguments, named, monkeypatch, capsys):
    from tinygemm import cli

    with pytest.raises(SystemExit) as end:
        cli.main(["step", *arguments])
    assert end.value.code != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert named in said[0]


def test_the_command_prints_the_table_and_seals_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "require_gpu", lambda: "h200")
    monkeypatch.setattr(suite.hardware, "snapshot", lambda: GPU)
    monkeypatch.setattr(suite, "bench_of_this_gpu", lambda tp: bench())
    arguments = ["--model", "tiny", "--batch", "2", "--context", "8", "--backend", "fp16-cublas,int4,gemlite"]
    arguments += ["--attention", "equations", "--no-compile", "--rep", "2"]
    arguments += ["--csv", str(tmp_path / "steps.csv"), "--out-dir", str(tmp_path)]
    done = click.testing.CliRunner().invoke(command.step, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert pd.read_csv(tmp_path / "steps.csv")["backend"].tolist() == ["fp16-cublas", "int4"]
    (path,) = tmp_path.glob("h200/*")
    assert runs.load_run(path).steps["status"].tolist() == ["ok", "ok", "ok", "unsupported"]


def test_attention_has_two_classes_that_share_their_arguments():
    assert issubclass(build.attention_class("fused"), build.attention_class("equations"))

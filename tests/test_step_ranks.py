"""A decode step on two processes: the logits of one, each with its share of the weights, and one of them writes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from test_step import INPUTS, TINY, off
from test_step_suite import Clock

from tinygemm.harness import registry
from tinygemm.harness.variant import Ceiling
from tinygemm.kernel import cut, launches, quant
from tinygemm.step import architecture, build, cases, measure, products, profile, ranks, suite, weights
from tinygemm.step.architecture import ARCHITECTURES, Architecture
from tinygemm.step.cases import StepCase

TESTS = Path(__file__).resolve().parent
BACKENDS = ("fp16-cublas", "int4-lm-head")
ARCH = Architecture(TINY, 1e4, qk_norm=True, qkv_bias=True)


def weights_of(rank: int = 0, world: int = 1) -> weights.Weights:
    return weights.Weights(ARCH, "cpu", rank=rank, world=world)


# --- the shares, in one process ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ARCH.projections(), weights.LM_HEAD])
def test_the_shares_of_a_weight_are_those_of_the_whole(name):
    whole = weights_of().packed(0, name)
    shares = [weights_of(rank, 2).packed(0, name) for rank in range(2)]
    if name in weights.RESIDUAL:
        expected = [cut.columns(whole, rank * whole.K // 2, (rank + 1) * whole.K // 2) for rank in range(2)]
    else:
        starts = [0]
        for part in ARCH.parts(name):
            starts.append(starts[-1] + part)
        expected = [
            cut.join([
                cut.rows(whole, start + rank * part // 2, start + (rank + 1) * part // 2)
                for start, part in zip(starts, ARCH.parts(name), strict=False)
            ])
            for rank in range(2)
        ]  # fmt: skip
    for share, right in zip(shares, expected, strict=True):
        assert torch.equal(share.qweight, right.qweight)
        assert torch.equal(share.scales, right.scales)


def test_heads_keep_their_biases_and_their_cache():
    m, D = TINY, TINY.head_dim
    q, k, v = weights_of().bias(1, "qkv_proj", torch.float32).split(ARCH.parts("qkv_proj"))
    second = weights_of(1, 2).bias(1, "qkv_proj", torch.float32)
    assert torch.equal(second, torch.cat([q[m.heads * D // 2 :], k[m.kv_heads * D // 2 :], v[m.kv_heads * D // 2 :]]))
    whole = weights.random_cache(ARCH, 2, 8, torch.float16, "cpu")
    share = weights.random_cache(ARCH, 2, 8, torch.float16, "cpu", 1, 2)
    assert torch.equal(share[1][0], whole[1][0][:, 1:])
    assert share[1][0].is_contiguous()


@pytest.mark.parametrize(
    ("model", "tp", "words"),
    [
        ("llama-3-8b", 3, "--tp 3 does not divide the 32 heads of llama-3-8b"),
        ("llama-3-8b", 16, "--tp 16 does not divide the 8 kv_heads of llama-3-8b"),
        ("tiny-inner", 2, "--tp 2 does not divide the 640 intermediate of tiny into multiples of 128"),
        ("tiny-vocab", 2, "--tp 2 does not divide the 336 vocab of tiny into multiples of 16"),
        ("tiny-heads", 2, "--tp 2 does not divide the 2 heads of tiny, 64 features each, into multiples of 128"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_by_the_size_that_does_not_divide(monkeypatch, model, tp, words):
    changes = {
        "tiny-inner": {"intermediate": 640}, "tiny-vocab": {"vocab": 336}, "tiny-heads": {"heads": 2},
    }  # fmt: skip
    for name, change in changes.items():
        monkeypatch.setitem(ARCHITECTURES, name, Architecture(dataclasses.replace(TINY, **change), 1e4))
    with pytest.raises(ValueError, match=words):
        StepCase(model, "int4", 1, 8, tp=tp)


def test_only_the_lean_model_is_cut():
    with pytest.raises(ValueError, match="host transformers has no tp 2"):
        StepCase("llama-3-8b", "int4", 1, 8, "transformers", tp=2)


def test_a_gpu_of_two_reads_half_of_the_weights():
    one, two = (StepCase("llama-3-8b", "int4", 8, 512, tp=tp) for tp in (1, 2))
    assert cases.weight_bytes(two.arch, "int4") * 2 == cases.weight_bytes(one.arch, "int4")
    assert cases.lm_head_bytes(two) * 2 == cases.lm_head_bytes(one)
    assert cases.kv_bytes(two) * 2 == cases.kv_bytes(one)
    h200 = 140 * 10**9
    assert cases.needed_bytes(StepCase("llama-3-70b", "fp16-cublas", 1, 512, tp=2)) < h200
    assert {case.tp for case in cases.matrix(2)} == {2}
    assert two in cases.matrix(2)


def test_what_gpus_exchange_is_a_kind_of_kernel():
    assert profile.kind_of("ncclDevKernel_AllReduce_Sum_f16_RING_LL(ncclDevKernelArgsStorage<4096ul>)") == "allreduce"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--tp", "2"], {}, "--tp 2 needs 2 processes; start them with: torchrun --nproc-per-node 2"),
        (["--tp", "2"], {"WORLD_SIZE": "4"}, "torchrun started 4 processes, and --tp is 2"),
        ([], {"WORLD_SIZE": "2"}, "torchrun started 2 processes, and --tp is 1"),
        (["--tp", "3"], {"WORLD_SIZE": "3"}, "--tp 3 does not divide the 32 heads"),
        (["--tp", "2", "--host", "transformers"], {"WORLD_SIZE": "2"}, "host transformers has no tp 2"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_sentence(arguments, environment, words, monkeypatch, capsys):
    from tinygemm import cli

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli.main(["step", "--model", "llama-3-8b", *arguments])
    assert end.value.code != 0
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert words in said


def test_fewer_gpus_than_asked_for_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--tp 2 needs 2 GPUs, and this machine has 1"):
        ranks.ranks_of_this_machine(2)


# --- two processes ----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from test_step_ranks import measured

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.save(measured(rank), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def measured(rank: int) -> dict:
    """One of two processes: the rows of a suite, logits of a compiled step, and what a fault of the other says."""
    ARCHITECTURES["tiny"] = ARCH
    measure.WARMUP, measure.gc = 0, types.SimpleNamespace(collect=int)
    registry.CEILINGS["copy"] = Ceiling("copy", "1GiB", lambda: lambda: None, lambda call: None, 2**31, 10)
    both = ranks.Ranks("cpu")
    bench = measure.Bench(Clock(), "cpu", 10**12, lambda replay: [], 1, ranks=both)
    wanted = [StepCase("tiny", name, 2, 40, "lean", "equations", False, tp=2) for name in BACKENDS]
    rows = suite.run(bench, wanted, 0 if rank else 1e9)  # the first process alone has a budget, and decides
    found = {"rows": [dataclasses.asdict(row) for row in rows.steps]}
    backend = products.BACKENDS["int4-lm-head"]
    cache = weights.random_cache(ARCH, 2, 40, torch.float16, "cpu", rank, 2)
    model = build.lean_model(weights_of(rank, 2), backend, cache, "equations")
    model.compile(backend="eager")
    found["logits"] = model(*INPUTS)[0]

    def work():
        if rank == 1:
            raise MemoryError("no room")
        return 3

    try:
        both.agree(work)
    except Exception as error:
        found["fault"] = f"{type(error).__name__}: {error}"
    found["agreed"] = both.agree(lambda: rank)
    found["same"] = both.same({"a": rank})
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_measure_the_step_of_one(two_processes):
    for found in two_processes:
        copy, *steps = found["rows"]
        assert copy["case_id"] == "copy"
        assert [row["backend"] for row in steps] == list(BACKENDS)
        for row in steps:
            assert (row["status"], row["tp"], row["case_id"][-3:]) == ("ok", 2, "tp2")
            assert 0 < row["rel_err"] < 5e-3
            assert row["argmax_agreement"] == 1


def test_a_compiled_step_of_two_processes_has_the_logits_of_one(two_processes, monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    one, two = (found["logits"] for found in two_processes)
    assert torch.equal(one, two)
    cache = weights.random_cache(ARCH, 2, 40, torch.float16, "cpu")
    expected = build.lean_model(weights_of(), products.BACKENDS["int4-lm-head"], cache, "equations")(*INPUTS)[0]
    assert 0 <= off(one, expected.float()) < 3e-3


def test_a_fault_of_one_process_is_that_of_all(two_processes):
    first, second = two_processes
    assert first["fault"] == "RuntimeError: rank 1: MemoryError: no room"
    assert second["fault"] == "MemoryError: no room"
    assert (first["agreed"], second["agreed"]) == (0, 1)
    assert first["same"] == second["same"] == {"a": 0}


def test_a_share_is_cut_into_whole_tiles_of_the_packed_layout():
    """The architecture needs no torch, and so has the size of a tile of its own."""
    assert (architecture.TILE_N, architecture.TILE_K) == (quant.TILE_N, quant.TILE_K)

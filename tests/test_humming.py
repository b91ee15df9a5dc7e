"""Humming as a peer: what it is given, what it is asked for, and what is refused, on a package that only multiplies."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tinygemm.harness import compile, peers, registry
from tinygemm.harness.plan import Group
from tinygemm.harness.weights import replicate
from tinygemm.kernel import launches
from tinygemm.problem import GemmProblem

PROBLEM = GemmProblem(2, 256, 512)
BOTH = ("humming", "humming-serial")


class Package:
    """Stands in for the package: packs as it does, multiplies with what it was given, and notes what it was told.

    tools: what a machine has to compile with       smem:  bytes of shared memory of every kernel
    calls: the arguments of each product
    """

    def __init__(self):
        self.tools, self.smem, self.calls = {"nvcc"}, 45056, []

    def filter_cuda_paths(self, required_headers=(), required_binaries=()):
        if missing := {*required_headers, *required_binaries} - self.tools:
            raise RuntimeError(f"no CUDA 13 environment has {', '.join(missing)}")

    def forward(self, layer, *, inputs, weight, weight_scale, outputs, locks, compute_config, tuning_config):
        assert inputs.dtype == weight_scale.dtype == outputs.dtype == torch.float16
        assert locks.dtype == torch.int32
        assert not locks.any()
        self.calls.append((json.loads(compute_config), json.loads(tuning_config)))
        codes = torch.stack([weight >> shift & 15 for shift in range(0, 32, 4)], -1).flatten(1)
        scales = weight_scale.repeat_interleave(layer.shape_k // weight_scale.shape[1], 1)
        outputs.copy_(inputs.double() @ ((codes - 8).double() * scales.double()).t())
        return outputs


class Layer(torch.nn.Module):
    """Takes what the layer of the package takes; its transform leaves the order as it is."""

    def __init__(self, shape_n, shape_k, weight_config, torch_dtype):
        super().__init__()
        assert weight_config["dtype"] == "int4"
        groups = shape_k // (weight_config["group_size"] or shape_k)
        self.weight = torch.nn.Parameter(torch.zeros(shape_n, shape_k // 8, dtype=torch.int32), requires_grad=False)
        self.weight_scale = torch.nn.Parameter(torch.zeros(shape_n, groups, dtype=torch_dtype), requires_grad=False)
        self.register_buffer("locks", torch.zeros(2048, dtype=torch.int32))
        self.facts = SimpleNamespace(shape_n=shape_n, shape_k=shape_k, to_str=lambda: f"{shape_n}x{shape_k}")

    def load_from_tensors(self, tensors):
        assert tensors.keys() == {"weight", "weight_scale"}
        self.load_state_dict(tensors, strict=False)

    def transform(self):
        self.humming_config = self.facts


def pack_weight(codes, bits):
    assert codes.dtype == torch.int32
    assert bits == 4
    return sum(codes[:, i::8] << 4 * i for i in range(8)).to(torch.int32)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    fake = Package()
    kernel = SimpleNamespace(prepare_kernels=lambda *_: torch.tensor([0, 1 << 30, 7, 0]))
    own = {"block_shape": (8, 64, 64), "use_pdl": None}
    modules = {
        "humming": {}, "humming.utils": {}, "humming.kernel": {},
        "humming.utils.cuda": {"filter_cuda_paths": fake.filter_cuda_paths},
        "humming.layer": {"HummingLayer": Layer},
        "humming.ops": {"pack_weight": pack_weight, "get_kernel_smem_size": lambda kernel: fake.smem},
        "humming.kernel.humming": {"HummingKernel": kernel},
        "humming.forward": {"humming_forward": fake.forward},
        "humming.tune": {"get_heuristics_config": lambda layer, shape_m, gemm_type, device: own | {"own": shape_m}},
    }  # fmt: skip
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(peers, "find_spec", lambda name: name)
    for name in ("HUMMING_COMPILER", "HUMMING_DISABLE_PARALLEL_BUILD"):
        monkeypatch.setenv(name, "as it was before")
        monkeypatch.delenv(name)
    return fake


def variants_of(name="humming", problem=PROBLEM):
    return registry.BACKENDS[name].variants(problem, "h200")


def built(problem=PROBLEM):
    packed = registry.operands(problem, True, "cpu", seed=0)
    return registry.activations(problem, "cpu", seed=1), packed, peers.humming_build(packed)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("problem", [PROBLEM, GemmProblem(16, 128, 256, 32), GemmProblem(17, 256, 256, -1)], ids=str)
def test_every_variant_is_given_the_codes_and_scales_of_the_packed_weight(name, problem, package):
    from tinygemm.kernel import quant

    x, packed, weight = built(problem)
    backend = registry.BACKENDS[name]
    assert backend.unsupported_reason(problem, True) is None
    for variant in backend.variants(problem, "h200"):
        reference = quant.reference_gemm(x, packed)
        backend.check(variant.bind, x, weight, packed, reference, backend.tolerance)


def test_what_a_kernel_does_not_write_is_seen(package, monkeypatch):
    monkeypatch.setattr(sys.modules["humming.forward"], "humming_forward", lambda *_, outputs, **__: outputs)
    x, _, weight = built()
    for variant in variants_of():
        assert variant.bind(x, weight)().isnan().all()


@pytest.mark.parametrize(("M", "block_m"), [(1, 8), (8, 8), (9, 16), (16, 16)])
def test_the_search_has_the_budget_that_is_stated_and_tiles_for_so_many_tokens(M, block_m, package):
    problem = GemmProblem(M, 256, 512)
    x, _, weight = built(problem)
    variants = variants_of(problem=problem)
    assert len({variant.source for variant in variants}) == len(variants) == 1 + len(peers.HUMMING_TUNINGS) == 11
    for variant in variants:
        variant.bind(x, weight)()
    computes, tunings = zip(*package.calls, strict=True)
    assert tunings[0]["own"] == M
    assert {(tuning["block_shape"][0], tuning["warp_shape"][0]) for tuning in tunings[1:]} == {(block_m, block_m)}
    assert {tuning["num_ctas_per_sm"] for tuning in tunings[1:]} == {1, 2}
    assert {tuning["use_stream_k"] for tuning in tunings[1:]} == {True, False}
    assert not any("accum" in key for compute in computes for key in compute), "it adds up in FP32"


def test_for_many_tokens_its_own_choice_stands_alone():
    assert [variant.source for variant in variants_of(problem=GemmProblem(17, 256, 512))] == ["its own choice"]


@pytest.mark.parametrize(("name", "able", "overlaps"), [(BOTH[0], True, True), (BOTH[0], False, False),
                                                        (BOTH[1], True, False)])  # fmt: skip
def test_its_calls_overlap_where_they_may_and_the_gpu_can(name, able, overlaps, package, monkeypatch):
    monkeypatch.setattr(launches, "dependent_launch", lambda device: able)
    x, _, weight = built()
    for variant in variants_of(name):
        variant.bind(x, weight)()
    assert {tuning["use_pdl"] for _, tuning in package.calls} == {overlaps}


def test_a_variant_that_does_not_fit_is_refused_in_words(package):
    x, _, weight = built(GemmProblem(1, 128, 384))
    tall = next(variant for variant in variants_of() if "x256 " in variant.source)
    with pytest.raises(ValueError, match=r"64 by 256.*N=128 K=384"):
        tall.bind(x, weight)
    package.smem = 120 * 1024
    x, _, weight = built()
    for variant in variants_of()[1:]:
        if "ctas_per_sm=2" in variant.source:
            with pytest.raises(ValueError, match="2 thread blocks of 122880 bytes"):
                variant.bind(x, weight)
        else:
            variant.bind(x, weight)()


@pytest.mark.parametrize(
    ("problem", "symmetric", "message"),
    [
        (PROBLEM, False, "symmetric weights only"),
        (GemmProblem(1, 192, 512), True, "N divisible by 128 and K by 64, got N=192 K=512"),
        (GemmProblem(1, 256, 96, 32), True, "got N=256 K=96"),
    ],
)
def test_what_the_package_cannot_do_is_said_in_words(problem, symmetric, message):
    assert message in registry.BACKENDS["humming"].unsupported_reason(problem, symmetric)


def test_it_compiles_by_nvcc_if_there_is_one_else_by_nvrtc_else_not_at_all(package, monkeypatch):
    unsupported = registry.BACKENDS["humming-serial"].unsupported_reason
    assert unsupported(PROBLEM, True) is None
    assert os.environ.pop("HUMMING_COMPILER") == "nvcc"
    package.tools = {"nvrtc.h"}
    assert unsupported(PROBLEM, True) is None
    assert "HUMMING_COMPILER" not in os.environ
    package.tools = set()
    assert "nvcc or NVRTC, and cannot: no CUDA 13 environment has nvrtc.h" in unsupported(PROBLEM, True)
    monkeypatch.setitem(sys.modules, "humming.utils.cuda", None)
    assert "humming.utils.cuda" in unsupported(PROBLEM, True), "a package that it needs is missing"


def test_copies_have_words_scales_and_locks_of_their_own():
    _, _, weight = built()
    copies = replicate(weight, 3)
    for part in ("words", "scales", "locks"):
        tensors = [getattr(copy, part) for copy in copies]
        assert len({tensor.data_ptr() for tensor in tensors}) == 3
        assert all(torch.equal(tensor, getattr(weight, part)) for tensor in tensors)
    assert all(copy.layer is weight.layer for copy in copies)


def test_tokens_that_share_a_kernel_have_it_compiled_once():
    """Its own choice may be another one for every M; the tiles are of 8 or 16 tokens."""
    todo = [Group(GemmProblem(M, 256, 512), str(M), "graph", "cold", BOTH) for M in (1, 2, 4, 8, 16)]
    jobs = compile.jobs_of(todo, "h200", True)
    assert len(jobs) == len(set(jobs)) == 2 * (5 + 2 * len(peers.HUMMING_TUNINGS))

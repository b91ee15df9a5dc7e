"""The short way to a kernel: the same arguments as Triton's own way, and only where they are sure to be the same."""

import itertools
import warnings
from dataclasses import replace
from types import SimpleNamespace

import fake_triton
import pytest
import torch
import triton
from fake_triton import Kernel

from tinygemm.kernel import configs, fastpath, gemm, launch, launches, reference, workspace
from tinygemm.kernel.configs import DEQUANTISE, STATIC, Format, LaunchConfig
from tinygemm.kernel.quant import random_packed
from tinygemm.kernel.triton import pipelined, simple, splitk

SPLITK = LaunchConfig("splitk", block_m=8, block_n=32, block_k=512, split_k=2, num_warps=2, num_stages=1)
RING = LaunchConfig("ring", block_m=8, block_n=32, block_k=256, split_k=2, num_warps=2, num_stages=3)
FORMS = {"splitk": SPLITK, "no split": replace(SPLITK, split_k=1), "ring": RING, "static": STATIC}
OPTIONS = ("num_warps", "num_stages", "launch_pdl", "enable_fp_fusion")
N, K = 64, 1024
W = random_packed(N, K, symmetric=False)


@pytest.fixture(params=["3.6", "3.7", "3.8", "3.9"])
def version(request, monkeypatch):
    fake_triton.install(monkeypatch, tuple(map(int, request.param.split("."))))
    return request.param


@pytest.fixture
def kernel(monkeypatch):
    """Stands in for every kernel of the product."""
    kernel = Kernel()
    monkeypatch.setattr(splitk, "kernel_gemm_packed_int4_splitk", kernel)
    monkeypatch.setattr(pipelined, "kernel_gemm_packed_int4_pipelined", kernel)
    monkeypatch.setattr(simple, "kernel_gemm_packed_int4_static", kernel)
    monkeypatch.setattr(simple, "kernel_dequantize_int4", kernel)
    return kernel


def aligned(M=1, columns=K, offset=0):
    """x [M, K] whose address is `offset` elements past a multiple of 16 bytes."""
    buffer = torch.randn(M * columns + 64).half()
    start = -(buffer.data_ptr() // 2) % 8 + offset
    return buffer[start : start + M * columns].view(M, columns)[:, :K]


def arguments_of(launched, version):
    """(grid, stream, function, the kernel's arguments) of what the driver was given; checks all the rest."""
    grid, stream, function, flags, rest = launched[:3], launched[3], launched[4], launched[5:7], launched[7:]
    assert flags == (False, True)
    if version == "3.6":  # two scratches, metadata, what hooks are told, two hooks, then one by one
        assert rest[:6] == (None, None, (4, 1, 0), None, None, None)
        return grid, stream, function, rest[6:]
    # metadata, what hooks are told, two hooks, two scratches, then what describes the arguments, then all in one
    assert rest[:-1] == ((4, 1, 0), None, None, None, None, None, ("annotations",), b"signature")
    return grid, stream, function, rest[-1]


@pytest.mark.parametrize("form", FORMS)
def test_the_second_call_hands_the_driver_what_triton_would(form, version, kernel):
    x = aligned()
    first = gemm.gemm(x, W, FORMS[form])
    second = gemm.gemm(x, W, FORMS[form])
    assert len(kernel.ordinary) == len(kernel.short) == 1
    (grid, values, constants), = kernel.ordinary  # fmt: skip
    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    assert options["num_warps"] == FORMS[form].num_warps
    assert options["enable_fp_fusion"] is True, "its default may turn off"
    short_grid, stream, function, arguments = arguments_of(kernel.short[0], version)
    assert (short_grid, stream, function) == (grid, fake_triton.STREAM, 4711)
    assert len(arguments) == len(values) + len(constants)
    assert first.shape == second.shape == (1, N)
    for value, argument in zip((*values, *constants.values()), arguments, strict=True):
        if value is first:
            assert argument == second.data_ptr()
        elif any(value is tensor for tensor in (x, W.qweight, W.scales, W.zeros)):
            assert argument == value.data_ptr()
        elif isinstance(value, torch.Tensor):  # the workspace, a new one for each call on the CPU
            assert argument % 16 == 0
        else:
            assert argument == value


@pytest.mark.parametrize("split_k", [1, 2])
def test_the_installed_triton_hands_its_driver_the_same(split_k, kernel, monkeypatch):
    """Its own launcher, with nothing replaced but the function that it calls in the end."""
    from triton.backends.nvidia.driver import CudaLauncher

    installed = tuple(map(int, triton.__version__.split(".")[:2]))
    fake_triton.install(monkeypatch, installed)
    launcher = CudaLauncher.__new__(CudaLauncher)
    launcher.num_ctas, launcher.launch = 1, kernel.run.launch
    for name in ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size"):
        setattr(launcher, name, getattr(kernel.run, name))
    launcher.global_scratch_align = launcher.profile_scratch_align = 1
    launcher.arg_annotations, launcher.kernel_signature = kernel.run.arg_annotations, kernel.run.kernel_signature
    kernel.binary.run = launcher
    x, config = aligned(), replace(SPLITK, split_k=split_k)
    gemm.gemm(x, W, config)
    gemm.gemm(x, W, config)
    (grid, values, constants), = kernel.ordinary  # fmt: skip
    values += tuple(value for name, value in constants.items() if name not in OPTIONS)
    (short,) = kernel.short
    # what CompiledKernel.__getitem__ calls: grid, stream, function, metadata, what hooks are told, two hooks, arguments
    launcher(*grid, fake_triton.STREAM, 4711, kernel.binary.packed_metadata, None, None, None, *values)
    version = ".".join(map(str, installed))
    expected, got = arguments_of(kernel.short[1], version), arguments_of(short, version)
    assert got[:3] == expected[:3]
    for theirs, ours in zip(expected[3], got[3], strict=True):
        assert isinstance(theirs, torch.Tensor) or theirs == ours


def test_constants_stand_in_the_order_of_the_signature():
    """The short way passes them by position."""
    described = [
        *launches.product(SPLITK, 1, W, K, False),
        *launches.product(RING, 1, W, K, False),
        *launches.product(STATIC, 1, W, K, False),
        launches.dequantise(W),
        *reference._load_only(random_packed(N, K), SPLITK, True).launches,
        *reference._fp16(aligned(), torch.zeros(N, K).half(), SPLITK, True).launches,
        *reference._ablated(aligned(), W, SPLITK, "none", True, True).launches,
    ]
    for one in described:
        assert one.kernel.arg_names[-len(one.constants) :] == list(one.constants), one.kernel.__name__
        space = 0 if one.workspace is None else 2
        pointers = [name for name in one.kernel.arg_names if name.endswith("_ptr")]
        assert len(one.kernel.arg_names) == len(pointers) + len(one.numbers) + len(one.constants)
        assert [name in pointers for name in ("partial_ptr", "counter_ptr")] == [space == 2] * 2


def test_tokens_beyond_one_tile_are_several_launches_on_their_own_rows(version, kernel):
    x = aligned(20)
    gemm.gemm(x, W, SPLITK)
    out = gemm.gemm(x, W, SPLITK)
    assert len(kernel.ordinary) == len(kernel.short) == 3
    for launched, first, count in zip(kernel.short, (0, 8, 16), (8, 8, 4), strict=True):
        arguments = arguments_of(launched, version)[3]
        assert arguments[0] == x[first].data_ptr()
        assert arguments[4] == out[first].data_ptr()
        assert arguments[7] == count
    for (_, values, _), first in zip(kernel.ordinary, (0, 8, 16), strict=True):
        assert values[0].data_ptr() == x[first].data_ptr()


def test_launches_of_different_binaries_are_left_to_triton(version, kernel):
    """One plan has one binary; a kernel that is compiled for the rest of M would be another."""
    kernel.specialise = True
    for _ in range(2):
        gemm.gemm(aligned(20), W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (6, 0)


def test_a_key_is_all_that_decides_about_the_launch(version, kernel):
    """Whatever differs from the call before goes the ordinary way once; then it is known, too."""
    weights = [W, random_packed(N, K), random_packed(N, K, 64), random_packed(N, K, -1), random_packed(2 * N, K)]
    calls = [(aligned(), w, SPLITK, True) for w in weights]
    calls += [(aligned(M), W, SPLITK, True) for M in (2, 3, 8, 9)]
    calls += [(aligned(2, 2 * K), W, SPLITK, True), (aligned().view(1, 1, K), W, SPLITK, True)]
    calls += [
        (aligned(), W, replace(SPLITK, split_k=1), True),
        (aligned(), W, SPLITK, False),
        (aligned(), W, None, True),
    ]
    for number, (x, w, config, dependent) in enumerate(calls):
        before = len(kernel.ordinary)
        gemm.gemm(x, w, config, dependent)
        assert len(kernel.ordinary) > before, f"call {number} took another call's plan"
    before = len(kernel.ordinary)
    for x, w, config, dependent in calls:
        gemm.gemm(x, w, config, dependent)
    assert len(kernel.ordinary) == before


X = aligned(3)
OTHER = {  # what a second call has that the first, of X by W in SPLITK, has not: x, w, config, dependent_launch
    "dtype of x": {"x": X.bfloat16()},
    "rows of x": {"x": aligned(4)},
    "leading dimensions of x": {"x": X.view(1, 3, K)},
    "strides of x": {"x": aligned(3, 2 * K)},
    "rows of x at unequal distances": {"x": aligned(6).view(2, 3, K)[:, ::2].transpose(0, 1)},
    "no zeros": {"w": replace(W, zeros=None)},
    "group size": {"w": random_packed(N, K, 64, symmetric=False)},
    "one group per row": {"w": random_packed(N, K, -1, symmetric=False)},
    "N": {"w": random_packed(N + 16, K, symmetric=False)},
    "N in the same tiles": {"w": random_packed(N - 1, K, symmetric=False)},
    "K": {"x": aligned(3, K // 2), "w": random_packed(N, K // 2, symmetric=False)},
    "config": {"config": replace(SPLITK, num_warps=4)},
    "dependent launch": {"dependent": False},
}


@pytest.mark.parametrize("case", OTHER)
def test_a_call_that_differs_in_one_thing_takes_no_plan_of_another(case, version, kernel):
    """Each is made right after a call that has a plan, so a key without that thing would find it."""

    def call(x=X, w=W, config=SPLITK, dependent=True):
        before = len(kernel.ordinary), len(kernel.short)
        out = gemm.gemm(x, w, config, dependent)
        assert (out.shape, out.dtype) == ((*x.shape[:-1], w.N), x.dtype)
        return len(kernel.ordinary) > before[0], len(kernel.short) > before[1]

    assert call() == (True, False)
    assert call() == (False, True)
    assert call(**OTHER[case]) == (True, False)
    assert call(**OTHER[case]) == (False, True)
    assert call() == (False, True)


def test_a_plan_of_one_device_serves_no_other(version, kernel):
    gemm.gemm(X, W, SPLITK)
    with pytest.raises(ValueError, match="x is on meta and w on cpu"):
        gemm.gemm(X.to("meta"), W, SPLITK)
    with pytest.raises(ValueError, match="x is on cpu and w on meta"):
        gemm.gemm(X, W.to("meta"), SPLITK)
    with pytest.raises(ValueError, match="config must be None where x is on meta"):
        gemm.gemm(X.to("meta"), W.to("meta"), SPLITK)
    assert not kernel.short


def test_scales_of_another_dtype_never_meet_a_plan(version, kernel):
    """A key does not name the dtype of scales: there is one only, and a packed weight of another is not made."""
    gemm.gemm(X, W, SPLITK)
    for scales in (W.scales.bfloat16(), W.scales.float(), W.scales.t().contiguous().t()):
        with pytest.raises(ValueError, match="scales must be"):
            gemm.gemm(X, replace(W, scales=scales), SPLITK)
    assert not kernel.short


DEQUANTISED = {
    "dtype": {"dtype": torch.bfloat16},
    "no zeros": {"w": replace(W, zeros=None)},
    "group size": {"w": random_packed(N, K, 64, symmetric=False)},
    "N": {"w": random_packed(N - 1, K, symmetric=False)},
    "K": {"w": random_packed(N, K // 2, symmetric=False)},
    "device": {"w": W.to("meta")},
}


@pytest.mark.parametrize("case", DEQUANTISED)
def test_dequantising_a_weight_that_differs_in_one_thing_takes_no_plan_of_another(case, version, kernel):
    def call(w=W, dtype=torch.float16):
        before = len(kernel.short)
        assert gemm.dequantize_fp16(w, dtype).shape == w.shape
        return len(kernel.short) > before

    assert [call(), call()] == [False, True]
    assert not call(**DEQUANTISED[case])
    assert call()


def test_another_weight_of_the_same_shape_is_the_one_that_is_read(version, kernel):
    """No plan holds on to a tensor: neither its address nor its identity."""
    x = aligned()
    gemm.gemm(x, random_packed(N, K, symmetric=False, seed=1), SPLITK)
    other = random_packed(N, K, symmetric=False, seed=2)
    gemm.gemm(aligned(), other, SPLITK)
    arguments = arguments_of(kernel.short[0], version)[3]
    assert arguments[1:4] == (other.qweight.data_ptr(), other.scales.data_ptr(), other.zeros.data_ptr())


def test_an_unaligned_tensor_goes_the_ordinary_way_every_time(version, kernel):
    for _ in range(2):
        gemm.gemm(aligned(offset=1), W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 0)
    gemm.gemm(aligned(), W, SPLITK)
    gemm.gemm(aligned(offset=1), W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (4, 0), "same key, another binary"
    gemm.gemm(aligned(), W, SPLITK)
    assert len(kernel.short) == 1


def test_rows_at_unequal_distances_are_copied_before_every_launch(version, kernel):
    x = torch.randn(3, 4, K).half()[:, :2]
    for _ in range(2):
        out = gemm.gemm(x, W, SPLITK)
        assert out.shape == (3, 2, N)
    assert len(kernel.short) == 1
    assert arguments_of(kernel.short[0], version)[3][11] == K, "the distance of the copied rows"


@pytest.mark.parametrize("shape", [(1, 1, K), (1, K), (K,)])
def test_one_row_is_one_binary_wherever_it_was_cut_from(shape, version, kernel):
    """The last token of a prompt has the stride of the whole prompt; it must not be compiled for."""
    prompt = torch.randn(5, K).half()[-1:].as_strided(shape, (5 * K, 3 * K, 1)[3 - len(shape) :])
    gemm.gemm(prompt, W, SPLITK)
    ((_, values, _),) = kernel.ordinary
    assert values[11] == K


def test_where_a_profiler_listens_triton_tells_it(version, kernel, monkeypatch):
    x = aligned()
    gemm.gemm(x, W, SPLITK)
    hook = SimpleNamespace(calls=[print])
    with monkeypatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
        gemm.gemm(x, W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 0)
    gemm.gemm(x, W, SPLITK)
    assert len(kernel.short) == 1


KNOBS = {
    "debug": (triton.knobs.runtime, "debug", True),
    "instrumentation": (triton.knobs.compilation, "instrumentation_mode", "fpsan"),
}


@pytest.mark.parametrize("case", KNOBS)
def test_a_knob_that_triton_compiles_for_is_another_call(case, version, kernel, monkeypatch):
    gemm.gemm(aligned(), W, SPLITK)
    with monkeypatch.context() as patch:
        patch.setattr(*KNOBS[case])
        for _ in range(2):
            gemm.gemm(aligned(), W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 1)
    gemm.gemm(aligned(), W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 2)


def test_where_somebody_changes_how_triton_compiles_it_is_asked_every_time(version, kernel, monkeypatch):
    gemm.gemm(aligned(), W, SPLITK)
    monkeypatch.setattr(triton.knobs.runtime, "add_stages_inspection_hook", lambda *_: ("key", "hash"))
    gemm.gemm(aligned(), W, SPLITK)
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 0)


UNKNOWN = {
    "a later version": lambda kernel, patch: patch.setattr(fastpath, "_version", (3, 10)),
    "an earlier version": lambda kernel, patch: patch.setattr(fastpath, "_version", (3, 5)),
    "another driver": lambda kernel, patch: patch.setattr(type(kernel.run), "__module__", "triton.backends.amd.driver"),
    "no launch function": lambda kernel, patch: patch.delattr(type(kernel.run), "launch"),
    "scratch memory": lambda kernel, patch: patch.setattr(kernel.run, "global_scratch_size", 128),
    "a sanitizer": lambda kernel, patch: patch.setattr(kernel.run, "gsan_enabled", True, raising=False),
}
TOLD = ("a later version", "an earlier version", "another driver", "no launch function")


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_launcher_that_is_not_known_is_left_to_triton(case, version, kernel, monkeypatch):
    UNKNOWN[case](kernel, monkeypatch)
    fastpath._warn_of_an_unknown_launcher.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            gemm.gemm(aligned(), W, SPLITK)
    assert [triton.__version__ in str(each.message) for each in told] == [True] * (case in TOLD), "once"
    assert (len(kernel.ordinary), len(kernel.short)) == (3, 0)


@pytest.mark.parametrize("failure", [RuntimeError("out of resources"), KeyboardInterrupt()], ids=type)
def test_a_failed_launch_leaves_nothing_behind(failure, version, kernel, monkeypatch):
    x = aligned()
    kernel.fail = failure
    with pytest.raises(type(failure)):
        gemm.gemm(x, W, SPLITK)
    gemm.gemm(x, W, SPLITK)
    assert len(kernel.ordinary) == 1, "a call that failed was not remembered"

    def fails(*arguments):
        raise failure

    plan = next(iter(launch._plans.values()))
    with monkeypatch.context() as patch:
        patch.setitem(launch._plans, next(iter(launch._plans)), plan._replace(launch=fails))
        with pytest.raises(type(failure)):
            gemm.gemm(x, W, SPLITK)
    gemm.gemm(x, W, SPLITK)
    assert len(kernel.short) == 1


def test_a_known_call_asks_torch_for_one_tensor_and_nothing_else(version, kernel, monkeypatch):
    """The costs on the host: allocations, selection, checks, Triton's own launcher. One allocation is the output."""
    x = aligned()
    config = replace(SPLITK, split_k=1)
    gemm.gemm(x, W, config)
    allocated = []
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *a, **k: allocated.append(a) or new_empty(x, *a, **k))
    for module, name in ((gemm, "check"), (gemm, "_selected"), (launches, "product"), (launch, "start")):
        monkeypatch.setattr(module, name, None)
    for _ in range(3):
        gemm.gemm(x, W, config)
    assert allocated == [(1, N)] * 3


class Counters:
    """Counters of a GPU that is not here: on the CPU, with a note of every set that is zeroed while a call is captured.

    A set that a graph zeroes itself is a node between two kernels: the second cannot start early, and both are slow.
    """

    def __init__(self, monkeypatch):
        self.capturing, self.zeroed_in_a_graph = False, 0
        self.stream, self.capture = 7, 1
        for name in ("_stream_workspaces", "_pools", "_captures"):
            monkeypatch.setattr(workspace, name, {})
        monkeypatch.setattr(workspace, "_zeros", self.zeros)
        monkeypatch.setattr(fastpath, "capture_id", lambda stream: self.capture)
        monkeypatch.setattr(fastpath, "current_stream", lambda index: self.stream)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def zeros(self, count, device):
        self.zeroed_in_a_graph += self.capturing
        return torch.zeros(count, dtype=torch.int32)

    def eager(self, partials=64, counters=4):
        return workspace.reserve(partials, counters, torch.device("cuda", 0))

    def captured(self, partials=64, counters=4):
        self.capturing = True
        space = self.eager(partials, counters)
        self.capturing = False
        return space


def test_a_captured_call_finds_zeroed_counters_also_after_graphs_were_forgotten(monkeypatch):
    gpu = Counters(monkeypatch)
    for _ in range(3):
        gpu.eager()
        sets = []
        for gpu.capture in range(3):
            sets.append(gpu.captured().tensors[1])
        assert len({counters.data_ptr() for counters in sets}) == 3
        assert gpu.zeroed_in_a_graph == 0
        workspace.forget_captured_counters()


def test_a_captured_call_zeroes_counters_itself_where_there_are_none(monkeypatch):
    gpu = Counters(monkeypatch)
    gpu.captured()
    assert gpu.zeroed_in_a_graph == 1, "no eager call came before it"
    gpu.captured()
    assert gpu.zeroed_in_a_graph == 1, "the next call of the same capture shares them"
    gpu.eager()
    gpu.capture += 1
    gpu.captured(counters=workspace.POOL_COUNTERS)
    assert gpu.zeroed_in_a_graph == 1
    gpu.capture += 1
    gpu.captured()
    assert gpu.zeroed_in_a_graph == 2, "the pool is used up, and no eager call came"


def test_a_server_never_runs_out_of_counters(monkeypatch):
    """One stream captures thousands of graphs of many layers each, after an eager call as a warm-up."""
    gpu, taken = Counters(monkeypatch), []
    for gpu.capture in range(3000):
        gpu.eager(counters=1024)
        sets = {gpu.captured(counters=counters).addresses[1] for counters in (1024, 64, 896, 1024)}
        assert len(sets) == 1, "calls of one capture on one stream run one after the other"
        taken += sets
    assert gpu.zeroed_in_a_graph == 0
    assert len(set(taken)) == 3000, "graphs may be replayed side by side"
    starts = sorted(taken)
    assert all(after - before >= 4 * 1024 for before, after in itertools.pairwise(starts)), "no two overlap"


def test_streams_of_one_capture_have_counters_of_their_own(monkeypatch):
    gpu = Counters(monkeypatch)
    gpu.eager()
    mine = gpu.captured()
    gpu.stream = 8
    other = gpu.captured()
    gpu.stream = 7
    assert gpu.captured().addresses[1] == mine.addresses[1] != other.addresses[1]


def test_a_larger_call_of_a_capture_gets_a_larger_set(monkeypatch):
    gpu = Counters(monkeypatch)
    gpu.eager()
    small, large = gpu.captured(counters=4), gpu.captured(counters=64)
    assert large.tensors[1].numel() == 64
    assert large.addresses[1] >= small.addresses[1] + 16


def test_a_capture_that_the_driver_does_not_name_shares_nothing(monkeypatch):
    gpu = Counters(monkeypatch)
    gpu.eager()
    gpu.capture = None
    assert gpu.captured().addresses[1] != gpu.captured().addresses[1]


def test_plans_do_not_pile_up(version, kernel, monkeypatch):
    monkeypatch.setattr(launch, "MAX_PLANS", 3)
    for M in range(1, 8):
        gemm.gemm(aligned(M), W, SPLITK)
        assert len(launch._plans) <= 3


@pytest.mark.parametrize(("split_k", "waits"), [(4, True), (5, False)])
def test_a_program_with_nothing_to_walk_never_starts_before_the_kernel_before_it(split_k, waits):
    """It would not wait, and the workspace and the memory that it writes to may still be in use."""
    config = replace(SPLITK, split_k=split_k)  # 8 blocks of K, 2 warps: 4 steps
    w = random_packed(N, K)
    (one,) = launches.product(config, 1, w, K, True)
    assert one.constants["PDL"] is waits
    assert one.options.get("launch_pdl", False) is waits
    (ring,) = launches.product(replace(RING, split_k=4 * split_k), 1, w, K, True)
    assert ring.constants["PDL"], "its programs wait before they walk, whether they have anything to walk or not"


def test_dequantised_weights_take_the_short_way_too(version, kernel):
    for dtype in (torch.float16, torch.bfloat16):
        for _ in range(2):
            assert gemm.dequantize_fp16(W, dtype).dtype == dtype
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 2)
    assert kernel.ordinary[0][2]["num_warps"] == DEQUANTISE.num_warps


def test_a_key_of_the_dequantising_kernel_is_all_that_decides_about_its_launch(version, kernel):
    """Weights that differ in one thing only, one after the other."""
    weights = [
        random_packed(N, K),
        random_packed(N, K, symmetric=False),
        random_packed(N, K, 64),
        random_packed(N, K, -1),
        random_packed(2 * N, K),
        random_packed(N, 2 * K),
    ]
    for number, w in enumerate(weights, 1):
        gemm.dequantize_fp16(w)
        assert len(kernel.ordinary) == number, "took the plan of another weight"
    for w in weights:
        gemm.dequantize_fp16(w)
    assert (len(kernel.ordinary), len(kernel.short)) == (len(weights), len(weights))


def test_another_dtype_of_x_is_another_call(version, kernel):
    for dtype in (torch.float16, torch.bfloat16):
        out = [gemm.gemm(aligned().to(dtype), W, SPLITK).dtype for _ in range(2)]
        assert out == [dtype] * 2
    assert (len(kernel.ordinary), len(kernel.short)) == (2, 2)


def test_every_format_is_launched_in_the_config_of_its_own_row(kernel, monkeypatch, tmp_path):
    """Planted: a table whose rows of every format differ in the split of K."""
    monkeypatch.setattr(configs, "_folder", lambda: tmp_path)
    wanted = itertools.product((128, 64, 32), (True, False), (True, False))
    splits = {Format(*format): split for split, format in enumerate(wanted, 2)}
    config = LaunchConfig("splitk", 8, 32, 128, 1, 1, 1)
    rows = [
        {"M": 1, "K": 4096, "N": N, "latency_us": 1.0, "format": format, "config": replace(config, split_k=split)}
        for format, split in splits.items()
    ]
    configs.write_table(tmp_path / "h200.json", rows, "table", "planted")
    caches = (configs.table, configs.crossovers, gemm._selected)
    for cache in caches:
        cache.cache_clear()
    for format, split in splits.items():
        w = random_packed(N, 4096, format.group_size, format.symmetric)
        x = torch.ones(1, 4096, dtype=torch.float16 if format.half else torch.bfloat16)
        for multiply in (gemm.gemm, gemm.fused_gemm):
            kernel.ordinary.clear()
            multiply(x, w)
            assert [constants["SPLIT_K"] for _, _, constants in kernel.ordinary] == [split], format
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("config", [SPLITK, STATIC], ids=["splitk", "static"])
def test_rows_at_unequal_distances_reach_the_kernel_both_times_a_call_is_made(config, version, kernel, monkeypatch):
    copies, contiguous = [], torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda tensor: copies.append(contiguous(tensor)) or copies[-1])
    for _ in range(3):
        x = torch.randn(3, 4, K).half()[:, :2]
        gemm.gemm(x, W, config)
        if kernel.short:
            assert arguments_of(kernel.short[-1], version)[3][0] == copies[-1].data_ptr()
        given = copies[-1] if kernel.short else kernel.ordinary[0][1][0]
        assert given.is_contiguous()
        assert torch.equal(given.view(3, 2, K), x)
    assert (len(kernel.ordinary), len(kernel.short)) == (1, 2)


@pytest.mark.parametrize("M", [20, 17, 8])
def test_a_call_cut_into_pieces_has_room_for_the_largest_of_them(M, version, kernel, monkeypatch):
    asked, reserve = [], workspace.reserve
    gemm.gemm(aligned(M), W, SPLITK)
    monkeypatch.setattr(workspace, "reserve", lambda *sizes: asked.append(sizes[:2]) or reserve(*sizes))
    gemm.gemm(aligned(M), W, SPLITK)
    assert len(kernel.short) == -(-M // SPLITK.block_m)
    assert asked
    for partials, counters in asked:
        assert partials >= SPLITK.split_k * min(M, SPLITK.block_m) * N
        assert counters >= N // SPLITK.block_n


def test_no_call_that_may_overlap_another_shares_its_workspace(monkeypatch):
    """Captured calls, replayed at any time, and eager calls on two streams."""
    gpu = Counters(monkeypatch)
    spaces = [gpu.eager(), gpu.captured()]
    gpu.capture = 2
    spaces += [gpu.captured()]
    gpu.stream = 8
    spaces += [gpu.eager(), gpu.captured()]
    for part in (0, 1):
        tensors = [space.tensors[part] for space in spaces]
        assert [space.addresses[part] for space in spaces] == [tensor.data_ptr() for tensor in tensors]
        ends = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert gpu.eager().addresses == spaces[3].addresses, "calls on one stream run one after the other"

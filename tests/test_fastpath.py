"""The private names of Triton and torch on which the fast path rests: where one is gone, its test says which."""

import ast
import inspect
import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import triton
from torch.autograd import forward_ad
from triton.backends.nvidia.driver import CudaLauncher
from triton.compiler.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from tinygemm.kernel import fastpath

TORCH = (
    "_C._len_torch_dispatch_stack", "_C._get_tracing_state", "_C._functorch.peek_interpreter_stack",
    "_C._is_any_autocast_enabled", "autograd.forward_ad._current_level", "cuda._sleep",
)  # fmt: skip
TORCH_CUDA = ("_C._cuda_getDevice", "_C._cuda_getCurrentRawStream")
KNOBS = (
    "runtime.debug", "runtime.launch_enter_hook", "runtime.launch_exit_hook", "runtime.add_stages_inspection_hook",
    "compilation.instrumentation_mode",
)  # fmt: skip
SET_IN = {  # attributes of instances: there is none without a GPU, but the source says which are set
    CudaLauncher: ("launch", "launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size"),
    CompiledKernel: ("packed_metadata", "function"),
    JITFunction: ("device_caches",),
}
SET_SINCE_3_7 = ("arg_annotations", "kernel_signature")


def gone(owner, path):
    try:
        attrgetter(path)(owner)
    except AttributeError:
        return f"{owner.__name__} no longer has {path}"
    return ""


@pytest.mark.parametrize("path", TORCH)
def test_torch_has(path):
    assert not gone(torch, path)


@pytest.mark.parametrize("path", TORCH_CUDA)
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_torch_with_cuda_has(path):
    assert not gone(torch, path)


@pytest.mark.parametrize("path", KNOBS)
def test_triton_has_the_knob(path):
    assert not gone(triton.knobs, path)


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in SET_IN.items() for name in names])
def test_triton_sets(owner, name):
    assert f"self.{name} =" in inspect.getsource(owner), f"triton's {owner.__name__} no longer has {name}"


@pytest.mark.parametrize("name", SET_SINCE_3_7)
def test_the_launcher_describes_its_arguments(name):
    if fastpath._version >= (3, 7):
        assert f"self.{name} =" in inspect.getsource(CudaLauncher), f"triton's CudaLauncher no longer has {name}"


def private_names(source: str) -> list[str]:
    """The names of torch and Triton, written out as torch.cuda._sleep, that are private; operators are left out."""
    chains = (ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    ours = (chain for chain in chains if re.match(r"(torch|triton)\.(?!ops\.)", chain))
    return [chain for chain in ours if chain.split(".")[-1].startswith("_") and not chain.endswith("__")]


def test_no_other_file_looks_at_a_private_name():
    assert private_names("torch.cuda._sleep(1); torch.__version__; x._y") == ["torch.cuda._sleep"]
    package = Path(fastpath.__file__).parents[1]
    found = {file.name: private_names(file.read_text(encoding="utf-8")) for file in package.rglob("*.py")}
    assert {name for name, names in found.items() if names} == {"fastpath.py"}


def test_the_installed_triton_is_one_whose_launch_call_is_known():
    first, last = fastpath.VERSIONS
    assert first <= fastpath._version <= last


def test_a_name_that_is_gone_is_told_and_answered_for():
    with pytest.warns(RuntimeWarning, match=r"no longer has torch\._C\._never_there"):
        asked = fastpath._bound("_C._never_there.function", lambda: "the general way")
    assert asked() == "the general way"


def test_compiled_kernels_are_counted_once_however_often_their_function_is_imported():
    class Function:
        device_caches = {0: ({"key": "kernel"}, None), 1: ({}, None)}  # noqa: RUF012

    function = Function()
    assert fastpath.compiled([function, 1, function, None]) == ["kernel"]


def test_a_tangent_is_seen_inside_of_a_dual_level_only():
    x = torch.ones(2)
    assert not fastpath.has_tangent(x)
    with forward_ad.dual_level():
        assert fastpath.has_tangent(forward_ad.make_dual(x, x))
        assert not fastpath.has_tangent(x)

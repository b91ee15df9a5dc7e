"""The names that a model imports, and that they cost nothing until they are used."""

import os
import subprocess
import sys

import pytest
import torch

import tinygemm


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'quantise'; it has ColwiseInt4, Int4Linear, PackedInt4"):
        _ = tinygemm.quantise


def test_importing_the_package_loads_no_torch():
    code = "import sys, tinygemm; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_interpreter_of_triton_is_refused_in_words():
    """Nothing here emulates the assembly in the kernels, which is what a user's process has."""
    from tinygemm.kernel.gemm import dequantize_fp16

    w = tinygemm.quantize(torch.randn(64, 256))
    for call in (lambda: tinygemm.gemm(torch.randn(1, 256).half(), w), lambda: dequantize_fp16(w)):
        with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
            call()


@pytest.mark.parametrize("triton", ["", "import sys; sys.modules['triton'] = None"], ids=["triton", "no-triton"])
def test_without_a_gpu_and_without_the_interpreter_a_model_runs(triton):
    code = """
import torch, tinygemm
model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)).bfloat16()
x = torch.randn(3, 256).bfloat16()
with torch.no_grad():
    before = model(x)
    tinygemm.quantize_model(model, group_size=32)
    assert (model(x) - before).norm() < 0.3 * before.norm()
    exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x), model(x))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", triton + code], check=True, env=environment)

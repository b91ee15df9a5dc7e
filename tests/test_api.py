"""The names that a model imports, and that they cost nothing until they are used."""

import subprocess
import sys

import pytest
import torch

import tinygemm


def test_the_readme_example_computes_the_product():
    weight, x = torch.randn(32, 256).half(), torch.randn(2, 3, 256).half()
    w = tinygemm.quantize(weight)
    assert isinstance(w, tinygemm.PackedInt4)
    from ptx import emulated

    with emulated():
        y = tinygemm.gemm(x, w)
    exact = x.double() @ tinygemm.dequantize(w, torch.float64).T
    assert y.shape == (2, 3, 32)
    assert (y.double() - exact).abs().max() < 2e-2 * exact.square().mean().sqrt()


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'quantise'; it has PackedInt4, dequantize, gemm, quantize"):
        _ = tinygemm.quantise


def test_importing_the_package_loads_no_torch():
    code = "import sys, tinygemm; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

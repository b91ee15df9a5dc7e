"""The names that a model imports, and that they cost nothing until they are used."""

import subprocess
import sys

import pytest

import tinygemm


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'quantise'; it has Int4Linear, PackedInt4, dequantize"):
        _ = tinygemm.quantise


def test_importing_the_package_loads_no_torch():
    code = "import sys, tinygemm; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""A shape has one name on every page, from whatever it comes; a range has two ends only where they differ."""

import pandas as pd
import pytest

from tinygemm.report.base.words import bracket, number, shape_name, shape_names, span

ROWS = pd.DataFrame({"K": [4096.0, 14336.0], "N": [1024, 4096]}, index=[3, 7])


@pytest.mark.parametrize("shape", [(4096, 1024), (4096.0, 1024.0), ROWS.iloc[0], {"K": 4096, "N": 1024, "M": 1}])
def test_a_shape_is_its_k_and_then_its_n(shape):
    assert shape_name(shape) == "4096×1024"


def test_the_shapes_of_rows_keep_their_index():
    assert shape_names(ROWS).to_dict() == {3: "4096×1024", 7: "14336×4096"}
    assert shape_names(ROWS.head(0)).tolist() == []


@pytest.mark.parametrize(
    ("values", "told"),
    [([1.0, 2.5], "1.00 to 2.50×"), ([3.21, 3.22], "3.21×"), ([3.2, 3.24], "3.20 to 3.24×"), ([2.0], "2.00×"),
     ([0.001, 0.002], "0.00×"), ([], "–")],
)  # fmt: skip
def test_a_range_of_nearly_equal_ends_is_one_number(values, told):
    assert span(pd.Series(values, dtype=float), ".2f", "×") == told


@pytest.mark.parametrize(
    ("value", "spec", "told"),
    [(-0.03, ".0%", "−3%"), (-0.001, ".0%", "0%"), (-0.0, ".2f", "0.00"), (0.5, "+.0%", "+50%"),
     (-2e-4, ".1e", "−2.0e-04")],
)  # fmt: skip
def test_a_number_has_a_minus_sign_but_not_at_zero(value, spec, told):
    assert number(value, spec) == told


def test_the_ends_of_an_interval_are_such_numbers():
    assert bracket(-0.05, -0.001, ".0%") == " (−5% to 0%)"

"""A shape has one name on every page, from whatever it comes."""

import pandas as pd
import pytest

from tinygemm.report.base.words import shape_name, shape_names

ROWS = pd.DataFrame({"K": [4096.0, 14336.0], "N": [1024, 4096]}, index=[3, 7])


@pytest.mark.parametrize("shape", [(4096, 1024), (4096.0, 1024.0), ROWS.iloc[0], {"K": 4096, "N": 1024, "M": 1}])
def test_a_shape_is_its_k_and_then_its_n(shape):
    assert shape_name(shape) == "4096×1024"


def test_the_shapes_of_rows_keep_their_index():
    assert shape_names(ROWS).to_dict() == {3: "4096×1024", 7: "14336×4096"}
    assert shape_names(ROWS.head(0)).tolist() == []

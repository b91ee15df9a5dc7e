"""The table of rules for the scale of a group: it says what quantising does today, and the page shows all of it."""

import pandas as pd
import pytest
import torch

from tinygemm.harness import quality
from tinygemm.kernel.quant import dequantize, quantize
from tinygemm.report.kernel import quality as kernel_quality

TABLE = pd.read_csv(quality.FILE)
ERRORS = TABLE.set_index(["rule", "distribution"])["error_percent"]


@pytest.fixture(scope="module")
def weights():
    return quality.distributions()


def test_the_table_has_every_rule_and_distribution_once(weights):
    assert list(TABLE.columns) == list(quality.COLUMNS)
    assert list(ERRORS.index) == [(rule, name) for rule in quality.RULES for name in weights]
    shape = {"N": quality.N, "K": quality.K, "group_size": quality.GROUP, "seed": quality.SEED}
    assert (TABLE[list(shape)] == shape).all(axis=None)


@pytest.mark.parametrize(
    ("rule", "distribution"),
    [
        ("absmax", "gauss"),
        ("absmax/8", "t3"),
        ("full-range", "gauss"),
        ("full-range", "outliers"),
        ("min-max", "shifted"),
    ],
)
def test_a_cell_is_what_the_rule_loses_today(rule, distribution, weights):
    assert ERRORS[rule, distribution] == pytest.approx(quality.error_percent(rule, weights[distribution]), abs=0.02)


def test_the_error_is_the_frobenius_norm_of_what_quantize_loses(weights):
    weight = weights["laplace"].double()
    lost = dequantize(quantize(weight.float()), torch.float64) - weight
    percent = 100 * (lost.square().sum() / weight.square().sum()).sqrt().item()
    assert ERRORS["full-range", "laplace"] == pytest.approx(percent, abs=0.02)


def test_a_search_finds_the_best_scale_of_a_group(weights, monkeypatch):
    """Two signs beat one, and one beats every closed form of that sign; checked on few rows."""
    monkeypatch.setattr(quality, "N", 16)
    weight = weights["gauss"][:16]
    errors = {rule: quality.error_percent(rule, weight) for rule in quality.RULES}
    assert errors["searched-signed"] < errors["searched"] < min(errors[f"absmax{over}"] for over in ("", "/7.5", "/8"))
    assert errors["searched-signed"] < errors["full-range"]


def test_the_distributions_are_what_they_are_called(weights):
    """By their mean and by how many weights lie beyond 4 spreads."""
    far = {name: ((each - each.mean()).abs() > 4 * each.std()).double().mean().item() for name, each in weights.items()}
    assert far["uniform"] == 0
    assert far["gauss"] < 2e-4 > far["shifted"]
    assert far["outliers"] == pytest.approx(1e-3, rel=0.4)
    assert 2e-3 < far["laplace"] < 8e-3
    assert 2e-3 < far["t5"] < 8e-3
    assert far["t3"] > 2e-3
    means = {name: (each.mean() / each.std()).item() for name, each in weights.items()}
    assert means.pop("shifted") == pytest.approx(0.5, abs=0.01)
    assert all(abs(mean) < 0.01 for mean in means.values())


def test_the_page_shows_every_rule_in_order_under_its_own_errors():
    shown = kernel_quality.rules()
    assert [rule.strip("`") for rule in shown["rule"]] == list(quality.RULES)
    for row in shown.to_dict("records"):
        for (rule, distribution), error in ERRORS.items():
            if row["rule"] == f"`{rule}`":
                assert row[distribution] == error

"""Quality in numbers: the tables say what quantising does today, and the report reads them as they are."""

import json
import zipfile

import pandas as pd
import pytest
import synthetic
import torch
from torch import nn

from tinygemm import cli
from tinygemm.harness import quality, quality_model
from tinygemm.kernel.quant import dequantize, quantize
from tinygemm.problem import GROUP_SIZES
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.kernel import quality as kernel_quality
from tinygemm.report.quality import claims, tables

KEYS = ["rule", "group_size", "distribution"]
TABLE = pd.read_csv(quality.FILE)
ERRORS = TABLE.set_index(KEYS)["error_percent"]


@pytest.fixture(scope="module")
def weights():
    return quality.distributions()


# --- random weights -------------------------------------------------------------------------------------------------


def test_the_table_has_every_rule_group_size_and_distribution_once(weights):
    assert list(TABLE.columns) == list(quality.COLUMNS)
    assert list(ERRORS.index) == [(r, size, name) for r in quality.RULES for size in GROUP_SIZES for name in weights]
    shape = {"N": quality.N, "K": quality.K, "seed": quality.SEED}
    assert (TABLE[list(shape)] == shape).all(axis=None)


@pytest.mark.parametrize(
    ("rule", "group_size", "distribution"),
    [
        ("absmax", 128, "gauss"),
        ("absmax/8", 64, "t3"),
        ("full-range", -1, "gauss"),
        ("full-range", 32, "outliers"),
        ("searched", 128, "gauss"),
        ("min-max", 128, "shifted"),
    ],
)
def test_a_cell_is_what_the_rule_loses_today(rule, group_size, distribution, weights):
    row = TABLE.set_index(KEYS).loc[(rule, group_size, distribution)]
    found = quality.error_percents(rule, group_size, weights[distribution])
    assert tuple(row[["error_percent", "output_error_percent"]]) == pytest.approx(found, abs=0.02)


def test_the_error_is_the_frobenius_norm_of_what_quantize_loses(weights):
    weight = weights["laplace"].double()
    lost = dequantize(quantize(weight.float()), torch.float64) - weight
    percent = 100 * (lost.square().sum() / weight.square().sum()).sqrt().item()
    assert ERRORS["full-range", 128, "laplace"] == pytest.approx(percent, abs=0.02)


@pytest.mark.parametrize(("closed", "searched"), [
    ("full-range", "searched"), ("absmax", "searched"), ("absmax/8", "searched"), ("min-max", "min-max searched"),
])  # fmt: skip
def test_a_search_loses_less_than_a_closed_form_of_every_weight(closed, searched):
    assert (ERRORS[searched] < ERRORS[closed]).all()


def test_products_of_gaussian_activations_lose_what_the_weights_lose():
    """Independent inputs of equal size weigh every error alike."""
    assert TABLE["output_error_percent"].to_numpy() == pytest.approx(TABLE["error_percent"].to_numpy(), rel=0.06)


@pytest.mark.parametrize("rule", ["half-quadratic", "half-quadratic integer"])
def test_the_half_quadratic_zero_is_of_the_format_that_it_says(rule):
    """Weights of a group take at most 16 values, in equal steps; with an integer zero, 0 is one of them."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) + 0.3
    rounded = quality.RULES[rule].rounded(weight, 64).double()
    assert (rounded - weight).abs().max() < 1
    for row in rounded:
        step = row.unique().diff().min()
        steps = (row - row.min()) / step
        assert steps == pytest.approx(steps.round(), abs=1e-3)
        assert steps.max() < 15.5
        assert (abs((row.min() / step).round() - row.min() / step) < 1e-3) == rule.endswith("integer")


def test_the_half_quadratic_zero_lowers_the_error_of_a_heavy_tail(weights):
    norm = {}
    for rule in ("min-max", "half-quadratic"):
        lost = (quality.RULES[rule].rounded(weights["t5"], 128) - weights["t5"]).abs()
        norm[rule] = lost.pow(quality.EXPONENT).mean().item()
    assert norm["half-quadratic"] < norm["min-max"]


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


def test_the_kernel_page_shows_every_rule_in_order_under_its_own_errors():
    shown = kernel_quality.rules()
    assert [rule.strip("`") for rule in shown["rule"]] == list(quality.RULES)
    for row in shown.to_dict("records"):
        for (rule, group_size, distribution), error in ERRORS.items():
            if row["rule"] == f"`{rule}`" and group_size == 128:
                assert row[distribution] == error


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that ships a tiny encoder in an archive, and a library with docstrings."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = tmp_path / "model"
    transformers.BertModel(config).save_pretrained(model)
    words = {f"word{i}": i for i in range(64)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="word0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="word1").save_pretrained(model)
    site = tmp_path / "site"
    (site / quality_model.MODULE).mkdir(parents=True)
    (site / quality_model.MODULE / "__init__.py").write_text(
        "raise ImportError('is read, not run')\n", encoding="utf-8"
    )
    about = site / f"{quality_model.MODULE}_model-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {quality_model.PACKAGE}\nVersion: 9.9\n", encoding="utf-8"
    )
    with zipfile.ZipFile(site / quality_model.MODULE / quality_model.ARCHIVE, "w") as archive:
        for file in model.iterdir():
            archive.write(file, file.name)
    monkeypatch.syspath_prepend(site)
    library = tmp_path / "library"
    library.mkdir()
    for i in range(8):
        said = "\n\n".join(f"word{i} word{2 * i + 5} word{(7 * i + j) % 60} long enough" for j in range(6))
        text = f'def public():\n    """Say word{i} word{2 * i + 5} well.\n\n{said}\n    """\n'
        (library / f"module{i}.py").write_text(
            text + text.replace("public", "_private").replace("Say", "Hide"), encoding="utf-8"
        )
    return library


def test_a_shipped_model_is_measured_row_by_row(package, tmp_path, monkeypatch):
    monkeypatch.setattr(quality_model, "AT_128", ())
    monkeypatch.setattr(quality_model, "GROUP_SIZES", (32, -1))
    file = tmp_path / "model.csv"
    quality_model.write(file, package)
    about = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert (about["package"], about["version"]) == (quality_model.PACKAGE, "9.9")
    assert (about["pairs"], about["linear_layers"], about["weights"]) == (8, 6, 4 * 32 * 32 + 2 * 32 * 64)
    rows = pd.read_csv(file)
    assert list(zip(rows["rule"], rows["group_size"].fillna(0), strict=True)) == [
        ("float16", 0), ("full-range", 32), ("full-range", -1), ("searched", 32), ("searched", -1),
    ]  # fmt: skip
    half, closed, wide, searched, _ = rows.to_dict("records")
    assert half["weight_error_percent"] < 0.1 < 3 < searched["weight_error_percent"] < closed["weight_error_percent"]
    assert closed["weight_error_percent"] < wide["weight_error_percent"]
    assert closed["bits_per_weight"] == 4.5
    assert 0.9 < closed["cosine_least"] <= closed["cosine_mean"] <= half["cosine_mean"] <= 1.0001
    kept = rows.head(2).copy()  # as if stopped, with a value that nothing measures
    kept.loc[1, "recall_percent"] = -1
    kept.to_csv(file, index=False)
    quality_model.write(file, package)
    again = pd.read_csv(file)
    assert again["recall_percent"].tolist() == [rows["recall_percent"][0], -1, *rows["recall_percent"][2:]]
    file.with_suffix(".json").write_text("{}", encoding="utf-8")  # made from something else: every row is measured
    quality_model.write(file, package)
    assert pd.read_csv(file)["recall_percent"].tolist() == rows["recall_percent"].tolist()


def test_a_task_measures_what_weights_change_and_leaves_the_model_as_it_was(package):
    with quality_model.shipped_encoder() as (encoder, _):
        task = quality_model.Task(encoder, quality_model.docstrings(package))
    same = task.measure({name: weight.clone() for name, weight in task.exact.items()})
    assert same["weight_error_percent"] == same["output_error_percent"] == 0
    assert same["same_answer_percent"] == 100
    assert same["cosine_least"] == pytest.approx(1, abs=1e-5)
    tenth = task.measure({name: 1.1 * weight for name, weight in task.exact.items()})
    assert tenth["weight_error_percent"] == pytest.approx(10, rel=1e-3)
    assert tenth["output_error_percent"] == pytest.approx(10, rel=1e-3)
    for name, module in encoder.model.named_modules():
        if isinstance(module, nn.Linear):
            assert torch.equal(module.weight, task.exact[name])


def test_docstrings_are_public_long_enough_and_split_after_the_first_sentence(package):
    pairs = quality_model.docstrings(package)
    assert [first for first, _ in pairs] == [f"Say word{i} word{2 * i + 5} well." for i in range(8)]
    assert all(first not in rest and len(rest) >= quality_model.SHORTEST for first, rest in pairs)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ModuleNotFoundError, match=quality_model.PACKAGE), quality_model.shipped_encoder():
        pass


def test_an_archive_that_is_none_is_named(package, monkeypatch):
    archive = package.parent / "site" / quality_model.MODULE / quality_model.ARCHIVE
    archive.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=f"{quality_model.ARCHIVE}: expected a zip"), quality_model.shipped_encoder():
        pass


def test_the_command_writes_what_it_can_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "RULES", {"full-range": quality.RULES["full-range"]})
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # other tests want theirs
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quality", "--out", str(tmp_path / "new")])
    assert stopped.value.code == 0
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["rules.csv"]
    assert pd.read_csv(tmp_path / "new" / "rules.csv").equals(
        TABLE[TABLE["rule"] == "full-range"].reset_index(drop=True)
    )
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "model.csv" in said[0]
    assert quality_model.PACKAGE in said[0]


# --- the report -------------------------------------------------------------------------------------------------------


def planted(**changed):
    """A table of the encoder in which smaller groups and a search lose less."""
    rows = [("float16", None, 0.02, 0.0), *(
        (rule, size, error, seconds)
        for rule, factor, seconds in (
            ("full-range", 1, 1), ("searched", 0.9, 50), ("min-max", 0.95, 1), ("min-max searched", 0.85, 80)
        )
        for size, error in ((32, 8 * factor), (64, 9 * factor), (128, 10 * factor), (-1, 14 * factor))
    )]  # fmt: skip
    table = pd.DataFrame(rows, columns=["rule", "group_size", "output_error_percent", "cpu_seconds"])
    table = table.assign(cosine_mean=0.99, recall_percent=50.0)
    for (rule, size), error in changed.get("errors", {}).items():
        table.loc[(table["rule"] == rule) & (table["group_size"] == size), "output_error_percent"] = error
    return table


def test_the_committed_tables_are_whole_and_short_enough_for_a_page():
    model = tables.model()
    assert list(zip(model["rule"], model["group_size"].fillna(0), strict=True)) == [
        (rule, size or 0) for rule, size in quality_model.cases()
    ]
    assert tables.provenance()["package"] == quality_model.PACKAGE
    groups = tables.by_group_size()
    assert groups["group"].tolist() == ["", "32", "32", "64", "64", "128", "128", "per-channel", "per-channel"]
    assert groups["rule"].tolist() == ["`float16`", *4 * ["`full-range`", "`searched`"]]
    rules = tables.by_rule()
    assert rules["rule"].tolist() == [f"`{rule}`" for rule in (*quality_model.BY_SIZE, *quality_model.AT_128)]
    random = tables.random_weights()
    assert len(random) == 8
    cell = random.query("distribution == 't3' and rule == 'min-max'")["per-channel"].item()
    assert cell == ERRORS["min-max", -1, "t3"]


def test_a_search_holds_where_it_loses_less_at_every_size():
    verdict = claims.search_loses_less(planted())
    assert verdict.state == HOLDS
    assert verdict.numbers["n"] == 8
    assert verdict.numbers["least_saved"] == pytest.approx(1 - 0.9)
    assert verdict.numbers["most_saved"] == pytest.approx(1 - 0.85 / 0.95)
    assert verdict.numbers["cpu_seconds"] == 80
    assert claims.search_loses_less(planted(errors={("searched", 64): 9.1})).state == FAILS
    assert claims.search_loses_less(planted().head(3)).state == UNDECIDED


def test_small_groups_hold_where_each_larger_one_loses_more():
    verdict = claims.small_groups_lose_less(planted())
    assert verdict.state == HOLDS
    assert (verdict.numbers["least_percent"], verdict.numbers["usual_percent"], verdict.numbers["most_percent"]) == (
        8, 10, 14,
    )  # fmt: skip
    assert claims.small_groups_lose_less(planted(errors={("full-range", 64): 7.9})).state == FAILS
    assert claims.small_groups_lose_less(planted().head(2)).state == UNDECIDED


def test_the_error_of_the_kernel_is_that_of_the_run_over_the_least_of_rounding(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1,))
    for rms_err, state in ((6.7e-3, HOLDS), (6.9e-3, FAILS), (None, UNDECIDED)):  # a tenth of 6.8 %
        run.cases["rms_err"] = rms_err
        verdict = claims.of_quality(planted(), run)["kernel"]
        assert verdict.state == state
        if rms_err:
            assert verdict.numbers["ratio"] == pytest.approx(6.8 / (100 * rms_err))


def test_the_error_of_the_other_path_is_not_the_kernels(tmp_path):
    run = synthetic.load(tmp_path, m_list=(1, 2))
    run.cases["rms_err"] = 2e-4
    run.cases.loc[run.cases["M"] == 2, ["rms_err", "form"]] = [9e-3, "dequantise"]
    assert claims.of_quality(planted(), run)["kernel"].numbers["own_percent"] == pytest.approx(0.02)

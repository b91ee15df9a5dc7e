"""Checkpoints of other INT4 formats: read bit for bit, loaded into a model, written in our format, refused by name."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import assert_close, make_operands
from safetensors.torch import load_file
from stored import (
    FORMATS,
    TOKENS,
    Small,
    awq,
    compressed,
    compressor,
    gptq,
    layer,
    llama,
    scheme,
    settings_of,
    small,
    stored_llama,
    write,
)
from torch import nn

import tinygemm
from tinygemm import cli
from tinygemm.checkpoints.convert import convert
from tinygemm.checkpoints.formats import QuantizedCheckpoint
from tinygemm.kernel import launches
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.quant import unpack

WRITTEN = Path(__file__).parent / "data" / "checkpoints"
QUICK = settings(max_examples=10, deadline=None)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    """Products as a machine without a GPU computes them."""
    monkeypatch.setattr(launches, "INTERPRETED", False)
    with torch.no_grad():
        yield


def weight_of(read) -> torch.Tensor:
    """[N, K] float64, the columns in the order of the layer's inputs."""
    weight = tinygemm.dequantize(read.packed, torch.float64)
    return weight if read.order is None else weight[:, read.order.argsort()]


# --- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", sorted(path.name for path in WRITTEN.iterdir() if path.is_dir()))
def test_what_a_library_wrote_is_read_as_it_reads_it(folder, tmp_path):
    checkpoint = QuantizedCheckpoint(WRITTEN / folder)
    expected = load_file(WRITTEN / folder / "dequantised.safetensors")
    assert sorted(checkpoint.layers) == sorted(expected)
    convert(WRITTEN / folder, tmp_path / "ours")
    ours = QuantizedCheckpoint(tmp_path / "ours")
    for path, weight in expected.items():
        for read in (checkpoint.read(path), ours.read(path)):
            assert torch.equal(weight_of(read).to(weight.dtype), weight), path
            assert (read.order is not None) == (path == "act_order")


@QUICK
@given(
    N=st.integers(1, 6).map(lambda n: 8 * n), groups=st.integers(1, 4), group_size=st.sampled_from([32, 64, 128, -1]),
    symmetric=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_scales_and_zeros_of_gptq_and_awq_stay_as_they_are(
    tmp_path_factory, N, groups, group_size, symmetric, seed
):
    K = 8 * (groups + 16 * seed % 40) if group_size == -1 else groups * group_size
    given = make_operands(1, N, K, group_size, symmetric, seed)
    zeros = torch.full_like(given.scales, 8).byte() if symmetric else given.zeros
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    g_idx = (torch.arange(K) // (K // len(zeros)))[order]
    tensors = layer("awq", awq(given.codes, given.scales, zeros))
    one = write(tmp_path_factory.mktemp("awq"), tensors, settings_of("awq", group_size))
    tensors = layer("plain", gptq(given.codes, given.scales, zeros))
    tensors |= layer("shuffled", gptq(given.codes[:, order], given.scales, zeros, g_idx=g_idx))
    other = write(tmp_path_factory.mktemp("gptq"), tensors, settings_of("gptq", group_size))
    for folder, path in ((one, "awq"), (other, "plain"), (other, "shuffled")):
        read = QuantizedCheckpoint(folder).read(path)
        packed = read.packed
        if path != "shuffled":  # there the columns of a group come in another order
            assert torch.equal(unpack(packed), given.codes)
        assert torch.equal(packed.scales, given.scales)
        assert (packed.zeros is None) if bool((zeros == 8).all()) else torch.equal(packed.zeros, zeros)
        columns = given.codes.double() - zeros.double().repeat_interleave(K // len(zeros), 0).t()
        weight = columns * given.scales.double().repeat_interleave(K // len(zeros), 0).t()
        assert torch.equal(weight_of(read), weight[:, order] if path == "shuffled" else weight)


@QUICK
@given(
    N=st.integers(9, 40), groups=st.integers(1, 4), group_size=st.sampled_from([32, 64, 128, -1]),
    symmetric=st.booleans(), dtype=st.sampled_from([torch.float16, torch.bfloat16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_compressed_tensors_reads_the_same_weights(tmp_path_factory, N, groups, group_size, symmetric, dtype, seed):
    """From N = 9 on, because release 0.20.1 cannot unpack zero points that lie in one word."""
    K = 4 * groups + 3 * seed if group_size == -1 else groups * group_size
    given = make_operands(1, N, K + 16 * (group_size == -1), group_size, symmetric, seed)
    stored = compressed(given.codes, given.scales, given.zeros, group_size, dtype)
    quantization = settings_of("compressed-tensors", group_size)
    folder = write(tmp_path_factory.mktemp("compressed"), layer("proj", stored), quantization)
    read = QuantizedCheckpoint(folder).read("proj").packed
    expected = compressor().decompress(stored, scheme(group_size, symmetric))["weight"]
    assert expected.dtype == dtype
    assert torch.equal(tinygemm.dequantize(read, dtype), expected)
    assert read.group_size == (group_size if K == groups * group_size else read.group_size)


def test_zero_points_of_older_compressed_tensors_are_bytes(tmp_path):
    given = make_operands(1, 16, 64, 32, symmetric=False)
    stored = compressed(given.codes, given.scales, given.zeros)
    stored["weight_zero_point"] = given.zeros.t().to(torch.int8) - 8
    folder = write(tmp_path / "old", layer("proj", stored), settings_of("compressed-tensors"))
    assert torch.equal(QuantizedCheckpoint(folder).read("proj").packed.zeros, given.zeros)


# --- a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FORMATS)
def test_a_model_computes_what_its_checkpoint_says_before_and_after_convert(tmp_path, method):
    folder, reference = stored_llama(tmp_path / "theirs", method)
    convert(folder, tmp_path / "ours")
    assert (tmp_path / "ours" / "tokenizer.json").is_file()
    theirs, ours = tinygemm.load_checkpoint(folder), tinygemm.load_checkpoint(tmp_path / "ours")
    expected = reference(TOKENS).logits.view(10, -1)
    assert_close(theirs(TOKENS).logits.view(10, -1), expected, max_err=3e-2, rms_err=8e-3)
    assert type(theirs.lm_head) is nn.Linear
    packed = [path for path, module in theirs.named_modules() if isinstance(module, Int4Linear)]
    assert packed == list(llama()[1])
    assert not theirs.training
    theirs, ours = theirs.state_dict(), ours.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) and theirs[name].dtype == ours[name].dtype for name in theirs)


def test_a_model_that_is_given_takes_the_weights(tmp_path):
    folder, reference = stored_llama(tmp_path / "awq", "awq", shards=1)
    model = copy.deepcopy(llama()[0])
    for weight in model.parameters():
        weight.fill_(0.5)
    assert tinygemm.load_checkpoint(folder, model) is model
    assert_close(model(TOKENS).logits.view(10, -1), reference(TOKENS).logits.view(10, -1), max_err=3e-2, rms_err=8e-3)


@pytest.mark.parametrize("package", ["transformers", "accelerate"])
def test_a_model_is_wanted_where_none_can_be_made(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    folder = write(tmp_path / "m", *small())
    with pytest.raises(ModuleNotFoundError, match=f"{package} is not installed.*pass a model"):
        tinygemm.load_checkpoint(folder)
    tinygemm.load_checkpoint(folder, Small())


def test_tied_embeddings_stay_tied(tmp_path):
    folder, _ = stored_llama(tmp_path / "tied", "gptq", shards=1)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"tie_word_embeddings": True}
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    write(folder, tensors, config.pop("quantization_config"), config)
    model = tinygemm.load_checkpoint(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])


# --- small models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "kept"), [(0.0, False), (0.5, True)])
def test_a_bias_of_zeros_for_a_layer_without_one_is_left_out(tmp_path, stored, kept):
    tensors, quantization = small()
    tensors["proj.bias"] = torch.full((32,), stored).half()
    model = tinygemm.load_checkpoint(write(tmp_path / "m", tensors, quantization), Small())
    assert (model.proj.bias is not None) is kept
    model = tinygemm.load_checkpoint(tmp_path / "m", Small(bias=True))
    assert torch.equal(model.proj.bias, tensors["proj.bias"])


def test_tensors_without_a_place_are_named(tmp_path):
    tensors, quantization = small()
    folder = write(tmp_path / "m", tensors | {"mtp.weight": torch.ones(2)}, quantization)
    with pytest.warns(UserWarning, match=r"no place for mtp\.weight"):
        tinygemm.load_checkpoint(folder, Small())


def test_a_meta_model_gets_values_and_a_meta_buffer_is_refused(tmp_path):
    folder = write(tmp_path / "m", *small())
    model = tinygemm.load_checkpoint(folder, Small().to("meta"), device="cpu")
    assert torch.equal(model.norm.weight, torch.arange(128).half())
    model = Small().to("meta")
    model.register_buffer("angles", torch.ones(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="angles"):
        tinygemm.load_checkpoint(folder, model)


def test_an_older_gptq_config_lies_in_a_file_of_its_own(tmp_path):
    tensors, quantization = small()
    folder = write(tmp_path / "m", tensors, None)
    old = {"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    (folder / "quantize_config.json").write_text(json.dumps(old), encoding="utf-8")
    expected = QuantizedCheckpoint(write(tmp_path / "new", tensors, quantization)).read("proj")
    assert torch.equal(QuantizedCheckpoint(folder).read("proj").packed.qweight, expected.packed.qweight)
    convert(folder, tmp_path / "ours")
    assert not (tmp_path / "ours" / "quantize_config.json").exists()
    assert torch.equal(QuantizedCheckpoint(tmp_path / "ours").read("proj").packed.zeros, expected.packed.zeros)


# --- refused ---------------------------------------------------------------------------------------------------------


def changed(name, change):
    """A change of one tensor, or its removal where the change returns None."""

    def edit(tensors, quantization):
        tensors[name] = change(tensors[name])
        if tensors[name] is None:
            del tensors[name]

    return edit


def said(**more):
    return lambda tensors, quantization: quantization.update(more)


def moved(old, new):
    return lambda tensors, quantization: tensors.update(
        {name.replace(old, new): tensors.pop(name) for name in list(tensors) if name.startswith(old)}
    )


def one(value):
    """A tensor in which one value is replaced."""

    def change(tensor):
        flat = tensor.clone().flatten()
        flat[3] = value
        return flat.view(tensor.shape)

    return change


def weights_of(**more):
    return lambda tensors, quantization: quantization["config_groups"]["group_0"]["weights"].update(more)


def group_of(**more):
    return lambda tensors, quantization: quantization["config_groups"]["group_0"].update(more)


FILE = "model.safetensors"
REFUSED = {  # what is wrong with a checkpoint, and what the sentence names
    "gptq 8 bits": ("gptq", said(bits=8), ["config.json", "bits must be 4, got 8"]),
    "gptq 3 bits in some layers": ("gptq", said(dynamic={"+:proj": {"bits": 3}}), ["config.json", "'+:proj'", "3"]),
    "gptq for marlin": ("gptq", said(is_marlin_format=True), ["config.json", "is_marlin_format"]),
    "gptq in planes": ("gptq", said(checkpoint_format="gptq_p"), ["config.json", "gptq_p"]),
    "8 bits among 4": ("gptq", changed("proj.qzeros", lambda t: t.repeat(1, 2)), [FILE, "proj.qzeros", "[4, 8]"]),
    "fused experts": ("gptq", changed("proj.qweight", lambda t: t[None]), [FILE, "proj.qweight", "[1, 16, 32]"]),
    "codes as int64": ("gptq", changed("proj.qweight", torch.Tensor.long), [FILE, "proj.qweight", "int64"]),
    "no zeros": ("gptq", changed("proj.qzeros", lambda t: None), ["proj.qzeros"]),
    "no scales": ("awq", changed("proj.scales", lambda t: None), ["proj.scales"]),
    "scales as float64": ("gptq", changed("proj.scales", torch.Tensor.double), [FILE, "proj.scales", "float64"]),
    "a scale of bfloat16 that float16 lacks": (
        "gptq", changed("proj.scales", lambda t: one(1e-8)(t.bfloat16())), [FILE, "proj.scales", "1 of 128", "e-08"],
    ),
    "a scale that is NaN": ("awq", changed("proj.scales", one(torch.nan)), [FILE, "proj.scales", "nan"]),
    "a scale beyond its limit": ("awq", changed("proj.scales", one(3e4)), [FILE, "proj.scales", "limit"]),
    "groups of 16": (
        "gptq",
        lambda tensors, quantization: [
            said(group_size=16)(tensors, quantization),
            *(changed(f"proj.{part}", lambda t: t.repeat(2, 1))(tensors, {}) for part in ("scales", "qzeros")),
        ],
        [FILE, "proj.scales", "16"],
    ),
    "another group size than said": ("awq", said(group_size=64), [FILE, "proj.scales", "4 groups", "64"]),
    "a group that K splits": (
        "gptq", changed("proj.qweight", lambda t: t[:14]), [FILE, "proj.scales", "K=112", "32"],
    ),
    "a zero of 15 in v1": (
        "gptq",
        lambda tensors, quantization: [
            said(checkpoint_format="gptq")(tensors, quantization), changed("proj.qzeros", one(-1))(tensors, {}),
        ],
        [FILE, "proj.qzeros", "15"],
    ),
    "uneven groups": (
        "gptq",
        lambda tensors, quantization: tensors.update({"proj.g_idx": torch.zeros(128, dtype=torch.int32)}),
        [FILE, "proj.g_idx", "32 of the 128"],
    ),
    "a list in the place of an object": ("gptq", said(dynamic=["proj"]), ["config.json", "gptq"]),
    "another order of awq": ("awq", said(version="gemv"), ["config.json", "gemv"]),
    "awq of 3 bits": ("awq", said(bits=3), ["config.json", "bits must be 4, got 3"]),
    "activations quantised": ("compressed-tensors", group_of(input_activations={"num_bits": 8}), ["input_activations"]),
    "transforms": ("compressed-tensors", said(transform_config={"config_groups": {"a": {}}}), ["transform_config"]),
    "sparse": ("compressed-tensors", said(sparsity_config={"format": "sparse-24-bitmask"}), ["sparse-24-bitmask"]),
    "another format": ("compressed-tensors", said(format="int-quantized"), ["config.json", "int-quantized"]),
    "floats of 4 bits": ("compressed-tensors", weights_of(type="float"), ["config.json", "group_0.weights.type"]),
    "8 bits in one group": ("compressed-tensors", weights_of(num_bits=8), ["config.json", "num_bits", "8"]),
    "a block of scales": ("compressed-tensors", weights_of(strategy="block"), ["config.json", "strategy", "block"]),
    "no groups": ("compressed-tensors", said(config_groups={}), ["config.json", "config_groups"]),
    "no shape": ("compressed-tensors", changed("proj.weight_shape", lambda t: None), ["proj.weight_shape"]),
    "zeros of fewer columns": (
        "compressed-tensors", changed("proj.weight_zero_point", lambda t: t[:2]), [FILE, "proj.weight_zero_point"],
    ),
    "hqq": ("gptq", said(quant_method="hqq"), ["config.json", "hqq", "fractions"]),
    "torchao": ("gptq", said(quant_method="torchao"), ["config.json", "torchao"]),
    "an unknown format": ("gptq", said(quant_method="mine"), ["config.json", "mine"]),
    "no quantised layer": ("gptq", changed("proj.qweight", lambda t: None), [".qweight"]),
}  # fmt: skip
UNFIT = {  # a checkpoint that is right, of another model
    "a norm is missing": (changed("norm.weight", lambda t: None), ["norm.weight"]),
    "a norm of another shape": (changed("norm.weight", lambda t: t[:64]), [FILE, "norm.weight", "[64]"]),
    "a norm of integers": (changed("norm.weight", torch.Tensor.char), [FILE, "norm.weight", "I8"]),
    "a layer of another name": (moved("proj", "projection"), [FILE, "projection.qweight"]),
    "experts": (moved("proj", "mlp.experts.0.proj"), [FILE, "mlp.experts.0.proj.qweight", "experts"]),
    "a norm in the place of a layer": (moved("proj", "norm"), [FILE, "norm.qweight", "LayerNorm"]),
    "fewer outputs": (
        lambda tensors, quantization: tensors.update(
            layer("proj", {part: tensors[f"proj.{part}"][:, :size] for part, size in (("qweight", 16), ("scales", 16))})
            | {"proj.qzeros": tensors["proj.qzeros"][:, :2]}
        ),
        [FILE, "proj.qweight", "[16, 128]", "[32, 128]"],
    ),
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused_by_load(folder: Path) -> str:
    """The sentence of load_checkpoint, which leaves the model as it was."""
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as error:  # noqa: PT011  the caller looks at the words
        tinygemm.load_checkpoint(folder, model)
    assert type(model.proj) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(error.value)


def refused_by_convert(folder: Path, capsys) -> str:
    """The sentence of the command, which leaves the source as it was and nothing beside it."""
    before = content(folder.parent)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", str(folder), str(folder.parent / "ours")])
    assert stopped.value.code == 1
    assert content(folder.parent) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said.removeprefix("Error: ")


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_checkpoint_is_refused_by_name(case, tmp_path, capsys):
    method, edit, named = REFUSED[case]
    tensors, quantization = small(method)
    edit(tensors, quantization)
    folder = write(tmp_path / "theirs", tensors, quantization)
    sentence = refused_by_load(folder)
    assert refused_by_convert(folder, capsys) == sentence
    assert all(word in sentence for word in (str(folder), *named)), sentence


@pytest.mark.parametrize("case", UNFIT)
def test_a_checkpoint_of_another_model_is_refused_by_name(case, tmp_path):
    edit, named = UNFIT[case]
    tensors, quantization = small()
    edit(tensors, quantization)
    sentence = refused_by_load(write(tmp_path / "theirs", tensors, quantization))
    assert all(word in sentence for word in (str(tmp_path), *named)), sentence


def test_a_bias_that_the_model_wants_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"proj\.bias"):
        tinygemm.load_checkpoint(write(tmp_path / "m", *small()), Small(bias=True))


def shortened(folder):
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    return file.name


def removed(folder):
    file = folder / "model-00001-of-00002.safetensors"
    file.unlink()
    return file.name


def reindexed(folder):
    file = folder / "model.safetensors.index.json"
    homes = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
    file.write_text(json.dumps({"weight_map": homes | {"proj.bias": next(iter(homes.values()))}}), encoding="utf-8")
    return "proj.bias"


def unindexed(folder):
    (folder / "model.safetensors.index.json").unlink()
    return "model.safetensors.index.json"


def spoilt(name):
    def spoil(folder):
        (folder / name).write_text("{", encoding="utf-8")
        return name

    return spoil


def unconfigured(folder):
    (folder / "config.json").unlink()
    return "config.json"


FILES = (
    shortened,
    removed,
    reindexed,
    unindexed,
    unconfigured,
    spoilt("config.json"),
    spoilt("model.safetensors.index.json"),
)


@pytest.mark.parametrize("spoil", FILES)
def test_a_file_that_is_not_whole_is_refused_by_name(spoil, tmp_path, capsys):
    folder = write(tmp_path / "theirs", *small(), shards=2)
    name = spoil(folder)
    sentence = refused_by_load(folder)
    assert name in sentence
    assert refused_by_convert(folder, capsys) == sentence


def test_folders_that_are_not_there_or_are_there_already(tmp_path, capsys):
    with pytest.raises(ValueError, match="nowhere"):
        tinygemm.load_checkpoint(tmp_path / "nowhere", Small())
    folder = write(tmp_path / "theirs", *small())
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists"):
        convert(folder, tmp_path / "there")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        convert(folder, tmp_path / "nowhere" / "ours")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", str(folder), str(tmp_path / "ours")])
    assert stopped.value.code == 0
    assert "1 packed layer" in capsys.readouterr().out
    with pytest.raises(ValueError, match="own format already"):
        convert(tmp_path / "ours", tmp_path / "again")


OURS = {
    "another version": (said(version=2), ["config.json", "version must be 1, got 2"]),
    "no layers": (said(layers=None), ["config.json", "layers"]),
    "a layer that is not described": (said(layers={}), [FILE, "proj.qweight"]),
    "codes of another shape": (changed("proj.qweight", lambda t: t[:1]), [FILE, "proj.qweight"]),
    "no zeros": (changed("proj.zeros", lambda t: None), ["proj.zeros"]),
    "a zero beyond the codes": (changed("proj.zeros", one(16)), [FILE, "proj", "0..15"]),
    "a column twice": (
        lambda tensors, quantization: tensors.update({"proj.order": torch.zeros(128, dtype=torch.int32)}),
        [FILE, "proj.order"],
    ),
}


@pytest.mark.parametrize("case", OURS)
def test_a_wrong_checkpoint_of_our_own_is_refused_by_name(case, tmp_path):
    edit, named = OURS[case]
    convert(write(tmp_path / "theirs", *small()), tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / FILE)
    quantization = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    edit(tensors, quantization)
    sentence = refused_by_load(write(tmp_path / "ours", tensors, quantization))
    assert all(word in sentence for word in (str(tmp_path / "ours"), *named)), sentence

"""A model in INT4 is saved and read back tensor for tensor, or not saved, and the reason said."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from stored import FORMATS, TOKENS, Small, llama, stored_llama
from torch import nn

import tinygemm
from tinygemm.checkpoints.formats import QuantizedCheckpoint
from tinygemm.kernel import launches


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    with torch.no_grad():
        yield


def assert_same(model: nn.Module, other: nn.Module) -> None:
    one, two = model.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


def int4_llama(dtype=torch.float16, **options) -> nn.Module:
    model = copy.deepcopy(llama()[0]).to(dtype)
    tinygemm.quantize_model(model, 32, **options)
    return model


@pytest.mark.parametrize("method", FORMATS)
def test_a_loaded_model_is_saved_and_read_back_joined_or_not(tmp_path, method):
    model = tinygemm.load_checkpoint(stored_llama(tmp_path / "theirs", method)[0])
    apart = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tinygemm.join_projections(model)) == 4
    saved = tinygemm.save_checkpoint(model, tmp_path / "ours")
    assert sorted(saved) == sorted(llama()[1])
    again = tinygemm.load_checkpoint(tmp_path / "ours")
    assert_same(again, apart)
    tinygemm.join_projections(again)
    assert_same(again, model)
    assert again.model.layers[1].self_attn.qkv_proj.parts == (128, 64, 64)
    assert torch.equal(again(TOKENS).logits, apart(TOKENS).logits)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_model_is_read_back_in_its_dtype_with_its_configs(tmp_path, symmetric):
    model = int4_llama(torch.bfloat16, symmetric=symmetric)
    model.generation_config.max_new_tokens = 7
    tinygemm.save_checkpoint(model, tmp_path / "ours")
    again = tinygemm.load_checkpoint(tmp_path / "ours")
    assert_same(again, model)
    assert again.dtype == torch.bfloat16
    assert again.generation_config.max_new_tokens == 7
    config = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    tinygemm.save_checkpoint(again, tmp_path / "twice")
    assert_same(tinygemm.load_checkpoint(tmp_path / "twice"), model)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(llama()[0].config)
    config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    tinygemm.quantize_model(model, 32)
    tinygemm.save_checkpoint(model, tmp_path / "ours")
    stored = QuantizedCheckpoint(tmp_path / "ours").plain
    assert len({"lm_head.weight", "model.embed_tokens.weight"} & set(stored)) == 1
    again = tinygemm.load_checkpoint(tmp_path / "ours")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_same(again, model)


def int4(model: nn.Module) -> nn.Module:
    tinygemm.quantize_model(model, 32, symmetric=False)
    return model


def test_any_module_is_saved_in_several_files_and_fills_one_that_is_given(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.last = Small(bias=True), nn.Linear(128, 16).half()
            self.two = self.one

    model = int4(Twice())
    assert tinygemm.save_checkpoint(model, tmp_path / "ours", max_shard_size=2000) == [
        "one.proj", "last", "two.proj",
    ]  # fmt: skip
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    modes = {file.stat().st_mode for file in (tmp_path / "ours").iterdir()}
    assert len(modes) == 1
    assert_same(tinygemm.load_checkpoint(tmp_path / "ours", Twice()), model)


def part_of_rank(model):
    from tinygemm.kernel.parallel import SummedInt4Linear

    model.proj.__class__ = SummedInt4Linear
    return model


def with_state(model):
    model.norm.__class__ = type("Counted", (nn.LayerNorm,), {"get_extra_state": lambda self: {"step": 3}})
    return model


REFUSED = {  # a model, and what the sentence names
    "no layer in INT4": (lambda: Small(), ["INT4", "quantize_model"]),
    "a layer alone": (lambda: int4(Small()).proj, ["quantize_model"]),
    "a model without values": (lambda: int4(Small()).to("meta"), ["meta"]),
    "a share of a rank": (lambda: part_of_rank(int4(Small())), ["proj", "SummedInt4Linear", "rank"]),
    "a state that is no tensor": (lambda: with_state(int4(Small())), ["norm._extra_state", "dict"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved_is_refused_by_name_and_leaves_nothing(case, tmp_path):
    make, named = REFUSED[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011  the words are looked at below
        tinygemm.save_checkpoint(make(), tmp_path / "ours")
    assert all(word in str(error.value) for word in named), error.value
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_there_or_have_no_parent_are_refused_by_name(tmp_path):
    model = int4(Small())
    (tmp_path / "there").mkdir()
    for folder, fault in ((tmp_path / "there", "there exists"), (tmp_path / "no" / "ours", "no does not exist")):
        with pytest.raises(ValueError, match=fault):
            tinygemm.save_checkpoint(model, folder)
    with pytest.raises(ValueError):  # noqa: PT011  the library's own words
        tinygemm.save_checkpoint(model, tmp_path / "ours", max_shard_size="5 apples")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

"""The code that the chapter on use shows, run as it stands on a tiny model on the CPU."""

import copy
import warnings

import pytest
import torch
from stored import FORMATS, TOKENS, llama, stored_llama

import tinygemm
from tinygemm.kernel import launches
from tinygemm.kernel.linear import Int4Linear
from tinygemm.report.use import page


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    with torch.no_grad():
        yield


def run(name: str, **names) -> dict:
    """The names after a block of the page was run; the page shows the text that runs here."""
    shown = page.code(name).data.removeprefix("```python\n").removesuffix("\n```")
    names = {"tinygemm": tinygemm} | names
    exec(shown, names)
    return names


def layers(model) -> int:
    return sum(isinstance(module, Int4Linear) for module in model.modules())


def generated(model) -> torch.Tensor:
    return model.generate(TOKENS, max_new_tokens=3, do_sample=False, pad_token_id=0)


def test_a_model_in_two_lines_and_a_weight():
    model = run("model", model=copy.deepcopy(llama()[0]))["model"]
    assert layers(model) == 14
    x, weight = torch.ones(2, 128).half(), torch.ones(32, 128).half()
    assert torch.equal(run("weight", x=x, weight=weight)["y"], torch.full((2, 32), 128.0).half())


@pytest.mark.parametrize("method", FORMATS)
def test_a_checkpoint_in_one_line_generates_and_so_does_what_is_saved_of_it(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = run("checkpoint", folder=stored_llama(tmp_path / "theirs", method)[0])["model"]
    tokens = generated(model)
    assert tokens.shape == (2, 8)
    run("save", model=model)
    assert torch.equal(generated(run("checkpoint", folder="ours")["model"]), tokens)


def test_a_model_of_transformers_generates_with_joined_layers_over_a_static_cache(tmp_path):
    llama()[0].save_pretrained(tmp_path / "float")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*compile.*")
        names = run("generate", folder=tmp_path / "float", prompt=TOKENS)
    assert layers(names["model"]) == 8
    assert names["tokens"].shape == (2, 9)

"""Packed weights over several ranks: shares are exact, bad cuts are refused, and two processes compute as one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import assert_close
from torch import nn

from tinygemm.kernel import cut, launches
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.parallel import ColwiseInt4, RowwiseInt4, parallelize, shard
from tinygemm.kernel.quant import dequantize, pack, random_packed, unpack

TESTS = Path(__file__).resolve().parent


def same(w, expected) -> bool:
    """Tell whether two packed weights agree in every stored bit."""
    return w.shape == expected.shape and w.group_size == expected.group_size and all(
        torch.equal(*pair) for pair in zip(w.tensors(), expected.tensors(), strict=True)
    )  # fmt: skip


def repacked(w, rows, columns):
    """Some rows and columns of a weight, by unpacking it and packing them again."""
    groups = slice(None) if w.group_size == -1 else slice(columns.start // w.group_size, columns.stop // w.group_size)
    zeros = None if w.zeros is None else w.zeros[groups][:, rows]
    return pack(unpack(w)[rows][:, columns], w.scales[groups][:, rows], zeros, w.group_size)


weights = st.builds(
    functools.partial(dict),
    group_size=st.sampled_from([32, 64, 128, -1]),
    symmetric=st.booleans(),
    seed=st.integers(0, 9),
)
few = settings(max_examples=25, deadline=None, database=None)


@few
@given(weights, st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 2))
def test_rows_are_cut_part_by_part(kind, world, tiles, k_tiles):
    parts = [16 * world * count for count in tiles]
    w = random_packed(sum(parts), 128 * k_tiles, **kind)
    shares = [shard(w, 0, rank, world, parts) for rank in range(world)]
    starts = [sum(parts[:i]) for i in range(len(parts))]
    for rank, share in enumerate(shares):
        rows = [torch.arange(part).chunk(world)[rank] + start for part, start in zip(parts, starts, strict=True)]
        assert same(share, repacked(w, torch.cat(rows), slice(0, w.K)))
        w.qweight.zero_()
        assert same(share, shard(share, 0, 0, 1)), "memory of its own"
        w = random_packed(sum(parts), 128 * k_tiles, **kind)


@few
@given(weights, st.integers(1, 4), st.integers(1, 40), st.integers(1, 2))
def test_columns_are_cut_with_their_groups(kind, world, N, k_tiles):
    w = random_packed(N, 128 * k_tiles * world, **kind)
    for rank in range(world):
        columns = slice(128 * k_tiles * rank, 128 * k_tiles * (rank + 1))
        share = shard(w, 1, rank, world)
        assert same(share, repacked(w, slice(0, N), columns))
        assert share.qweight.untyped_storage().nbytes() == share.qweight.nbytes, "not a view of the whole"


@few
@given(weights, st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 20))
def test_parts_are_joined_and_cut_again(kind, tiles, last):
    sizes = [*(16 * count for count in tiles), last]
    parts = [random_packed(N, 256, kind["group_size"], kind["symmetric"], seed=i) for i, N in enumerate(sizes)]
    whole = cut.join(parts)
    assert torch.equal(dequantize(whole), torch.cat([dequantize(part) for part in parts]))
    start = 0
    for part in parts:
        assert same(cut.rows(whole, start, start + part.N), part)
        start += part.N


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, 2), "N=48.* 2 x 16"),
        ((1, 0, 2), "K=384.* 2 x 128"),
        ((0, 0, 3, (32, 16)), "N=32.* 3 x 16"),
        ((0, 0, 1, (32, 32)), "parts must add up to N=48"),
        ((0, 0, 1, None, 32), "N=48.* 1 x 32"),
        ((2, 0, 2), "dim must be 0"),
        ((0, 2, 2), r"rank must be in 0\.\.1"),
    ],
)
def test_a_share_that_would_cut_a_tile_or_a_head_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        shard(random_packed(48, 384, 64), *arguments)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: cut.rows(w, 8, 48), "multiples of 16"),
        (lambda w: cut.rows(w, 0, 64), "not within N=48"),
        (lambda w: cut.columns(w, 64, 384), "multiples of 128"),
        (lambda w: cut.columns(w, 128, 128), "not within K=384"),
        (lambda w: cut.join([w, random_packed(48, 256, 64)]), "one K"),
        (lambda w: cut.join([w, random_packed(48, 384, 32)]), "one group_size"),
        (lambda w: cut.join([w, random_packed(48, 384, 64, False)]), "one symmetric"),
        (lambda w: cut.join([random_packed(40, 384, 64), w]), "multiple of 16, got 40"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(random_packed(48, 384, 64))


# --- the styles, on a mesh without processes --------------------------------------------------------------------------


class Mesh:
    """The mesh that a style asks."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world

    def get_local_rank(self):
        return self.rank

    def size(self):
        return self.world


def test_the_ranks_of_a_joined_layer_compute_its_slices(monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    x, layer = torch.randn(3, 128).half(), joined_layer()
    parts = [part.chunk(2, -1) for part in layer(x).split((64, 32, 32), -1)]
    for rank in range(2):
        share = ColwiseInt4((64, 32, 32), head_dim=16)._apply(joined_layer(), Mesh(rank, 2))
        assert (share.out_features, share.parts) == (64, (32, 16, 16))
        assert torch.equal(share(x), torch.cat([part[rank] for part in parts], -1))


def joined_layer():
    torch.manual_seed(0)
    return Int4Linear.from_linear(nn.Linear(128, 128).half(), 32)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (ColwiseInt4(), r"Int4Linear\(in_features=128, .*: output features N=128 .* 3 x 16"),
        (ColwiseInt4(head_dim=32), "N=128 .* 3 x 32"),
        (RowwiseInt4(), r"Int4Linear\(in_features=128, .*: inputs K=128 .* 3 x 128"),
        (ColwiseInt4((64, 64), gather=True), "several parts"),
    ],
)
def test_a_style_names_the_layer_that_it_does_not_fit_and_leaves_it(style, words):
    layer = joined_layer()
    before = dict(vars(layer), _buffers=dict(layer._buffers))
    with pytest.raises(ValueError, match=words):
        style._apply(layer, Mesh(0, 3))
    assert type(layer) is Int4Linear
    assert all(layer._buffers[name] is buffer for name, buffer in before["_buffers"].items())


@pytest.mark.parametrize("style", [ColwiseInt4(), RowwiseInt4()])
def test_another_layer_is_refused(style):
    with pytest.raises(TypeError, match=r"Int4Linear .*got Linear"):
        style._apply(nn.Linear(128, 128), Mesh(0, 2))


class Attention(nn.Module):
    head_dim = 32

    def __init__(self, q=64, kv=64):
        super().__init__()
        for name, N in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            self.add_module(name, Int4Linear(256, N))
        self.o_proj = Int4Linear(256, 256)


def fused():
    model = Attention()
    model.qkv_proj = Int4Linear(256, 192)
    return model


def float_layer():
    model = Attention()
    model.o_proj = nn.Linear(256, 256)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Attention(kv=32), r"^0\.k_proj: output features N=32 .* 2 x 32"),
        (fused, r"^0\.qkv_proj: .*parts"),
        (float_layer, r"^0\.o_proj: .*got Linear"),
        (lambda: nn.ReLU(), "none of the layers"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused_by_the_path_of_the_layer_and_stays(make, words):
    model = nn.Sequential(make())
    with pytest.raises(ValueError, match=words):
        parallelize(model, Mesh(0, 2))
    assert all(module.in_features == 256 for module in model.modules() if isinstance(module, Int4Linear))


# --- two processes ----------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from test_parallel import CASES, TOKENS, model_of
from tinygemm.kernel.parallel import parallelize

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
with torch.no_grad():
    for name in CASES:
        model = parallelize(model_of(name), mesh)
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if name == "compiled" else model
        torch.save(run(TOKENS, use_cache=False).logits, f"{folder}/{name}-{rank}.pt")
        torch.save(sum(w.nbytes for w in model.buffers()), f"{folder}/{name}-{rank}-bytes.pt")
dist.destroy_process_group()
"""
CASES = {  # joined, dtype, lm_head in INT4
    "apart": (False, torch.float16, False),
    "joined": (True, torch.float16, True),
    "compiled": (True, torch.bfloat16, True),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def model_of(case: str) -> nn.Module:
    import transformers

    from tinygemm.kernel.linear import quantize_model

    joined, dtype, head = CASES[case]
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    quantize_model(model, 64, skip=() if head else ("lm_head",), join=joined)
    return model


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ranks")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_the_logits_of_one(case, two_processes, monkeypatch):
    monkeypatch.setattr(launches, "INTERPRETED", False)
    one, two = (torch.load(two_processes / f"{case}-{rank}.pt") for rank in range(2))
    assert torch.equal(one, two)
    with torch.no_grad():
        model = model_of(case)
        expected = model(TOKENS).logits.double()
    worst = 8 if CASES[case][1] == torch.bfloat16 else 1
    assert_close(one.view(10, -1), expected.view(10, -1), max_err=2e-2 * worst, rms_err=5e-3 * worst)
    whole = sum(buffer.nbytes for buffer in model.buffers())
    share = torch.load(two_processes / f"{case}-0-bytes.pt")
    assert 0.45 < share / whole < 0.6

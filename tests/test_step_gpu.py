"""Attention of a decode step on a GPU: equal to the equations in float64, again and again, in graphs side by side."""

import pytest
import torch

from tinygemm.hardware import cuda_unavailable_reason
from tinygemm.models import Model
from tinygemm.step import attention, lean
from tinygemm.step.architecture import Architecture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cuda_unavailable_reason()), reason=str(cuda_unavailable_reason())),
]

REPEATS = 20


class Operands:
    """One call of attention: a cache of `capacity` tokens of which `position` were there before, and its new token."""

    def __init__(self, heads, kv_heads, D, capacity, position, batch, qk_norm, dtype=torch.float16, seed=0):
        self.arch = Architecture(Model("any", 256, 512, 1, heads, kv_heads, D, 100, ""), 5e5, qk_norm=qk_norm)
        generator = torch.Generator("cuda").manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

        self.capacity, self.index = capacity, position
        self.keys, self.values = (random(batch, kv_heads, capacity, D) for _ in range(2))
        self.keys[:, :, position:] = self.values[:, :, position:] = float("nan")  # nobody reads what is to come
        self.qkv = random(batch, (heads + 2 * kv_heads) * D)
        self.norms = (1 + 0.2 * random(D), 1 + 0.2 * random(D)) if qk_norm else (None, None)
        self.rotary = lean.rotary_table(self.arch, capacity, "cuda")
        self.position = torch.tensor([position], device="cuda")

    def expected(self) -> torch.Tensor:
        """By the equations in float64, over the tokens up to the new one."""
        cache = lean.Cache(*(part[:, :, : self.index + 1].double() for part in (self.keys, self.values)))
        norms = (None if norm is None else norm.double() for norm in self.norms)
        return lean.Attention(self.arch, cache, *norms)(self.qkv.double(), self.position, self.rotary.double())

    def fused(self) -> torch.Tensor:
        cache = lean.Cache(self.keys, self.values)
        return attention.FusedAttention(self.arch, cache, *self.norms)(self.qkv, self.position, self.rotary)


def assert_equations(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.isfinite().all()
    bound = 2e-2 if found.dtype == torch.bfloat16 else 2e-3
    assert (found.double() - expected).norm() < bound * expected.norm()
    assert (found.double() - expected).abs().max() < 8 * bound * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "D", "capacity", "position", "batch", "qk_norm"),
    [
        pytest.param(32, 8, 128, 512, 511, 1, False, id="llama-3-8b"),
        pytest.param(16, 8, 128, 512, 511, 8, True, id="qwen3-0.6b"),
        pytest.param(64, 8, 128, 8192, 8191, 1, False, id="llama-3-70b, long"),
        pytest.param(40, 8, 128, 8192, 5000, 4, False, id="five heads a group"),
        pytest.param(32, 8, 128, 32, 31, 16, True, id="one share"),
        pytest.param(4, 2, 64, 1000, 0, 2, True, id="the first token"),
        pytest.param(8, 1, 64, 777, 70, 1, True, id="most shares are empty"),
        pytest.param(8, 8, 128, 100, 99, 300, False, id="more sequences than programs"),
    ],
)
def test_attention_is_the_equations_every_time(heads, kv_heads, D, capacity, position, batch, qk_norm, dtype):
    one = Operands(heads, kv_heads, D, capacity, position, batch, qk_norm, dtype)
    expected, first = one.expected(), one.fused()
    assert_equations(first, expected)
    for _ in range(REPEATS):  # shares are added in their order, whoever comes last
        assert torch.equal(one.fused(), first)


def test_graphs_on_two_streams_do_not_meet():
    pairs = [Operands(32, 8, 128, 4096, 4000 - 64 * seed, 1, False, seed=seed) for seed in range(2)]
    expected = [each.expected() for each in pairs]
    graphs, results = [], []
    for each in pairs:
        each.fused()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results.append([each.fused() for _ in range(4)])
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in pairs]
    for _ in range(REPEATS):
        for found in results:
            for out in found:
                out.fill_(float("nan"))
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for found, right in zip(results, expected, strict=True):
            for out in found:
                assert_equations(out, right)


def test_the_new_token_is_in_the_cache_of_the_next_step():
    one = Operands(32, 8, 128, 512, 200, 2, True)
    for position in range(200, 232):  # across the border of a tile
        one.index = position
        one.position.fill_(position)
        one.qkv.normal_()
        expected = one.expected()
        found = one.fused()
        assert_equations(found, expected)
        assert torch.equal(one.values[:, :, position].flatten(1), one.qkv[:, -8 * 128 :])

"""The kernel of attention compiled for GPUs with and without dependent launch: nothing spills, and it waits in time."""

import pytest
import torch

from tinygemm.hardware import gpu_spec
from tinygemm.harness import static_cost
from tinygemm.step import attention
from tinygemm.step.architecture import ARCHITECTURES, Architecture

pytestmark = pytest.mark.aot

CASES = [  # model, sequences, capacity: the report's heads; with norms of q and k; one share; a long context
    ("llama-3-8b", 1, 512), ("qwen3-0.6b", 8, 512), ("llama-3-8b", 16, 32), ("llama-3-70b", 1, 8192),
]  # fmt: skip


def launch_of(arch: Architecture, batch: int, capacity: int) -> static_cost.Launch:
    m = arch.model

    def empty(*shape, dtype=torch.float16):
        return torch.empty(shape, dtype=dtype, device="meta")

    norm = empty(m.head_dim) if arch.qk_norm else None
    keys = empty(batch, m.kv_heads, capacity, m.head_dim)
    arguments = (
        empty(batch, arch.qkv_features), empty(2, capacity, m.head_dim, dtype=torch.float32), norm, norm,
        empty(1, dtype=torch.int64), keys, keys, m.heads, arch.norm_eps,
    )  # fmt: skip
    (launch,) = static_cost.record_launches(lambda: attention.launch(*arguments))
    return launch


@pytest.mark.parametrize(("model", "batch", "capacity"), CASES)
@pytest.mark.parametrize(("gpu", "dependent"), [("h200", True), ("a10g", False)])
def test_attention_keeps_its_registers_and_waits_where_the_gpu_launches_early(
    monkeypatch, gpu, dependent, model, batch, capacity
):
    cut, read_cost, seen = attention.cut, static_cost.read_cost, []
    monkeypatch.setattr(attention, "cut", lambda B, kv_heads, tokens, _: cut(B, kv_heads, tokens, sm_count=132))

    def noting(compiled, spec):
        seen.append(compiled)
        return read_cost(compiled, spec)

    monkeypatch.setattr(static_cost, "read_cost", noting)
    cost = static_cost.launch_cost(launch_of(ARCHITECTURES[model], batch, capacity), gpu_spec(gpu))
    assert cost.spills == 0
    assert cost.ctas_per_sm >= attention.PROGRAMS_PER_SM
    lines = seen[0].asm["ptx"].splitlines()
    waits = [i for i, line in enumerate(lines) if "griddepcontrol.wait" in line]
    triggers = [i for i, line in enumerate(lines) if "griddepcontrol.launch_dependents" in line]
    assert (len(waits), len(triggers)) == ((1, 1) if dependent else (0, 0))
    if dependent:
        early = "\n".join(lines[: waits[0]])
        assert waits[0] < triggers[0]
        assert "ld.global" in early or "cp.async" in early, "no keys are requested before the wait"
        assert "st.global" not in early

"""Write the checkpoints beside this file with the libraries of their formats; the README says which, and how to run it.

Every folder holds model.safetensors, whose layers the library packed, and dequantised.safetensors, the weight [N, K] of
each layer as the same library reads it back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
N, K, GROUP = 32, 128, 32
GROUPS = K // GROUP


def numbers(seed: int, zeros: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Codes [N, K] that take every value, scales [N, groups] float16, zeros [N, groups] from a range."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (N, K), generator=generator)
    scales = (0.5 + torch.rand(N, GROUPS, generator=generator)).mul(0.01).half()
    return codes, scales, torch.randint(zeros[0], zeros[1] + 1, (N, GROUPS), generator=generator)


def linear(codes, scales, zeros, g_idx, bias: bool) -> torch.nn.Linear:
    """The layer whose weight is (codes - zeros) * scales in float32, in which a library finds the codes again."""
    layer = torch.nn.Linear(K, N, bias)
    layer.weight.data = (codes - zeros[:, g_idx]).float() * scales[:, g_idx].float()
    return layer


SEQUENTIAL = torch.arange(K) // GROUP
ACT_ORDER = SEQUENTIAL[torch.randperm(K, generator=torch.Generator().manual_seed(7))]


def autogptq(folder: str) -> None:
    """GPTQ v1, one layer in the order of its inputs and one in another."""
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    tensors, weights = {}, {}
    for seed, (name, g_idx, bias) in enumerate((("proj", SEQUENTIAL, True), ("act_order", ACT_ORDER, False))):
        codes, scales, zeros = numbers(seed, (1, 15))  # AutoGPTQ spoils the words that hold a zero of 0
        source = linear(codes, scales, zeros, g_idx, bias)
        layer = QuantLinear(4, GROUP, K, N, bias, weight_dtype=torch.float16)
        layer.pack(source, scales.float(), zeros.float(), g_idx.int())
        layer = layer.half()
        tensors |= {f"{name}.{part}": each for part, each in layer.state_dict().items()}
        layer.bias = None
        weights[name] = layer(torch.eye(K).half()).t()
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}
    write(folder, settings, tensors, weights)


def gptqmodel(folder: str, version: int) -> None:
    """GPTQ v1 or v2; a zero of 0 has a place only in v2."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    tensors, weights = {}, {}
    for seed, (name, g_idx, bias) in enumerate((("proj", SEQUENTIAL, True), ("act_order", ACT_ORDER, False))):
        codes, scales, zeros = numbers(10 + seed, (2 - version, 15))
        source = linear(codes, scales, zeros, g_idx, bias).half()
        layer = TorchLinear(4, GROUP, sym=False, desc_act=True, in_features=K, out_features=N, bias=bias)
        layer.pack_original(source, scales.float(), zeros.float(), g_idx.int())
        weights[name] = layer.dequantize_weight().t()
        if version == 1:
            layer = convert_gptq_v2_to_v1_format_module(layer, config(version)) or layer
        parts = ("qweight", "qzeros", "scales", "g_idx", *(["bias"] if bias else []))
        tensors |= {f"{name}.{part}": getattr(layer, part).data for part in parts}
    stored = {1: "gptq", 2: "gptq_v2"}[version]
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}
    write(folder, settings | {"checkpoint_format": stored}, tensors, weights)


def config(version: int):
    from gptqmodel.quantization import FORMAT, QuantizeConfig

    return QuantizeConfig(bits=4, group_size=GROUP, format=FORMAT.GPTQ if version == 1 else FORMAT.GPTQ_V2)


def autoawq(folder: str) -> None:
    """AWQ in the GEMM order."""
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    tensors, weights = {}, {}
    for seed, (name, bias) in enumerate((("proj", True), ("other", False))):
        codes, scales, zeros = numbers(20 + seed, (0, 15))
        source = linear(codes, scales, zeros, SEQUENTIAL, bias)
        layer = WQLinear_GEMM.from_linear(source, 4, GROUP, scales=scales.t().float(), zeros=zeros.t())
        tensors |= {f"{name}.{part}": each for part, each in layer.state_dict().items()}
        weights[name] = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP).t()
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    write(folder, settings, tensors, weights)


def write(folder: str, settings: dict, tensors: dict, weights: dict) -> None:
    target = HERE / folder
    target.mkdir(exist_ok=True)
    text = json.dumps({"quantization_config": settings}, indent=2) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
    for file, content in (("model", tensors), ("dequantised", weights)):
        save_file({name: each.contiguous() for name, each in content.items()}, target / f"{file}.safetensors")


WRITERS = {
    "gptq-v1-autogptq": autogptq,
    "gptq-v1-gptqmodel": lambda folder: gptqmodel(folder, 1),
    "gptq-v2-gptqmodel": lambda folder: gptqmodel(folder, 2),
    "awq-gemm-autoawq": autoawq,
}

if __name__ == "__main__":
    with torch.no_grad():
        for name in sys.argv[1:]:
            WRITERS[name](name)

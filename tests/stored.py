"""Checkpoints of each format, written from the documentation of its layout, and small models to load them into."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import numpy as np
import torch
from operands import make_operands
from safetensors.torch import save_file
from torch import nn


def words(nibbles: np.ndarray) -> torch.Tensor:
    """[rows, 8 n] -> [rows, n] int32, the first of eight in the lowest bits."""
    parts = nibbles.astype(np.uint32).reshape(len(nibbles), -1, 8)
    return torch.from_numpy((parts << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32))


def gptq(codes, scales, zeros, version=2, g_idx=None) -> dict[str, torch.Tensor]:
    stored = zeros.numpy() - (version == 1)
    tensors = {"qweight": words(codes.numpy()).t().contiguous(), "qzeros": words(stored), "scales": scales}
    return tensors if g_idx is None else tensors | {"g_idx": g_idx.int()}


def awq(codes, scales, zeros) -> dict[str, torch.Tensor]:
    def shuffled(columns):
        rows = columns.numpy().reshape(len(columns), -1, 8)
        return words(rows[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(columns), -1))

    return {"qweight": shuffled(codes.t().contiguous()), "qzeros": shuffled(zeros), "scales": scales}


def compressed(codes, scales, zeros, group_size=32, dtype=torch.float16) -> dict[str, torch.Tensor]:
    """A layer as compressed-tensors packs it; symmetric where zeros are None."""
    scale = scales.t().to(dtype).contiguous()
    points = None if zeros is None else (zeros.t().to(torch.int8) - 8).contiguous()
    shift = 8 if zeros is None else zeros.t().repeat_interleave(codes.shape[1] // len(scales), 1)
    weight = (codes.double() - shift) * scale.double().repeat_interleave(codes.shape[1] // len(scales), 1)
    state = {"weight": weight.float(), "weight_scale": scale} | (
        {} if points is None else {"weight_zero_point": points}
    )
    return compressor().compress(state, scheme(group_size, zeros is None))


def compressor():
    """The compressor of compressed-tensors; seconds to import, which only the tests that use it should take."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    return PackedQuantizationCompressor


def scheme(group_size: int, symmetric: bool):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    size = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=4, symmetric=symmetric, **size))


def settings_of(method: str, group_size: int = 32, **more) -> dict:
    if method == "compressed-tensors":
        weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": group_size}
        if group_size == -1:
            weights |= {"strategy": "channel", "group_size": None}
        more = {
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        } | more
        return {"quant_method": method} | more
    version = {"gptq": {"checkpoint_format": "gptq_v2"}, "awq": {"version": "gemm"}}[method]
    return {"quant_method": method, "bits": 4, "group_size": group_size} | version | more


def write(folder: Path, tensors: dict, quantization: dict | None, config: dict | None = None, shards: int = 1) -> Path:
    """A checkpoint; in several shards the tensors of a layer lie in different files."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps((config or {}) | {"quantization_config": quantization}), encoding="utf-8"
    )
    tensors = {name: each.contiguous().clone() for name, each in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    homes = {name: names[i % shards] for i, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: each for name, each in tensors.items() if homes[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}), encoding="utf-8")
    return folder


def layer(path: str, parts: dict) -> dict:
    return {f"{path}.{part}": tensor for part, tensor in parts.items()}


TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
FORMATS = ("gptq", "gptq act-order", "awq", "compressed-tensors")


@functools.cache
def llama():
    """A tiny model with random weights, and operands for each layer that is quantised."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, num_hidden_layers=2, vocab_size=64, max_position_embeddings=64, attention_bias=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval()
    operands = {
        path: make_operands(1, *module.weight.shape, 32, symmetric=False, seed=seed)
        for seed, (path, module) in enumerate(model.named_modules())
        if isinstance(module, nn.Linear) and path != "lm_head"
    }
    return model, operands


def stored_llama(folder: Path, method: str, shards: int = 2) -> tuple[Path, nn.Module]:
    """The model in a format, and the same in float64 with the weights that the format stores."""
    model, operands = llama()
    reference = copy.deepcopy(model).double()
    tensors = {name: each for name, each in model.state_dict().items() if name.removesuffix(".weight") not in operands}
    for path, each in operands.items():
        groups = torch.arange(each.codes.shape[1]) // 32
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))  # one for each input
        g_idx = groups[order] if method == "gptq act-order" else groups
        zeros = each.zeros.clamp_min(1)
        if method.startswith("gptq"):
            tensors |= layer(path, gptq(each.codes, each.scales, zeros, 1, g_idx))
        else:
            make = {"awq": awq, "compressed-tensors": compressed}[method]
            tensors |= layer(path, make(each.codes, each.scales, zeros))
        weight = (each.codes.double() - zeros[g_idx].t().double()) * each.scales[g_idx].t().double()
        reference.get_submodule(path).weight.data.copy_(weight)
    quantization = settings_of(method.split()[0])
    if quantization["quant_method"] == "gptq":
        quantization["checkpoint_format"] = "gptq"
    write(folder, tensors, quantization, model.config.to_dict(), shards)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder, reference


class Small(nn.Module):
    def __init__(self, bias: bool = False):
        super().__init__()
        self.proj, self.norm = nn.Linear(128, 32, bias).half(), nn.LayerNorm(128).half()
        self.norm.weight.data.copy_(torch.arange(128))


def small(method: str = "gptq", **more) -> tuple[dict, dict]:
    """The tensors of a Small and the quantization_config."""
    given = make_operands(1, 32, 128, 32, symmetric=False)
    zeros = given.zeros.clamp_min(1)
    make = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed}[method]
    tensors = layer("proj", make(given.codes, given.scales, zeros))
    return tensors | layer("norm", Small().norm.state_dict()), settings_of(method, **more)

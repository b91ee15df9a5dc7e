"""A model with INT4 layers, written in our own format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn

from tinygemm.checkpoints import native
from tinygemm.checkpoints.files import CONFIG, GENERATION, INDEX
from tinygemm.checkpoints.folder import new_folder, write_json, write_tensors
from tinygemm.checkpoints.integers import LayerWeight
from tinygemm.kernel.join import layers_apart
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.reordered import ReorderedInt4Linear, order_of

WHOLE = (Int4Linear, ReorderedInt4Linear)


def save_checkpoint(model: nn.Module, folder: str | Path, *, max_shard_size: int | str = "5GB") -> list[str]:
    """Write a model that `quantize_model` or `load_checkpoint` made; `load_checkpoint` reads it back bit for bit.

    Joined projections are written apart: `join_projections` joins them again after loading. Tied weights are written
    once. A model of transformers is written with its configs; save its tokenizer into the folder afterwards.

    model:   its layers lie on any devices, but not on the meta device
    folder:  a folder that does not exist; it appears when it is whole
    max_shard_size: of a safetensors file, in bytes or such as "5GB"; a larger model is written as several
    returns: the paths of the INT4 layers
    raises:  ValueError where the folder exists, or the model has no INT4 layer, lacks values or holds the share of one
             rank; OSError naming the folder
    """
    with new_folder(folder) as aside:
        layers = _layers(model)
        described = {path: native.described(layer.weight) for path, layer in layers.items()}
        write_json(_config(model) | {"quantization_config": native.settings_of(described)}, aside / CONFIG)
        if generation := getattr(model, "generation_config", None):
            write_json(json.loads(generation.to_json_string()), aside / GENERATION)
        _write(_tensors(model, layers), aside, max_shard_size)
    return list(layers)


def _layers(model: nn.Module) -> dict[str, Int4Linear]:
    """The INT4 layers by their paths, joined ones apart."""
    layers = dict(layers_apart(model))
    if not layers or "" in layers:
        raise ValueError("model must be a module with INT4 layers in it: make some with tinygemm.quantize_model")
    for path, layer in layers.items():
        if type(layer) not in WHOLE:
            raise ValueError(f"{path} is a {type(layer).__name__}, which holds the share of one rank; save it whole")
    return layers


def _tensors(model: nn.Module, layers: dict[str, Int4Linear]) -> dict[str, torch.Tensor]:
    """The stored tensors, by name."""
    packed = tuple(f"{path}." for path, module in model.named_modules(remove_duplicate=False) if type(module) in WHOLE)
    tensors, tied = {}, set()
    for name, each in model.state_dict(keep_vars=True).items():
        if id(each) not in tied and not name.startswith(packed):
            tensors[name] = each
        tied.add(id(each))
    for path, layer in layers.items():
        parts = native.tensors(LayerWeight(layer.weight, order_of(layer)))
        tensors |= {f"{path}.{name}": tensor for name, tensor in parts.items()}
        if layer.bias is not None:
            tensors[f"{path}.bias"] = layer.bias
    for name, each in tensors.items():
        if not isinstance(each, torch.Tensor) or each.is_meta:
            has = "one of the meta device" if isinstance(each, torch.Tensor) else f"a {type(each).__name__}"
            raise ValueError(f"{name} of the model must be a tensor with values, got {has}")
    return tensors


def _write(tensors: dict[str, torch.Tensor], folder: Path, max_shard_size: int | str) -> None:
    """Write safetensors files, and the index where there are several."""
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for name, names in plan.filename_to_tensors.items():
        copies = {each: tensors[each].detach().clone(memory_format=torch.contiguous_format) for each in names}
        write_tensors(copies, folder / name)  # copied, because projections that were joined are views of one tensor
    if plan.is_sharded:
        write_json({"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}, folder / INDEX)


def _config(model: nn.Module) -> dict:
    """The config of a model of transformers, in the dtype that it has now; {} of any other model."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return {}
    content = json.loads(config.to_json_string())
    for home in (content, content.get("text_config") or {}):
        home.pop("quantization_config", None)  # of the files that the model came from
    return content | {"architectures": [type(model).__name__], "dtype": str(model.dtype).removeprefix("torch.")}

"""A model with the INT4 weights of a checkpoint in it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tinygemm.checkpoints.files import CONFIG, GENERATION, Checkpoint
from tinygemm.checkpoints.formats import QuantizedCheckpoint
from tinygemm.kernel.linear import Int4Linear
from tinygemm.kernel.reordered import layer_of

NAMED = 5  # tensors in a message
OLD_BUFFERS = (".rotary_emb.inv_freq", ".masked_bias")  # stored by old programs, computed by every model


def load_checkpoint(
    path: str | Path, model: nn.Module | None = None, *, device: torch.device | str | None = None
) -> nn.Module:
    """Load a GPTQ, AWQ or compressed-tensors checkpoint, or one of our own: codes, scales and zeros bit for bit.

    path:    a folder with config.json and safetensors files; they are read one layer at a time
    model:   takes the weights: each nn.Linear that is quantised there becomes an Int4Linear, and all else is loaded as
             it is. None: the causal language model that config.json describes, of the package transformers
    device:  where the model goes; None: where each of its tensors is, and the CPU for those on the meta device
    returns: the model
    raises:  ValueError naming the tensor and the file: where the format or group size is not known here, where a scale
             is no float16 number, where a tensor is missing, has another shape or dtype, or has no place in the model.
             A model that was given is then as it was
    warns:   of tensors in the files that the model has no place for

    Inputs of a layer that was quantised in the order of activations (act-order) are gathered first: one more kernel.
    """
    checkpoint = QuantizedCheckpoint(path)
    model = _empty_model(checkpoint.stored) if model is None else model
    linears = {name: _linear(model, checkpoint, name) for name in checkpoint.layers}
    targets = _targets(model, checkpoint)
    layers = {name: _layer(checkpoint, name, linear, device) for name, linear in linears.items()}
    for name, layer in layers.items():
        _put(model, name, layer)
    for name, target in targets.items():
        _fill(model, target, checkpoint.stored.tensor(name, _place(target.tensor, device)))
    return model if device is None else model.to(device)


@dataclass
class Target:
    """A parameter or buffer of the model, and every name that it goes by."""

    tensor: torch.Tensor
    names: list[str]


def _empty_model(stored: Checkpoint) -> nn.Module:
    """The model that config.json describes: parameters without values, buffers as they are computed."""
    try:
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the package {error.name} is not installed, and a model is made from {stored.folder / CONFIG} with it: "
            "pip install 'tinygemm[models]', or pass a model",
            name=error.name,
        ) from None
    config = AutoConfig.from_pretrained(stored.folder)
    for each in (config, config.get_text_config()):
        if hasattr(each, "quantization_config"):
            del each.quantization_config  # of the files: the model's layers say themselves what they are
    dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float16
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    if (stored.folder / GENERATION).is_file():
        model.generation_config = type(model.generation_config).from_pretrained(stored.folder)
    return model.eval()


def _linear(model: nn.Module, checkpoint: QuantizedCheckpoint, path: str) -> nn.Linear:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        has = "nothing there" if module is None else f"a {type(module).__name__}"
        experts = "; experts that a model keeps in one tensor are not supported" if "experts" in path else ""
        raise checkpoint.error(path, f"wants an nn.Linear in its place in the model, which has {has}{experts}")
    return module


def _layer(checkpoint: QuantizedCheckpoint, path: str, linear: nn.Linear, device) -> Int4Linear:
    weight = checkpoint.read(path, _place(linear.weight, device))
    if weight.packed.shape != linear.weight.shape:
        shapes = f"[N, K] = {list(weight.packed.shape)}, and the model wants {list(linear.weight.shape)}"
        raise checkpoint.error(path, f"is a weight {shapes}")
    bias = checkpoint.bias(path, weight.packed)
    if bias is None and linear.bias is not None:
        raise checkpoint.error(path, f"comes without {path}.bias, which the model wants")
    if bias is not None:  # old programs store a bias of zeros for layers that have none
        bias = bias.to(linear.weight.dtype) if linear.bias is not None or bias.any() else None
    return layer_of(weight.packed, bias, weight.order).train(linear.training)


def _targets(model: nn.Module, checkpoint: QuantizedCheckpoint) -> dict[str, Target]:
    """The target of each tensor that is not quantised, by its name in the files.

    raises: ValueError naming what the model wants and the files lack, or what does not fit
    warns:  of what the model has no place for
    """
    stored = checkpoint.stored
    replaced = {f"{path}.{part}" for path in checkpoint.layers for part in ("weight", "bias")}
    own = {name: each for name, each in model.state_dict(keep_vars=True).items() if name not in replaced}
    targets: dict[int, Target] = {}
    for name, tensor in own.items():
        targets.setdefault(id(tensor), Target(tensor, [])).names.append(name)
    filled = {}
    for target in targets.values():
        given = [name for name in target.names if name in stored.homes]
        if not given:
            raise ValueError(f"{stored.folder} holds no tensor {target.names[0]}, which the model wants")
        stored.check(given[0], target.tensor)
        filled[given[0]] = target
    if extra := [name for name in checkpoint.plain if name not in own and not name.endswith(OLD_BUFFERS)]:
        more = f" and {len(extra) - NAMED} more" if len(extra) > NAMED else ""
        warnings.warn(f"the model has no place for {', '.join(extra[:NAMED])}{more} of {stored.folder}", stacklevel=3)
    if empty := [name for name, each in model.named_buffers() if each.is_meta and name not in own]:
        raise ValueError(
            f"model must have values in its buffer {empty[0]}, which is on the meta device and in no file: make the "
            "model under accelerate.init_empty_weights(include_buffers=False)"
        )
    return filled


def _fill(model: nn.Module, target: Target, value: torch.Tensor) -> None:
    own = target.tensor
    if not own.is_meta:
        with torch.no_grad():
            own.copy_(value)
        return
    value = value.to(own.dtype)
    if isinstance(own, nn.Parameter):
        value = nn.Parameter(value, own.requires_grad)
    for name in target.names:
        _put(model, name, value)


def _put(model: nn.Module, path: str, what: nn.Module | torch.Tensor) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, what)


def _place(own: torch.Tensor, device) -> torch.device | str:
    """The device to read a tensor to that takes the place of the model's own."""
    return device or ("cpu" if own.is_meta else own.device)

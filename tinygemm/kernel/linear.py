"""A linear layer with a packed INT4 weight, and the change of a whole model to it."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tinygemm.kernel import fastpath
from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.quant import FLOAT_DTYPES, TILE_K, TILE_N, WORDS, PackedInt4, quantize

PACKED = ("qweight", "scales", "zeros")  # buffers whose bytes a kernel reads as they are
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


class Int4Linear(nn.Module):
    """`nn.Linear` for inference, its weight packed to INT4: y = x @ weight.T + bias.

    in_features, out_features, bias: as in nn.Linear; the layer starts out as zeros, to be filled by `load_state_dict`
    group_size: weights along in_features that share a scale: 32, 64, 128 or -1
    symmetric:  False: the layer stores a zero point per group, too
    buffers:    qweight, scales, zeros (None where symmetric) as in PackedInt4, and bias; all of them in the state dict
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group_size: int = 128,
        symmetric: bool = True,
        device=None,
        dtype: torch.dtype = torch.float16,
    ):
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        groups = 1 if group_size == -1 else in_features // group_size
        words = (-(-out_features // TILE_N), -(-in_features // TILE_K), TILE_N, WORDS)
        self.register_buffer("qweight", torch.zeros(words, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16, device=device))
        zeros = None if symmetric else torch.zeros(groups, out_features, dtype=torch.uint8, device=device)
        self.register_buffer("zeros", zeros)
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)
        self._weight: PackedInt4 | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, group_size: int = 128, symmetric: bool = True, *, rule: str = "full-range"
    ) -> Int4Linear:
        """The layer that does what `linear` does, hooks of its forward included, but for the rounding of its weight.

        group_size, symmetric, rule: as in `quantize`
        raises: as `quantize`; ValueError where `linear` computes something else than its weight says
        """
        if "forward" in vars(linear) or hasattr(linear, "_hf_hook"):
            raise ValueError("its forward was replaced (by accelerate, say), and Int4Linear would not call that one")
        if "weight" not in linear._parameters:
            raise ValueError("its weight is made anew by a hook (weight_norm or pruning, say); make it permanent first")
        layer = cls.from_packed(quantize(linear.weight, group_size, symmetric, rule=rule), linear.bias)
        for name in HOOKS:  # the same dictionaries: whoever has a handle can still remove a hook
            setattr(layer, name, getattr(linear, name))
        return layer.train(linear.training)

    @classmethod
    def from_packed(cls, w: PackedInt4, bias: torch.Tensor | None = None) -> Int4Linear:
        """The layer of a packed weight [out_features, in_features] and a bias; it shares their memory."""
        layer = cls(w.K, w.N, bias is not None, w.group_size, w.zeros is None, device="meta")
        layer.qweight, layer.scales, layer.zeros = w.qweight, w.scales, w.zeros
        layer.bias = None if bias is None else bias.detach()
        return layer

    @property
    def weight(self) -> PackedInt4:
        """The packed weight [out_features, in_features], made again only where a buffer was replaced."""
        buffers, w = self._buffers, self._weight  # quicker than asking the module for each
        qweight, scales, zeros = buffers["qweight"], buffers["scales"], buffers["zeros"]
        tracing = torch.compiler.is_compiling()  # a tracer must see the buffers, and leave none of its own behind
        if not tracing and w is not None and w.qweight is qweight and w.scales is scales and w.zeros is zeros:
            return w
        w = PackedInt4(qweight, scales, zeros, self.out_features, self.in_features, self.group_size)
        if not tracing:
            self._weight = w
        return w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features], as `gemm` does; under autocast x is cast to its dtype first."""
        if fastpath.any_autocast():
            x = _autocast(x)
        y, bias = gemm(x, self.weight), self._buffers["bias"]
        return y if bias is None else y.add_(bias)

    def _apply(self, fn, recurse=True):
        """Move and cast with the model; but scales are float16 by definition: as integers they only move."""
        scales, self._weight = self.scales, None

        def apply(tensor):
            return fn(tensor.view(torch.int16)).view(torch.float16) if tensor is scales else fn(tensor)

        return super()._apply(apply, recurse)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        """Refuse packed tensors of another dtype, whose numbers a cast would not keep; lay strided ones out."""
        for name in PACKED:
            tensor, own = state_dict.get(prefix + name), self._buffers[name]
            if tensor is None or own is None:
                continue
            if tensor.dtype != own.dtype:
                errors.append(f"{prefix}{name} must be {own.dtype}, got {tensor.dtype}: a packed weight cannot be cast")
            state_dict[prefix + name] = tensor.detach().contiguous() if tensor.dtype == own.dtype else own
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def __prepare_scriptable__(self):
        raise TypeError("Int4Linear cannot be scripted; use torch.export, torch.compile or torch.jit.trace")

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"group_size={self.group_size}, symmetric={self.zeros is None}"
        )


def quantize_model(
    model: nn.Module,
    group_size: int = 128,
    symmetric: bool = True,
    skip: Collection[str] = ("lm_head",),
    *,
    rule: str = "full-range",
) -> list[str]:
    """Replace every nn.Linear of a model by an Int4Linear, in place; hooks of their forward move along.

    group_size, symmetric, rule: as in `quantize`
    skip:    names not to touch: of a module (`lm_head`, wherever it is), or its whole path (`layers.0.mlp.up_proj`)
    returns: the paths of the layers that were replaced
    raises:  ValueError naming the layer that cannot be quantised, or where there is none: the model is then as it was
    warns:   where more than half of the numbers in the model's matrices stay as they are, and where layers are float32:
             Int4Linear multiplies float16 or bfloat16, so `.half()` or `.bfloat16()` is wanted, or autocast
    """
    if isinstance(model, nn.Linear):
        raise ValueError("model is itself a linear layer and cannot be replaced in place; use Int4Linear.from_linear")
    found = [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and path not in skip and path.rpartition(".")[2] not in skip
    ]
    if not found:
        raise ValueError(
            f"model has no nn.Linear to quantise outside skip={list(skip)}; other modules are not replaced"
        )
    before = _matrices(model)
    layers: dict[nn.Linear, Int4Linear] = {}
    for path, linear in found:
        try:
            layers[linear] = layers.get(linear) or Int4Linear.from_linear(linear, group_size, symmetric, rule=rule)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; name it in skip to leave it as it is") from error
        except Exception as error:  # of the machine, out of memory say: its type is what a caller looks for
            error.add_note(f"while {path} was quantised")
            raise
    for path, linear in found:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[linear])
    left = _matrices(model)
    if (share := sum(left.values()) / sum(before.values())) > 0.5:
        largest = ", ".join(sorted(left, key=left.get, reverse=True)[:3])
        warnings.warn(f"{share:.0%} of the parameters in matrices stay as they are, most in {largest}", stacklevel=2)
    if float32 := [path for path, linear in found if linear.weight.dtype == torch.float32]:
        warnings.warn(
            f"{float32[0]} was float32 and now multiplies float16 or bfloat16 only: call .half() or .bfloat16() on the "
            "model, or run it under torch.autocast",
            stacklevel=2,
        )
    return [path for path, _ in found]


def _matrices(model: nn.Module) -> dict[str, int]:
    """The count of numbers in every parameter of two or more dimensions, by name."""
    return {name: each.numel() for name, each in model.named_parameters() if not is_lazy(each) and each.dim() > 1}


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that nn.Linear would multiply in."""
    device = x.device.type
    eligible = torch.is_autocast_enabled(device) and x.dtype in FLOAT_DTYPES
    return x.to(torch.get_autocast_dtype(device)) if eligible else x

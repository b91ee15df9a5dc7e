"""A linear layer with a packed INT4 weight, and the change of a whole model to it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Collection, Iterator
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from tqdm import tqdm

from tinygemm.kernel import fastpath
from tinygemm.kernel.gemm import gemm
from tinygemm.kernel.quant import (
    FLOAT_DTYPES,
    TILE_K,
    TILE_N,
    WORDS,
    PackedInt4,
    check_group,
    check_symmetric,
    check_values,
    quantize,
)

PACKED = ("qweight", "scales", "zeros")  # buffers whose bytes a kernel reads as they are
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
USUAL = "lm_head"  # skipped by default, and not missed where a model has none
NAMED = 5  # layers in a warning


class Int4Linear(nn.Module):
    """`nn.Linear` for inference, its weight packed to INT4: y = x @ weight.T + bias.

    in_features, out_features, bias: as in nn.Linear; the layer starts out as zeros, to be filled by `load_state_dict`
    group_size: weights along in_features that share a scale: 32, 64, 128 or -1
    symmetric:  False: the layer stores a zero point per group, too
    buffers:    qweight, scales, zeros (None where symmetric) as in PackedInt4, and bias; all of them in the state dict
    parts:      the out_features of the projections that a joined layer computes, (out_features,) in any other layer
    raises:     ValueError naming the argument and what was expected
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bias: torch.Tensor | None

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
        check_symmetric(symmetric)
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(size, Integral) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        check_group(in_features, group_size, "in_features")
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.parts: tuple[int, ...] = (out_features,)
        groups = 1 if group_size == -1 else in_features // group_size
        words = (-(-out_features // TILE_N), -(-in_features // TILE_K), TILE_N, WORDS)
        self.register_buffer("qweight", torch.zeros(words, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16, device=device))
        zeros = None if symmetric else torch.zeros(groups, out_features, dtype=torch.uint8, device=device)
        self.register_buffer("zeros", zeros)
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)
        self._checked: tuple | None = (
            None  # the packed weight, then the buffers that were checked, then their addresses
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        group_size: int = 128,
        symmetric: bool = True,
        *,
        rule: str = "full-range",
        search: bool = False,
    ) -> Int4Linear:
        """The layer that does what `linear` does, hooks of its forward included, but for the rounding of its weight.

        The hooks are copied: what is added or removed later belongs to one of the two layers, and a handle to `linear`.

        group_size, symmetric, rule, search: as in `quantize`
        raises: as `quantize`; TypeError where `linear` is no nn.Linear; ValueError where it computes something else
                than its weight and bias say: a forward of its own, or a weight or bias that a hook makes anew
        """
        _check_linear(linear)
        return cls.from_packed(
            quantize(linear.weight, group_size, symmetric, rule=rule, search=search), linear.bias
        )._beside(linear)

    @classmethod
    def from_packed(cls, w: PackedInt4, bias: torch.Tensor | None = None) -> Int4Linear:
        """The layer of a packed weight [out_features, in_features] and a bias [out_features]; it shares their memory.

        raises: ValueError for a bias of another shape or device
        """
        layer = cls(w.K, w.N, bias is not None, w.group_size, w.zeros is None, device="meta")
        layer.qweight, layer.scales, layer.zeros = w.qweight, w.scales, w.zeros
        layer.bias = None if bias is None else bias.detach()
        _check_bias(layer.bias, w.N, w.device)
        return layer

    def _beside(self, linear: nn.Linear) -> Int4Linear:
        """This layer in the mode of `linear` and with a copy of its hooks."""
        for name in HOOKS:
            setattr(self, name, getattr(linear, name).copy())
        return self.train(linear.training)

    @property
    def weight(self) -> PackedInt4:
        """The packed weight [out_features, in_features], made and checked again only where a buffer was replaced.

        A swap of a buffer's `.data` counts, too. Values that change in place are not checked.

        raises: TypeError or ValueError naming the buffer and what was expected, the bias included
        """
        buffers: dict[str, Any] = self._buffers  # quicker than asking the module for each
        checked = self._checked
        qweight, scales, zeros, bias = buffers["qweight"], buffers["scales"], buffers["zeros"], buffers["bias"]
        compiling = torch.compiler.is_compiling()  # a tracer must see the buffers, and leave none of its own behind
        if not compiling and checked is not None:
            w, codes, steps, points, shift, codes_at, steps_at, points_at, shift_at = checked
            if (
                codes is qweight and steps is scales and points is zeros and shift is bias
                and qweight.data_ptr() == codes_at and scales.data_ptr() == steps_at
                and (zeros is None or zeros.data_ptr() == points_at) and (bias is None or bias.data_ptr() == shift_at)
            ):  # fmt: skip
                return w
        w = PackedInt4(qweight, scales, zeros, self.out_features, self.in_features, self.group_size)
        _check_bias(bias, self.out_features, w.device)
        if not compiling and not fastpath.traced(qweight):
            tensors = (qweight, scales, zeros, bias)
            self._checked = (w, *tensors, *(tensor if tensor is None else tensor.data_ptr() for tensor in tensors))
        return w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features], as `gemm` does; under autocast x is cast to its dtype first."""
        if fastpath.any_autocast():
            x = autocast(x)
        y, bias = gemm(x, self.weight), self._buffers["bias"]
        return y if bias is None else y.add_(bias)

    def _apply(self, fn, recurse=True):
        """Move and cast with the model; but scales are float16 by definition: as integers they only move."""
        qweight, scales, self._checked = self.qweight, self.scales, None

        def apply(tensor):
            if tensor is qweight:  # in one dimension, because a memory format would lay four out anew
                return fn(tensor.flatten()).view(tensor.shape)
            return fn(tensor.view(torch.int16)).view(torch.float16) if tensor is scales else fn(tensor)

        return super()._apply(apply, recurse)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        """Refuse what `pack` would: another dtype, which a cast would not keep, and values that no code can have.

        Strided tensors are laid out. Where anything is refused, the layer keeps all packed tensors that it has.
        """
        packed = {name: state_dict[prefix + name] for name in PACKED if prefix + name in state_dict}
        refused = _refused(packed, {name: self._buffers[name] for name in PACKED})
        errors += [f"{prefix}{error}" for error in refused]
        for name, tensor in packed.items():
            own = self._buffers[name]
            if own is not None and isinstance(tensor, torch.Tensor):
                keep = refused and tensor.shape == own.shape  # torch names another shape, and loads nothing of it
                state_dict[prefix + name] = own if keep else tensor.detach().contiguous()
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
    skip: Collection[str] | str = (USUAL,),
    join: bool = False,
    progress: bool = True,
    *,
    rule: str = "full-range",
    search: bool = False,
) -> list[str]:
    """Replace every nn.Linear of a model by an Int4Linear, in place; hooks of their forward move along.

    Whoever holds a handle of a hook can still remove it: from the new layer. The float layer, where somebody else has
    it, keeps a copy of its hooks. Hooks by which accelerate spreads a model over devices move, too.

    A model that is wholly on the meta device gets layers without values, for `load_state_dict(..., assign=True)`.

    group_size, symmetric, rule, search: as in `quantize`
    skip:     names not to touch, or one name: of a module (`lm_head`, wherever it is), or its whole path
              (`layers.0.mlp.up_proj`); all that a module contains is skipped with it
    join:     join q/k/v and gate/up of the models that `join_projections` knows, which says what stays apart
    progress: show a bar on a terminal
    returns:  the paths of the layers that were replaced, as they were before any were joined
    raises:   ValueError naming the layer that cannot be quantised, or where there is none, or a name in skip that the
              model does not have (but for `lm_head`); TypeError for what is no name. The model is then as it was
    warns:    where linear layers stay as they are because they are subclasses of nn.Linear or parametrised, or share
              their weight with another module; where more than half of the numbers in the model's matrices stay as
              they are; and where layers are float32: Int4Linear multiplies float16 or bfloat16, so `.half()` or
              `.bfloat16()` is wanted, or autocast
    """
    if isinstance(model, nn.Linear):
        raise ValueError("model is itself a linear layer and cannot be replaced in place; use Int4Linear.from_linear")
    names = _names(skip, model)
    linears = [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear) and not _is_skipped(path, names)
    ]
    others = [path for path, module in linears if type(module) is not nn.Linear]
    tied = _of_others(model)
    shared = [path for path, module in linears if path not in others and id(module._parameters.get("weight")) in tied]
    found = [(path, module) for path, module in linears if path not in {*others, *shared}]
    if not found:
        raise ValueError(f"model has no nn.Linear to quantise outside skip={names}; other modules are not replaced")
    before = _matrices(model)
    on_meta = all(parameter.is_meta for parameter in model.parameters())
    layers: dict[nn.Linear, Int4Linear] = {}
    for path, linear in tqdm(found, "quantise", disable=None if progress else True):
        try:
            if linear not in layers:
                layers[linear] = _quantised(linear, group_size, symmetric, rule, search, on_meta)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; name it in skip to leave it as it is") from error
        except Exception as error:  # of the machine, out of memory say: its type is what a caller looks for
            error.add_note(f"while {path} was quantised")
            raise
    with unchanged_on_failure(model):
        for path, linear in found:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layers[linear])
        if join:
            from tinygemm.kernel.join import join_projections  # a module that knows this one's layer

            join_projections(model)
    for linear, layer in layers.items():  # with the dictionaries, as handles find a hook by its dictionary
        for name in HOOKS:
            moved, kept = getattr(linear, name), getattr(layer, name)
            setattr(layer, name, moved)
            setattr(linear, name, kept)
    _warn_of_what_stays(model, before, others, shared)
    if float32 := [path for path, linear in found if linear.weight.dtype == torch.float32]:
        warnings.warn(
            f"{float32[0]} was float32 and now multiplies float16 or bfloat16 only: call .half() or .bfloat16() on the "
            "model, or run it under torch.autocast",
            stacklevel=2,
        )
    return [path for path, _ in found]


def _warn_of_what_stays(model: nn.Module, before: dict[str, int], others: list[str], shared: list[str]) -> None:
    """Name the layers that nobody asked to skip, and what makes up a model that is still mostly float."""
    for reason, paths in (
        ("are subclasses of nn.Linear or parametrised", others),
        ("share their weight with another module, an embedding say,", shared),
    ):
        if paths:
            warnings.warn(f"linear layers that {reason} stay as they are: {listed(paths)}", stacklevel=3)
    left = _matrices(model)
    if (share := sum(left.values()) / sum(before.values())) > 0.5:
        largest = ", ".join(sorted(left, key=left.get, reverse=True)[:3])
        warnings.warn(f"{share:.0%} of the parameters in matrices stay as they are, most in {largest}", stacklevel=3)


def listed(paths: list[str]) -> str:
    """The first paths in words, and the count of the others."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{', '.join(paths[:NAMED])}{more}"


@contextlib.contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """Give every module its class and children back where the block fails."""
    before = [(module, type(module), dict(module._modules)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind, children in before:
            if type(module) is not kind:
                module.__class__ = kind
            module._modules.clear()  # without asking the module, which may be the one that refused
            module._modules.update(children)
        raise


def _names(skip: Collection[str], model: nn.Module) -> list[str]:
    """The names in `skip`, each of which must be that of a module."""
    names = [skip] if isinstance(skip, str) else skip
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"skip must be names of modules, () for none, got {skip!r}")
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)} - {""}
    known = paths | {path.rpartition(".")[2] for path in paths} | {USUAL}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"skip names no module of the model: {', '.join(map(repr, unknown))}")
    return list(names)


def _is_skipped(path: str, names: list[str]) -> bool:
    """Tell whether the module at `path`, or one that contains it, has one of the names."""
    parts = path.split(".")
    return any(part in names or ".".join(parts[: i + 1]) in names for i, part in enumerate(parts))


def _of_others(model: nn.Module) -> set[int]:
    """The identities of the parameters that modules other than linear layers have."""
    others = (module for module in model.modules() if not isinstance(module, nn.Linear))
    return {id(parameter) for module in others for parameter in module._parameters.values() if parameter is not None}


def _check_linear(linear: nn.Linear) -> None:
    """Raise where a layer is no nn.Linear, or computes something else than its weight and bias say."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
    if "forward" in vars(linear) or hasattr(linear, "_hf_hook"):
        raise ValueError("its forward was replaced (by accelerate, say), and Int4Linear would not call that one")
    if type(linear).forward is not nn.Linear.forward:
        raise ValueError(f"{type(linear).__name__} has a forward of its own, which Int4Linear would not call")
    for name in ("weight", "bias"):
        if name not in linear._parameters:
            raise ValueError(
                f"its {name} is made anew by a hook (weight_norm or pruning, say); make it permanent first"
            )


def _quantised(
    linear: nn.Linear, group_size: int, symmetric: bool, rule: str, search: bool, on_meta: bool
) -> Int4Linear:
    """`Int4Linear.from_linear`; a layer of the meta device has no values, and one of accelerate keeps its hook."""
    hook = getattr(linear, "_hf_hook", None)
    if hook is not None and getattr(hook, "offload", True) is False:  # the hook only moves what comes in and goes out
        bare = copy.copy(linear)
        for name in ("_hf_hook", "_old_forward", "forward"):
            vars(bare).pop(name, None)
        from accelerate.hooks import add_hook_to_module

        return add_hook_to_module(Int4Linear.from_linear(bare, group_size, symmetric, rule=rule, search=search), hook)
    if not on_meta:
        return Int4Linear.from_linear(linear, group_size, symmetric, rule=rule, search=search)
    _check_linear(linear)
    bias, dtype = linear.bias is not None, linear.weight.dtype
    layer = Int4Linear(linear.in_features, linear.out_features, bias, group_size, symmetric, "meta", dtype)
    return layer._beside(linear)


def _refused(packed: dict[str, torch.Tensor], own: dict[str, torch.Tensor | None]) -> list[str]:
    """The faults of packed tensors that are to be loaded in the place of a layer's own, each led by the name."""
    if not packed:
        return []
    tensors = {name: tensor for name, tensor in packed.items() if isinstance(tensor, torch.Tensor)}
    faults = [
        f"{name} must be {mine.dtype}, got {tensor.dtype}: a packed weight cannot be cast"
        for name, tensor in tensors.items()
        if (mine := own[name]) is not None and tensor.dtype != mine.dtype
    ]
    if own["zeros"] is None and "zeros" in tensors:
        faults.append("zeros are in the state dict, and the layer is symmetric: make it with symmetric=False")
    if own["zeros"] is not None and "zeros" not in tensors:
        faults.append("zeros are not in the state dict, and the layer is asymmetric: make it with symmetric=True")
    scales, zeros = tensors.get("scales", own["scales"]), tensors.get("zeros")
    if faults or scales is None or scales.is_meta or fastpath.traced(scales):
        return faults
    if zeros is not None and (zeros.is_meta or fastpath.traced(zeros) or zeros.shape != scales.shape):
        return faults  # a shape that does not fit is named by torch
    try:
        check_values(scales, None if zeros is None else zeros.to(scales.device))
    except ValueError as error:
        return [str(error)]
    return faults


def _check_bias(bias: torch.Tensor | None, out_features: int, device: torch.device) -> None:
    """Raise where adding the bias would broadcast it, or silently do nothing because it has no values."""
    if bias is None:
        return
    if bias.shape != (out_features,):
        raise ValueError(f"bias must have shape [{out_features}], got {list(bias.shape)}")
    if bias.device != device:
        raise ValueError(f"bias must be on the device of qweight, {device}, got {bias.device}")


def _matrices(model: nn.Module) -> dict[str, int]:
    """The count of numbers in every parameter of two or more dimensions, by name."""
    return {name: each.numel() for name, each in model.named_parameters() if not is_lazy(each) and each.dim() > 1}


def autocast(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that nn.Linear would multiply in."""
    device = x.device.type
    eligible = torch.is_autocast_enabled(device) and x.dtype in FLOAT_DTYPES
    return x.to(torch.get_autocast_dtype(device)) if eligible else x

"""Join the projections of one input, q/k/v and gate/up, into one product, in models of transformers.

A projection of a decode step is short, and a joined one is a single launch over more output features. The module that
owns the projections becomes an instance of a subclass. Its forward multiplies once and runs the original forward on a
view of the module, in which each projection answers with its slice. So no code of a model is repeated here, and no
tensor is kept from one call to the next: compilers, exporters, copies, pickles and threads see a pure function.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import nn

from tinygemm.kernel import cut
from tinygemm.kernel.linear import HOOKS, Int4Linear, listed, unchanged_on_failure
from tinygemm.kernel.quant import TILE_N
from tinygemm.kernel.reordered import layer_of, order_of

JOINTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")  # Phi-3 is joined from the start
CLASSES = {f"{family}{kind}" for family in FAMILIES for kind in ("Attention", "MLP")}
INPUTS = ("hidden_states", "x")  # the keywords of what an attention and an MLP project


def join_projections(model: nn.Module) -> list[str]:
    """Replace q_proj, k_proj and v_proj by one qkv_proj, and gate_proj and up_proj by one gate_up_proj, in place.

    Works on the Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2 and Gemma 3 models of transformers, where the projections
    are Int4Linear of one group size and one order of columns; Phi-3 models are joined from the start. On a CPU the
    outputs keep every bit. On a GPU another launch config may serve the joined product, and sums are rounded in another
    order.

    returns: the paths of the joined layers, Int4Linear with the sizes of their parts in `parts`
    warns:   where projections stay apart, with the reasons
    raises:  whatever the machine raises, out of memory say; the model is then as it was
    """
    joined: list[str] = []
    apart: dict[str, list[str]] = {}
    with unchanged_on_failure(model):
        for path, owner in list(model.named_modules()):
            for joint, names in JOINTS.items():
                parts = [owner._modules.get(name) for name in names]
                if not all(isinstance(part, Int4Linear) for part in parts):
                    continue
                place = f"{path}.{joint}".lstrip(".")
                if reason := _reason_against(owner, parts):
                    apart.setdefault(reason, []).append(place)
                else:
                    _join(owner, joint, _joined(parts))
                    joined.append(place)
    for reason, places in apart.items():
        warnings.warn(f"not joined, as {reason}: {listed(places)}", stacklevel=2)
    return joined


def _reason_against(owner: nn.Module, parts: list[Int4Linear]) -> str | None:
    """The reason to leave projections apart, or None."""
    kind = type(owner)
    if not kind.__module__.startswith("transformers.models.") or kind.__name__ not in CLASSES:
        return f"{kind.__name__} is none of the modules whose forward is known"
    if "forward" in vars(owner) or any("forward" in vars(part) for part in parts):
        return "a forward was replaced (by accelerate, say); join first"
    if any(getattr(part, name) for part in parts for name in HOOKS):
        return "a projection has hooks"
    for what, values in (
        ("biases", {part.bias is None for part in parts}),
        ("group sizes", {part.group_size for part in parts}),
        ("kinds of zeros", {part.zeros is None for part in parts}),
        ("devices", {part.qweight.device for part in parts}),
    ):
        if len(values) > 1:
            return f"projections differ in their {what}"
    if not _have_one_order(parts):
        return "projections differ in the order of their columns"
    if any(part.out_features % TILE_N for part in parts[:-1]):
        return f"the outputs of a projection are no multiple of {TILE_N}, the rows of a tile"
    return None


def _have_one_order(parts: list[Int4Linear]) -> bool:
    first, *others = (order_of(part) for part in parts)
    if first is None:
        return all(other is None for other in others)
    return all(other is not None and torch.equal(first, other) for other in others)


def _joined(parts: list[Int4Linear]) -> Int4Linear:
    biases = [part.bias for part in parts if part.bias is not None]
    bias = torch.cat(biases) if biases else None
    layer = layer_of(cut.join([part.weight for part in parts]), bias, order_of(parts[0]))
    layer.parts = tuple(part.out_features for part in parts)
    for part, words in zip(parts, layer.qweight.split([part.qweight.shape[0] for part in parts]), strict=True):
        part.qweight = words  # whoever still holds a part, to undo this say, holds no second copy of the codes
    return layer.train(parts[0].training)


def layers_apart(model: nn.Module) -> Iterator[tuple[str, Int4Linear]]:
    """Every Int4Linear of a model with its path; for a joined one its projections, which share its codes."""
    for path, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, Int4Linear):
            place, _, name = path.rpartition(".")
            owner = model.get_submodule(place)
            if isinstance(owner, _Joined) and name == owner.joint:
                for projection, part in zip(JOINTS[name], _split(layer), strict=True):
                    yield f"{place}.{projection}".lstrip("."), part
            else:
                yield path, layer


def _split(layer: Int4Linear) -> list[Int4Linear]:
    """The layers of which `_joined` made this one."""
    w, order = layer.weight, order_of(layer)
    biases = [None] * len(layer.parts) if layer.bias is None else layer.bias.split(layer.parts)
    return [
        layer_of(cut.rows(w, last - size, last), bias, order)
        for size, last, bias in zip(layer.parts, accumulate(layer.parts), biases, strict=True)
    ]


def _join(owner: nn.Module, joint: str, layer: Int4Linear) -> None:
    for name in JOINTS[joint]:
        delattr(owner, name)
    setattr(owner, joint, layer)
    kind: type = type(owner)
    owner.__class__ = _class_of(kind, joint)


class _Joined:
    """The part of a joined module's class that is not the original one.

    original: the class whose forward runs
    joint:    the name of the joined layer
    """

    def forward(self, *args, **kwargs):
        x = args[0] if args else next(kwargs[name] for name in INPUTS if name in kwargs)
        layer = getattr(self, self.joint)
        slices = layer(x).split(layer.parts, -1)
        answers = {name: _Slice(x, y) for name, y in zip(JOINTS[self.joint], slices, strict=True)}
        return self.original.forward(_View(self, answers), *args, **kwargs)

    def __reduce_ex__(self, protocol):
        """A class made at run time has no name to be found by: it is made again from the original."""
        return _blank, (self.original, self.joint), self.__getstate__()


class _Slice:
    """A projection that was computed already: called with the same input it answers with its slice."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x is not self.x:
            raise RuntimeError("a joined projection was called with another input than its module: use join=False")
        return self.y


class _View:
    """A module as its own forward sees it, with some of its children answered already."""

    def __init__(self, module: nn.Module, answers: dict[str, _Slice]):
        self.__dict__.update(answers)
        self._module = module

    def __getattr__(self, name: str):
        return getattr(self._module, name)


@functools.cache
def _class_of(original: type, joint: str) -> type[nn.Module]:
    members = {"original": original, "joint": joint, "__module__": __name__, "__doc__": original.__doc__}
    return type(f"Joined{original.__name__}", (_Joined, original), members)


def _blank(original: type, joint: str) -> nn.Module:
    """A joined module without any state, for pickle and copy to fill."""
    kind = _class_of(original, joint)
    return kind.__new__(kind)

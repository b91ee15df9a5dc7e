"""Packed INT4 GEMM for LLM decode: `quantize` a weight once, `gemm` with it, `dequantize` it to look at it.

The names load torch and Triton when they are first used, so that reading and building the report needs neither.
"""

from importlib import import_module

_HOME = {
    "quantize": "kernel.quant",
    "dequantize": "kernel.quant",
    "PackedInt4": "kernel.quant",
    "gemm": "kernel.gemm",
    "Int4Linear": "kernel.linear",
    "quantize_model": "kernel.linear",
    "join_projections": "kernel.join",
    "ColwiseInt4": "kernel.parallel",
    "RowwiseInt4": "kernel.parallel",
    "parallelize": "kernel.parallel",
    "shard": "kernel.parallel",
    "load_checkpoint": "checkpoints.load",
    "save_checkpoint": "checkpoints.save",
}
__all__ = [
    "ColwiseInt4",
    "Int4Linear",
    "PackedInt4",
    "RowwiseInt4",
    "dequantize",
    "gemm",
    "join_projections",
    "load_checkpoint",
    "parallelize",
    "quantize",
    "quantize_model",
    "save_checkpoint",
    "shard",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'tinygemm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"tinygemm.{_HOME[name]}"), name)

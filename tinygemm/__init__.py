"""Packed INT4 GEMM for LLM decode: `quantize` a weight once, `gemm` with it, `dequantize` it to look at it.

The names load torch and Triton when they are first used, so that reading and building the report needs neither.
"""

from importlib import import_module

_HOME = {
    "quantize": "quant",
    "dequantize": "quant",
    "PackedInt4": "quant",
    "gemm": "gemm",
    "Int4Linear": "linear",
    "quantize_model": "linear",
    "join_projections": "join",
    "ColwiseInt4": "parallel",
    "RowwiseInt4": "parallel",
    "parallelize": "parallel",
    "shard": "parallel",
}
__all__ = [
    "ColwiseInt4",
    "Int4Linear",
    "PackedInt4",
    "RowwiseInt4",
    "dequantize",
    "gemm",
    "join_projections",
    "parallelize",
    "quantize",
    "quantize_model",
    "shard",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'tinygemm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"tinygemm.kernel.{_HOME[name]}"), name)

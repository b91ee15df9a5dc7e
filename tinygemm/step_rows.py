"""The rows of recorded decode steps: what was measured, its samples, and the kernels of its profile."""

from __future__ import annotations

from dataclasses import dataclass

from tinygemm.rows import column, one_of

YES_OR_NO = one_of("yes", "no")
BACKENDS = ("fp16-cublas", "int4", "int4-serial", "int4-lm-head", "fp16-triton", "aten-int4mm", "gemlite")
COPY = "copy"  # the case whose bandwidth the others are set against


@dataclass(frozen=True)
class Step:
    """One row of steps.csv: a whole decode step of a model by one backend; or the copy that bandwidths refer to."""

    case_id: str = column("", "model/batch/context/host/backend and what is unusual about it; unique in the run")
    model: str = column("", "the model; empty for the copy")
    backend: str = column("", "which implementation multiplies by the weights of the layers")
    host: str = column("", "lean: the model of tinygemm/step/lean.py; transformers: that of Hugging Face")
    batch: int = column("sequences", "tokens of one step, one per sequence")
    context: int = column(
        "tokens", "tokens that a sequence attends to, the new one included; also the cache's capacity"
    )
    tp: int = column("GPUs", "tensor-parallel degree")
    lm_head: str = column("", "how lm_head is stored: float16, bfloat16 or int4")
    attention: str = column("", "fused: one kernel; equations: matmul and softmax, left to the compiler; sdpa: torch's")
    compiled: str = column("", "yes: by torch.compile; no: eager modules; both as one CUDA graph", must=YES_OR_NO)
    compiler_overlap: str = column("", "yes: the compiler's own kernels use dependent launch", must=YES_OR_NO)
    status: str = column("", "ok, mismatch (not timed), unsupported, out_of_memory, error")
    message: str = column("", "why a case is not ok, or not compiled; empty otherwise", "")
    n_samples: int = column("samples", "rows in step_samples.csv", 0)
    n_steps: int = column("steps", "steps in one timed sample", 0)
    rel_err: float | None = column("", "norm of the logits' error over their norm, against FP16 by the equations", None)
    argmax_agreement: float | None = column("fraction", "sequences whose next token is that of the reference", None)
    weight_bytes: int = column("bytes", "read by one step: weights of the layers, scales and biases", 0)
    lm_head_bytes: int = column("bytes", "read by one step: lm_head", 0)
    kv_bytes: int = column("bytes", "read by one step: keys and values of the context", 0)
    memory_bytes: int | None = column("bytes", "weights, cache and the most that a step allocated beside them", None)
    setup_s: float | None = column("s", "from the weights to the captured graph, compiling included", None)
    sm_clock_mhz: float | None = column("MHz", "median while timing", None)
    power_w: float | None = column("W", "median while timing", None)


@dataclass(frozen=True)
class StepSample:
    """One row of step_samples.csv: one timed replay of a step's graph, in measured order, nothing removed."""

    case_id: str = column("", "the case")
    sample: int = column("", "0, 1, 2, ... in measured order")
    step_us: float = column("us", "duration of the sample / n_steps, on the GPU's clock")
    fp16_us: float | None = column("us", "the FP16 library's step in the same round; empty where none was timed", None)


@dataclass(frozen=True)
class StepKernel:
    """One row of step_kernels.csv: what one kernel adds to a step, from a profile of its graph."""

    case_id: str = column("", "the case")
    kernel: str = column("", "kernel, as the driver names it")
    kind: str = column("", "product, attention, allreduce or rest")
    calls: float = column("1/step", "launches per step")
    added_us: float = column(
        "us/step", "time by which its launches moved the end of the step; kernels that overlap count once"
    )

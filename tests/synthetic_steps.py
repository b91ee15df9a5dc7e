"""Synthetic recorded decode steps with known answers, written as `tinygemm step` writes them; not measurements."""

from __future__ import annotations

from pathlib import Path

import synthetic

from tinygemm.runs import SCHEMA_VERSION, Run, RunWriter, load_run
from tinygemm.step.cases import StepCase, kv_bytes, lm_head_bytes, weight_bytes
from tinygemm.step_rows import Step, StepKernel, StepSample

US = {"fp16-cublas": 4000.0, "int4": 2000.0, "int4-lm-head": 1600.0, "aten-int4mm": 2500.0}  # one sequence, lean, tp 1
HOSTED_US = 2000.0  # more in transformers
SHARED_US = 400.0  # exchanged between GPUs
SHARES = {"product": 0.75, "attention": 0.1, "rest": 0.15}  # of every step that is profiled
COPY_US, COPY_BYTES = 500.0, 2 * 2**30


def step_us(case: StepCase) -> float:
    """The planted time of a step: products shrink with the GPUs, and eight sequences take a tenth more."""
    us = US[case.backend] * (1.1 if case.batch > 1 else 1.0) / case.tp
    return us + (HOSTED_US if case.host == "transformers" else 0.0) + (SHARED_US if case.tp > 1 else 0.0)


def cases_of(tp: int = 1) -> list[StepCase]:
    lean = [StepCase("llama-3-8b", name, batch, 512, tp=tp) for batch in (1, 8) for name in US]
    if tp > 1:
        return lean
    hosted = [
        StepCase("llama-3-8b", name, batch, 512, "transformers", compiled=compiled)
        for batch in (1, 8)
        for name in ("fp16-cublas", "int4")
        for compiled in (True, False)
    ]
    others = [StepCase("llama-3-8b", "int4", 1, 512, attention="equations"), StepCase("llama-3-8b", "int4", 1, 8192)]
    return [*lean, *hosted, *others, StepCase("qwen3-8b", "int4", 1, 512)]


def load(root: Path, minute: str = "0200", gpu: str = "h200", tp: int = 1, profiled: bool = True, wanted=None) -> Run:
    """Write a run into <root>/steps/<gpu>/ and read it back."""
    run_id = f"2026-11-24T{minute}Z-{synthetic.COMMIT[:7]}"
    path = root / "steps" / gpu / f"{run_id}.partial"
    path.mkdir(parents=True)
    (path / "header.json").write_text("{}", encoding="utf-8")
    writer = RunWriter(path, {
        "schema_version": SCHEMA_VERSION, "run_id": run_id, "command": "tinygemm step (synthetic)", "parameters": {},
        "commit": synthetic.COMMIT, "dirty": False, "gpu": synthetic.GPUS[gpu], "software": synthetic.SOFTWARE,
        "started": "2026-11-24T02:00:05Z",
    })  # fmt: skip
    shared = {"status": "ok", "n_samples": 3, "n_steps": 4, "memory_bytes": 10**10, "rel_err": 0.004}
    empty = {"model": "", "host": "", "batch": 0, "context": 0, "tp": 1, "lm_head": "", "attention": ""}
    no = {"compiled": "no", "compiler_overlap": "no"}
    copy = Step(case_id="copy", backend="copy", **empty, **no, weight_bytes=COPY_BYTES, **shared)
    writer.append_step(copy, [StepSample("copy", i, COPY_US) for i in range(3)])
    for case in cases_of(tp) if wanted is None else wanted:
        row = Step(
            case_id=case.case_id, model=case.model, backend=case.backend, host=case.host, batch=case.batch,
            context=case.context, tp=case.tp, lm_head="float16", attention=case.attention,
            compiled="yes" if case.compiled else "no", compiler_overlap="yes" if case.compiled else "no",
            weight_bytes=weight_bytes(case.arch, case.backend), lm_head_bytes=lm_head_bytes(case),
            kv_bytes=kv_bytes(case), argmax_agreement=1.0, **shared,
        )  # fmt: skip
        us, fp16 = step_us(case), None if case.backend == "fp16-cublas" else step_us(case.baseline)
        writer.append_step(row, [StepSample(case.case_id, i, us + more, fp16 and fp16 + more)
                                 for i, more in enumerate((-10.0, 0.0, 50.0))])  # fmt: skip
        if profiled:
            times = {kind: share * us for kind, share in SHARES.items()}
            if tp > 1:
                times["allreduce"] = SHARED_US
                times["product"] -= SHARED_US
            writer.append_step_kernels([StepKernel(case.case_id, kind, kind, 32.0, us) for kind, us in times.items()])
    return load_run(writer.finish())

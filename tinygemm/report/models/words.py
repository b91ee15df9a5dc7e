"""The answer for a model in words: one sentence, facts about the step, and at most three caveats; and as JSON."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from tinygemm.report.base.words import bracket
from tinygemm.report.models.advice import CANNOT, LM_HEAD, YES
from tinygemm.report.models.token import LEAN, TokenAdvice
from tinygemm.report.predict import model as costmodel

ROW_KEYS = ("layer", "K", "N", "group_size", "calls", "tokens", "fp16_us", "int4_us", "speedup", "speedup_low",
            "speedup_high", "limiter", "quantise", "kind")  # fmt: skip


def answer(found: TokenAdvice) -> str:
    """One sentence: whether INT4 pays for a step of the model on the GPU, and by how much."""
    asked = found.products
    what = f"a token of {asked.model.key}" if asked.M == 1 else f"a step of {asked.M} tokens of {asked.model.key}"
    where = f"on {'one' if asked.tp == 1 else asked.tp} {asked.gpu}"
    verdict = "Yes" if found.speedup_low > 1 else "No" if found.speedup_high <= 1 else "Open"
    return (
        f"{verdict}: {where}, {what} takes {found.int4_us / 1e3:.2f} ms with INT4 and {found.fp16_us / 1e3:.2f} ms in "
        f"FP16, {found.speedup:.2f}×{bracket(found.speedup_low, found.speedup_high)}: "
        f"{asked.M * 1e6 / found.int4_us:,.0f} tokens/s{_unless_too_large(found)}."
    )


def facts(found: TokenAdvice) -> dict[str, str]:
    """Facts on the parts of a step, on memory and on alternatives, by a short name."""
    told = {"step": _step(found), "memory": _memory(found)}
    if len(found.kv):
        told["k and v alone"] = _kv(found)
    if found.rival:
        told["other kernel"] = _rival(found)
    return told


def caveats(found: TokenAdvice, kernels: str = "") -> list[str]:
    """At most three lines: where the products come from, where the rest does, and what is special about the model.

    kernels: whose kernels the run timed, as tables.kernels has it
    """
    asked, rows = found.products, found.products.rows
    predicted = int((rows["kind"] == costmodel.PREDICTED).sum())
    source = "from" if asked.gpu == asked.run_gpu else f"projected from the {asked.run_gpu} of"
    how = {"graph": "CUDA graph", "eager": "launched from Python"}[asked.launch]
    lines = [
        f"Products: {len(rows) - predicted} of {len(rows)} kinds measured, {predicted} predicted, {source} run "
        f"{asked.run_id}{f', whose kernels are {kernels}' if kernels else ''}; {how}, cold L2.",
        f"Rest of the step: {_rest(found)} Not included: sampling, and what GPUs exchange.",
    ]
    return lines + ([" ".join(special)] if (special := _special(found)) else [])


def as_json(found: TokenAdvice) -> dict:
    """Everything as numbers, strings and None: question, answer, rows, products, rest, step, memory, kv, rival, run."""
    asked = found.products
    return {
        "question": {"model": asked.model.key, "gpu": asked.gpu, "M": asked.M, "tp": asked.tp, "launch": asked.launch},
        "answer": answer(found),
        "rows": _records(asked.rows[list(ROW_KEYS)].astype({"group_size": "Int64"})),
        "products": asked.totals,
        "rest": asdict(found.rest),
        "step": {
            "fp16_us": found.fp16_us, "int4_us": found.int4_us, "speedup": found.speedup,
            "speedup_low": found.speedup_low, "speedup_high": found.speedup_high,
            "tokens_per_s": asked.M * 1e6 / found.int4_us,
        },
        "memory": asdict(found.memory),
        "kv": _records(found.kv),
        "rival": asdict(found.rival) | {"as_good": found.rival.as_good} if found.rival else None,
        "run": {"run_id": asked.run_id, "gpu": asked.run_gpu},
        "caveats": caveats(found),
    }  # fmt: skip


def _records(table: pd.DataFrame) -> list[dict]:
    return [
        {name: None if pd.isna(value) else getattr(value, "item", lambda value=value: value)() for name, value in row}
        for row in (zip(table.columns, values, strict=True) for values in table.itertuples(index=False))
    ]


def _unless_too_large(found: TokenAdvice) -> str:
    return ", if only the weights fitted into its memory" if found.memory.context_int4 < 0 else ""


def _step(found: TokenAdvice) -> str:
    totals, rows = found.products.totals, found.products.rows
    head = float(rows.loc[rows["layer"] == LM_HEAD, "fp16_us"].iloc[0])
    yes, blocks = rows.loc[rows["quantise"] == YES, "layer"], rows.loc[rows["layer"] != LM_HEAD, "layer"]
    which = "all" if len(yes) == len(blocks) else ", ".join(yes) or "nothing"
    kind = "measured" if found.rest.measured else "estimate"
    return (
        f"products {(totals['fp16'] - head) / 1e3:.2f} ms in FP16, {(totals['advised'] - head) / 1e3:.2f} ms with "
        f"{which} in INT4; lm_head in FP16 {head / 1e3:.2f} ms; rest {found.rest.us / 1e3:.2f} "
        f"ms ({kind})"
    )


def _memory(found: TokenAdvice) -> str:
    memory = found.memory
    per_gpu = "" if found.products.tp == 1 else " per GPU"
    return (
        f"weights{per_gpu} {memory.fp16 / 1e9:.1f} GB in FP16, {memory.int4 / 1e9:.1f} GB in INT4 (with "
        f"{memory.scales / 1e9:.2f} GB of scales), of {memory.usable / 1e9:.0f} GB usable: {_fits(memory)}; a token of "
        f"context takes {memory.cache / 1e3:,.1f} kB of cache"
    )


def _fits(memory) -> str:
    rooms = {"FP16": memory.context_fp16, "INT4": memory.context_int4}
    return ", ".join(
        f"{name} fits with {room:,} tokens of context" if room > 0 else f"{name} does not fit"
        for name, room in rooms.items()
    )


def _kv(found: TokenAdvice) -> str:
    two, one = found.kv.iloc[0], found.kv.iloc[1]
    return (
        f"INT4 saves {two['gain_us'] / 1e3:.2f} ms a step as two products ({two['speedup']:.2f}×), "
        f"{one['gain_us'] / 1e3:.2f} ms as one ({one['speedup']:.2f}×), of {found.fp16_us / 1e3:.2f} ms"
    )


def _rival(found: TokenAdvice) -> str:
    rival = found.rival
    verdict = "would do as well within the band" if rival.as_good else "would not do as well"
    band = bracket(rival.low, rival.high) or " as measured"
    return f"{rival.backend} {verdict}: {rival.ratio:.2f} times our time{band}"


def _rest(found: TokenAdvice) -> str:
    if found.rest.measured:
        return "measured."
    return (
        f"estimate, {LEAN.rest_us / 1e3:.2f} ms {found.rest.source}; scaled by layers and the root of the "
        f"memory bandwidth; the interval allows a factor of {found.rest.factor:.1f}."
    )


def _special(found: TokenAdvice) -> list[str]:
    model, rows = found.products.model, found.products.rows
    told = []
    if any(weight.experts > 1 for weight in model.weights):
        told.append(
            "Experts are predicted as single products, as if the tokens went to different ones; routers are left out."
        )
    if stored := model.stored_as:
        bits = f"{stored.bits} bits" if stored.bits else "an unnamed number of bits"
        groups = f" in groups of {stored.group_size}" if stored.group_size else ""
        told.append(f"The checkpoint is stored as {stored.method}, {bits}{groups}: FP16 stands for it dequantised.")
    if len(cannot := rows.loc[rows["quantise"] == CANNOT, "layer"]):
        told.append(f"No group divides K of {', '.join(cannot)}, kept in FP16.")
    return told

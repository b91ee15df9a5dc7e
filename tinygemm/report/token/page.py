"""The page of the chapter on one token: its bytes, two worked numbers, the weights, and the time by projection."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm import runs
from tinygemm.models import MODELS, projections
from tinygemm.problem import LAYER_OF_SHAPE, NARROW, WIDE, GemmProblem
from tinygemm.report.base import page, tables
from tinygemm.report.base.tables import BASELINE, SHAPE, copy_bandwidth_gb_s, empty_node_us, origin
from tinygemm.report.base.words import shape_name
from tinygemm.report.token import figures, steps

MODEL = MODELS["llama-3-8b"]
KERNELS = (BASELINE, "fp16-triton", "aten-int4mm", "int4-serial", "int4")
WEIGHTS = {
    "layer": ("Layer", ""),
    "shape": ("K×N", ""),
    "fp16_mb": ("FP16, MB", ",.1f"),
    "fp16_floor_us": ("floor, µs", ".1f"),
    "fp16_us": ("library, µs", ".1f"),
    "int4_mb": ("INT4, MB", ",.1f"),
    "floor_us": ("floor, µs", ".1f"),
    "latency_us_p50": ("ours, µs", ".1f"),
}


STEPS = {
    "batch": ("Sequences", ".0f"),
    "kernel": ("Kernel", ""),
    "ms": ("lean, ms", ".2f"),
    "speedup": ("speedup", ".2f"),
    "tokens_per_s": ("tokens/s", ",.0f"),
    "of_copy": ("of copy, %", ".0f"),
    "memory_gb": ("memory, GB", ".1f"),
    "their_ms": ("transformers, ms", ".2f"),
    "their_speedup": ("speedup", ".2f"),
}
SHARED = {
    "tp": ("GPUs", ".0f"),
    "batch": ("Sequences", ".0f"),
    "kernel": ("Kernel", ""),
    "one_ms": ("one GPU, ms", ".2f"),
    "ms": ("shared, ms", ".2f"),
    "gain": ("gain", ".2f"),
    "allreduce_ms": ("exchange, ms", ".2f"),
    "speedup": ("speedup over FP16", ".2f"),
}


def facts(table: pd.DataFrame) -> dict[str, float]:
    """Numbers of the prose: bits of an INT4 weight, the speedup that the bytes allow, FLOP per byte, matrix products
    of a token, and its bytes in GB and at the speed of a copy in ms, lm_head in FP16 among them.

    table: report_table(run)
    """
    layers = [GemmProblem(1, each.N, each.K) for each in projections(MODEL)]
    head, bits = GemmProblem(1, MODEL.vocab, MODEL.hidden, -1), layers[0].int4_bits_per_weight()
    gb = {
        name: (MODEL.layers * sum(each.bytes_min(width) for each in layers) + head.bytes_min(16)) / 1e9
        for name, width in (("fp16", 16), ("int4", bits))
    }
    copy = copy_bandwidth_gb_s(table)
    wide = GemmProblem(1, WIDE[1], WIDE[0])
    found = {"bits": bits, "ideal": 16 / bits, "products": MODEL.layers * len(layers) + 1, "vocab": MODEL.vocab}
    found |= {f"{name}_intensity": wide.flops / wide.bytes_min(width) for name, width in (("fp16", 16), ("int4", bits))}
    return found | {f"{name}_gb": value for name, value in gb.items()} | {
        f"{name}_ms": 1e3 * value / copy for name, value in gb.items()
    }  # fmt: skip


def against_bytes(table: pd.DataFrame) -> Figure | Markdown:
    """Every call of the run, time against bytes."""
    timed = tables.primary(table)
    return page.shown(figures.time_against_bytes, table if len(timed) else timed, lacking="any call in a graph")


def weights(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The named weights of a run: what they weigh, what their bytes allow, and what they take; see WEIGHTS."""
    rows = tables.primary(table)
    fp16, int4 = (rows[(rows["backend"] == name) & (rows["M"] == M)] for name in (BASELINE, "int4"))
    sides = {"floor_us": "fp16_floor_us", "latency_us_p50": "fp16_us"}
    both = int4.merge(fp16[["K", "N", *sides]].rename(columns=sides), on=["K", "N"], validate="one_to_one")
    names = [LAYER_OF_SHAPE.get(shape) for shape in zip(both["K"], both["N"], strict=True)]
    both = both.assign(
        layer=[each.layer if each else "" for each in names],
        shape=[shape_name(row) for _, row in both[["K", "N"]].iterrows()],
        fp16_mb=both["K"] * both["N"] * 2 / 1e6,
        int4_mb=both["K"] * both["N"] * both["bits_per_weight"] / 8e6,
    )
    return both[both["layer"] != ""].sort_values(["K", "N"])


def weight_table(table: pd.DataFrame) -> Markdown:
    caption = "The weights of Llama 3 8B at M = 1: bytes, floor and time"
    return page.table(weights(table), WEIGHTS, "tab-weights", caption)


def of_floors(table: pd.DataFrame, M: int = 1) -> dict[str, float]:
    """Numbers of the prose: floor over time of the library and of our INT4 kernel at the narrow and the wide weight."""
    rows = tables.primary(table).set_index(["backend", *SHAPE])["frac_floor"]
    return {
        f"{place}_{name}": rows.get((backend, M, *shape), float("nan"))
        for place, shape in (("narrow", NARROW), ("wide", WIDE))
        for name, backend in (("fp16", BASELINE), ("int4", "int4"))
    }


def worked(table: pd.DataFrame, M: int = 1) -> Markdown:
    """Two numbers worked out: the narrow and the wide projection, each in FP16 and INT4, from bytes to microseconds."""
    rows, copy, empty = tables.primary(table), copy_bandwidth_gb_s(table), empty_node_us(table)
    lines = []
    for name, shape in (("A narrow weight", NARROW), ("A wide weight", WIDE)):
        here = rows[(rows[SHAPE] == [M, *shape]).all(axis=1)].drop_duplicates("backend").set_index("backend")
        if not {BASELINE, "int4"} <= set(here.index):
            return page.lacks(f"FP16 and INT4 at {shape_name(shape)}")
        told = []
        for backend, who in ((BASELINE, "FP16: "), ("int4", "INT4: ")):
            row = here.loc[backend]
            mb, us = row["bytes_min"] / 1e6, row["bytes_min"] / copy / 1e3
            told.append(
                f"{who}{mb:.1f} MB at {copy / 1e3:.2f} TB/s is {us:.1f} µs; an empty node, {empty:.2f} µs, makes the "
                f"floor {row['floor_us']:.1f} µs. Measured: **{row['latency_us_p50']:.1f} µs**."
            )
        lines.append(f"* *{name}, {shape_name(shape)}.* " + " ".join(told))
    return Markdown("\n".join(lines))


def by_projection(run, table: pd.DataFrame, M: int = 1, kernels=KERNELS) -> pd.DataFrame:
    """The time of all linear layers but lm_head: backend, projection, ms (of all layers), gpu, run_id; no rows of a
    kernel of which a projection was not timed."""
    latency = tables.primary(table).set_index(["backend", *SHAPE])["latency_us_p50"]
    found = []
    for backend in kernels:
        times = [(each.layer, latency.get((backend, M, each.K, each.N))) for each in projections(MODEL)]
        if all(us is not None and pd.notna(us) for _, us in times):
            found += [(backend, layer.removesuffix("_proj"), MODEL.layers * us / 1e3) for layer, us in times]
    return pd.DataFrame(found, columns=["backend", "projection", "ms"]).assign(**origin(run))


def steps_of(run, shared: bool = False):
    """The recorded decode steps of a run's GPU: its own, or the newest beside it; None where there are none.

    shared: those of models that several GPUs shared
    """
    if not shared and len(getattr(run, "steps", ())):
        return run
    try:
        dirty = run.path.name.endswith("-dirty")
        return steps.latest(run.gpu["key"], run.path.parents[1], allow_dirty=dirty, shared=shared)
    except runs.RunError:
        return None


def whole_steps(found) -> pd.DataFrame:
    """Decode steps of the model at the context that most cases have: columns of steps.table, gpu and run_id.

    found: steps_of(run); without one there are no rows
    """
    if found is None:
        return pd.DataFrame(columns=["backend", "host", "batch", "ms"])
    rows = steps.table(found.steps, found.step_samples, found.step_kernels)
    rows = rows[(rows["model"] == MODEL.key) & rows["ms"].notna()]
    rows = rows[rows["case_id"].str.count("/") - (rows["tp"] > 1) == 4]  # no other option of the case is unusual
    if len(rows):
        rows = rows[rows["context"] == rows["context"].mode().max()]
    return rows.assign(**origin(found)).reset_index(drop=True)


def in_parts(run, table: pd.DataFrame, batch: int = 1) -> Figure | Markdown:
    """A whole decode step where one was recorded, else the linear layers of a token, projection by projection."""
    rows = whole_steps(steps_of(run))
    rows = rows[(rows["host"] == "lean") & (rows["batch"] == batch)]
    if len(rows):
        return figures.whole_step(rows)
    return page.shown(figures.layers_only, by_projection(run, table), lacking="the linear layers of Llama 3 8B")


def what_parts_hold(run, table: pd.DataFrame) -> Markdown:
    """The contents of the figure of `in_parts`, and what it leaves out or was predicted."""
    rows = whole_steps(steps_of(run))
    if rows.empty:
        return Markdown(
            "The figure holds linear layers only. Attention, norms, sampling and the exchange between GPUs come on top "
            "and do not shrink. No whole decode step was measured on this GPU, so {doc}`00_answer` projects a token "
            "from these products and `lm_head`."
        )
    told = (
        "The step is whole: attention, norms, `lm_head` and the choice of the token are in it, as one CUDA graph. Only "
        "products shrink with the weights. The dashed line is Amdahl's limit: the FP16 step, if each product took the "
        "share of its time that is left of its bytes."
    )
    return Markdown(" ".join([told, *filter(None, [predicted(run, table, rows)])]))


def predicted(run, table: pd.DataFrame, rows: pd.DataFrame, batch: int = 1) -> str:
    """The INT4 step as products timed alone foretell it, against the measured one; empty where a part is missing."""
    lean = rows[(rows["host"] == "lean") & (rows["batch"] == batch)].set_index("backend")
    alone = by_projection(run, table, batch, ("int4",))
    if not {BASELINE, "int4"} <= set(lean.index) or alone.empty or pd.isna(lean.loc[BASELINE, "product"]):
        return ""
    rest = lean.loc[BASELINE, "ms"] * (1 - lean.loc[BASELINE, "product"])
    head = 1e3 * GemmProblem(batch, MODEL.vocab, MODEL.hidden, -1).bytes_min(16) / copy_bandwidth_gb_s(table) / 1e9
    foretold, measured = alone["ms"].sum() + head + rest, lean.loc["int4", "ms"]
    return (
        f"Products timed alone ({alone['ms'].sum():.2f} ms), `lm_head` at the speed of a copy ({head:.2f} ms) and what "
        f"else the FP16 step does ({rest:.2f} ms) make {foretold:.2f} ms. Measured: **{measured:.2f} ms**, "
        f"{measured / foretold - 1:+.0%}."
    )


def steps_table(run) -> Markdown | None:
    """Whole decode steps by sequences and kernel, in the lean model and in transformers; nothing without any."""
    rows = whole_steps(steps_of(run))
    if rows.empty:
        return None
    key = ["batch", "backend"]
    theirs = {"ms": "their_ms", "speedup": "their_speedup"}
    hosted = rows[rows["host"] == "transformers"][[*key, *theirs]].rename(columns=theirs)
    both = rows[rows["host"] == "lean"].merge(hosted, "left", on=key)
    order = {backend: i for i, backend in enumerate(figures.in_order(both["backend"]))}
    both = both.sort_values(key, key=lambda of: of.map(order) if of.name == "backend" else of)
    both = both.assign(kernel=both["backend"].map(figures.label), of_copy=100 * both["of_copy"])
    context = both["context"].iloc[0]
    caption = (
        f"A decode step of Llama 3 8B at {context:.0f} tokens of context, compiled, in a lean model and in that of "
    )
    return page.table(both, STEPS, "tab-steps", f"{caption}Hugging Face transformers")


def shared_table(run) -> Markdown | None:
    """Decode steps that several GPUs shared beside those of one; nothing where none were recorded."""
    several, one = whole_steps(steps_of(run, shared=True)), whole_steps(steps_of(run))
    if several.empty:
        return None
    alone = {"ms": "one_ms"}
    key = ["batch", "context", "host", "backend"]
    columns = [*key, *alone]
    one = one[columns] if len(one) else pd.DataFrame(columns=columns)
    both = several.merge(one.rename(columns=alone), "left", on=key)
    both = both.assign(
        kernel=both["backend"].map(figures.label), gain=both["one_ms"].astype(float) / both["ms"],
        allreduce_ms=both["allreduce"] * both["ms"], one_ms=both["one_ms"].astype(float),
    )  # fmt: skip
    return page.table(both, SHARED, "tab-shared", "A decode step of Llama 3 8B that several GPUs share")

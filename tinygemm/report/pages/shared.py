"""What a chapter puts on its page beside figures: verdict cards, numbered tables, and the numbers its prose quotes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
from IPython.display import Markdown
from myst_nb import glue
from tabulate import tabulate

from tinygemm.digest import kernel_digest
from tinygemm.hardware import GPUS
from tinygemm.problem import LAYER_OF_SHAPE, STUDY_SHAPES
from tinygemm.report import host, style, tables
from tinygemm.report.contrasts import primary_cases
from tinygemm.report.tables import BASELINE
from tinygemm.report.verdicts import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.words import shape_names
from tinygemm.runs import DATA_ROOT

BADGE = {HOLDS: "bdg-success", FAILS: "bdg-danger", UNDECIDED: "bdg-warning"}
NARROW, WIDE = STUDY_SHAPES[0], STUDY_SHAPES[2]
WHAT = {
    "fp16-cublas": "FP16 weights, the faster of two layouts of cuBLAS",
    "fp16-triton": "our kernel structure with FP16 weights",
    "dequant-fp16": "writes the weight back in FP16, then multiplies",
    "dequant-only": "only writes the weight back in FP16",
    "int4-static": "the simple fused kernel",
    "int4-splitk": "the tensor-core form whose weights wait in registers",
    "int4-ring": "the tensor-core form whose weights wait in shared memory, for up to 8 tokens",
    "int4": "the tuned kernel: the form that the library selects",
    "int4-serial": "the tuned kernel, started only when the kernel before it has finished",
    "int4-no-dequant": "the tuned kernel with its dequantisation left out: it multiplies with the raw bits",
    "int4-naive-dequant": "the tuned kernel that dequantises by shift, mask and convert",
    "int4-no-split": "the tuned kernel in which one warp walks all of K",
    "int4-more-split": "the tuned kernel with K split over twice the programs",
    "int4-fused": "the tuned kernel at any number of tokens, also where the library would dequantise first",
    "int4-searched": "the fastest of the selected config and those that a rough model ranks first for this shape",
    "int4-bf16": "the tuned kernel with bfloat16 activations",
    "int4-asymmetric": "the tuned kernel with a zero point for every group",
    "int4-one-row": "the tuned kernel on as many tokens that share one row of activations: the traffic of one",
    "int4-step-naive": "K split over warps and programs, words loaded as tensor-core operands, naive dequantisation",
    "int4-step-lop3": "the same, dequantised by lop3",
    "int4-step-early": "the same, weights requested before the kernel before it has finished",
    "int4-load-only": "reads the INT4 bytes, computes nothing",
    "int4-load-only-serial": "reads the INT4 bytes, computes nothing, started only when the kernel before has finished",
    "aten-int4mm": "PyTorch's own INT4 kernel",
    "gemlite": "GemLite, a Triton library",
    "marlin": "Marlin, a CUDA kernel",
    "bitsandbytes-nf4": "bitsandbytes, 4-bit NF4 instead of INT4",
    "copy": "device-to-device copy: the bandwidth to compare with",
    "empty-node": "a kernel that does nothing: the least a graph node costs",
}


def quote(values: dict, prefix: str = "") -> None:
    """Make each value available to the prose as {glue:text}`prefix-key`; numbers as plain floats, words as they are."""
    for key, value in values.items():
        name = f"{prefix}-{key}" if prefix else key
        glue(name, value if isinstance(value, str) else float(value), display=False)


def card(letter: str, verdicts: dict[str, Verdict]) -> Markdown:
    """A finding with its state and sentence, for each kernel that it is judged for.

    letter:   "A", "B", "C", a part of C: "C_loses", "C_cause", or "D", which is about the tuned kernel alone
    verdicts: verdicts.of_run(run)
    """
    tuned = verdicts[letter]
    judged = [verdicts[key] for key in (letter, f"{letter}_static") if key in verdicts]
    answers = [f"{badge(verdict)} {verdict.sentence}" for verdict in judged]
    title = f"{letter}. {tuned.claim}" if len(letter) == 1 else tuned.claim
    return Markdown("\n".join([f":::{{admonition}} {title}", ":class: finding", "", "\n\n".join(answers), ":::"]))


def badge(verdict: Verdict) -> str:
    """The state of a verdict as a coloured word."""
    return f"{{{BADGE[verdict.state]}}}`{verdict.state}`"


def table(frame: pd.DataFrame, columns: dict[str, tuple[str, str]], name: str, caption: str) -> Markdown:
    """A numbered table of the page.

    columns: column of `frame` -> (heading with its unit, format specification), in the order shown; NaN is a dash
    name:    label, for {numref}
    """
    headings = [heading for heading, _ in columns.values()]
    alignment = ["right" if frame[column].dtype.kind in "iuf" else "left" for column in columns]
    shown = [[_cell(row[column], spec) for column, (_, spec) in columns.items()] for _, row in frame.iterrows()]
    body = tabulate(shown, headings, tablefmt="pipe", colalign=alignment if shown else None, disable_numparse=True)
    return Markdown(f"```{{table}} {caption}\n:name: {name}\n\n{body}\n```")


def conditions(run, table: pd.DataFrame) -> pd.DataFrame:
    """Under which conditions a run was measured: one row per condition, columns `condition` and `value`.

    table: tables.report_table(run)
    """
    gpu, software, timed = run.gpu, run.provenance["software"], run.cases[run.cases["status"] == "ok"]
    rows = {
        "GPU": f"{gpu['name']}, {gpu['sm_count']} SMs, {gpu['l2_bytes'] / 2**20:.0f} MiB L2",
        "Power limit": _known(gpu.get("power_limit_w"), "{:.0f} W"),
        "ECC": {True: "on", False: "off", None: "not reported"}[gpu.get("ecc")],
        "Clocks": ("locked" if gpu.get("clocks_locked") else "not locked") + _clocks(timed),
        "Driver, CUDA": f"{_known(gpu.get('driver'))}, {_known(software.get('cuda'))}",
        "PyTorch, Triton, Python": ", ".join(_known(software.get(name)) for name in ("torch", "triton", "python")),
        "Nsight Compute": _known(software.get("ncu")),
        "Copy bandwidth, measured": f"{tables.copy_bandwidth_gb_s(table):,.0f} GB/s, read and written",
        "Empty graph node, measured": f"{tables.empty_node_us(table):.2f} µs",
        "Graphs timed": "without a dependent launch before" if run.settled else "whatever was launched before",
        "Samples of one case": _span(timed["n_samples"]),
        "Kernels": tables.kernels(run),
        "Recorded": f"{run.provenance['started']}, run `{run.run_id}`, commit `{run.provenance['commit'][:7]}`",
    }
    return pd.DataFrame({"condition": list(rows), "value": list(rows.values())})


def facts(run, table: pd.DataFrame) -> dict:
    """What every chapter may quote about its run: GPU, run id, copy bandwidth, empty node, counts of cases.

    table: tables.report_table(run)
    """
    status, spec = run.cases["status"], GPUS.get(run.gpu["key"])
    return {
        "gpu": run.gpu["name"],
        "peak_source": spec.source.split(";")[0] if spec else "of this GPU none is known here, so none is drawn",
        "run_id": run.run_id,
        "copy_tb_s": tables.copy_bandwidth_gb_s(table) / 1e3,
        "empty_node_us": tables.empty_node_us(table),
        "cases": len(run.cases),
        "timed": (status == "ok").sum(),
        "samples": len(run.samples),
    }


def shapes(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The weights of a run and what their bytes allow: layer, K, N, fp16_mb, int4_mb, ideal_speedup, floor_us."""
    rows = tables.primary(table)
    fp16, int4 = (rows[(rows["backend"] == name) & (rows["M"] == M)] for name in (BASELINE, "int4"))
    both = int4.merge(fp16[["K", "N", "bytes_min"]], on=["K", "N"], suffixes=("", "_fp16"), validate="one_to_one")
    layers = [LAYER_OF_SHAPE.get(shape) for shape in zip(both["K"], both["N"], strict=True)]
    return both.assign(
        layer=[layer.layer if layer else "–" for layer in layers],
        fp16_mb=both["K"] * both["N"] * 2 / 1e6,
        int4_mb=both["K"] * both["N"] * both["bits_per_weight"] / 8e6,
    ).sort_values(["K", "N"])


def intensities(table: pd.DataFrame, M: int = 1) -> dict[str, float]:
    """FLOP per byte of the largest weight in FP16 and INT4, bits of an INT4 weight, and the speedup they allow."""
    rows = tables.primary(table)
    rows = rows[(rows["M"] == M)].sort_values("bytes_min")
    fp16, int4 = (rows[rows["backend"] == name].iloc[-1] for name in (BASELINE, "int4"))
    return {
        "fp16_intensity": fp16["flops"] / fp16["bytes_min"],
        "int4_intensity": int4["flops"] / int4["bytes_min"],
        "int4_bits": int4["bits_per_weight"],
        "ideal": 16 / int4["bits_per_weight"],
    }


def choices(table: pd.DataFrame, M: int = 1) -> dict:
    """One call of the tuned kernel at the narrow shape, timed in every way: graph_us, eager_us, cold_us, hot_us, shape.

    Where the host was slow there, it is the first projection of the study at which it was not.
    """
    slow = host.slow_groups(table)
    K, N = next((shape for shape in STUDY_SHAPES if (M, *shape) not in slow), NARROW)
    rows = table[(table["M"] == M) & (table["K"] == K) & (table["N"] == N) & (table["operands"] == "random")]
    # at the group size of the comparison with FP16, if a run has others too
    beside = rows["problem"].isin(rows.loc[rows["backend"] == BASELINE, "problem"])
    rows = rows[(rows["backend"] == "int4") & beside]
    latency = rows.set_index(["launch", "l2_state"])["latency_us_p50"]
    modes = {"graph_us": ("graph", "cold"), "eager_us": ("eager", "cold"), "cold_us": ("graph", "cold")}
    modes |= {"hot_us": ("graph", "hot")}
    return {name: latency.get(mode, float("nan")) for name, mode in modes.items()} | {"shape": f"{K}×{N}"}


def serial_walk(table: pd.DataFrame, M: int = 1) -> Markdown:
    """How the time of the simple kernel follows N and K: the experiment on what makes it slow."""
    rows = tables.primary(table)
    rows = rows[(rows["M"] == M) & (rows["backend"] == "int4-static")]
    latency = rows.set_index(["K", "N"])["latency_us_p50"].dropna()
    few, many, deep = (4096, 512), (4096, 8192), (14336, 4096)
    if not {few, many, deep} <= set(latency.index):
        return Markdown("*This run did not time `int4-static` at the shapes of this comparison.*")
    at_k = latency[latency.index.get_level_values("K") == few[0]]
    between = at_k[at_k.index.get_level_values("N") <= many[1]]
    return Markdown(
        f"With K at {few[0]}, the simple kernel takes {between.min():.1f} to {between.max():.1f} µs from N = {few[1]} "
        f"to {many[1]}, {many[1] // few[1]} times the weights. With K at {deep[0]}, {deep[0] / few[0]:.1f} times as "
        f"deep, {deep[0]}×{deep[1]} takes {latency[deep]:.1f} µs."
    )


def by_rule(run, suite: str) -> Markdown:
    """How many cases of the tuned kernel in a suite ran in a launch config that was not searched for them."""
    cases = primary_cases(tables.suite(run, suite).cases)
    source = cases.loc[cases["backend"] == "int4", "config_source"]
    asked = {part["name"] for part in run.provenance["parameters"].get("suites", [])}
    if suite not in asked or source.empty:
        return Markdown("*This run did not time the tuned kernel there.*")
    return Markdown(
        f"Of {len(source)} cases of the tuned kernel here, {(source == 'table').sum()} ran in a launch config that was "
        f"searched for that weight and number of tokens; the others took that of the nearest one that was, by the "
        f"library's rule, which need not be the fastest ({{doc}}`12_peers`)."
    )


def contenders(run) -> pd.DataFrame:
    """One row per backend of a run: backend, what, bits (at the group size of most cases), source (of its launch
    configs; of many kinds only the first word), timed, not_timed (cases)."""
    cases = run.cases.assign(timed=run.cases["status"] == "ok")
    rows = cases.groupby("backend", sort=False).agg(
        bits=("bits_per_weight", lambda bits: bits.mode().min()),
        source=("config_source", _sources),
        timed=("timed", "sum"),
        all_cases=("timed", "size"),
    )
    rows = rows.reindex(style.in_order(rows.index)).reset_index()
    return rows.assign(
        what=rows["backend"].map(WHAT).fillna("–"),
        bits=rows["bits"].where(rows["bits"] > 0),
        not_timed=rows["all_cases"] - rows["timed"],
        backend="`" + rows["backend"] + "`",
    )


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """One row per backend that was checked: name, dtype, checked and mismatch (cases), worst rms_err and max_err."""
    checked = table.dropna(subset=["rms_err"])
    checked = checked.assign(mismatched=checked["status"] == "mismatch")
    rows = checked.groupby("backend", sort=False).agg(
        dtype=("dtype", "first"),
        checked=("case_id", "size"),
        mismatch=("mismatched", "sum"),
        rms_err=("rms_err", "max"),
        max_err=("max_err", "max"),
    )
    rows = rows.reindex(style.in_order(rows.index)).reset_index()
    return rows.assign(name=rows["backend"].map(style.name))


def projections(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The four projections of the earlier study in this run: shape, then latencies and speedups of each kernel."""
    rows = tables.primary(table)
    rows = rows[rows["M"] == M].set_index(["K", "N", "backend"]).sort_index()
    result = []
    for K, N in STUDY_SHAPES:
        one = rows.loc[(K, N)] if (K, N) in rows.index.droplevel("backend") else rows.iloc[:0].droplevel(["K", "N"])
        latency, speedup = (one[name].get for name in ("latency_us_p50", "speedup_vs_fp16"))
        result.append({
            "shape": f"{K}×{N}",
            "fp16_us": latency(BASELINE, float("nan")),
            "static_us": latency("int4-static", float("nan")),
            "static_speedup": speedup("int4-static", float("nan")),
            "int4_us": latency("int4", float("nan")),
            "int4_speedup": speedup("int4", float("nan")),
            "ideal_speedup": one["ideal_speedup"].get("int4", float("nan")),
        })  # fmt: skip
    return pd.DataFrame(result)


def token_counts(table: pd.DataFrame) -> list[int]:
    """The values of M that the tuned kernel was timed at."""
    return sorted(int(M) for M in table.loc[table["backend"] == "int4", "M"].unique())


def by_tokens(table: pd.DataFrame, backend: str = "int4") -> pd.DataFrame:
    """Speedup over FP16, one row per projection of the earlier study and one column per M: shape, M1, M2, ..."""
    rows = tables.primary(table)
    rows = rows[(rows["backend"] == backend) & tables.at_shapes(rows, STUDY_SHAPES)]
    wide = rows.pivot(index=["K", "N"], columns="M", values="speedup_vs_fp16").add_prefix("M").reset_index()
    return wide.assign(shape=shape_names(wide)).rename_axis(columns=None)


def sanitizers(file: Path = DATA_ROOT / "checks" / "sanitizer.txt") -> Markdown:
    """What `make sanitize` said when it last ran: the day and the versions, then a line per tool, word for word."""
    conditions, *tools = file.read_text(encoding="utf-8").splitlines()
    checked = re.search(r", kernels (\w+)$", conditions)
    if checked is None:
        since = "Which version of the kernels' code that was is not recorded; it may have changed since."
    else:
        since = _since(checked[1])
    return Markdown("\n".join([f"Last run: {conditions}. {since}", "", *(f"* {tool}" for tool in tools)]))


def _since(digest: str) -> str:
    """Whether the kernels' code is still the one of a digest's first letters."""
    same = kernel_digest().startswith(digest)
    return f"The kernels' code {'is the same today' if same else 'has changed since'}."


def numerics(file: Path = DATA_ROOT / "checks" / "numerics.json") -> Markdown:
    """What `make numerics` found when it was last recorded: its conditions, then each route's worst error."""
    if not file.is_file():
        return Markdown("*No run of this check is recorded.*")
    found = json.loads(file.read_text(encoding="utf-8"))
    routes, software = found["routes"], found["software"]
    alone, rows = found["violations"] == 0, found["first_row_alone_and_among_eight"]
    lines = [
        f"Last run: {found['date']}, {found['gpu']}, driver {found['driver']}, torch {software['torch']}, "
        f"triton {software['triton']}, kernels {found['kernels']}. {_since(found['kernels'])} "
        f"In {found['seconds']:.0f} s it drew {found['problems']:,} problems, of which "
        f"{'none' if alone else format(found['violations'], ',')} broke the bound or gave other bits when repeated"
        f"{', alone or beside work on a second stream' if found['repeats_beside_work'] else ''}.",
        "",
    ]
    for name, route in routes.items():
        if route["outputs"]:
            lines.append(
                f"* {name}: {route['problems']:,} problems, {route['outputs']:,} outputs, "
                f"the worst error {route['worst_ratio']:.3f} of its bound"
            )
    if rows["compared"]:
        lines += [
            "",
            f"One token alone and as the first of eight had the same bits in {rows['equal']:,} of "
            f"{rows['compared']:,} problems; that is not promised, for another number of tokens may run in another "
            "launch config.",
        ]
    return Markdown("\n".join(lines))


def no_counters() -> Markdown:
    """What stands where the counters would, for a run that has none."""
    return Markdown("*This run has no hardware counters: Nsight Compute was missing, or was not allowed to read them.*")


def lacks(what: str) -> Markdown:
    """What stands where something would that the run did not time."""
    return Markdown(f"*This run did not time {what}.*")


def not_timed(*names: str) -> Markdown:
    """What stands where cases would, for a run that has none of them."""
    return lacks(", ".join(f"`{name}`" for name in names))


def not_collected(what: str) -> Markdown:
    """What stands where a figure of counters would, for a run whose profiler did not collect them."""
    return Markdown(f"*The counters of this run do not say: {what}.*")


def dropdown(title: str, content: Markdown) -> Markdown:
    """Content that a click unfolds: the whole of a table of which the chapter shows the point."""
    return Markdown(f"::::{{dropdown}} {title}\n\n{content.data}\n::::")


def twins(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The tuned kernel and its twins, in us, at the projections of the earlier study.

    returns: shape, int4-load-only, int4-no-dequant, int4, and dequant_share = 1 - int4-no-dequant / int4
    """
    names = ["int4-load-only", "int4-no-dequant", "int4"]
    rows = tables.primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(names)]
    wide = rows.pivot(index=["K", "N"], columns="backend", values="latency_us_p50").reindex(
        index=pd.MultiIndex.from_tuples(STUDY_SHAPES, names=["K", "N"]), columns=names
    )
    wide = wide.reset_index().rename_axis(columns=None)
    shape = shape_names(wide)
    return wide.assign(shape=shape, dequant_share=1 - wide["int4-no-dequant"] / wide["int4"])


def dequantisation(parts: pd.DataFrame, M: int = 1) -> dict[str, float]:
    """At the wide shape: dequant_only_us, to memory and without a product, and fused_us, the whole tuned kernel.

    parts: tables.breakdown(run)
    """
    K, N = WIDE
    row = parts[(parts["M"] == M) & (parts["K"] == K) & (parts["N"] == N)].iloc[0]
    return {name: row[name] for name in ("dequant_only_us", "fused_us")}


def _sources(values: pd.Series) -> str:
    found = sorted(set(filter(None, values)))
    if len(found) > 3:
        found = sorted({name.split()[0] for name in found})
    return "; ".join(found) or "–"


def _cell(value, spec: str) -> str:
    if pd.isna(value):
        return "–"
    return format(value, spec)


def _known(value, pattern: str = "{}") -> str:
    return "not reported" if value is None else pattern.format(value)


def _clocks(timed: pd.DataFrame) -> str:
    clocks = timed["sm_clock_mhz"].dropna()
    return f"; SM clock while timing {_span(clocks)} MHz" if len(clocks) else ""


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"

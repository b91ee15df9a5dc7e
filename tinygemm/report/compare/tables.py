"""Two recorded runs side by side: the cases that both timed, the claims that both judged, and where they come from."""

from __future__ import annotations

import importlib.util
import pkgutil

import numpy as np
import pandas as pd

from tinygemm import report
from tinygemm.digest import same_code
from tinygemm.report.base import page, tables
from tinygemm.report.base.claims import UNDECIDED, Verdict
from tinygemm.report.base.tables import LATENCY, SHAPE
from tinygemm.runs import Run, load_run, recorded_runs

MODE = ["launch", "l2_state", "operands"]
SPEEDUP = ["speedup_vs_fp16", "speedup_vs_fp16_low", "speedup_vs_fp16_high"]
NORMAL = 1.96  # standard errors from the middle to the end of a 95 % interval
FEWEST = 20  # cases of an older run that a spread between runs can rest on
SAME, CHANGED, ONE_DECIDES = "same", "changed", "one decides"
COMPARABLE = ("fp16-cublas", "copy", "empty-node")  # a library and two ideals: the same code in every run


def names(a: Run, b: Run) -> tuple[str, str]:
    """Names of the two runs: by their GPU, or, where that is the same, by their id."""
    if a.gpu["name"] != b.gpu["name"]:
        return a.gpu["name"], b.gpu["name"]
    return a.run_id, b.run_id


def newest_others(run: Run) -> list[Run]:
    """The newest clean run of every other GPU that is recorded beside this one."""
    folders = recorded_runs(root=run.path.resolve().parent.parent)
    newest = {path.parent.name: path for path in folders if not path.name.endswith("-dirty")}
    return [load_run(path) for gpu, path in sorted(newest.items()) if gpu != run.gpu["key"]]


def shared_cases(a: Run, b: Run, spread: float = 0.0) -> pd.DataFrame:
    """Every case that both runs timed.

    spread:  relative standard deviation of one run on top of the scatter of its samples, as `spread_of_runs` finds it
    returns: case_id, backend, M, K, N, launch, l2_state, operands; a_us, b_us (medians, us), each with _low and _high;
             ratio = b_us / a_us (how many times faster the first run is) with ratio_low and ratio_high; a_speedup and
             b_speedup (over FP16 by cuBLAS in the same rounds), each with _low and _high, NaN where there is no FP16
    """
    sides = []
    for prefix, run in (("a", a), ("b", b)):
        other = b if run is a else a
        common = run.cases["case_id"].isin(other.cases.loc[other.cases["status"] == "ok", "case_id"])
        table = tables.report_table(tables.only(run, common & (run.cases["status"] == "ok")))
        ends = [f"{prefix}_{name}{end}" for name in ("us", "speedup") for end in ("", "_low", "_high")]
        sides.append(table.rename(columns=dict(zip([*LATENCY, *SPEEDUP], _short(ends), strict=True))))
    keys = ["case_id", "backend", *SHAPE, *MODE]
    left, right = (side[[*keys, *(column for column in side if column[:2] in ("a_", "b_"))]] for side in sides)
    both = left.merge(right.drop(columns=keys[1:]), on="case_id", validate="one_to_one")
    ratio = both["b_us"] / both["a_us"]
    below = _quadrature(both["a_high"] / both["a_us"], both["b_us"] / both["b_low"], spread)
    above = _quadrature(both["a_us"] / both["a_low"], both["b_high"] / both["b_us"], spread)
    return both.assign(ratio=ratio, ratio_low=ratio / below, ratio_high=ratio * above)


def spread_of_runs(run: Run) -> float:
    """Distance of two runs of one GPU beyond the scatter of their samples: relative standard deviation of one.

    It rests on the run before this one of the same GPU, and there on the code that both have alike. NaN where there is
    no such run, or where fewer than FEWEST cases can be compared.
    """
    folders = recorded_runs(run.gpu["key"], run.path.resolve().parent.parent)
    earlier = [path for path in folders if path.name < run.run_id and not path.name.endswith("-dirty")]
    if not earlier:
        return float("nan")
    older = load_run(earlier[-1])
    graphs = [tables.only(each, tables.in_mode(each.cases)) for each in (run, older)]
    rows = shared_cases(*graphs)
    if not same_code(run.provenance, older.provenance):
        rows = rows[rows["backend"].isin(COMPARABLE)]
    if run.settled != older.settled or len(rows) < FEWEST:
        return float("nan")
    log = np.log(rows["ratio"])
    stated = (np.log(rows["ratio_high"] / rows["ratio_low"]) / (2 * NORMAL)) ** 2
    # robust: a few cases in which the library chose another algorithm must not speak for all
    observed = (1.4826 * (log - log.median()).abs().median()) ** 2
    return float(np.sqrt(max(0.0, observed - stated.median()) / 2))


def widest_spread(a: Run, b: Run) -> float:
    """The larger `spread_of_runs` of two runs; NaN where neither has one."""
    known = [spread for spread in map(spread_of_runs, (a, b)) if not np.isnan(spread)]
    return max(known, default=float("nan"))


def by_backend(cases: pd.DataFrame) -> pd.DataFrame:
    """The ratio of times in each launch mode: geometric mean, least and most over the cases of a backend.

    cases:   shared_cases(a, b)
    returns: backend, launch, l2_state, cases (how many), mean, least, most
    """
    groups = cases[cases["operands"] == "random"].groupby(["backend", "launch", "l2_state"], sort=False)["ratio"]
    found = groups.agg(cases="size", mean=lambda ratio: np.exp(np.log(ratio).mean()), least="min", most="max")
    return found.reset_index()


def primary(cases: pd.DataFrame, backends=("fp16-cublas", "int4-static", "int4"), M: int = 1) -> pd.DataFrame:
    """The rows of the primary number at one M: CUDA graph, cold L2, random operands; of these backends, by shape."""
    rows = cases[tables.in_mode(cases) & (cases["M"] == M) & cases["backend"].isin(backends)]
    of_usual_group = rows["case_id"].str.contains(f"-g{tables.GROUP_SIZE}/")
    order = {backend: place for place, backend in enumerate(backends)}
    rows = rows[of_usual_group].assign(place=rows["backend"].map(order))
    return rows.sort_values(["K", "N", "place"]).drop(columns="place").reset_index(drop=True)


def speedups(runs: list[Run], backend: str = "int4", M: int = 1) -> pd.DataFrame:
    """The speedup of a kernel over FP16 by cuBLAS in each run, at the projections that all of them timed.

    returns: name (of the GPU), run_id, M, K, N, speedup, low, high
    """
    parts = []
    for run in runs:
        wanted = run.cases["backend"].isin((tables.BASELINE, backend)) & (run.cases["M"] == M)
        rows = tables.report_table(tables.only(run, wanted & tables.in_mode(run.cases)))
        rows = tables.primary(rows[rows["backend"] == backend])
        parts.append(rows.assign(name=run.gpu["name"], run_id=run.run_id))
    found = pd.concat(parts).dropna(subset=["speedup_vs_fp16"])
    found = found[found.groupby(["K", "N"])["name"].transform("nunique") == len(runs)]
    found = found.rename(columns=dict(zip(SPEEDUP, ("speedup", "low", "high"), strict=True)))
    return found[["name", "run_id", *SHAPE, "speedup", "low", "high"]].sort_values(["K", "N"]).reset_index(drop=True)


def only_one_timed(a: Run, b: Run) -> dict[str, list[str]]:
    """The backends that only one of the two runs timed: "a" and "b" -> backends."""
    timed = [set(run.cases.loc[run.cases["status"] == "ok", "backend"]) for run in (a, b)]
    return {"a": sorted(timed[0] - timed[1]), "b": sorted(timed[1] - timed[0])}


def claims_of(run: Run) -> dict[str, Verdict]:
    """Verdicts on a run by every chapter that judges a whole one: "<chapter>.<key>" -> verdict.

    A chapter takes part by a function `of_run(run)` in its module `claims`.
    """
    found = {}
    for chapter in sorted(module.name for module in pkgutil.iter_modules(report.__path__) if module.ispkg):
        name = f"{report.__name__}.{chapter}.claims"
        if importlib.util.find_spec(name) and hasattr(claims := importlib.import_module(name), "of_run"):
            found |= {f"{chapter}.{key}": verdict for key, verdict in claims.of_run(run).items()}
    return found


def verdicts(a: Run, b: Run) -> pd.DataFrame:
    """The claims of both runs: key, claim, a_state, b_state, a_sentence, b_sentence, outcome.

    outcome: "same", "changed" (both runs decide, and differently) or "one decides" (the other is undecided)
    """
    first, second = claims_of(a), claims_of(b)
    rows = [
        (key, first[key].claim, first[key].state, second[key].state, first[key].sentence, second[key].sentence)
        for key in first
        if key in second
    ]
    found = pd.DataFrame(rows, columns=["key", "claim", "a_state", "b_state", "a_sentence", "b_sentence"])
    differ = found["a_state"] != found["b_state"]
    one_open = (found[["a_state", "b_state"]] == UNDECIDED).any(axis=1)
    return found.assign(outcome=np.select([~differ, one_open], [SAME, ONE_DECIDES], CHANGED))


def provenance(a: Run, b: Run) -> pd.DataFrame:
    """Under which conditions both were measured: condition, a, b; "–" where only one run says."""
    sides = []
    for run in (a, b):
        ideal = run.cases["backend"].isin(tables.IDEALS)
        rows = page.conditions(run, tables.report_table(tables.only(run, ideal)))
        rows = pd.concat([rows, _schema(run)], ignore_index=True)
        sides.append(rows.set_index("condition")["value"])
    return pd.concat(sides, axis=1, keys=["a", "b"], sort=False).fillna("–").reset_index()


def _schema(run: Run) -> pd.DataFrame:
    timed = run.cases[run.cases["status"] == "ok"]
    values = {"Schema": f"version {run.provenance['schema_version']}", "Cases timed": f"{len(timed):,}"}
    return pd.DataFrame({"condition": list(values), "value": list(values.values())})


def _short(columns: list[str]) -> list[str]:
    """a_us_low reads a_low."""
    return [column.replace("_us_", "_") for column in columns]


def _quadrature(first: pd.Series, second: pd.Series, spread: float) -> pd.Series:
    """The factor from a ratio of independent medians to an end of its interval, from the factors of the medians."""
    own = 2 * (NORMAL * spread) ** 2 if spread > 0 else 0.0
    return np.exp(np.sqrt(np.log(first.fillna(1)) ** 2 + np.log(second.fillna(1)) ** 2 + own))

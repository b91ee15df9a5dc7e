"""Projections beside recorded runs of other GPUs: which measured latencies lie within the band, and which miss it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.digest import same_code
from tinygemm.problem import GemmProblem
from tinygemm.report.base.tables import SHAPE
from tinygemm.report.predict import model as costmodel
from tinygemm.report.predict.against_published import HIT, MISS
from tinygemm.report.predict.model import CostModel
from tinygemm.report.trust.tables import UNCHANGED
from tinygemm.runs import Run, load_run, recorded_runs


def other_gpus(run: Run) -> list[Run]:
    """The newest run of every other GPU that is recorded in the same folder, oldest first."""
    newest = {path.parent.name: path for path in recorded_runs(root=run.path.resolve().parent.parent)
              if not path.name.endswith("-dirty")}  # fmt: skip
    return [load_run(path) for gpu, path in newest.items() if gpu != run.gpu["key"]]


def compare(model: CostModel, run: Run, others: list[Run]) -> pd.DataFrame:
    """Every case of the other runs that the model can project, as a CUDA graph with a cold L2.

    Only of libraries, in whatever version each run had and in the variant that was fastest there, and of our kernels
    where both runs are of the same code, by their digests.

    model, run: the model and the run that it was fitted to
    returns:    gpu, run_id (of the other run), backend, M, K, N, measured_us, predicted_us, low and high (of the
                band, us), off (predicted / measured - 1), result (hit: the band covers the measured latency; miss)
    """
    parts = []
    for other in others:
        rows = costmodel.observations(other)
        ours = same_code(run.provenance, other.provenance)
        same = set(model.backends) & (set(rows["backend"]) if ours else set(UNCHANGED))
        rows = rows[(rows["launch"] == "graph") & rows["backend"].isin(same)]
        spec = costmodel.spec_of(other)
        for backend, mine in rows.groupby("backend", sort=False):
            # FP16 was timed where no group fits, too; packed weights are in groups of 128
            problems = [
                GemmProblem(M, N, K, -1 if K % 128 else 128)
                for M, N, K in zip(mine["M"], mine["N"], mine["K"], strict=True)
            ]
            projected = costmodel.predict(model, problems, spec, [backend], ["graph"])
            measured = mine[[*SHAPE, "latency_us"]].rename(columns={"latency_us": "measured_us"})
            found = projected.rename(columns={"latency_us": "predicted_us", "low_us": "low", "high_us": "high"}).merge(
                measured, on=SHAPE
            )
            parts.append(found.assign(gpu=other.gpu["name"], run_id=other.run_id))
    columns = ["gpu", "run_id", "backend", *SHAPE, "measured_us", "predicted_us", "low", "high"]
    table = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
    inside = table["measured_us"].between(table["low"], table["high"])
    return table.assign(off=table["predicted_us"] / table["measured_us"] - 1, result=np.where(inside, HIT, MISS))

"""A table of cases that the latency model itself generated, from planted terms: what a fit must find again."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from tinygemm.hardware import GPUS, GpuSpec
from tinygemm.report.predict.terms import Fitted, Terms, device_us, eager_us

H200 = GPUS["h200"]
SHAPES = tuple(itertools.product((1024, 4096, 14336), (512, 2048, 8192, 28672)))
REACH = 0.9  # of the bandwidth, by the copy and by every backend


def terms(start_us, token_us, serial_ns, weight_ps, tile_ps, overlap, **more) -> Terms:
    return Terms(start_us, token_us, serial_ns, efficiency=REACH, weight_ps=weight_ps, tile_ps=tile_ps,
                 overlap=overlap, **more)  # fmt: skip


TRUTH = {
    # the library splits walks of more than 8,000 weights
    "fp16-cublas": Fitted(
        "fp16-cublas", terms(4.0, 0.02, 0.4, 2.0, 1.0, 1.6, longest_k=8e3, host_us=14), 16, 0, None, 12, {}
    ),
    "int4": Fitted("int4", terms(2.5, 0.08, 0.05, 4.0, 8.0, 2.5, host_us=30), 4.125, 8, None, 12, {}),
    "int4-serial": Fitted("int4-serial", terms(3.3, 0.08, 0.05, 4.0, 8.0, 2.5), 4.125, 8, None, 12, {}),
    "int4-static": Fitted("int4-static", terms(3.0, 0.02, 6.0, 60.0, 6.0, 3.5), 4.125, 16, (64, 1), 12, {}),
}


def table(
    truth: dict[str, Fitted] | None = None,
    shapes=SHAPES,
    m_list=(1, 4, 16),
    spec: GpuSpec = H200,
    noise: float = 0.0,
    factors: dict | None = None,
) -> pd.DataFrame:
    """Rows as tables.report_table gives them, for a cold L2, as a graph and from Python, and a copy.

    noise:   relative spread
    factors: (backend, K, N) -> what multiplies its latency
    """
    rng = np.random.default_rng(0)
    rows = [_row("copy", 0, 0, 0, "graph", 500.0, 0) | {"achieved_gb_s": REACH * spec.dram_gb_s}]
    for (backend, fitted), (K, N), M in itertools.product((truth or TRUTH).items(), shapes, m_list):
        device = float(device_us(fitted, M, K, N, fitted.bits, spec)) * (factors or {}).get((backend, K, N), 1.0)
        for launch, time in (("graph", device), ("eager", float(eager_us(fitted.terms, device)))):
            row = _row(backend, M, K, N, launch, time * (1 + noise * rng.standard_normal()), fitted.bits)
            block_n, split_k = fitted.cut or (32, 1 + N % 5)  # what a tuner chose varies from shape to shape
            rows.append(row | {"block_m": fitted.block_m or np.nan, "block_n": block_n, "split_k": split_k})
    return pd.DataFrame(rows)


def _row(backend: str, M: int, K: int, N: int, launch: str, time: float, bits: float) -> dict:
    return {
        "case_id": f"{backend}/M{M}-K{K}-N{N}-g128/{launch}-cold", "backend": backend, "M": M, "K": K, "N": N,
        "group_size": 0 if bits in (0, 16) else 128, "bits_per_weight": bits, "l2_state": "cold", "launch": launch,
        "status": "ok", "block_m": np.nan, "block_n": np.nan, "split_k": np.nan, "sm_clock_mhz": 1980.0,
        "latency_us_p50": time, "latency_us_low": 0.99 * time, "latency_us_high": 1.01 * time,
    }  # fmt: skip

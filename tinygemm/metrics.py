"""Every metric of Nsight Compute that is collected or read, once: ncu's name, our column, its unit and what it says."""

from __future__ import annotations

from dataclasses import dataclass

DURATION = "gpu__time_duration.sum"
PIPES = ("alu", "fma", "fp16", "lsu", "tensor", "uniform", "xu")
# why a warp that is resident does not issue; together the reasons are the whole of its time
STALL_REASONS = (
    "long_scoreboard", "short_scoreboard", "barrier", "membar", "wait", "mio_throttle", "lg_throttle",
    "math_pipe_throttle", "not_selected", "selected", "branch_resolving", "dispatch_stall", "drain", "no_instruction",
    "imc_miss",
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One metric.

    name:      ncu's
    column:    in tables of the report
    unit:      in that column: us, bytes, a fraction of 0 to 1, or a plain count
    what:      what it says
    basic:     every GPU and version of ncu has it
    collected: False: not asked for, but read where a profile has it
    """

    name: str
    column: str
    unit: str
    what: str
    basic: bool = False
    collected: bool = True


ALL = (
    Metric(DURATION, "counter_us", "us", "duration of the kernel; never a latency: a profiler slows", basic=True),
    Metric("dram__bytes_read.sum", "dram_read_bytes", "bytes", "read from DRAM", basic=True),
    Metric("dram__bytes_write.sum", "dram_write_bytes", "bytes", "written to DRAM", basic=True),
    Metric(
        "dram__throughput.avg.pct_of_peak_sustained_elapsed", "frac_dram", "fraction", "DRAM, of its peak", basic=True
    ),
    Metric(
        "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "frac_sm",
        "fraction",
        "busiest unit of the SMs, of its peak",
        basic=True,
    ),
    Metric(
        "smsp__issue_active.avg.pct_of_peak_sustained_active",
        "frac_issue",
        "fraction",
        "issue slots in use, of those of active cycles",
        basic=True,
    ),
    Metric(
        "sm__warps_active.avg.pct_of_peak_sustained_active",
        "frac_warps",
        "fraction",
        "warps resident, of the most that fit: achieved occupancy",
        basic=True,
    ),
    Metric("lts__throughput.avg.pct_of_peak_sustained_elapsed", "frac_l2", "fraction", "L2, of its peak"),
    Metric("lts__t_sector_hit_rate.pct", "l2_hit_rate", "fraction", "sectors that were found in the L2"),
    Metric(
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
        "frac_tensor",
        "fraction",
        "tensor cores, of their active cycles",
    ),
    Metric("sm__maximum_warps_per_active_cycle_pct", "occupancy_limit", "fraction", "theoretical occupancy"),
    Metric("launch__grid_size", "programs", "count", "programs of the launch"),
    Metric("launch__registers_per_thread", "registers", "count", "registers of a thread"),
    Metric("smsp__inst_executed.sum", "instructions", "count", "instructions, counted in warps"),
    *(
        Metric(
            f"sm__inst_executed_pipe_{pipe}.sum",
            f"instructions_{pipe}",
            "count",
            f"instructions of the {pipe} pipe, counted in warps",
        )
        for pipe in PIPES
    ),
    *(
        Metric(
            f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio",
            f"stalled_{reason}",
            "count",
            f"warps that wait per issue, reason {reason}",
        )
        for reason in STALL_REASONS
    ),
    # names of the same in profiles that others made
    Metric(
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
        "frac_dram",
        "fraction",
        "DRAM, of its peak",
        collected=False,
    ),
    Metric(
        "sm__issue_active.avg.pct_of_peak_sustained_elapsed",
        "frac_issue",
        "fraction",
        "issue slots in use, of all cycles",
        collected=False,
    ),
)
BASIC_METRICS = tuple(metric.name for metric in ALL if metric.basic)
METRICS = tuple(metric.name for metric in ALL if metric.collected)
COLUMNS = {metric.name: metric.column for metric in ALL}

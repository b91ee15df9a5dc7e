"""The source of a chapter's numbers: measured here, or recorded, and never another GPU's than the one asked for."""

from __future__ import annotations

import pytest
import synthetic

from tinygemm import hardware, runs, source
from tinygemm.runs import RunError, load_run
from tinygemm.source import open_run

SMALL = {"m_list": (1,), "shapes": ((4096, 1024),), "backends": ("fp16-cublas", "int4"), "n_samples": 3}


@pytest.fixture
def root(tmp_path):
    synthetic.write_run(tmp_path, minute="2026-11-23T1412Z", **SMALL)
    synthetic.write_run(tmp_path, minute="2026-11-24T0900Z", **SMALL)
    return tmp_path


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A machine with an A10G on which a recording is a synthetic run; what was asked of it is kept."""
    asked = []

    def record(plan, root, resume=None, command=""):
        asked.append((plan, root, resume, command))
        return synthetic.write_run(root, gpu="a10g", minute="2026-11-25T1000Z", **SMALL)

    from tinygemm.harness import sweep

    monkeypatch.setattr(hardware, "live_gpu_key", lambda: "a10g")
    monkeypatch.setattr(sweep, "record", record)
    monkeypatch.setattr(runs, "git_state", lambda: ("3fa9c1e" + "0" * 33, False))
    return asked


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "live_gpu_key", lambda: None)
    monkeypatch.setattr(hardware, "cuda_unavailable_reason", lambda: "torch sees no CUDA GPU in this machine")


@pytest.mark.parametrize("gpu", ["auto", "h200"])
@pytest.mark.parametrize("wanted", ["auto", "recorded"])
def test_without_a_gpu_the_newest_recorded_run_is_read(root, without_gpu, wanted, gpu):
    assert open_run(wanted, gpu, data_root=str(root)).run_id.startswith("2026-11-24T0900Z")


def test_a_named_run_is_read_instead_of_the_newest(root, measured):
    (older,) = root.glob("h200/2026-11-23*")
    assert open_run(run_dir=str(older), data_root=str(root)).path == older
    assert not measured, "with a run at hand nothing is measured"


def test_with_a_gpu_auto_measures_on_it(root, measured):
    decode = {"m_list": "1", "shapes": "4096,1024", "backends": "fp16-cublas,int4", "suites": "decode"}
    run = open_run(data_root=str(root), **decode, rep=3)
    assert run.gpu["key"] == "a10g"
    ((plan, where, resume, command),) = measured
    assert (where, resume) == (root, None)
    (decode,) = plan.suites
    assert [str(problem) for problem in decode.problems] == ["M1-K4096-N1024-g128"]
    assert decode.rep == 3
    assert command


def test_auto_reads_what_was_recorded_where_another_gpu_is_asked_for(root, measured):
    assert open_run("auto", "h200", data_root=str(root)).gpu["key"] == "h200"
    assert not measured


def test_an_alias_names_a_recorded_gpu_and_the_one_of_this_machine(root, measured):
    """`H200` and `NVIDIA A10G` are how people write them; a parameter file may hold a number."""
    assert open_run("recorded", "H200", data_root=str(root)).gpu["key"] == "h200"
    assert open_run("live", "NVIDIA A10G", data_root=str(root)).gpu["key"] == "a10g"
    with pytest.raises(RunError, match="no recorded run of rtx-4090"):
        open_run("recorded", 4090, data_root=str(root))


def test_recorded_never_measures(root, measured):
    assert open_run("recorded", data_root=str(root)).gpu["key"] == "h200"
    assert not measured


@pytest.mark.parametrize("wanted", ["auto", "recorded"])
def test_a_gpu_that_is_neither_here_nor_recorded_is_one_clear_sentence(root, without_gpu, wanted):
    message = (
        r"no recorded run of a10g in .* \(recorded: h200\) and this machine has no CUDA GPU: "
        r"run this on a machine with that GPU to measure it, or set gpu to one that was recorded"
    )
    with pytest.raises(RunError, match=message):
        open_run(wanted, "a10g", data_root=str(root))


def test_the_gpu_of_this_machine_is_named_where_it_is_another(root, measured):
    with pytest.raises(RunError, match=r"no recorded run of l4 .* and this machine's GPU is a10g"):
        open_run("auto", "l4", data_root=str(root))
    with pytest.raises(RunError, match=r"gpu is h200 and source is live, but this machine's GPU is a10g"):
        open_run("live", "h200", data_root=str(root))
    assert not measured


def test_a_run_of_another_gpu_is_never_shown_under_the_name_that_was_asked_for(root):
    (older,) = root.glob("h200/2026-11-23*")
    with pytest.raises(RunError, match="was measured on h200, not on a10g"):
        open_run(gpu="a10g", run_dir=str(older))
    older.parent.rename(root / "a10g")  # a folder that claims to be the A10G's
    with pytest.raises(RunError, match="was measured on h200, not on a10g"):
        open_run("recorded", "a10g", data_root=str(root))


def test_a_slice_is_never_recorded_or_read_as_the_whole_gpu(root, measured, monkeypatch):
    monkeypatch.setattr(hardware, "live_gpu_key", lambda: "h200-mig-1g-18gb")
    with pytest.raises(RunError, match="gpu is h200 and source is live, but this machine's GPU is h200-mig-1g-18gb"):
        open_run("live", "H200", data_root=str(root))
    assert open_run("auto", "H200", data_root=str(root)).gpu["key"] == "h200", "the whole GPU's run is read"
    with pytest.raises(RunError, match="no recorded run of h200-mig-1g-18gb"):
        open_run("recorded", "NVIDIA H200 MIG 1g.18gb", data_root=str(root))
    assert not measured


def test_live_without_a_gpu_says_why_not(root, without_gpu):
    with pytest.raises(RunError, match="source is live, but torch sees no CUDA GPU in this machine"):
        open_run("live", data_root=str(root))


def test_live_in_a_dirty_tree_is_refused_before_anything_is_measured(root, measured, monkeypatch):
    monkeypatch.setattr(runs, "git_state", lambda: ("3fa9c1e" + "0" * 33, True))
    with pytest.raises(RunError, match=r"uncommitted changes.*commit them or set allow_dirty"):
        open_run("live", data_root=str(root))
    assert not measured
    assert open_run("live", data_root=str(root), allow_dirty=True).gpu["key"] == "a10g"


def test_live_goes_on_with_a_run_of_equal_terms_that_was_interrupted(root, measured):
    from tinygemm.harness.plan import SweepPlan

    plan = SweepPlan.from_parameters(rep=3)
    unfinished = runs.RunWriter.create({"key": "a10g"}, plan.parameters(), "", root)
    open_run("live", data_root=str(root), rep=3)
    assert measured[-1][2] == unfinished.path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "disk"}, "source must be one of auto, live, recorded, got 'disk'"),
        ({"source": "live", "run_dir": "x"}, "give one of the two"),
        ({"source": "live", "rep": 0}, "rep must be an integer of at least 1"),
        ({"source": "live", "reps": 9}, "unknown parameter reps"),
        ({"run_dir": "nowhere"}, r"nowhere is not a recorded run: provenance.json is missing"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(measured, arguments, message):
    with pytest.raises(ValueError, match=message):
        open_run(**arguments)
    assert not measured


def test_a_dirty_run_is_read_only_where_it_is_allowed(tmp_path, without_gpu):
    path = synthetic.write_run(tmp_path, dirty=True, **SMALL)
    with pytest.raises(RunError, match="uncommitted changes"):
        open_run(run_dir=str(path))
    with pytest.raises(RunError, match="no recorded run of any GPU"):
        open_run(data_root=str(tmp_path))
    assert open_run(data_root=str(tmp_path), allow_dirty=True).run_id.endswith("-dirty")


def test_what_started_the_measurement_is_recorded(monkeypatch):
    monkeypatch.setattr(source.sys, "argv", ["record.py", "-f", "a10g.yaml"])
    monkeypatch.delitem(source.sys.modules, "ipykernel", raising=False)
    assert source._command() == "record.py -f a10g.yaml"


@pytest.mark.gpu
def test_a_live_run_is_measured_recorded_and_loaded(tmp_path):
    sweep = {"m_list": "1", "shapes": "4096,1024", "backends": "fp16-cublas,int4", "suites": "decode", "rep": 3}
    sweep["counters"] = False
    run = open_run("live", data_root=str(tmp_path), allow_dirty=True, **sweep)
    assert run.gpu["key"] == hardware.live_gpu_key()
    assert (run.cases["status"] == "ok").all()
    assert load_run(run.path, allow_dirty=True).run_id == run.run_id

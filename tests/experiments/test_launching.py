"""Trainings side by side, and as jobs of SLURM."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from config import parse_config
from experiments import launching
from experiments.launching import Run, TrainingJob, submit_all
from main import main
from reproduce import slurm_options
from tests.helpers import own_code
from tests.helpers.errors import assert_one_line
from tests.helpers.runs import TINY
from tests.helpers.trainings import TINY_NETWORKS
from utils import InputError

ROOT = Path(__file__).parents[2]


def jobs(data: Path, out: Path) -> list[Run]:
    """A run that ends well, and one that fails."""
    flags = ["--data", str(data), "--epochs", "1", "--steps", "1", *TINY]
    return [
        Run("MS-Dual", "given", out / "runs" / "a", [*flags, "--no_guidance"]),
        Run("broken", "given", out / "runs" / "b", [*flags, "--data", str(out / "nowhere")]),
    ]


# ---------------------------------------------------------------- on this machine


def test_trainings_at_the_same_time_have_a_gpu_each(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(launching, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    for slot in range(4):
        launching._start(Run("DAF", "1", tmp_path / str(slot), []), slot, jobs=4)
    assert seen == ["3", "5", "3", "5"]


def test_the_manifest_says_how_a_run_ended(tmp_path):
    (tmp_path / "output.log").write_text("epoch 1/2\nerror: the disk is full\n\n")
    assert launching._last_line(tmp_path / "output.log", 2) == "error: the disk is full"
    killed = "killed by SIGKILL; last line: error: the disk is full"
    assert launching._last_line(tmp_path / "output.log", -9) == killed


def test_a_second_process_is_kept_out(make_data, tmp_path, tiny):
    """The lock is another process's: within one process such locks do not exclude each other."""
    out = tmp_path / "run"
    out.mkdir()
    script = f"import time; from pathlib import Path; from utils import lock_folder; lock_folder(Path({str(out)!r})); "
    with subprocess.Popen(
        [sys.executable, "-c", script + "print('locked', flush=True); time.sleep(60)"], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        flags = ["--data", str(make_data()), "--epochs", "1", *TINY, "--out", str(out)]
        with pytest.raises(InputError, match="another process is at work in it"):
            main(parse_config(flags))
        assert not (out / "config.json").exists()
        process.kill()
    main(parse_config(flags))
    assert (out / "test.json").exists()


def test_a_training_is_main_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Which of its flags does not matter: --help does not wait for PyTorch."""
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "run" / "output.log"
    assert launching._train(["--help"], log, dict(os.environ)).wait() == 0
    assert "Guided multi-scale attention segmentation" in log.read_text()
    assert launching._train(["--lr", "none"], log, dict(os.environ)).wait() == 2


# ---------------------------------------------------------------- SLURM


@pytest.mark.slow
def test_jobs_through_submitit_s_local_executor(make_data, tmp_path, monkeypatch):
    """They are started from another folder, which has code of the user, by processes that know nothing of this one."""
    pytest.importorskip("submitit")
    data = make_data()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", TINY_NETWORKS)
    shutil.copy(own_code.__file__, tmp_path / "code_of_jobs.py")
    runs, manifest = jobs(data, tmp_path), tmp_path / "table" / "manifest.json"
    own = ["--data", str(data), "--epochs", "1", *TINY, "--model", "code_of_jobs:Logits"]
    runs.append(Run("own", "given", Path("runs/c"), own))
    submit_all(runs, manifest, None, {"timeout_min": 5}, cluster="local")
    assert os.environ["PYTHONPATH"] == TINY_NETWORKS
    assert [run.state for run in runs] == ["finished", "failed", "finished"]
    assert "nowhere/train: no such folder" in runs[1].error
    assert [run["state"] for run in json.loads(manifest.read_text())] == ["finished", "failed", "finished"]
    assert (tmp_path / "runs" / "a" / "test.json").exists()


def test_what_slurm_is_asked_for(make_data, tmp_path, monkeypatch):
    """Programs in the place of SLURM's, which keep what they are handed and say that the jobs have failed."""
    pytest.importorskip("submitit")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in {
        "srun": "exit 0",
        "sbatch": f"cp ${{@: -1}} {tmp_path}/batch.sh; env > {tmp_path}/environment; echo Submitted batch job 12",
        "sacct": "echo 'JobID|State|NodeList'; echo '12_0|FAILED|n'; echo '12_1|FAILED|n'",
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    runs, manifest = jobs(make_data(), tmp_path), tmp_path / "table-I" / "manifest.json"
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # else it waits for files of failed jobs
    options = slurm_options("timeout_min=90 gpus_per_node=1 slurm_partition=gpu slurm_signal_delay_s=120")
    submit_all(runs, manifest, 1, options)
    batch = (tmp_path / "batch.sh").read_text()
    for wanted in ("--array=0-1%1", "--time=90", "--gpus-per-node=1", "--partition=gpu", "--signal=USR2@120",
                   "--job-name=table-I", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {wanted}" in batch
    assert [(run.state, run.job) for run in runs] == [("failed", "12_0"), ("failed", "12_1")]
    assert f"PYTHONPATH={ROOT}" in (tmp_path / "environment").read_text().splitlines()
    assert "PYTHONPATH" not in os.environ
    submit_all(runs, manifest, None, options)
    assert "#SBATCH --array=0-1%2" in (tmp_path / "batch.sh").read_text()  # both at once
    with pytest.raises(InputError, match="slurm_color"):
        submit_all(runs, manifest, 2, {"slurm_color": "red"})


def test_without_submitit_or_slurm(make_data, tmp_path, monkeypatch):
    runs = jobs(make_data(), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--slurm: "):
        submit_all(runs, tmp_path / "t" / "manifest.json", 1, {})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="pip install submitit"):
        submit_all(runs, tmp_path / "t" / "manifest.json", 1, {})


@pytest.mark.parametrize(
    "content",
    ["", "null", "[1, 2]", "{}}", "[" * 9999, '{"a": 1}', '[{"folder": "x"}]', '[{"folder": "x", "job": 3}]',
     '[{"folder": "x", "job": "../y"}]', '[{"folder": [], "job": "1"}]'],
)  # fmt: skip
def test_a_damaged_manifest_is_a_line(tmp_path, content):
    """Its jobs may still run; a second one of each would spoil it."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError) as caught:
        launching._read_jobs(tmp_path / "manifest.json")
    assert_one_line(caught.value, "manifest.json: ")
    assert (tmp_path / "manifest.json").read_text() == content


def test_the_manifest_knows_the_jobs_of_its_runs(tmp_path):
    runs = [Run("a", "1", tmp_path / "a", [], job="12_0"), Run("b", "1", tmp_path / "b", [])]
    assert launching._read_jobs(tmp_path / "manifest.json") == {}
    launching._write(runs, tmp_path / "manifest.json")
    assert launching._read_jobs(tmp_path / "manifest.json") == {str(tmp_path / "a"): "12_0", str(tmp_path / "b"): ""}


def test_requeued_jobs_go_on(make_data, tmp_path):
    """A preempted job is put back with the same arguments, which resume."""
    pytest.importorskip("submitit")
    run = jobs(make_data(), tmp_path)[0]
    again = TrainingJob().checkpoint(run.arguments(), run.log)
    assert isinstance(again.function, TrainingJob)
    assert again.args == (run.arguments(), run.log)
    assert "--resume" in run.arguments()


class Ended:
    """A process with this exit code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        """The exit code."""
        return self.code


def test_a_job_goes_on_where_its_training_alone_was_stopped(tmp_path, monkeypatch):
    """SLURM sends SIGTERM to all processes of a job; submitit lets the job go on until it is told to end."""
    codes = [75, 75, 0]
    monkeypatch.setattr(launching, "_train", lambda *_: Ended(codes.pop(0)))
    TrainingJob()(["--resume"], tmp_path / "output.log")
    assert codes == []


def test_a_failed_job_says_why(tmp_path, monkeypatch):
    (tmp_path / "output.log").write_text("epoch 1/2\nerror: the disk is full\n")
    monkeypatch.setattr(launching, "_train", lambda *_: Ended(1))
    with pytest.raises(RuntimeError, match=r"^error: the disk is full$"):
        TrainingJob()(["--resume"], tmp_path / "output.log")

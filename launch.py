"""Many trainings: one after the other, several at a time over the GPUs, or as SLURM jobs. Finished ones are skipped."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from config import OF_THE_DATA, Config, changeable, parse_config, read_run
from utils import InputError, write_json

ROOT = Path(__file__).resolve().parent
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


@dataclass
class Run:
    """One training: a row of a table on one fold."""

    row: str
    fold: str
    folder: Path
    flags: list[str]
    """Of main.py, without --out and --resume."""
    state: str = "waiting"
    """waiting, running, finished, or failed."""
    error: str = ""
    """Of a failed run, the last line of its log."""
    job: str = ""
    """Id of its SLURM job."""

    @property
    def log(self) -> Path:
        return self.folder / "output.log"

    def arguments(self) -> list[str]:
        """The command line of main.py. --resume: what was interrupted goes on, what is new starts."""
        return [*self.flags, "--out", str(self.folder), "--resume"]

    def finished(self) -> bool:
        """Whether it has been trained and scored."""
        return (self.folder / "test.json").exists()


def check(run: Run) -> bool:
    """Whether the folder of `run` holds it with fewer epochs, from which it goes on.

    Raises InputError where it holds a run of other settings, and SystemExit(2) for a wrong flag.
    """
    wanted = parse_config(run.flags)
    before = read_run(run.folder / "config.json")
    if before is None:
        return False
    names = {field.name for field in fields(Config)} - (changeable(before) - {"data"}) - {*OF_THE_DATA}
    changed = [name for name in sorted(names) if getattr(before, name) != getattr(wanted, name)]
    if before.data.resolve() == wanted.data.resolve():
        changed = [name for name in changed if name != "data"]
    difference = ", ".join(f"{name} {getattr(before, name)} -> {getattr(wanted, name)}" for name in changed)
    if before.epochs > wanted.epochs and "epochs" not in changed:
        difference = f"{difference}, " * bool(difference) + f"epochs {before.epochs} -> {wanted.epochs}"
    if difference:
        raise InputError(f"{run.folder}: was trained with other settings ({difference}); choose another --out")
    return before.epochs < wanted.epochs


def run_all(runs: list[Run], manifest: Path, jobs: int) -> None:
    """Train all runs that are not finished, `jobs` at a time; the manifest says at any time how far they are.

    Each process sees one of the visible GPUs. A failure does not stop the others.
    """
    _begin(runs, manifest)
    waiting = [run for run in runs if run.state == "waiting"]
    slots: list[tuple[Run, subprocess.Popen] | None] = [None] * jobs
    try:
        while waiting or any(slots):
            for k, slot in enumerate(slots):
                if slot and slot[1].poll() is not None:
                    _end(slot[0], _last_line(slot[0].log, slot[1].returncode))
                    slots[k] = slot = None
                    _write(runs, manifest)
                if slot is None and waiting:
                    run = waiting.pop(0)
                    slots[k] = run, _start(run, k, jobs)
                    _write(runs, manifest)
            time.sleep(0.1)
    finally:
        for _, process in filter(None, slots):
            process.terminate()


def _start(run: Run, slot: int, jobs: int) -> subprocess.Popen:
    """Start one training, on the GPU of its slot, or with its share of the cores."""
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    else:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    run.state = "running"
    print(f"{run.row}, {run.fold}: {run.folder}", flush=True)
    with run.log.open("a") as log:
        command = [sys.executable, str(ROOT / "main.py"), *run.arguments()]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=_die_with_parent
        )


def _die_with_parent() -> None:
    """Whatever kills this program must also end its trainings, or a second call would meet them."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def visible_gpus() -> list[str]:
    """The GPUs that trainings may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(k) for k in range(torch.cuda.device_count())]


class TrainingJob:
    """What runs on a node of the cluster. submitit requeues it when it is preempted or out of time; it then resumes."""

    def __call__(self, arguments: list[str]) -> None:
        """Train and score: main.py with these arguments."""
        from main import main

        main(parse_config(arguments))

    def checkpoint(self, arguments: list[str]) -> Any:
        """The job to put back into the queue."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, arguments)


def submit_all(runs: list[Run], manifest: Path, jobs: int, options: dict[str, Any], cluster: str = "slurm") -> None:
    """Train all runs that are not finished as an array of SLURM jobs, at most `jobs` at a time, and wait for them.

    `options` are those of submitit's update_parameters (timeout_min, gpus_per_node, slurm_partition, ...). Jobs that an
    earlier call has submitted and that still wait or run are waited for, not submitted again.
    Raises InputError where submitit or SLURM is missing, or an option is unknown.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--slurm needs a library that is not installed: pip install submitit") from None
    folder = manifest.parent / "slurm"
    earlier = {run["folder"]: run["job"] for run in _read(manifest)}
    try:
        # A training of days may need many slots of time; each goes on where the last one ended.
        limits = {"slurm_max_num_timeout": 1000} if cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder, cluster=cluster, **limits)
        executor.update_parameters(**{"name": manifest.parent.name, "slurm_array_parallelism": jobs, **options})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--slurm: {str(error).splitlines()[0]}") from None
    _begin(runs, manifest)
    waiting = [run for run in runs if run.state == "waiting"]
    active = {}
    for run in waiting:
        run.job = earlier.get(str(run.folder), "")
        if run.job and cluster == "slurm":
            job = submitit.SlurmJob(folder, run.job)
            if not job.done():
                active[run.job] = job
    new = [run for run in waiting if run.job not in active]
    # Jobs import this file by name, wherever they are started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if new:
        for run, job in zip(new, executor.map_array(TrainingJob(), [run.arguments() for run in new]), strict=True):
            run.job, active[job.job_id] = job.job_id, job
            print(f"{run.row}, {run.fold}: job {run.job}, {job.paths.stdout}", flush=True)
    for run in waiting:
        run.state = "running"
    _write(runs, manifest)
    for run in waiting:
        try:
            active[run.job].result()  # waits for its end
            _end(run, "")
        except Exception as error:  # of any kind: what the training raised, or that SLURM canceled it
            _end(run, _reason(str(error)))
        _write(runs, manifest)


def _begin(runs: list[Run], manifest: Path) -> None:
    for run in runs:
        run.state = "finished" if run.finished() else "waiting"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    _write(runs, manifest)


def _end(run: Run, last_line: str) -> None:
    run.state, run.error = ("finished", "") if run.finished() else ("failed", last_line or "ended without a message")
    if run.error:
        print(f"{run.row}, {run.fold}: failed: {run.error}", flush=True)


def _write(runs: list[Run], manifest: Path) -> None:
    write_json(manifest, [vars(run) | {"folder": str(run.folder)} for run in runs])


def _read(manifest: Path) -> Iterator[dict[str, Any]]:
    if manifest.exists():
        yield from json.loads(manifest.read_text())


def _reason(report: str) -> str:
    """The line of a submitit report that names the exception of the job; its last line where there is none."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exit|Interrupt|Exception)\b", line)]
    return (named or lines or [""])[-1]


def _last_line(path: Path, code: int) -> str:
    """The last line of a log, after the signal that ended the process, if one did."""
    killed = f"killed by {signal.Signals(-code).name}; last line: " if code < 0 else ""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return killed + (lines[-1].strip() if lines else "nothing")

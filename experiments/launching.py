"""Many trainings: one after the other, several at a time over the GPUs, or as SLURM jobs. Finished ones are skipped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from config import GROUP_OF, OF_THE_DATA, changeable, differences, parse_config, read_run
from utils import InputError, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
STOPPED = (os.EX_TEMPFAIL, -signal.SIGTERM, -signal.SIGUSR1)  # exit codes; the latter before main.py listens


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


def goes_on(run: Run) -> bool:
    """Whether the folder of `run` holds it with fewer epochs, from which it goes on.

    Raises InputError where it holds a run of other settings, and SystemExit(2) for a wrong flag.
    """
    wanted = parse_config(run.flags)
    before = read_run(run.folder / "config.json")
    if before is None:
        return False
    names = GROUP_OF.keys() - (changeable(before) - {"data"}) - OF_THE_DATA
    if before.data.resolve() == wanted.data.resolve():
        names -= {"data"}
    fewer = wanted.optimization.epochs < before.optimization.epochs
    changed = differences(before, wanted, names | {"epochs"} if fewer else names)
    if changed:
        raise InputError(f"{run.folder}: was trained with other settings ({changed}); choose another --out")
    return before.optimization.epochs < wanted.optimization.epochs


def run_all(runs: list[Run], manifest: Path, jobs: int) -> None:
    """Train all runs that are not finished, `jobs` at a time; the manifest says at any time how far they are.

    Each process sees one of the visible GPUs. A failure does not stop the others. SIGINT and SIGTERM let the trainings
    that go on save where they are, and end the program with the exit code EX_TEMPFAIL.
    """
    _begin(runs, manifest)
    waiting = [run for run in runs if run.state == "waiting"]
    slots: dict[int, _Slot] = {}
    try:
        with _ending_signals() as received:
            while (waiting or slots) and not received:
                for k in range(jobs):
                    if k in slots and slots[k].process.poll() is not None:
                        ended = slots.pop(k)
                        _end(ended.run, _last_line(ended.run.log, ended.process.returncode))
                        _write(runs, manifest)
                    if k not in slots and waiting:
                        run = waiting.pop(0)
                        slots[k] = _Slot(run, _start(run, k, jobs))
                        _write(runs, manifest)
                time.sleep(0.1)
    finally:
        _let_save(list(slots.values()))
    if received:
        _begin(runs, manifest)
        print(f"stopped by {received[0]}; the same command goes on from where the trainings are", file=sys.stderr)
        raise SystemExit(os.EX_TEMPFAIL)


@contextlib.contextmanager
def _ending_signals() -> Iterator[list[str]]:
    """The names of the signals SIGINT and SIGTERM that have come in the block."""
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_save(slots: list[_Slot]) -> None:
    """End the trainings that go on, and wait until they have saved."""
    for slot in slots:
        print(f"{slot.run.row}, {slot.run.fold}: saves where it is", flush=True)
        slot.process.terminate()
    for slot in slots:
        slot.process.wait()


class _Slot(NamedTuple):
    """A training that is going on."""

    run: Run
    process: subprocess.Popen


def _start(run: Run, slot: int, jobs: int) -> subprocess.Popen:
    """Start one training, on the GPU of its slot, or with its part of the cores."""
    environment = dict(os.environ)
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    else:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    run.state = "running"
    print(f"{run.row}, {run.fold}: {run.folder}", flush=True)
    return _train(run.arguments(), run.log, environment)


def _train(arguments: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start main.py, whose output goes to the end of `log`; it ends when this process does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    with log.open("a") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, preexec_fn=_follow_parent
        )


def _follow_parent() -> None:
    """Whatever kills this program must also end its trainings, or a second call would meet them."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for this program, which sends SIGTERM to them
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit's, which SLURM sends to every process of a job


def visible_gpus() -> list[str]:
    """The GPUs that trainings may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(k) for k in range(torch.cuda.device_count())]


class TrainingJob:
    """What runs on a node of the cluster. submitit requeues it when it is preempted or out of time; it then resumes."""

    def __call__(self, arguments: list[str], log: Path) -> None:
        """Train and score: main.py with these arguments. Raises RuntimeError with the last line of a failed one."""
        code = _train(arguments, log, dict(os.environ)).wait()
        # SLURM sends SIGTERM to every process of a job. It stops main.py alone: this job ends when submitit says so.
        while code in STOPPED:
            code = _train(arguments, log, dict(os.environ)).wait()
        if code:
            raise RuntimeError(_last_line(log, code))

    def checkpoint(self, arguments: list[str], log: Path) -> Any:
        """The job to put back into the queue."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, arguments, log)


def submit_all(
    runs: list[Run], manifest: Path, jobs: int | None, options: dict[str, Any], cluster: str = "slurm"
) -> None:
    """Train all runs that are not finished as an array of SLURM jobs, at most `jobs` at a time, and wait for them.

    Without `jobs`, the cluster may run all of them at once.

    `options` are those of submitit's update_parameters (timeout_min, gpus_per_node, slurm_partition, ...). Jobs that an
    earlier call has submitted and that still wait or run are waited for, not submitted again.
    Raises InputError where submitit or SLURM is missing, or an option is unknown.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--slurm needs a library that is not installed: pip install submitit") from None
    folder = manifest.parent / "slurm"
    # A training of days may need many slots of time; each goes on where the last one ended.
    limits = {"slurm_max_num_timeout": 1000} if cluster == "slurm" else {}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, **limits)
        at_once = {"slurm_array_parallelism": jobs or max(1, len(runs))}
        executor.update_parameters(**{"name": manifest.parent.name, **at_once, **options})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--slurm: {str(error).splitlines()[0]}") from None
    earlier = _read_jobs(manifest)
    _begin(runs, manifest)
    waiting = [run for run in runs if run.state == "waiting"]
    active = {}
    if cluster == "slurm":
        active = _still_active(waiting, earlier, folder)
    new = [run for run in waiting if run.job not in active]
    if new:
        with _root_on_path():
            jobs_of_new = executor.map_array(TrainingJob(), [run.arguments() for run in new], [run.log for run in new])
        for run, job in zip(new, jobs_of_new, strict=True):
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


@contextlib.contextmanager
def _root_on_path() -> Iterator[None]:
    """Let jobs that are submitted in the block import this file by name, wherever they are started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _still_active(waiting: list[Run], earlier: dict[str, str], folder: Path) -> dict[str, Any]:
    """Id -> job of those that an earlier call has submitted for these runs, and that have not ended."""
    import submitit

    active = {}
    for run in waiting:
        run.job = earlier.get(str(run.folder), "")
        job = submitit.SlurmJob(folder, run.job) if run.job else None
        if job and not job.done():
            active[run.job] = job
    return active


def _begin(runs: list[Run], manifest: Path) -> None:
    for run in runs:
        run.state = "finished" if run.finished() else "waiting"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    _write(runs, manifest)


def _end(run: Run, last_line: str) -> None:
    if run.finished():
        run.state, run.error = "finished", ""
    else:
        run.state, run.error = "failed", last_line or "ended without a message"
        print(f"{run.row}, {run.fold}: failed: {run.error}", flush=True)


def _write(runs: list[Run], manifest: Path) -> None:
    write_json(manifest, [vars(run) | {"folder": str(run.folder)} for run in runs])


def _read_jobs(manifest: Path) -> dict[str, str]:
    """Folder -> id of the SLURM job of each run that an earlier call has submitted; an empty text for none.

    Raises InputError for a damaged manifest: jobs that are not known could run twice.
    """
    if not manifest.exists():
        return {}
    content = read_json(manifest)
    try:
        jobs = {run["folder"]: run["job"] for run in content}
        if all(re.fullmatch(r"([0-9]+(_[0-9]+)?)?", job) for job in jobs.values()):
            return jobs
    except (TypeError, KeyError):
        pass
    raise InputError(f"{manifest}: is damaged; cancel the jobs of this table that wait or run (squeue), and remove it")


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

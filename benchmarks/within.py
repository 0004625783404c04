"""The paper's setting and the modern recipe in a given time: `python -m benchmarks.within DIR --limit 360 --out OUT`.

Two epochs and a test show how long they take; then as many epochs are trained as the time holds, with the schedule
scaled to them, and the test subjects are scored. The same command again goes on with what it has planned. Writes
table.md, and log.csv and test.json of each run, to OUT; runs stay in --work.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"paper": 0.6, "modern": 0.4}  # preset -> its part of the time
PLATEAU = 50 / 500  # the paper's schedule: of its epochs, those without a better score after which the rate falls
SPARE = 1.15  # for what takes longer than it was measured to
TINY = ["--backbone", "resnet18", "--steps", "1", "--device", "cpu", "--batch_size", "2"]


def train(folder: Path, flags: list[str], deadline: float) -> None:
    """Run main.py, or go on with it; at the deadline it gets the signal by which it saves and ends."""
    command = [sys.executable, "main.py", *flags, "--out", str(folder), "--resume"]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        process.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()


def epoch_seconds(folder: Path) -> list[float]:
    """What each epoch of a run took, with its validation."""
    with (folder / "log.csv").open(newline="") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def plan(preset: str, flags: list[str], work: Path, seconds: float, most: int) -> list[str]:
    """The flags of a run of as many epochs as the time holds, `most` at most; an earlier call's if there was one."""
    path = work / f"{preset}.json"
    if not path.exists():
        began = time.monotonic()
        probe = work / f"{preset}-probe"
        train(probe, [*flags, "--epochs", "2"], began + seconds)
        if not (probe / "test.json").exists():
            raise SystemExit("two epochs and a test take longer than this; give a larger --limit")
        took = time.monotonic() - began
        epochs = epoch_seconds(probe)
        around = took - sum(epochs)  # the start of the program, and the test
        left = seconds - took - SPARE * around
        count = min(most, max(2, int(left / (SPARE * max(epochs[-1], 0.1)))))  # the first epoch also sets everything up
        schedule = ["--plateau_epochs", str(max(1, round(PLATEAU * count)))] if preset == "paper" else []
        path.write_text(json.dumps([*flags, "--epochs", str(count), *schedule]))
    return json.loads(path.read_text())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=float, default=360, help="seconds in all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=Path("runs/within"), help="folder of the runs")
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU, three epochs at most")
    options = parser.parse_args(arguments)
    data, work, began = options.data.resolve(), options.work.resolve(), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    finished = []
    deadline = began
    for preset, part in PARTS.items():
        deadline += part * options.limit
        flags = ["--preset", preset, "--data", str(data), *(TINY if options.tiny else [])]
        planned = plan(preset, flags, work, deadline - time.monotonic(), 3 if options.tiny else 500)
        train(work / preset, planned, deadline)
        for name in ("log.csv", "test.json"):
            if (work / preset / name).exists():
                shutil.copy(work / preset / name, options.out / f"{preset}-{name}")
        if (work / preset / "test.json").exists():
            finished.append(str(work / preset))
    if not finished:
        raise SystemExit("no run has ended in time; the same command with a larger --limit goes on")
    compare = [sys.executable, "reproduce.py", "compare", *reversed(finished), "--out", str(work / "compared")]
    subprocess.run(compare, cwd=ROOT, check=True)
    shutil.copy(work / "compared" / "table.md", options.out / "table.md")


if __name__ == "__main__":
    main()

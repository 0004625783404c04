"""Long runs: python -m tests.helpers.soak [EPOCHS] trains on the sample at tiny size, and watches memory and files."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.processes import command, ended, start

ON_CPU = ["--device", "cpu", "--amp", "off"]
SMALL = ["--backbone", "resnet18", "--steps", "1", "--no_guidance"]


def shrink(sample: Path, out: Path) -> None:
    """One slice in twelve of the sample, at half its size."""
    for path in sorted(sample.glob("*/*/*.png")):
        if int(path.stem.rpartition("_")[2]) % 12 == 0:
            target = out / path.relative_to(sample)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(Image.open(path))[::2, ::2]).save(target)


def soak(folder: Path, epochs: int, network: list[str]) -> dict[str, Any]:
    """Train; return resident memory (MiB) and open files after each epoch, and the growth after the first third."""
    shrink(Path(__file__).parents[2] / "dataset", folder / "data")
    flags = ["--data", str(folder / "data"), "--out", str(folder / "run"), "--epochs", str(epochs)]
    process = start(command, [*flags, *ON_CPU, *network], output=folder / "output.log")
    proc, log = Path(f"/proc/{process.pid}"), folder / "run" / "log.csv"
    memory, files, seen = [], [], 0
    while process.exitcode is None:
        done = len(log.read_text().splitlines()) - 1 if log.exists() else 0
        if done > seen:
            seen = done
            try:
                memory.append(int((proc / "statm").read_text().split()[1]) * 4096 / 2**20)
                files.append(len(list((proc / "fd").iterdir())))
            except OSError:  # it has just ended
                break
        time.sleep(0.02)
    if ended(process):
        raise RuntimeError((folder / "output.log").read_text())
    third = len(memory) // 3
    growth = np.median(memory[-third:]) - np.median(memory[third : 2 * third])
    return {"memory_mib": memory, "files": files[1:], "growth_mib": float(growth)}


if __name__ == "__main__":
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), epochs, SMALL)
    print(json.dumps({"epochs": epochs, "growth_mib": round(result["growth_mib"], 1),
                      "memory_mib": [round(m) for m in result["memory_mib"][:: max(1, epochs // 20)]],
                      "open_files": sorted(set(result["files"]))}))  # fmt: skip

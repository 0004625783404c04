"""What a result depends on besides its configuration: code, command, versions, processor, precision."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import scipy
import torch

from training.device import Machine, device_name
from training.distributed import world_size

ROOT = Path(__file__).resolve().parents[1]


def environment(machine: Machine | None = None) -> dict[str, str]:
    """What this process is made of, as test.json keeps it; the precision is that of networks on `machine`, if any."""
    commit, changed = code_version(ROOT)
    found = {
        "commit": commit,
        "changed since": changed,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    if machine is not None:
        found |= {"device": device_name(machine.device), "precision": machine.precision}
        found["processes"] = str(world_size())
    return found | {
        "processor": processor_name(),
        "CPU cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "system": f"{platform.system()} {platform.release()}",
    }


def code_version(root: Path) -> tuple[str, str]:
    """The git commit of the code in `root`, and whether Python files are others since: "yes" or "no"; else "unknown".

    Python files in `root` that git does not know count, such as that of a network of one's own.
    """
    top_and_commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
    if len(top_and_commit) != 2 or Path(top_and_commit[0]).resolve() != root.resolve():
        return "unknown", "unknown"  # no checkout, or a copy inside of another one
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", "*.py")
    return top_and_commit[1], "yes" if changes else "no"


def _git(root: Path, *arguments: str) -> str:
    """What git prints; nothing where it is missing or fails."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor_name() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""Runs of main.py on tiny data, and comparisons of their folders."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from config import parse_config
from main import main
from training.checkpoint import load_checkpoint

ON_CPU = ["--device", "cpu", "--amp", "off", "--workers", "0"]
TINY = [*ON_CPU, "--model", "tiny", "--batch_size", "2"]  # see tests/helpers/networks.py


def arguments(data: Path, out: Path, *flags: str) -> list[str]:
    """The command line of a run that starts, or goes on, with the tiny network for three epochs."""
    return ["--data", str(data), "--out", str(out), *TINY, "--epochs", "3", *flags, "--resume"]


def run(data: Path, out: Path, *flags: str) -> Path:
    """Run `arguments` in this process; return its folder."""
    main(parse_config(arguments(data, out, *flags)))
    return out


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_flags(flags: list[str]) -> None:
    """Run main.py with these flags in this process, or go on with it."""
    main(parse_config([*flags, "--resume"]))


def timeless(rows: list[dict]) -> list[dict]:
    """Rows of a log without what differs from run to run."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "memory_gib")} for row in rows]


def same_result(first: Path, second: Path) -> None:
    """Weights, optimizer, log and scores are the same, bit for bit."""
    before, after = (load_checkpoint(folder / "last.pt") for folder in (first, second))
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    optimizers = (checkpoint["optimization"]["optimizer"] for checkpoint in (before, after))
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)
    assert after["optimization"]["schedule"] == before["optimization"]["schedule"]
    assert after["data"] == before["data"]
    for part in ("epoch", "best"):
        assert after["progress"][part] == before["progress"][part]
    assert timeless(after["progress"]["log"]) == timeless(before["progress"]["log"])
    for name in ("log.csv", "test.csv"):
        rows = [timeless(read_csv(folder / name)) for folder in (first, second)]
        assert rows[0] == rows[1]
    best = [load_checkpoint(folder / "best.pt")["model"] for folder in (first, second)]
    torch.testing.assert_close(*best, rtol=0, atol=0)

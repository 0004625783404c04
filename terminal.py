"""What a training says in the terminal: a summary when it starts, and a line for each epoch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch

from config import Config
from data.folder import DataFolder
from utils import duration


def start_up(config: Config, data: DataFolder, facts: dict[str, str]) -> str:
    """What is trained on what, in lines of at most 80 columns; `facts` are more rows, title -> text."""
    channels = f"{data.channels} channel" + "s" * (data.channels > 1)
    splits = (
        f"{name} {len(data.dataset(name).subjects())} subjects, {len(slices)} slices"
        for name, slices in data.splits.items()
    )
    rows = {
        "data": f"{config.data}: {channels}, slices of up to {data.size[0]} x {data.size[1]} pixels",
        "": "; ".join(splits),
        "classes": f"{len(data.labels.names)}: {', '.join(data.labels.names)}",
        **facts,
    }
    return "\n".join(line(title, text) for title, text in rows.items())


def line(title: str, text: str) -> str:
    """A row of the summary."""
    return textwrap.fill(text, 80, initial_indent=f"{title:9}", subsequent_indent=" " * 9, break_on_hyphens=False)


def device_name(device: torch.device, bfloat16: bool, processes: int) -> str:
    """Where and in which precision it trains."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    together = f", {processes} processes" if processes > 1 else ""
    return f"{device.type} ({name}), {'bfloat16' if bfloat16 else 'float32'}{together}"


def epoch_line(log: Sequence[dict[str, Any]], best: float, epochs: int) -> str:
    """The last epoch of a log, the best validation Dice so far, and the time that the rest will take."""
    row, recent = log[-1], [row["seconds"] for row in log[-5:]]
    left = (epochs - row["epoch"]) * sum(recent) / len(recent)
    number = f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
    score = f"val DSC {100 * row['val_dsc']:5.2f} (best {100 * best:5.2f})"
    time = duration(row["seconds"]) + f", {duration(left)} left" * (left > 0)
    return f"{number}  loss {row['total']:6.3f}  {score}  lr {row['lr']:.1e}  {time}"

"""What a training says in the terminal: a summary when it starts, and a line for each epoch."""

from __future__ import annotations

import textwrap

from torch import nn

from config import PRESETS, Config
from data.folder import DataFolder
from models import describe_network, unused_options
from training.device import Machine, device_name
from training.memory import MemoryBudget
from training.run import Progress, Run
from utils import duration


def introduce(run: Run, data: DataFolder, machine: Machine, budget: MemoryBudget) -> None:
    """Print what is trained on what, what is worth a note, and whether the memory may not suffice."""
    print(summary(run, data, machine, budget))
    for note in (*data.notes, *idle_flags(run.config)):
        print(f"note: {note}")
    if budget.needed > budget.available:
        print(f"warning: the memory may not suffice; {budget.advice()}")


def summary(run: Run, data: DataFolder, machine: Machine, budget: MemoryBudget) -> str:
    """What is trained on what, in lines of at most 80 columns."""
    resumed = f" (resumed {run.resumed})" if run.resumed else ""
    together = f", {budget.processes} processes" if budget.processes > 1 else ""
    needed, available = (bytes / 2**30 for bytes in (budget.needed, budget.available))
    rows = describe_data(data) | {
        "network": f"{describe_network(run.config.network)}, {count_parameters(run.network):,} parameters",
        "device": f"{device_name(machine.device)}, {machine.precision}{together}",
        "memory": f"a training step takes about {needed:.1f} GiB; {available:.1f} GiB are free",
        "results": f"{run.folder}{resumed}",
    }
    rows["data"] = f"{run.config.data}: {rows['data']}"
    if choices := describe_choices(run.config):
        rows["choices"] = choices
    return "\n".join(line(title, text) for title, text in rows.items())


def describe_data(data: DataFolder) -> dict[str, str]:
    """Rows of the summary: slices, splits, classes."""
    channels = "1 channel" if data.channels == 1 else f"{data.channels} channels"
    if data.channel_names:
        channels += f" ({', '.join(data.channel_names)})"
    splits = []
    for name, slices in data.splits.items():
        subjects = {item.subject for item in slices}
        splits.append(f"{name} {len(subjects)} subjects, {len(slices)} slices")
    return {
        "data": f"{channels}, slices of up to {data.size[0]} x {data.size[1]} pixels",
        "": "; ".join(splits),
        "classes": f"{len(data.labels.names)}: {', '.join(data.labels.names)}",
    }


def describe_choices(config: Config) -> str:
    """The settings that are wrong for some data, where they are on; an empty text for none."""
    parts, flips = [], config.augmentation.flip_probability
    if flips:
        parts.append(f"training slices are flipped, which exchanges left and right (--flip_probability {flips:g})")
    if config.evaluation.largest_component:
        parts.append("each class keeps only its largest piece (--largest_component)")
    return "; ".join(parts)


def line(title: str, text: str) -> str:
    """A row of the summary."""
    return textwrap.fill(text, 80, initial_indent=f"{title:9}", subsequent_indent=" " * 9, break_on_hyphens=False)


def count_parameters(network: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def idle_flags(config: Config) -> list[str]:
    """Lines on flags that were given and do nothing."""
    network = config.network
    guided = network.model == "ms_dual_guided" and network.guidance
    unused = unused_options(network)
    if not guided:
        unused |= {"beta", "gamma"}
    reason = f"not of --model {network.model}"
    if network.model == "ms_dual_guided":
        reason = "only with --guidance"
    lines = [_idle(config, unused, reason)]
    if config.optimization.schedule == "one_cycle":
        lines.append(_idle(config, {"plateau_epochs", "plateau_factor"}, "only with --schedule plateau"))
    return [text for text in lines if text]


def _idle(config: Config, unused: set[str], reason: str) -> str:
    """The line on those of the flags `unused` that differ from the preset's; an empty text for none."""
    values, preset = config.values(), PRESETS[config.preset].values()
    flags = [f"--{name}" for name in values if name in unused and values[name] != preset[name]]
    return f"{', '.join(flags)} without effect: {reason}" if flags else ""


def epoch_line(progress: Progress, epochs: int) -> str:
    """The epoch before, the best validation Dice so far, and the time that the rest of `epochs` will take."""
    row, recent = progress.log[-1], [row["seconds"] for row in progress.log[-5:]]
    left = (epochs - row["epoch"]) * sum(recent) / len(recent)
    number = f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"
    score = f"val DSC {100 * row['val_dsc']:5.2f} (best {100 * progress.best:5.2f})"
    time = duration(row["seconds"])
    if left > 0:
        time += f", {duration(left)} left"
    return f"{number}  loss {row['total']:6.3f}  {score}  lr {row['lr']:.1e}  {time}"

"""What a training says in the terminal: a summary when it starts, and a line for each epoch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from config import PRESETS, Config
from data.description import Labels
from data.folder import DataFolder
from models import count_parameters, describe_network, is_own, unused_options
from training.device import Machine, device_name
from training.distributed import world_size
from training.memory import MemoryBudget
from training.run import Progress, Run
from utils import counted, duration


def introduce(run: Run, data: DataFolder, machine: Machine, budget: MemoryBudget) -> None:
    """Print what is trained on what, what is worth a note, and whether the memory may not suffice."""
    print(summary(run, data, machine, budget))
    for note in (*data.notes, *idle_flags(run.config), *notes_on_weights(run)):
        print(f"note: {note}")
    if budget.needed is not None and budget.needed > budget.available:
        print(f"warning: the memory may not suffice; {budget.advice()}")


def summary(run: Run, data: DataFolder, machine: Machine, budget: MemoryBudget) -> str:
    """What is trained on what, in lines of at most 80 columns."""
    resumed = f" (resumed {run.resumed})" if run.resumed else ""
    together = f", {budget.processes} processes" if budget.processes > 1 else ""
    needed = "an unknown amount" if budget.needed is None else f"about {budget.needed / 2**30:.1f} GiB"
    rows = describe_data(data) | {
        "network": f"{describe_network(run.config.network)}, {count_parameters(run.network):,} parameters",
        "device": f"{device_name(machine.device)}, {machine.precision}{together}",
        "memory": f"an iteration takes {needed}; {budget.available / 2**30:.1f} GiB are free",
        "results": f"{run.folder}{resumed}",
    }
    rows["data"] = f"{run.config.data}: {rows['data']}"
    if choices := describe_choices(run.config, data.labels):
        rows["choices"] = choices
    lines = [line(title, text) for title, text in rows.items()]
    if run.transfer:
        lines += [line("" if k else "weights", text) for k, text in enumerate(run.transfer.lines)]
    return "\n".join(lines)


def notes_on_weights(run: Run) -> list[str]:
    """Lines on weights that a training starts from, and on a backbone that stays as it is without any."""
    notes = list(run.transfer.notes) if run.transfer else []
    options, pretrained = run.config.optimization, run.config.network.pretrained != "none"
    if options.freeze_backbone and not run.resumed and not pretrained:
        frozen = {id(weight) for weight in run.network.backbone.parameters()}
        weights = [name for name, weight in run.network.named_parameters() if id(weight) in frozen]
        random = [name for name in weights if run.transfer is None or name in run.transfer.new]
        if random:
            notes.append(
                f"--freeze_backbone keeps random weights in {len(random)} of {len(weights)} tensors of the backbone, "
                f"such as {random[0]}; give --pretrained, or an --init whose backbone fits"
            )
    return notes


def describe_data(data: DataFolder) -> dict[str, str]:
    """Rows of the summary: slices, splits, classes."""
    channels = counted(data.channels, "channel")
    if data.channel_names:
        channels += f" ({', '.join(data.channel_names)})"
    splits = []
    for name, slices in data.splits.items():
        subjects = {item.subject for item in slices}
        splits.append(f"{name} {counted(len(subjects), 'subject')}, {counted(len(slices), 'slice')}")
    return {
        "data": f"{channels}, slices of up to {data.size[1]} x {data.size[0]} pixels",
        "": "; ".join(splits),
        "classes": f"{len(data.labels.names)}: {', '.join(data.labels.names)}",
    }


def describe_choices(config: Config, labels: Labels) -> str:
    """The settings that are wrong for some data, where they are on; an empty text for none."""
    parts, flips = [], config.augmentation.flip_probability
    if flips:
        parts.append(f"training slices are flipped, which exchanges left and right (--flip_probability {flips:g})")
    if flips and labels.mirror:
        parts[-1] += f", and with them the classes {', '.join(map(' and '.join, labels.mirror))}"
    elif flips and (pairs := _sides(labels.names)):
        parts[-1] += f', but not the classes that are called so (--mirror "{", ".join(map("=".join, pairs))}" does)'
    if config.evaluation.largest_component:
        parts.append("each class keeps only its largest piece (--largest_component)")
    return "; ".join(parts)


def _sides(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of classes whose names differ in right and left alone."""
    of_right = {name.lower().replace("right", "left"): name for name in names if "right" in name.lower()}
    return [(of_right[name.lower()], name) for name in names if name.lower() in of_right]


def line(title: str, text: str) -> str:
    """A row of the summary."""
    return textwrap.fill(text, 80, initial_indent=f"{title:9}", subsequent_indent=" " * 9, break_on_hyphens=False)


def idle_flags(config: Config) -> list[str]:
    """Lines on flags that were given and do nothing."""
    network = config.network
    ours = network.model == "ms_dual_guided"
    guided = ours and network.guidance
    of_guidance = {"encoder_decoder", "neutral_guide", "semantic_channels", "norm_by_scale", "beta", "gamma"}
    of_semantic_module = {"semantic_channels", "norm_by_scale", "gamma"}
    of_others = unused_options(network) | (set() if ours or is_own(network.model) else {"beta", "gamma"})
    plateau = {"plateau_epochs", "plateau_factor"}
    augmentation = config.augmentation
    cases = [
        (True, of_others, f"not of --model {network.model}"),
        (ours and not guided, of_guidance, "only with --guidance"),
        (guided and not network.encoder_decoder, of_semantic_module, "only with --encoder_decoder"),
        (guided and network.steps == 1, {"beta"}, "only with two or more --steps"),
        (ours and not network.position_attention, {"key_pooling"}, "only with --position_attention"),
        (network.model in ("daf", "daf_pam"), {"variant"}, "only with channel attention or guidance"),
        (config.optimization.schedule != "plateau", plateau, "only with --schedule plateau"),
        (not augmentation.flip_probability, {"mirror", "mirror_axis"}, "only with flips"),
        (not augmentation.rotation_probability, {"rotation_degrees"}, "only with --rotation_probability"),
        (world_size() == 1, {"sync_batch_norm"}, "only with several processes"),
    ]
    lines = [_idle(config, fields, reason) for holds, fields, reason in cases if holds]
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
    score = f"val DSC {100 * row['val_dsc']:5.2f}"
    if progress.best >= 0:  # there was a score
        score += f" (best {100 * progress.best:5.2f})"
    time = duration(row["seconds"])
    if left > 0:
        time += f", {duration(left)} left"
    return f"{number}  loss {row['total']:6.3f}  {score}  lr {row['lr']:.1e}  {time}"

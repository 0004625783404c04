"""Start from weights: a network takes over what fits of a file, whatever that was trained for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import Config
from data.folder import Identity
from models import build_model
from training.checkpoint import content_of
from training.pretrained import read_tensors
from utils import InputError, OptionError, changes, printable, some

NESTED = ("model", "state_dict", "model_state_dict")  # where the weights lie in files that hold more than these
WRAPPERS = re.compile(r"^((module|model|network|net|_orig_mod)\.)+")


@dataclass(frozen=True)
class Transfer:
    """What a network has taken over from a file."""

    lines: tuple[str, ...]
    """How many tensors fit; then those that do not, a line for each reason."""
    notes: tuple[str, ...]
    """In what else the data differ from those that the file was trained on."""
    new: frozenset[str]
    """Names of the network's tensors that start anew."""


def start_from(path: Path, network: nn.Module, config: Config, identity: Identity) -> Transfer:
    """Give `network` the tensors of a file that have the names, shapes and kinds of its own, and finite values.

    The file is a checkpoint of main.py, or any state dict (`read_tensors`), alone or in a dictionary (`NESTED`).
    Of a checkpoint for other classes than those of `identity`, no tensor is taken whose shape depends on their number.
    Raises InputError where no weight fits, and as `read_tensors` does.
    """
    content = read_tensors(path)
    before = None
    if {"model", "config", "data"} <= content.keys():
        with content_of(path):
            before = Identity.from_dict(content["data"])
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    stored = _with_names_of(own, _tensors_of(content))
    if not stored:
        raise InputError(f"{path}: holds no state dict, neither alone nor under {', '.join(NESTED)}; save it so")
    reasons = {name: _misfit(name, stored.get(name), value) for name, value in own.items()}
    heads = _heads(own, config)
    if before is not None and before.labels.names != identity.labels.names:
        if not heads and len(before.labels.names) == len(identity.labels.names):
            raise InputError(
                f"{path}: was trained for other classes, and which of its tensors depend on them cannot be found, as "
                f"{config.network.model} takes no other number of classes; train without this file"
            )
        reasons |= dict.fromkeys(heads & stored.keys(), "of other classes")
    taken = [name for name in own if not reasons[name]]
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    weights = sum(sizes.get(name, 0) for name in taken)
    if weights == 0:
        raise InputError(
            f"{path}: none of its {len(stored)} tensors fits the weights of this network; choose a file of this "
            "--model, or give that of a backbone alone as --pretrained"
        )
    for name in taken:
        own[name].copy_(stored[name])
    count = f"{len(taken)} of {len(own)} tensors, {weights:,} of {sum(sizes.values()):,} parameters"
    lines = [f"{count}, are those of {path}", *_describe_new(reasons, own, stored)]
    left = [name for name in stored if name not in own]
    if left:
        lines.append(f"only in the file: {_grouped(left)}")
    kept = [name for name in taken if name in heads]
    if kept and before is None:
        lines.append(f"kept, though the file does not say of which classes they are: {_grouped(kept)}")
    notes = _other_data(path, before, identity) if before is not None else ()
    return Transfer(tuple(lines), notes, frozenset(own.keys() - set(taken)))


def _tensors_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file."""
    nested = (content[key] for key in NESTED if isinstance(content.get(key), dict))
    for candidate in (*nested, content):
        tensors = {name: value for name, value in candidate.items() if isinstance(value, Tensor)}
        if tensors:
            return {name: value for name, value in tensors.items() if isinstance(name, str)}
    return {}


def _with_names_of(own: Iterable[str], stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of `own`, where more of them fit if wrappers (`WRAPPERS`) are left out of the names."""
    bare = {WRAPPERS.sub("", name): name for name in own}
    renamed = {bare.get(WRAPPERS.sub("", name), name): value for name, value in stored.items()}
    unique = len(bare) == len(own) and len(renamed) == len(stored)
    better = len(renamed.keys() & own) > len(stored.keys() & own)
    return renamed if unique and better else stored


def _misfit(name: str, stored: Tensor | None, own: Tensor) -> str:
    """Why a tensor is not taken; an empty text where it fits."""
    if stored is None:
        return "missing in the file"
    if stored.shape != own.shape:
        return "of another shape"
    if stored.dtype != own.dtype and not (stored.is_floating_point() and own.is_floating_point()):
        return "of another type"
    finite = stored.to(own.dtype).isfinite().all()
    if not finite or (name.endswith("running_var") and (stored < 0).any()):
        return "with values that are not finite, or variances below 0"
    return ""


def _heads(own: dict[str, Tensor], config: Config) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes; none of a network with a fixed number."""
    more = config.change(classes=config.network.classes + 1)
    try:
        with torch.random.fork_rng(devices=[]):
            other = build_model(more).state_dict()
    except OptionError:
        return set()
    return {name for name, value in own.items() if name not in other or other[name].shape != value.shape}


def _describe_new(reasons: dict[str, str], own: dict[str, Tensor], stored: dict[str, Tensor]) -> list[str]:
    """A line for each reason, with the tensors that start anew."""
    lines = []
    for reason in sorted({*reasons.values()} - {""}):
        names = [name for name in own if reasons[name] == reason]
        text = f"new, as {reason}: {_grouped(names)}"
        if reason == "of another shape":
            largest = max(names, key=lambda name: own[name].numel())
            text += f"; {largest} is {tuple(stored[largest].shape)} in the file and {tuple(own[largest].shape)} here"
        lines.append(text)
    return lines


def _grouped(names: Iterable[str]) -> str:
    """Tensors by the first parts of their names: "raw_heads (8), reduce.0.0.weight"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(WRAPPERS.sub("", name).partition(".")[0], []).append(name)
    parts = [group[0] if len(group) == 1 else f"{first} ({len(group)})" for first, group in groups.items()]
    return some([printable(part[:60]) for part in parts])


def _other_data(path: Path, before: Identity, identity: Identity) -> tuple[str, ...]:
    """Lines on channels and preparation, where those of a checkpoint are known to be others."""
    notes = []
    if before.channels and identity.channels and before.channels != identity.channels:
        notes.append(f"{path} was trained on the channels {some(before.channels)}; here are {some(identity.channels)}")
    if before.preparation and identity.preparation:
        changed = changes(before.preparation.to_dict(), identity.preparation.to_dict())
        if changed:
            notes.append(f"{path} was trained on scans that were prepared otherwise ({changed})")
    return tuple(notes)

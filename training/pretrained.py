"""Weights that a backbone starts from: those of its library, or of a file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from models import Network
from training.checkpoint import load_checkpoint
from utils import InputError, OptionError


def start_from_pretrained(network: Network, source: str) -> None:
    """Load what --pretrained names: "none", "imagenet", or a file with a state dict of the backbone's library.

    Raises OptionError, or InputError with the file's name, where they cannot be had or do not fit.
    """
    if source == "none":
        return
    if source == "imagenet":
        network.load_pretrained()
        return
    weights = read_tensors(Path(source))
    try:
        network.load_pretrained(weights)
    except ValueError as error:
        raise OptionError(f"pretrained {source}: {error}; give a state dict of this backbone") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What torch.save wrote, or safetensors (.safetensors). Runs no code. Raises InputError for any other file."""
    if path.suffix != ".safetensors":
        return load_checkpoint(path, foreign=True)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"{path}: needs a library that is not installed: pip install safetensors") from None
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{path}: no file of safetensors, or damaged ({error})") from None

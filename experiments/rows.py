"""What each row of the paper's tables is: the flags of main.py that make it; and rows of one's own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

from config import GROUP_OF
from utils import OptionError

# Flags of main.py that make each row of the paper's tables. "MS-Dual" and "MS-Dual-Guided" have two steps.
ROWS = {
    "U-Net": ["--model", "unet"],
    "Attention U-Net": ["--model", "attention_unet"],
    "DANet": ["--model", "danet", "--backbone", "resnet101"],
    "PAN (ResNet-34)": ["--model", "pan", "--backbone", "resnet34"],
    "PAN (ResNet-101)": ["--model", "pan", "--backbone", "resnet101"],
    "DAF": ["--model", "daf"],
    "PAM": ["--model", "daf_pam"],
    "CAM": ["--model", "daf_cam"],
    "DANet-step": ["--model", "daf_dual"],
}
# What a row of the paper is, whatever the preset: flags that no call may give to all rows.
PAPER_NETWORK = {
    "guidance": True,
    "deep_supervision": True,
    "encoder_decoder": True,
    "position_attention": True,
    "channel_attention": True,
    "fine_decoder": False,
    "neutral_guide": False,
    "norm_by_scale": False,
    "scales": "quarter",
    "key_pooling": 1,
    "semantic_channels": 256,
}
OF_ROWS = {"model", "steps", *PAPER_NETWORK}
OF_RUNS = {"data", "out", "resume", "split_file"}  # fields that each run has of its own


def flags_of(values: dict[str, bool | int | str]) -> list[str]:
    """Field -> value as flags of main.py: --guidance or --no_guidance, --scales quarter."""
    flags = []
    for name, value in values.items():
        flags += [f"--{name}" if value else f"--no_{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return flags


def _rows_of(steps: int) -> dict[str, list[str]]:
    """The rows of the paper's network with so many steps."""
    title = "1 step" if steps == 1 else f"{steps} steps"
    ending = "" if steps == 2 else f" ({title})"
    whole = ["--model", "ms_dual_guided", "--steps", str(steps), *flags_of(PAPER_NETWORK)]
    return {
        f"MS-Dual{ending}": [*whole, "--no_guidance"],
        f"MS-Dual-Guided{ending}": whole,
        f"w/o deep supervision ({title})": [*whole, "--no_deep_supervision"],
        f"w/o encoder-decoder ({title})": [*whole, "--no_encoder_decoder"],
    }


ROWS |= _rows_of(1) | _rows_of(2) | _rows_of(3) | _rows_of(5)


def slug(name: str) -> str:
    """A row's name as a folder: "PAN (ResNet-34)" -> "pan-resnet-34"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def own_rows(texts: Sequence[str], of_runs: Collection[str]) -> dict[str, list[str]]:
    """ "NAME: --flag value ..." -> name and flags of main.py.

    Raises InputError for names whose folders would be those of other rows, and for flags that each run has of its own:
    `of_runs`, by the names of their fields.
    """
    rows: dict[str, list[str]] = {}
    taken = {slug(name): name for name in ROWS}
    for text in texts:
        name, colon, rest = (part.strip() for part in text.partition(":"))
        if not colon or not slug(name) or name.startswith("-"):
            raise OptionError(f'row {text}: must be "NAME: FLAGS", such as "Mine: --model unet --backbone resnet18"')
        if slug(name) in taken:
            raise OptionError(f"row {name}: is called as the row {taken[slug(name)]}; give it another name")
        try:
            rows[name] = shlex.split(rest)
        except ValueError as error:
            raise OptionError(f"row {name}: {error}; write its flags as on a command line") from None
        taken[slug(name)] = name
        for flag in rows[name]:
            if flag.startswith("--") and (field_of(flag) in of_runs or field_of(flag) not in GROUP_OF):
                raise OptionError(f"row {name}: {flag} is no flag of main.py that a row may have")
    return rows


def field_of(flag: str) -> str:
    """The field that a flag of main.py sets: "--no-guidance" -> "guidance"."""
    return flag.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")

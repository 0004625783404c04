"""Names of image channels, and what names of files say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from utils import InputError


def pattern_names(patterns: Sequence[str]) -> tuple[str, ...]:
    """What the words of each pattern add to those that all have: flair and t1 for {subject}_flair.nii.gz and so on.

    No names for a single pattern, or where words do not tell the patterns apart.
    """
    words = [[word for word in _words(pattern) if word not in ("subject", "nii", "gz")] for pattern in patterns]
    shared = set(words[0]).intersection(*words[1:])
    names = ["_".join(word for word in of_pattern if word not in shared) for of_pattern in words]
    if not all(names):
        names = ["_".join(of_pattern) for of_pattern in words]
    distinct = len(patterns) > 1 and all(names) and len(set(names)) == len(names)
    return tuple(names) if distinct else ()


def check_order(files: Sequence[Path], names: Sequence[str]) -> None:
    """Raises InputError where the names of a scan's files, one a channel, say another order than that of the channels.

    They say it by the words of the channels' `names`, or, as nnU-Net does, by a number at their end: SCAN_0000, ...
    """
    if len(files) == 1:
        return
    said = []
    for words in _words_that_differ(files):
        said.append([name for name in names if words.issuperset(_words(name))])
    if said != [said[0]] * len(said) and len(files) == len(names):
        for file, own, found in zip(files, names, said, strict=True):
            if found and own not in found:
                raise InputError(
                    f"{file}: is channel {found[-1]} by its name, where channel {own} belongs; give the files in the "
                    f"order {', '.join(names)}, or rename it"
                )
        return
    numbers = [int(match[1]) for file in files if (match := re.search(r"_([0-9]{4})\.", file.name))]
    if sorted(numbers) == list(range(len(files))) != numbers:
        raise InputError(f"{files[0]}: stands before {files[-1].name}; give the files in the order of their numbers")


def _words_that_differ(files: Sequence[Path]) -> list[set[str]]:
    """The words of each path, without the folders that all files lie in."""
    parts = [path.parts for path in files]
    shared = len(os.path.commonprefix(parts))
    return [set(_words("/".join(of_file[shared:]))) for of_file in parts]


def _words(text: str) -> list[str]:
    """Letters and digits between other signs, in lower case; T1w is t1."""
    return [re.sub("(?<=t[12])w$", "", word) for word in re.findall(r"[^\W_]+", text.lower())]
